"""The driver's way from a list of images to their descriptors, by simulation.

n images. Few units are described; the shards of the others are there, so what is left is the work
of the driver, which grows with n.
"""

import gc
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data

from benchmarks.simulated_collection import DIMS, UNIT_SIZE, SimulatedCollection
from mmray.config.choices import Descriptor
from mmray.config.sections import MiningConfig
from mmray.descriptors.known import KnownDescriptors
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import DescriptorSettings, Preprocessing
from mmray.descriptors.shards import finish_features
from mmray.images.collection import Collection, sample
from mmray.pipeline.distributed import cluster
from mmray.pipeline.distributed.decoding import units_of
from mmray.pipeline.distributed.extraction import extract
from mmray.pipeline.distributed.units import TOGETHER, ActorPool, blocks_of
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.extraction import ExtractedDescriptors
from mmray.pipeline.stages.minable import need_items
from mmray.system.folder import Folder

Result = TypeVar("Result")

POOLINGS: tuple[Descriptor, ...] = ("embedding",)
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the driver, once.

    Attributes
    ----------
    seconds, cpu_seconds : of the clock, and of all threads of the driver
    peak : MB that the driver had at most during the step, beyond those after its imports
    """

    name: str
    seconds: float
    cpu_seconds: float
    peak: float


@dataclass
class _Stopwatch:
    """Measures steps one after the other."""

    base: float = field(default_factory=lambda: _restarted_peak())
    steps: list[Step] = field(default_factory=list)

    def __call__(self, name: str, step: Callable[[], Result]) -> Result:
        _restarted_peak()
        start, cpu_start = time.perf_counter(), time.process_time()
        result = step()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        peak = _peak() - self.base
        self.steps.append(Step(name=name, seconds=seconds, cpu_seconds=cpu_seconds, peak=peak))
        return result


def time_steps(counts: Sequence[int], *, described_every: int) -> list[list[Step]]:
    """Measure every step of the driver for collections of so many images.

    Parameters
    ----------
    counts : n of each collection; each is measured in a process of its own
    described_every : one of so many units is described

    Returns
    -------
    The steps for each n, the same ones in the same order.
    """
    measured = []
    for n in counts:
        alone = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with tempfile.TemporaryDirectory() as folder, alone as pool:
            measured.append(pool.submit(_steps, folder, n, described_every).result())
    return measured


def _steps(folder: str, n: int, described_every: int) -> list[Step]:
    measure = _Stopwatch()
    photos = Path(folder) / "photos"
    photos.mkdir()
    simulated = SimulatedCollection(photos, n, described_every)
    storage = Folder(folder)
    stage = StageFolder.of(storage, "extract", n)
    assert stage.folder.local is not None
    simulated.write_shards(stage.folder.local / "features")
    images = _listed(simulated, storage, measure)
    measure("Collection.digest", images.digest)
    measure("sample of 5,000", lambda: sample(images, 5000, 0))
    for side in (32, None):
        divide = partial(units_of, images, shard_size=UNIT_SIZE, longest_side=side)
        measure(f"units_of, longest side {side}", divide)
    cluster.connect()
    _pass_blocks(images, measure)
    _describe(images, stage, measure)
    _finish(images, stage, measure)
    known = measure("KnownDescriptors.of", lambda: KnownDescriptors.of([stage.folder], POOLINGS))
    measure("KnownDescriptors, ray.put", lambda: ray.put(known))
    digests = stage.folder.read_table("images.parquet", ["digest"])["digest"]
    measure("KnownDescriptors.count", lambda: known.count(digests))
    return measure.steps


def _listed(simulated: SimulatedCollection, storage: Folder, measure: _Stopwatch) -> Collection:
    """Measure what follows the listing of files, and return the images."""
    parts = simulated.parts()
    joined = measure("Collection.joined", lambda: Collection.joined(parts))
    parts.clear()
    images = measure("Collection.distinct", joined.distinct)
    del joined

    def write() -> None:
        storage.write_table("list.parquet", images.masked().table)

    measure("write the list", write)

    def read() -> Collection:
        return Collection(storage.read_table("list.parquet")).unmasked([storage.uri])

    return measure("read the list", read)


def _pass_blocks(images: Collection, measure: _Stopwatch) -> None:
    """Measure what Ray Data takes for all units, with one and with some of them in a block."""
    work = units_of(images, shard_size=UNIT_SIZE, longest_side=32)
    for rows in (1, TOGETHER):
        blocks = blocks_of(work, np.arange(len(work)), rows)
        give = partial(ray.data.from_blocks, blocks)
        measure(f"ray.data.from_blocks, {rows} unit{'s' * (rows > 1)} in each", give)


def _describe(images: Collection, stage: StageFolder, measure: _Stopwatch) -> None:
    """Measure `extract`, with the units that are missing, and where none is."""
    settings = DescriptorSettings(
        preprocessing=Preprocessing(32), poolings=POOLINGS, shard_size=UNIT_SIZE
    )
    model = EmbeddingNet("efficientnet_lite0", "mac", DIMS)

    def run() -> None:
        extract(
            images,
            model,
            settings=settings,
            output=stage.folder / "features",
            pool=ActorPool(),
            label="extract",
            most_bad=0,
        )

    measure("extract, some units missing", run)
    measure("extract, no unit missing", run)


def _finish(images: Collection, stage: StageFolder, measure: _Stopwatch) -> ExtractedDescriptors:
    """Measure what makes the descriptors of the shards, and return them."""
    measure("Collection.locations", lambda: images.locations)
    counts = measure(
        "finish_features",
        lambda: finish_features(
            stage.folder,
            POOLINGS,
            total=len(images),
            max_bad_fraction=0,
            deduplicate=True,
            locations=images.locations,
        ),
    )
    measure("StageFolder.finish", lambda: stage.finish(counts, internal=["features/"]))

    def described() -> ExtractedDescriptors:
        kept = stage.folder.read_table("images.parquet", ["item"])["item"].to_numpy()
        return ExtractedDescriptors(stage, POOLINGS, images.take(kept), kept)

    found = measure("ExtractedDescriptors", described)
    need_items(MiningConfig(), len(images), "images")
    measure("read the features", lambda: found.features(POOLINGS[0]).sum())
    return found


def _restarted_peak() -> float:
    """Forget the largest memory of this process so far, where that can be done; return `_peak`."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    with suppress(OSError):
        _RESET.write_text("5")
    return _peak()


def _peak() -> float:
    """Return the most memory that this process had since the last restart, in MB."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def table_of(
    counts: Sequence[int], measured: "Sequence[Sequence[Step]]"
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """A table of the steps, with the slopes between the two largest collections."""
    added = (counts[-1] - counts[-2]) / 1e6
    head = ("step", *(f"{n / 1e6:g}M, s" for n in counts))
    rows = []
    for steps in zip(*measured, strict=True):
        before, last = steps[-2:]
        slopes = (
            (last.seconds - before.seconds) / added,
            (last.cpu_seconds - before.cpu_seconds) / added,
            (last.peak - before.peak) / added,
        )
        times = (f"{step.seconds:.2f}" for step in steps)
        formatted = (f"{slopes[0]:.3f}", f"{slopes[1]:.3f}", f"{slopes[2]:,.0f}")
        rows.append((last.name, *times, *formatted, f"{last.peak:,.0f}"))
    return (*head, "s a million", "CPU s a million", "MB a million", "most MB"), rows
