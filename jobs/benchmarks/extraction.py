"""Extraction beside the loops one would write instead: the same images, network and sizes.

n images, d dims.
"""

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmray.descriptors.embedding import as_batch
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import DescriptorSettings
from mmray.descriptors.shards import finish_features, read_features
from mmray.images.collection import Collection
from mmray.images.decoding import load_image, same_shape_batches
from mmray.pipeline.distributed import cluster
from mmray.pipeline.distributed.extraction import extract
from mmray.pipeline.distributed.units import ActorPool
from mmray.pipeline.stage import StageFolder
from mmray.system.arrays import Features, Pixels
from mmray.system.folder import Folder

POOLING = "mac"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The speed of one way to describe images.

    Attributes
    ----------
    images_per_second : once it runs
    startup : seconds before that: of processes, a network sent to them, a cache of resized images
    deviation : from one image at a time; of descriptors the largest 1 - cosine, of training the
        relative difference of the first epoch's mean loss (rounding grows with every step)
    whole : images a second with the start, for all images together; None: not measured
    """

    way: str
    images_per_second: float
    startup: float
    deviation: float
    whole: float | None = None


class Photos(Dataset[Pixels]):
    """Images decoded when they are asked for, by the processes of a DataLoader."""

    def __init__(self, images: Collection, longest_side: int) -> None:
        self.images, self.longest_side = images, longest_side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Pixels:
        decoded = load_image(self.images[place], longest_side=self.longest_side)
        if decoded.pixels is None:
            raise ValueError(f"{self.images[place].location}: {decoded.error}")
        return decoded.pixels


def compare_extraction(
    images: Collection,
    model: EmbeddingNet,
    settings: DescriptorSettings,
    *,
    threads: int,
) -> list[Rate]:
    """Rates of MAC descriptors: two loops over a DataLoader, and ours.

    The first takes one image at a time, as the field's code does; the second is a bare loop with
    batches of one shape, out of a shard of images each. A loader decodes in the loop's process or
    in `threads` others; the faster counts. Ours runs last: to fork processes beside a Ray that is
    connected is not safe.

    Parameters
    ----------
    settings : the poolings are MAC alone; single precision is measured too
    """
    longest_side = settings.preprocessing.longest_side
    assert longest_side is not None
    torch.set_num_threads(threads)
    photos = Photos(images, longest_side)

    def loop(way: str, chunk: int, largest: int) -> tuple[Rate, Features]:
        best, rows = 0.0, np.empty(0, np.float32)
        for workers in (0, threads):
            loader = DataLoader(photos, chunk, num_workers=workers, collate_fn=list)
            start = time.perf_counter()
            rows = _embedded(model, loader, largest)
            best = max(best, len(images) / (time.perf_counter() - start))
        return Rate(way=way, images_per_second=best, startup=0, deviation=0, whole=best), rows

    _embedded(model, [[photos[0]]], 1)
    single, alone = loop("one image at a time", 1, 1)
    bare, rows = loop("bare loop, batches of one shape", settings.shard_size, settings.batch_size)
    rates = [single, replace(bare, deviation=_deviation(rows, alone))]
    start = time.perf_counter()
    cluster.connect()
    connected = time.perf_counter() - start
    for precision in dict.fromkeys(("float32", settings.precision)):
        rate, rows = _extracted(images, model, replace(settings, precision=precision))
        startup = connected + rate.startup
        whole = len(images) / (len(images) / rate.images_per_second + startup)
        rate = replace(rate, startup=startup, whole=whole)
        rates.append(replace(rate, deviation=_deviation(rows, alone)))
    return rates


def _embedded(model: EmbeddingNet, chunks: Iterable[Sequence[Pixels]], largest: int) -> Features:
    """(n, d), by a plain loop."""
    model.eval()
    rows = []
    with torch.inference_mode():
        for chunk in chunks:
            found = np.empty((len(chunk), model.dim), np.float32)
            for batch in same_shape_batches([image.shape[:2] for image in chunk], largest):
                pixels = as_batch([chunk[place] for place in batch], torch.device("cpu"))
                found[batch] = model(pixels).numpy()
            rows.append(found)
    return np.concatenate(rows)


def _extracted(
    images: Collection, model: EmbeddingNet, settings: DescriptorSettings
) -> tuple[Rate, Features]:
    """Our rate, and the descriptors (n, d)."""
    with tempfile.TemporaryDirectory() as folder:
        stage = StageFolder.of(Folder(folder), "extract", "benchmark")
        shards, pool = stage.folder / "features", cluster.with_gpus(ActorPool())
        start = time.time()
        extract(
            images,
            model,
            settings=settings,
            output=shards,
            pool=pool,
            label="extract",
        )
        assert shards.local is not None
        # The first two shards of every actor are its start: libraries tune themselves.
        ended = sorted((shards.local / name).stat().st_mtime for name in shards.names())
        first = min(2 * pool.size(), len(ended) - 2)
        rate = (len(ended) - 1 - first) * len(images) / len(ended) / (ended[-1] - ended[first])
        finish_features(stage.folder, settings.poolings, total=len(images), max_bad_fraction=0)
        rows = np.array(read_features(stage.folder, settings.poolings, POOLING))
    startup = ended[-1] - start - len(images) / rate
    return Rate(
        way=f"mmray, {settings.precision}", images_per_second=rate, startup=startup, deviation=0
    ), rows


def _deviation(rows: Features, alone: Features) -> float:
    return float(1 - (rows * alone).sum(axis=1).min())
