"""A single call on the cluster, with the resources of an actor of a pool."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import ray

from mmray.pipeline.distributed.capacity import WorkerWatchdog, run_watched
from mmray.pipeline.distributed.units import ActorPool
from mmray.system.errors import InputError

T = TypeVar("T")


def run_once(work: Callable[..., T], *arguments: Any, pool: ActorPool, label: str) -> T:
    """Return `work(*arguments)`, called in a task with the resources of an actor of a pool.

    Raises
    ------
    InputError
        It was raised by `work`, or no worker could start in time.
    """
    # A process of one call: what it took of a GPU is free again.
    task: Any = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_calls=1)(_answer)
    called = task.remote(work, *arguments)
    watchdog = WorkerWatchdog(label, workers=None, needs=pool.needs, timeout=pool.capacity.timeout)
    try:
        answer, refused = run_watched(lambda: ray.get(called), watchdog.check)
    except InputError:
        ray.cancel(called)  # which has not begun
        raise
    if refused:
        raise InputError(refused)
    return cast(T, answer)


def _answer(work: Callable[..., T], *arguments: Any) -> tuple[T | None, str]:
    """Return the result of a call and the message of its InputError, one of them empty."""
    try:
        return work(*arguments), ""
    except InputError as error:  # an exception would reach the driver wrapped in Ray's own
        return None, str(error)
