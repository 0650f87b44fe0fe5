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

import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionResources

from mmray.pipeline.distributed.capacity import Capacity, WorkerWatchdog
from mmray.pipeline.distributed.ray_internals import (
    ExecutionCallback,
    set_callbacks,
    was_restarted,
)
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.progress import Progress

UNIT = "unit"  # column of a table of work: number of the unit
ITEMS = "items"  # column of a table of work: items of the unit, for the progress display
SUMMED = ("bytes", "bad")  # entries that preparing a unit may add, for the progress display
RECEIPT = (ITEMS, *SUMMED)
ACTORS = "MapWorker"  # beginning of the class names of Ray Data's actors

# An actor that is still starting when all work of a stage is done reads its objects nevertheless,
# and would print that they are gone. Those of a stage of fewer seconds are kept until the next.
LATE_START = 60.0
_KEPT: list[tuple[Any, ...]] = []

# Units for each actor up to which a stage is done by tasks: its actors would start for longer than
# they would work.
FEW = 4

RESTARTED = "restarted"  # entry of a unit: whether its worker died and was started again

Preparation = Callable[[dict[str, Any]], dict[str, Any]]


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
    capacity : CPUs and GPUs that the job may use
    """

    minimum: int = 1
    maximum: int | None = None
    cpus: int = 1
    gpus: float = 0.0
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
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def shard_name(unit: int) -> str:
    """Return the file name of a unit's shard."""
    return f"part-{unit:06d}.parquet"


class _ShardWriter:
    """Computes a unit, writes its shard, and returns a receipt; Ray Data makes an actor of it."""

    def __init__(
        self,
        worker: Callable[..., Worker],
        arguments: tuple[Any, ...],
        output: Folder,
        prepare: Preparation | None,
        layout: Mapping[str, Any],
    ) -> None:
        self.worker = worker(*arguments)
        self.output, self.prepare, self.layout = output, prepare, layout

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            unit = row
            if self.prepare is not None:
                unit = self.prepare(row | {RESTARTED: was_restarted()})
            self.output.write_table(shard_name(unit[UNIT]), self.worker(unit), **self.layout)
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
    prepare: Preparation | None = None,
    ahead_bytes: int = 0,
    layout: Mapping[str, Any] | None = None,
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
    prepare
        Work of a CPU on a unit before the worker takes it, such as decoding: takes and returns a
        unit, to which it may add `bytes` and `bad` for the progress display. The worker runs it.
    ahead_bytes
        If not 0, `prepare` runs ahead of the actors instead, on any CPU of the cluster, which keeps
        GPUs busy. The value is the largest size of a prepared unit in bytes; it bounds the units
        that wait in the object store to as many as keep the actors busy.
    layout
        Options of `Folder.write_table` for the shards.
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
    done = set(output.names())
    missing = [row for row in range(len(work)) if shard_name(work[UNIT][row].as_py()) not in done]
    total = sum(work[ITEMS].to_pylist())
    left = sum(work[ITEMS][row].as_py() for row in missing)
    with Progress(label, total=total, done=total - left, report=report) as progress:
        if not missing:
            return
        size = min(pool.size(), len(missing))
        # `from_arrow` would inspect each block in a task, which takes a CPU and thus a machine.
        dataset = ray.data.from_blocks([work.slice(row, 1) for row in missing])
        if prepare is not None and ahead_bytes:
            _bound(dataset, ahead_bytes, size, pool.capacity.free_cpus)
            # Asking for memory also keeps Ray Data from fusing the preparation with the worker.
            dataset = dataset.map(prepare, num_cpus=1, memory=2 * ahead_bytes)
            prepare = None
        made = (worker, arguments, output, prepare, layout or {})
        few = not pool.gpus and len(missing) <= FEW * size
        if few:
            compute = ray.data.TaskPoolStrategy(size=size)
            how: dict[str, Any] = {"fn": _ShardTask(*made), "compute": compute}
        else:
            # A pool of fixed size, all actors at once: those without room make an autoscaler add
            # machines, and start when these are there.
            actors = ray.data.ActorPoolStrategy(size=size)
            how = {"fn": _ShardWriter, "fn_constructor_args": made, "compute": actors}
        receipts = dataset.map(**how, num_cpus=pool.cpus, num_gpus=pool.gpus)
        watchdog = WorkerWatchdog(
            label,
            workers=None if few else ACTORS,
            needs=pool.needs,
            timeout=pool.capacity.timeout,
        )
        _watch(receipts, watchdog)
        start = time.monotonic()
        _KEPT[:] = [arguments]
        for receipt in receipts.iter_rows():
            if receipt["refused"]:
                raise InputError(receipt["refused"])
            shown = {name: receipt[name] for name in SUMMED if receipt[name]}
            progress.advance(receipt[ITEMS], **shown)
            if most_bad is not None and progress.sums.get("bad", 0) > most_bad:
                return
        if time.monotonic() - start > LATE_START:
            _KEPT.clear()


def _watch(dataset: ray.data.Dataset, watchdog: WorkerWatchdog) -> None:
    """Check a watchdog while Ray Data runs a dataset; its errors are raised by iterating."""

    class Watching(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            watchdog.check()

    set_callbacks(dataset, Watching)


def _bound(dataset: ray.data.Dataset, unit_bytes: int, actors: int, cpus: int) -> None:
    """Limit the object store to one prepared unit per preparing CPU and two per actor."""
    units = 2 * actors + max(1, cpus)
    dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=units * unit_bytes
    )
