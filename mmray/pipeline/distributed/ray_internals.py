"""The private functions of Ray that mmray uses; no other module imports private ones.

They are those of the version that requirements.txt pins; with another version
tests/pipeline/distributed/test_ray_internals.py shows what breaks.
"""

from typing import Any

import ray
from ray._private import state
from ray._private.utils import read_ray_address
from ray.data._internal.execution.execution_callback import ExecutionCallback

__all__ = ["WRITTEN_FOR", "ExecutionCallback", "living_actors", "read_ray_address", "set_callbacks"]

WRITTEN_FOR = "2.60.0"


def living_actors() -> list[str]:
    """Return the class names of this job's living actors; no public call filters by job."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    alive = state.actors(job_id=job, actor_state_name="ALIVE")
    return [str(actor["ActorClassName"]) for actor in alive.values()]


def set_callbacks(dataset: "ray.data.Dataset", *callbacks: type[Any]) -> None:
    """Register `ExecutionCallback`s that Ray Data calls while it runs a dataset.

    An exception in a callback is raised where the dataset is iterated.
    """
    dataset.context.custom_execution_callback_classes = list(callbacks)
