"""Units of images: decoded, described and collated to shards, with or without a GPU.

Without a GPU a unit is one worker's: it decodes an image after the other, describes each group of
one shape as soon as it is full, and writes the shard. A GPU would wait meanwhile. So there, tasks
decode on CPUs, actors on GPUs take groups from any of them, and the job collates rows to shards,
which it writes while the next are on their way. Ray Data bounds by their bytes the groups that
wait. The rows are the same in both arrangements.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from mmray.images.decoding import BatchLimit
from mmray.pipeline.distributed.capacity import WorkerWatchdog
from mmray.pipeline.distributed.decoding import PIXEL_BUDGET, Decoder, ImageGroup
from mmray.pipeline.distributed.metrics import CountedProgress
from mmray.pipeline.distributed.ray_internals import map_blocks, was_restarted
from mmray.pipeline.distributed.units import (
    ACTORS,
    PARQUET,
    RESTARTED,
    UNIT,
    ActorPool,
    ShardForm,
    blocks_of,
    keep_until_next,
    missing_units,
    run_units,
    shard_name,
    watch,
)
from mmray.system.arrays import Ids
from mmray.system.folder import Folder

BLOCK = 16 << 20  # bytes of pixels that are described, or travel, together: 60 photos of 362 pixels
SHARED = 4  # most units whose images share groups: more images fill more of them
CALLS = 2  # of an actor on a GPU at once: one copies and collects while the other computes
WRITERS = 4  # shards that are written at once


class ImageWorker(Protocol):
    """Interface of workers on images: a row for each image, and a shard of the rows of a unit.

    The rows have the columns `unit`, `item`, `error` and `bytes`.
    """

    def __call__(self, groups: Sequence[ImageGroup]) -> pa.Table: ...

    @staticmethod
    def shard(rows: pa.Table) -> pa.Table: ...


class _UnitWorker:
    """A worker on whole units: it decodes and describes the images of one, a group at a time."""

    def __init__(
        self,
        decoder: Decoder,
        worker: Callable[..., ImageWorker],
        arguments: tuple[Any, ...],
        limit: BatchLimit,
    ) -> None:
        self.decoder, self.limit = decoder, limit
        self.worker = worker(*arguments)

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        blocks = _blocks(self.decoder.groups([unit], self.limit))
        rows = pa.concat_tables([self.worker(groups) for groups in blocks])
        unit.update(_sums(rows))
        return self.worker.shard(rows)


def _blocks(groups: Iterable[ImageGroup]) -> Iterator[list[ImageGroup]]:
    """Yield groups in blocks of BLOCK bytes of pixels, or somewhat more.

    To decode and to describe by turns takes longer: each would find the caches full of the other's.
    """
    block, size = list[ImageGroup](), 0
    for group in groups:
        block.append(group)
        size += 0 if group.pixels is None else group.pixels.nbytes
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _sums(rows: pa.Table) -> dict[str, int]:
    """Return what the progress display shows of images: their bytes, and how many are bad."""
    return {
        "bytes": pc.sum(rows["bytes"]).as_py(),
        "bad": len(rows) - rows["error"].null_count,
    }


class _Decoding:
    """A task that decodes the images of some units and sends them on in groups of one shape."""

    def __init__(self, decoder: Decoder, limit: BatchLimit) -> None:
        self.decoder, self.limit = decoder, limit

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        told = {RESTARTED: was_restarted()}
        rows = [unit | told for unit in units.to_pylist()]
        for group in self.decoder.groups(rows, self.limit):
            yield group.to_row()


class _Describing:
    """An actor with a share of a GPU that describes groups of images; threads may call it."""

    def __init__(self, worker: Callable[..., ImageWorker], arguments: tuple[Any, ...]) -> None:
        self.worker = worker(*arguments)

    def __call__(self, groups: pa.Table) -> pa.Table:
        rows = [groups.slice(row, 1) for row in range(len(groups))]
        return self.worker([ImageGroup.of_row(row) for row in rows])


class _Collator:
    """Collects the rows of units, and writes the shard of each that is complete, in threads.

    Parameters
    ----------
    items : images of each missing unit, by its number
    shard : makes a shard of the rows of a unit
    output, form : of the shards
    """

    def __init__(
        self,
        items: Mapping[int, int],
        shard: Callable[[pa.Table], pa.Table],
        output: Folder,
        form: ShardForm,
    ) -> None:
        self.items, self.shard, self.output, self.form = items, shard, output, form
        self.rows: dict[int, list[pa.Table]] = {}
        self.threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="shards")
        self.writing: deque[Future[None]] = deque()

    def add(self, rows: pa.Table) -> None:
        """Take rows of any units; waits while many shards are still being written."""
        for unit in pc.unique(rows[UNIT]).to_pylist():
            parts = self.rows.setdefault(unit, [])
            parts.append(rows.filter(pc.equal(rows[UNIT], unit)))
            if sum(map(len, parts)) == self.items[unit]:
                self.writing.append(self.threads.submit(self._write, unit, self.rows.pop(unit)))
        while len(self.writing) > 2 * WRITERS or (self.writing and self.writing[0].done()):
            self.writing.popleft().result()

    def _write(self, unit: int, parts: list[pa.Table]) -> None:
        shard = self.shard(pa.concat_tables(parts))
        self.output.write(shard_name(unit, self.form), self.form.encode(shard))

    def close(self) -> None:
        """Wait for the shards that are being written."""
        with self.threads:
            while self.writing:
                self.writing.popleft().result()


def run_image_units(
    work: pa.Table,
    decoder: Decoder,
    worker: type[ImageWorker],
    arguments: tuple[Any, ...],
    *,
    limit: BatchLimit,
    pool: ActorPool,
    **options: Any,
) -> None:
    """Describe the images of every unit whose shard is missing, by actors on GPUs if there are any.

    Parameters
    ----------
    work, decoder, worker, arguments, limit, pool, options : as for `stream_image_units`
    """
    if pool.gpus:
        stream_image_units(work, decoder, worker, arguments, limit=limit, pool=pool, **options)
    else:
        run_units(work, _UnitWorker, (decoder, worker, arguments, limit), pool=pool, **options)


def stream_image_units(
    work: pa.Table,
    decoder: Decoder,
    worker: type[ImageWorker],
    arguments: tuple[Any, ...],
    *,
    limit: BatchLimit,
    output: Folder,
    pool: ActorPool,
    label: str,
    form: ShardForm = PARQUET,
    report: Callable[[Mapping[str, float]], None] | None = None,
    most_bad: int | None = None,
) -> None:
    """Describe the images of every unit whose shard is missing: decoded by tasks, then by actors.

    Parameters
    ----------
    work : the units, as of `units_of`
    decoder : of the images
    worker, arguments
        Each actor builds `worker(*arguments)` once.
    limit : of the images of one shape that are described together
    output, pool, label, form, report, most_bad : as for `run_units`

    Raises
    ------
    InputError
        As for `run_units`.
    """
    missing, items = missing_units(work, output, form)
    total = int(items.sum())
    with CountedProgress(
        label, total=total, done=total - int(items[missing].sum()), report=report
    ) as progress:
        if not len(missing):
            return
        start = time.monotonic()
        described = _stream(work, missing, decoder, (worker, arguments), limit, pool)
        watchdog = WorkerWatchdog(
            label, workers=ACTORS, needs=pool.needs, timeout=pool.capacity.timeout
        )
        watch(described, watchdog)
        numbers = work[UNIT].to_numpy()[missing]
        collator = _Collator(
            dict(zip(numbers.tolist(), items[missing].tolist(), strict=True)),
            worker.shard,
            output,
            form,
        )
        try:
            for rows in described.iter_batches(batch_size=None, batch_format="pyarrow"):
                collator.add(rows)
                progress.advance(len(rows), **_sums(rows))
                if most_bad is not None and progress.sums.get("bad", 0) > most_bad:
                    break
        finally:
            collator.close()
        keep_until_next(arguments, since=start)


def _stream(
    work: pa.Table,
    missing: Ids,
    decoder: Decoder,
    describing: tuple[Any, ...],
    limit: BatchLimit,
    pool: ActorPool,
) -> "ray.data.Dataset":
    """Return the dataset of rows of images: decoded by tasks, described by actors on GPUs."""
    share = max(1, min(SHARED, len(missing) // (4 * pool.capacity.cpus)))
    dataset = ray.data.from_blocks(blocks_of(work, missing, share))
    # Blocks of one group or a few: what is decoded is sent on soon, and little waits in memory.
    dataset.context.target_max_block_size = BLOCK
    # Asking for memory also keeps Ray Data from fusing the decoding with the actors.
    groups = map_blocks(dataset, _Decoding(decoder, limit), num_cpus=1, memory=2 * PIXEL_BUDGET)
    pool.size()  # InputError where there is no room, or will be none
    # An elastic pool: it takes GPUs that come later, and gives back those that it does not need.
    actors = ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=pool.maximum,
        max_concurrent_calls_per_actor=CALLS,
        enable_true_multi_threading=True,
    )
    return map_blocks(
        groups,
        _Describing,
        fn_constructor_args=describing,
        compute=actors,
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
