"""CPUs and GPUs that a job may use, and the wait for machines that are missing."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

import ray

from mmray.config.run import RunConfig
from mmray.pipeline.distributed.ray_internals import (
    available_resources_per_node,
    living_actors,
    other_jobs,
)
from mmray.system.errors import InputError, first_names
from mmray.system.progress import announce

T = TypeVar("T")

CHECK_EVERY = 5.0  # seconds
SAY_AFTER = 20.0  # seconds without a worker until a message; starting one takes a few
SAY_EVERY = 60.0
_COMMAND = 80  # most letters of another job's command in a message
SPARE_CPUS = "mmray_spare_cpus"  # resource: logical CPUs beyond those of a machine, for tasks


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """CPUs and GPUs that a job may use.

    Attributes
    ----------
    given_cpus, given_gpus : totals that an autoscaler will provide; None: those that are there now
    timeout : seconds that a stage waits for machines while it has no worker
    """

    given_cpus: int | None = None
    given_gpus: int | None = None
    timeout: float = RunConfig.resource_timeout

    @property
    def cpus(self) -> int:
        return _present("CPU") if self.given_cpus is None else self.given_cpus

    @property
    def real_cpus(self) -> int:
        """Return the number of CPUs without the logical ones that are for tasks only."""
        return self.cpus - (_present(SPARE_CPUS) if self.given_cpus is None else 0)

    @property
    def gpus(self) -> int:
        return _present("GPU") if self.given_gpus is None else self.given_gpus

    @property
    def free_cpus(self) -> int:
        """Return the number of CPUs that actors may take.

        Ray Data waits for ever, in silence, when its tasks have no CPU: two are left to them, or
        one where there are fewer than four.
        """
        return self.cpus - (2 if self.cpus >= 4 else 1)


def _present(resource: str) -> int:
    """Return the amount of a resource on the machines that are there now."""
    return int(ray.cluster_resources().get(resource, 0))


@dataclass(frozen=True)
class Machine:
    """A machine's CPUs, bytes for processes, and bytes for shared objects."""

    cpus: int
    memory: float
    shared: float


def machines() -> list[Machine]:
    """Return the machines that are there now, those without CPUs for workers included."""
    found = []
    for node in _living():
        has = node["Resources"]
        cpus = int(has.get("CPU", 0) - has.get(SPARE_CPUS, 0))
        # What a machine does not tell is no limit.
        memory, shared = (has.get(name, inf) for name in ("memory", "object_store_memory"))
        found.append(Machine(cpus, memory, shared))
    return found


def _living() -> list[dict[str, Any]]:
    """Return what Ray tells of the machines that are there now."""
    return [node for node in ray.nodes() if node["Alive"]]


def working_machines(stage: str, timeout: float) -> list[Machine]:
    """Return the machines with CPUs; where there is none, have an autoscaler start one.

    Parameters
    ----------
    stage : name of the stage in messages
    timeout : seconds to wait for one

    Raises
    ------
    InputError
        None came in time.
    """
    if not any(machine.cpus for machine in machines()):  # idle ones were stopped
        scout: Any = ray.remote(_ScaleUpProbe).options(num_cpus=1).remote()
        watchdog = WorkerWatchdog(
            stage, workers=_ScaleUpProbe.__name__, needs={"CPU": 1.0}, timeout=timeout
        )
        run_watched(lambda: ray.get(scout.ping.remote()), watchdog.check)
        ray.kill(scout)
    return [machine for machine in machines() if machine.cpus]


class _ScaleUpProbe:
    """An actor that makes an autoscaler start a machine."""

    def ping(self) -> None:
        """Return once the actor runs."""


def shared_memory() -> float:
    """Return the bytes for shared objects on the machine that has the least of them."""
    return min(machine.shared for machine in machines())


class WorkerWatchdog:
    """Watchdog of a stage: reports when it has no worker, and ends it if none comes.

    Ray waits for ever, in silence, for machines that no autoscaler provides, or that were lost and
    not replaced.

    Parameters
    ----------
    stage : name of the stage in messages
    workers : beginning of the class names of its actors; None: they are tasks, of which one runs
        while CPUs are in use
    needs : resources of one worker, name -> amount
    timeout : seconds without a worker after which the stage ends
    """

    def __init__(
        self, stage: str, *, workers: str | None, needs: Mapping[str, float], timeout: float
    ) -> None:
        self.stage, self.workers, self.needs, self.timeout = stage, workers, needs, timeout
        self.alone_since = self.looked = time.monotonic()
        self.said = self.alone_since + SAY_AFTER - SAY_EVERY

    def check(self) -> None:
        """Look for workers, at most every `CHECK_EVERY` seconds.

        Raises
        ------
        InputError
            There has been no worker for longer than the timeout.
        """
        now = time.monotonic()
        if now - self.looked < CHECK_EVERY:
            return
        self.looked = now
        if self._has_worker():
            self.alone_since, self.said = now, now + SAY_AFTER - SAY_EVERY
            return
        # A machine could run a worker if nothing else ran there.
        others = other_jobs() if self._fits(node["Resources"] for node in _living()) else []
        if others:  # whose stages end, so that it is worth waiting
            self.alone_since = now
        if now - self.alone_since > self.timeout:
            raise InputError(
                f"{self.stage}: no worker could start for {self.timeout:g} s "
                f"(--resource-timeout): {self._lack()}; add machines that have this, or look at "
                "`ray status` for why none come; the same command goes on from here"
            )
        # One that has room may have a worker on its way.
        if now - self.said > SAY_EVERY and not self._fits(available_resources_per_node().values()):
            self.said = now
            taken = f"; also at work: {first_names(map(_shortened, others))}" if others else ""
            announce(f"{self.stage}: waiting for a worker: {self._lack()}{taken}")

    def _has_worker(self) -> bool:
        if self.workers is None:
            free, total = ray.available_resources(), ray.cluster_resources()
            return bool(free.get("CPU", 0) < total.get("CPU", 0))
        return any(name.startswith(self.workers) for name in living_actors())

    def _fits(self, machines: Iterable[Mapping[str, float]]) -> bool:
        """Tell whether one of several machines has the resources of a worker."""
        return any(
            all(machine.get(name, 0) >= amount for name, amount in self.needs.items())
            for machine in machines
        )

    def _lack(self) -> str:
        free, present = ray.available_resources(), {name: _present(name) for name in self.needs}
        present["CPU"] = Capacity().real_cpus
        left = {name: min(free.get(name, 0), amount) for name, amount in present.items()}
        return (
            f"one needs {_told(self.needs)}, the cluster has {_told(present)}, free {_told(left)}"
        )


def _shortened(command: str) -> str:
    return command if len(command) <= _COMMAND else f"{command[: _COMMAND - 3]}..."


def _told(amounts: Mapping[str, float]) -> str:
    """Tell amounts of resources in a phrase such as "4 CPU and 7.0 GB of memory"."""
    return " and ".join(
        f"{amount / 1e9:.1f} GB of memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in amounts.items()
    )


def run_watched(work: Callable[[], T], check: Callable[[], None]) -> T:
    """Run `work()` in a thread, and call `check` now and then until it is done.

    Exceptions of either are raised here, and interrupts take effect at once. Unfinished work is
    then abandoned: its thread ends with this process.
    """
    done: Future[T] = Future()

    def do() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # raised again by done.result()
            done.set_exception(error)

    threading.Thread(target=do, daemon=True, name="watched").start()
    while not wait([done], timeout=CHECK_EVERY).done:
        check()
    return done.result()
