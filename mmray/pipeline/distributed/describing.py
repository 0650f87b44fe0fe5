"""Workers that describe groups of images by a network, on a CPU or on the GPU that Ray gave them.

m images of a group, p descriptors, d dimensions, r regions, c channels.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmray.descriptors.embedding import (
    allow_tf32,
    as_batch,
    batch_limit,
    configure_torch,
    region_rows,
)
from mmray.descriptors.inference import fused
from mmray.descriptors.moments import Moments
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import DescriptorSettings
from mmray.descriptors.shards import features_table, moments_table
from mmray.pipeline.distributed.decoding import ImageGroup
from mmray.pipeline.distributed.metrics import BusyDevice
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
        self.exact = fused(self.given).on(self.device)
        self.settings, self.regions = settings, settings.regions.to(self.device)
        self.turn, self.local = threading.Lock(), threading.local()
        self.busy = BusyDevice(self.device.type)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Let this thread compute without gradients, on its own stream of a GPU."""
        if self.device.type == "cuda" and not hasattr(self.local, "stream"):
            self.local.stream = torch.cuda.Stream()
        stream = getattr(self.local, "stream", None)
        with torch.inference_mode(), torch.cuda.stream(stream) if stream else nullcontext():
            yield

    def _computed(
        self,
        batches: Sequence[NDArray[np.uint8]],
        compute: Callable[[Tensor], Tensor],
        *,
        tf32: bool = False,
    ) -> list[Features]:
        """Compute something of batches of images, each (m, h, w, 3): arrays of m rows."""
        if not batches:
            return []
        limit = batch_limit(self.device.type, self.settings.batch_size)
        fixed = self.settings.fixed_batches
        with self._on_device():
            on_device = [
                as_batch(batch, self.device, fill=limit.of_shape(*batch.shape[1:3]) if fixed else 0)
                for batch in batches
            ]
            with self.busy:
                with self.turn:
                    allow_tf32(tf32)
                    found = [compute(batch) for batch in on_device]
                    allow_tf32(False)
                return [
                    rows.float().cpu().numpy()[: len(batch)]
                    for rows, batch in zip(found, batches, strict=True)
                ]


class ExtractionWorker(_DeviceWorker):
    """Worker that describes groups of images, and makes a shard of the rows of a unit."""

    def __init__(
        self, network: list[ray.ObjectRef[Any]], settings: DescriptorSettings, threads: int
    ) -> None:
        super().__init__(network, settings, threads)
        self.model = self.exact
        if settings.precision in ("bfloat16", "float16"):
            self.model = fused(self.given, precision=settings.precision).on(self.device)

    def __call__(self, groups: Sequence[ImageGroup]) -> pa.Table:
        """Describe groups of images; return a row for each image, without an order."""
        batches = [group.pixels for group in groups if group.pixels is not None]
        describe = partial(self._descriptors, self.model)
        found = iter(self._computed(batches, describe, tf32=self.settings.precision == "tf32"))
        tables = []
        for group in groups:
            descriptors = self._settled(group) if group.pixels is None else next(found)
            rows = features_table(
                group.about,
                deviation=self._deviations(group, descriptors),
                poolings=self.settings.poolings,
                descriptors=descriptors,
            )
            for name in (UNIT, "bytes"):
                rows = rows.append_column(name, group.about[name])
            tables.append(rows)
        return pa.concat_tables(tables)

    def _descriptors(self, model: EmbeddingNet, batch: Tensor) -> Tensor:
        """Compute the descriptors (m, p, d) of images with the settings."""
        settings = self.settings
        scales = settings.preprocessing.scales
        return model.descriptors(batch, settings.poolings, scales=scales, regions=self.regions)

    def _deviations(self, group: ImageGroup, descriptors: Features) -> list[float | None]:
        """Return 1 - cosine to single precision, measured on one image of each unit."""
        deviations: list[float | None] = [None] * len(group.about)
        places = np.flatnonzero(group.about["sample"].to_numpy()).tolist()
        if group.pixels is not None and places and self.settings.precision != "float32":
            describe = partial(self._descriptors, self.exact)
            (exact,) = self._computed([group.pixels[places]], describe)
            for place, row in zip(places, exact, strict=True):
                deviations[place] = 1 - (descriptors[place] * row).sum(axis=1).min()
        return deviations

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


class RegionWorker(_DeviceWorker):
    """Worker that computes the region vectors of images, and sums up those of a unit."""

    def __call__(self, groups: Sequence[ImageGroup]) -> pa.Table:
        """Compute the region vectors of groups of images; return a row for each image."""
        scales = self.settings.preprocessing.scales
        batches = [group.pixels for group in groups if group.pixels is not None]
        compute = partial(region_rows, self.exact, regions=self.regions, scales=scales)
        found = iter(self._computed(batches, compute))
        tables = []
        for group in groups:
            m, c = len(group.about), self.exact.channels
            vectors = np.zeros((m, 0, c)) if group.pixels is None else next(found)
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
