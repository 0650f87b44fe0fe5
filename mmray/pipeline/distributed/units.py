"""The pattern of all distributed stages: a resumable map of workers over units of work.

A unit is one row of a table and becomes one Parquet shard. The worker that computes the unit writes
the shard whole, under a name made of the unit's number. A unit is done if its shard exists: running
the same command again computes only the missing ones, in any order, on any number of workers, and
gives the same files. Ray Data never splits or merges rows, so a unit's membership is fixed.

A worker is an actor of a pool, or, where there is little to do, a task: processes of tasks serve
one stage after the other, and an actor's own starts, and imports torch, anew.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
import ray.data

from mmray.pipeline.distributed.capacity import Capacity, WorkerWatchdog
from mmray.pipeline.distributed.metrics import CountedProgress
from mmray.pipeline.distributed.ray_internals import (
    ExecutionCallback,
    set_callbacks,
    was_restarted,
)
from mmray.system.arrays import Ids
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.tables import table_file

UNIT = "unit"  # column of a table of work: number of the unit
ITEMS = "items"  # column of a table of work: items of the unit, for the progress display
SUMMED = ("bytes", "bad")  # entries that a worker may add to a unit, for the progress display
RECEIPT = (ITEMS, *SUMMED)
ACTORS = "MapWorker"  # beginning of the class names of Ray Data's actors

# An actor that is still starting when all work of a stage is done reads its objects nevertheless,
# and would print that they are gone. Those of a stage of fewer seconds are kept until the next.
LATE_START = 60.0
_KEPT: list[tuple[Any, ...]] = []

# Units for each actor up to which a stage is done by tasks: its actors would start for longer than
# they would work.
FEW = 4

# Most units in a block, where each actor has many: a block costs Ray Data 1 to 4 ms.
TOGETHER = 8

RESTARTED = "restarted"  # entry of a unit: whether its worker died and was started again


class Worker(Protocol):
    """Interface of workers: compute the shard of a unit; each process builds one of a stage."""

    def __call__(self, unit: dict[str, Any]) -> pa.Table: ...


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """Limits on the number of actors, and the resources of each.

    Attributes
    ----------
    minimum : fewest actors, which share GPUs where these are fewer
    maximum : most actors; None: as many as there is room for
    cpus, gpus : of one actor
    memory : bytes of one actor, which no machine promises to more actors than it has room for
    capacity : CPUs and GPUs that the job may use
    """

    minimum: int = 1
    maximum: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    memory: float = 0.0
    capacity: Capacity = field(default_factory=Capacity)

    def size(self) -> int:
        """Return the number of actors that there is room for, beside tasks.

        Raises
        ------
        InputError
            There is no room for an actor.
        """
        room = self.capacity.free_cpus // self.cpus
        if self.gpus:
            room = min(room, int(self.capacity.gpus / self.gpus))
        size = min(room, self.maximum) if self.maximum else room
        if size < 1:
            raise InputError(
                f"the cluster has {self.capacity.real_cpus} CPUs and {self.capacity.gpus} GPUs, a "
                f"stage needs {self.cpus + 1} CPUs and {self.gpus:g} GPUs: add machines, start "
                "Ray with more --num-cpus, or, where an autoscaler adds them, tell this job what "
                "to count on: --num-cpus and --num-gpus"
            )
        return size

    @property
    def needs(self) -> dict[str, float]:
        """Return the resources of an actor, name -> amount."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in amounts.items() if amount}


@dataclass(frozen=True)
class ShardForm:
    """Format of shards: the ending of their names, and what makes a file's content of a table."""

    ending: str
    encode: Callable[[pa.Table], bytes | bytearray]


PARQUET = ShardForm("parquet", table_file)


def shard_name(unit: int, form: ShardForm = PARQUET) -> str:
    """Return the file name of a unit's shard."""
    return f"part-{unit:06d}.{form.ending}"


class _ShardWriter:
    """Computes a unit, writes its shard, and returns a receipt; Ray Data makes an actor of it."""

    def __init__(
        self,
        worker: Callable[..., Worker],
        arguments: tuple[Any, ...],
        output: Folder,
        form: ShardForm,
    ) -> None:
        self.worker = worker(*arguments)
        self.output, self.form = output, form

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        unit = row | {RESTARTED: was_restarted()}
        name = shard_name(unit[UNIT], self.form)
        try:
            # A block that is tried again has units that were done.
            if not (unit[RESTARTED] and self.output.has(name)):
                self.output.write(name, self.form.encode(self.worker(unit)))
        except InputError as error:  # an exception would reach the driver wrapped in Ray's own
            return dict.fromkeys(RECEIPT, 0) | {"refused": str(error)}
        return {name: unit.get(name, 0) for name in RECEIPT} | {"refused": ""}


