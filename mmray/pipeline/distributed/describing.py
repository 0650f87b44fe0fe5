"""Workers that describe groups of images by a network, on a CPU or on the GPU that Ray gave them.

m images of a group, p descriptors, d dimensions, r regions, c channels.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from mmray.descriptors.embedding import (
    BatchLimit,
    allow_tf32,
    as_batch,
    configure_torch,
    region_rows,
)
from mmray.descriptors.inference import fused
from mmray.descriptors.moments import Moments
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import DescriptorSettings
from mmray.descriptors.shards import features_table, moments_table
from mmray.pipeline.distributed.decoding import ImageGroup
from mmray.pipeline.distributed.units import UNIT
from mmray.system.arrays import Features


def assigned_gpus() -> list[str]:
    """Return the ids of the GPUs that Ray gave to this process; CUDA may show those of others."""
    return ray.get_runtime_context().get_accelerator_ids().get("GPU", [])


class _DeviceWorker:
    """A worker with a network on the device of its process, which threads may use at once.

    The passes of a thread are put in line on a stream of its own, one thread at a time; while one
    waits for its results, another copies pixels.
    """

    def __init__(
        self, network: list[ray.ObjectRef[Any]], settings: DescriptorSettings, threads: int
    ) -> None:
        configure_torch(threads)
        with_gpu = bool(assigned_gpus()) and torch.cuda.is_available()
        self.device = torch.device("cuda" if with_gpu else "cpu")
        self.given: EmbeddingNet = ray.get(network[0])
        self.exact = fused(self.given).to(self.device)
        self.settings, self.regions = settings, settings.regions.to(self.device)
        self.turn, self.local = threading.Lock(), threading.local()

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Let this thread compute without gradients, on its own stream of a GPU."""
        if self.device.type == "cuda" and not hasattr(self.local, "stream"):
            self.local.stream = torch.cuda.Stream()
        stream = getattr(self.local, "stream", None)
        with torch.inference_mode(), torch.cuda.stream(stream) if stream else nullcontext():
            yield

    def _batches(self, groups: Sequence[ImageGroup]) -> list[Tensor]:
        """Copy the pixels of groups to the device, filled up where batches are to be fixed."""
        limit = BatchLimit.on(self.device.type, self.settings.batch_size)
        batches = []
        for group in groups:
            if group.pixels is not None:
                _, height, width, _ = group.pixels.shape
                fill = limit.of_shape(height, width) if self.settings.fixed_batches else 0
                batches.append(as_batch(group.pixels, self.device, fill=fill))
        return batches


class ExtractionWorker(_DeviceWorker):
    """Worker that describes groups of images, and makes a shard of the rows of a unit."""

    def __init__(
        self, network: list[ray.ObjectRef[Any]], settings: DescriptorSettings, threads: int
    ) -> None:
        super().__init__(network, settings, threads)
        self.model = self.exact
        if settings.precision in ("bfloat16", "float16"):
            self.model = fused(self.given, precision=settings.precision).to(self.device)

    def __call__(self, groups: Sequence[ImageGroup]) -> pa.Table:
        """Describe groups of images; return a row for each image, without an order."""
        precision = self.settings.precision
        with self._on_device():
            given = [group for group in groups if group.pixels is not None]
            batches = self._batches(given)
            with self.turn:
                allow_tf32(precision == "tf32")
                found = [self._descriptors(self.model, batch) for batch in batches]
                allow_tf32(False)
                # One image per unit also in single precision: cheap, and all over the images.
                samples = [[] if precision == "float32" else _samples(group) for group in given]
                exact = [
                    self._descriptors(self.exact, batch[places]) if places else None
                    for batch, places in zip(batches, samples, strict=True)
                ]
            on_host = iter([rows.cpu().numpy() for rows in found])
            exact_on_host = iter([None if rows is None else rows.cpu().numpy() for rows in exact])
        tables = []
        for group in groups:
            deviations: list[float | None] = [None] * len(group.about)
            if group.pixels is None:
                descriptors = self._settled(group)
            else:
                descriptors = next(on_host)[: len(group.about)]
                single = next(exact_on_host)
                if single is not None:
                    for place, row in zip(_samples(group), single, strict=True):
                        deviations[place] = 1 - (descriptors[place] * row).sum(axis=1).min()
            rows = features_table(
                group.about,
                deviation=deviations,
                poolings=self.settings.poolings,
                descriptors=descriptors,
            )
            for name in (UNIT, "bytes"):
                rows = rows.append_column(name, group.about[name])
            tables.append(rows)
        return pa.concat_tables(tables)

    def _descriptors(self, model: EmbeddingNet, batch: Tensor) -> Tensor:
        """Compute the descriptors (m, p, d) float32 of images with the settings."""
        settings = self.settings
        scales = settings.preprocessing.scales
        found = model.descriptors(batch, settings.poolings, scales=scales, regions=self.regions)
        return found.float()

    def _settled(self, group: ImageGroup) -> Features:
        """Return the descriptors of a group that are known, and zeros."""
        if group.known is not None:
            return group.known
        poolings = self.settings.poolings
        return np.zeros((len(group.about), len(poolings), self.exact.width(poolings)), np.float32)

    @staticmethod
    def shard(rows: pa.Table) -> pa.Table:
        """Make a shard of the rows of a unit."""
        rows = rows.drop_columns([UNIT, "bytes"])
        if (np.diff(rows["item"].to_numpy()) < 0).any():  # to sort takes 16 us a row
            rows = rows.sort_by("item")
        return rows.combine_chunks()


def _samples(group: ImageGroup) -> list[int]:
    """Return the places in a group of the images that are samples of their unit."""
    return np.flatnonzero(group.about["sample"].to_numpy()).tolist()


class RegionWorker(_DeviceWorker):
    """Worker that computes the region vectors of images, and sums up those of a unit."""

    def __call__(self, groups: Sequence[ImageGroup]) -> pa.Table:
        """Compute the region vectors of groups of images; return a row for each image."""
        scales = self.settings.preprocessing.scales
        with self._on_device():
            given = [group for group in groups if group.pixels is not None]
            batches = self._batches(given)
            with self.turn:
                found = [
                    region_rows(self.exact, batch, self.regions, scales=scales) for batch in batches
                ]
            on_host = iter([rows.cpu().numpy() for rows in found])
        tables = []
        for group in groups:
            m, c = len(group.about), self.exact.channels
            vectors = np.zeros((m, 0, c)) if group.pixels is None else next(on_host)[:m]
            flat = pa.array(vectors.reshape(-1), pa.float32())
            of_images = pa.ListArray.from_arrays(
                pa.array(np.arange(m + 1) * vectors.shape[1], pa.int32()),
                pa.FixedSizeListArray.from_arrays(flat, c),
            )
            rows = group.about.select([UNIT, "item", "error", "bytes"])
            tables.append(rows.append_column("vectors", of_images))
        return pa.concat_tables(tables)

    @staticmethod
    def shard(rows: pa.Table) -> pa.Table:
        """Make a shard, the moments of all vectors, of the rows of a unit."""
        vectors = rows.sort_by("item")["vectors"].combine_chunks().flatten()
        flat = vectors.flatten().to_numpy()
        return moments_table(Moments.of(flat.reshape(-1, vectors.type.list_size)))
