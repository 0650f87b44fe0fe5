"""The one pattern of every distributed stage: a resumable map of an actor pool over units of work.

A unit is one row of a table and becomes one Parquet shard, written whole by the actor that computed
it under a name made of the unit's number. A shard that is there is a unit that is done: running
the same command again computes the missing ones only, in any order, on any number of actors, and
gives the same files. Ray Data never splits or merges rows, so a unit's membership is fixed.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionResources

from mmray.pipeline.distributed.capacity import Capacity, WorkerWatchdog
from mmray.pipeline.distributed.ray_internals import ExecutionCallback, set_callbacks
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.progress import Progress

UNIT = "unit"  # the column that numbers the units of a table of work
ITEMS = "items"  # the column that says how many items a unit has, for the progress display
SUMMED = ("bytes", "bad")  # columns that preparing a unit may add, for the same
RECEIPT = (ITEMS, *SUMMED)
ACTORS = "MapWorker"  # what Ray Data calls the actors of a pool

RESTARTED = "restarted"  # given to a preparation: whether its actor died and was started again

Preparation = Callable[[dict[str, Any]], dict[str, Any]]


class Worker(Protocol):
    """Computes the shard of one unit of work; built once an actor."""

    def __call__(self, unit: dict[str, Any]) -> pa.Table: ...


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """How many actors work, what each of them takes, and of what."""

    minimum: int = 1
    maximum: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    capacity: Capacity = field(default_factory=Capacity)

    def size(self) -> int:
        """How many actors there is room for, beside tasks.

        Raises
        ------
        InputError
            There is no room for one.
        """
        room = self.capacity.free_cpus // self.cpus
        if self.gpus:
            room = min(room, int(self.capacity.gpus / self.gpus))
        size = min(room, self.maximum) if self.maximum else room
        if size < 1:
            raise InputError(
                f"the cluster has {self.capacity.cpus} CPUs and {self.capacity.gpus} GPUs, a "
                f"stage needs {self.cpus + 1} CPUs and {self.gpus:g} GPUs: add machines, start "
                "Ray with more --num-cpus, or, where an autoscaler adds them, tell this job what "
                "to count on: --num-cpus and --num-gpus"
            )
        return size

    @property
    def needs(self) -> dict[str, float]:
        """What an actor takes, by resource."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def shard_name(unit: int) -> str:
    return f"part-{unit:06d}.parquet"


class _ShardWriter:
    """The actor: computes a unit, writes its shard, answers with a receipt."""

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
        with warnings.catch_warnings(action="ignore"):  # Ray's, of what it calls itself
            self.restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            unit = row
            if self.prepare is not None:
                unit = self.prepare(row | {RESTARTED: self.restarted})
            self.output.write_table(shard_name(unit[UNIT]), self.worker(unit), **self.layout)
        except InputError as error:  # an exception would reach the driver wrapped in Ray's own
            return dict.fromkeys(RECEIPT, 0) | {"refused": str(error)}
        return {name: unit.get(name, 0) for name in RECEIPT} | {"refused": ""}


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
        One row a unit, with the columns `unit` and `items`; the rest is the worker's.
    worker, arguments
        `worker(*arguments)` is built once an actor. Large arrays go in as object references, which
        the worker opens itself.
    prepare
        What a CPU does to a unit before the worker gets it (decoding): takes and returns a unit,
        and may add `bytes` and `bad` to what the progress shows. It runs in the actor.
    ahead_bytes
        If given, it runs ahead of the actors instead, on any CPU of the cluster: so GPUs are kept
        busy. This is the size of a prepared unit at most; so many wait in the object store as keep
        the actors busy, and no more.
    layout
        Of the shards, where it is not the usual one: see `Folder.write_table`.
    report
        Is told the figures of `Progress` now and then.
    most_bad
        It ends early where more items than this are bad.

    Raises
    ------
    InputError
        A worker met an input that cannot be used. Shards that are written stay.
    """
    done = set(output.names())
    missing = [row for row in range(len(work)) if shard_name(work[UNIT][row].as_py()) not in done]
    total = sum(work[ITEMS].to_pylist())
    left = sum(work[ITEMS][row].as_py() for row in missing)
    with Progress(label, total=total, done=total - left, report=report) as progress:
        if not missing:
            return
        size = min(pool.size(), len(missing))
        # `from_arrow` would look at each block in a task, which takes a CPU, and before that a
        # machine.
        dataset = ray.data.from_blocks([work.slice(row, 1) for row in missing])
        if prepare is not None and ahead_bytes:
            _bound(dataset, ahead_bytes, size, pool.capacity.free_cpus)
            # Asking for memory also keeps Ray Data from joining it to the actor's own work.
            dataset = dataset.map(prepare, num_cpus=1, memory=2 * ahead_bytes)
            prepare = None
        receipts = dataset.map(
            _ShardWriter,
            fn_constructor_args=(worker, arguments, output, prepare, layout or {}),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            # All of them at once, of a size that never changes: those that have no room yet are
            # what makes an autoscaler add machines, and go to work when these are there.
            compute=ray.data.ActorPoolStrategy(size=size),
        )
        watchdog = WorkerWatchdog(
            label, workers=ACTORS, needs=pool.needs, timeout=pool.capacity.timeout
        )
        _watch(receipts, watchdog)
        for receipt in receipts.iter_rows():
            if receipt["refused"]:
                raise InputError(receipt["refused"])
            shown = {name: receipt[name] for name in SUMMED if receipt[name]}
            progress.advance(receipt[ITEMS], **shown)
            if most_bad is not None and progress.sums.get("bad", 0) > most_bad:
                return


def _watch(dataset: ray.data.Dataset, watchdog: WorkerWatchdog) -> None:
    """Have Ray Data look for workers while it runs; where it must not go on, iterating raises."""

    class Watching(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            watchdog.check()

    set_callbacks(dataset, Watching)


def _bound(dataset: ray.data.Dataset, unit_bytes: int, actors: int, cpus: int) -> None:
    """Limit what waits in the object store to one unit a CPU that prepares, and two an actor."""
    units = 2 * actors + max(1, cpus)
    dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=units * unit_bytes
    )