class _ShardTask:
    """A task that has its process's writer of a stage compute a unit; the first one builds it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.stage = arguments, secrets.token_hex(8)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.stage not in _WRITER:
            _WRITER.clear()
            _WRITER[self.stage] = _ShardWriter(*self.arguments)
        return _WRITER[self.stage](row)


_WRITER: dict[str, _ShardWriter] = {}  # of this process: that of the latest stage


def run_units(
    work: pa.Table,
    worker: Callable[..., Worker],
    arguments: tuple[Any, ...],
    *,
    output: Folder,
    pool: ActorPool,
    label: str,
    form: ShardForm = PARQUET,
    report: Callable[[Mapping[str, float]], None] | None = None,
    most_bad: int | None = None,
) -> None:
    """Compute every unit of `work` whose shard is not yet in `output`.

    Parameters
    ----------
    work : table
        One row per unit, with the columns `unit` and `items`; the others are for the worker.
    worker, arguments
        Each process builds `worker(*arguments)` once. Large arrays are passed as object references,
        which the worker opens itself.
    output
        Folder of the shards.
    pool
        The workers to run.
    label
        Name of the stage in the progress display and in messages.
    form
        Format of the shards.
    report
        Receives the figures of the progress now and then.
    most_bad
        The run ends early once more items than this are bad; None: never.

    Raises
    ------
    InputError
        An input of a worker cannot be used, or no worker could start in time. Shards that are
        written stay.
    """
    missing, items = missing_units(work, output, form)
    total, size = int(items.sum()), min(pool.size(), len(missing)) if len(missing) else 1
    done = total - int(items[missing].sum())
    with CountedProgress(label, total=total, done=done, report=report, parallel=size) as progress:
        if not len(missing):
            return
        # `from_arrow` would inspect each block in a task, which takes a CPU and thus a machine.
        together = max(1, min(TOGETHER, len(missing) // (64 * size)))
        dataset = ray.data.from_blocks(blocks_of(work, missing, together))
        made = (worker, arguments, output, form)
        few = not pool.gpus and len(missing) <= FEW * size
        if few:
            compute = ray.data.TaskPoolStrategy(size=size)
            how: dict[str, Any] = {"fn": _ShardTask(*made), "compute": compute}
        else:
            # A pool of fixed size, all actors at once: those without room make an autoscaler add
            # machines, and start when these are there.
            actors = ray.data.ActorPoolStrategy(size=size)
            how = {"fn": _ShardWriter, "fn_constructor_args": made, "compute": actors}
        amounts = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "memory": pool.memory or None}
        receipts = dataset.map(**how, **amounts)
        watchdog = WorkerWatchdog(
            label,
            workers=None if few else ACTORS,
            needs=pool.needs,
            timeout=pool.capacity.timeout,
        )
        watch(receipts, watchdog)
        start = time.monotonic()
        for receipt in receipts.iter_rows():
            if receipt["refused"]:
                raise InputError(receipt["refused"])
            shown = {name: receipt[name] for name in SUMMED if receipt[name]}
            progress.advance(receipt[ITEMS], **shown)
            if most_bad is not None and progress.sums.get("bad", 0) > most_bad:
                return
        keep_until_next(arguments, since=start)


def blocks_of(work: pa.Table, rows: Ids, most: int) -> list[pa.Table]:
    """Return ascending rows of a table in blocks of at most so many neighbours, without a copy."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    parts = [run[start : start + most] for run in runs for start in range(0, len(run), most)]
    return [work.slice(int(part[0]), len(part)) for part in parts]


def keep_until_next(arguments: tuple[Any, ...], *, since: float) -> None:
    """Keep the arguments of a short stage, begun at this time, until the next one ends."""
    _KEPT[:] = [arguments] if time.monotonic() - since <= LATE_START else []


def release_kept() -> None:
    """Let go of what the last stage was kept for, to make room for large arguments of the next."""
    _KEPT.clear()


def missing_units(work: pa.Table, output: Folder, form: ShardForm = PARQUET) -> tuple[Ids, Ids]:
    """Return the rows of a table of work whose shards are not there, and the items of all rows."""
    done = set(output.names())
    missing = [shard_name(unit, form) not in done for unit in work[UNIT].to_pylist()]
    return np.flatnonzero(missing), work[ITEMS].to_numpy()


def watch(dataset: ray.data.Dataset, watchdog: WorkerWatchdog) -> None:
    """Check a watchdog while Ray Data runs a dataset; its errors are raised by iterating."""

    class Watching(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            watchdog.check()

    set_callbacks(dataset, Watching)
