"""The private functions of Ray that mmray uses; no other module imports private ones.

They are those of the version that requirements.txt pins; with another version
tests/pipeline/distributed/test_ray_internals.py shows what breaks.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private import state
from ray._private.utils import read_ray_address
from ray.data._internal.execution.execution_callback import ExecutionCallback

__all__ = [
    "CHECKPOINT_LIST",
    "WRITTEN_FOR",
    "ExecutionCallback",
    "checkpoint_list",
    "checkpoint_names",
    "living_actors",
    "read_ray_address",
    "set_callbacks",
]

WRITTEN_FOR = "2.60.0"

CHECKPOINT_LIST = "checkpoint_manager_snapshot.json"  # Ray Train's, beside its checkpoints


def checkpoint_names(content: bytes) -> list[str]:
    """Return the folders that Ray Train's list of checkpoints names, oldest first.

    Raises
    ------
    ValueError, LookupError, TypeError
        The list is damaged.
    """
    results = json.loads(content)["checkpoint_results"]
    return [str(result["checkpoint_dir_name"]) for result in results]


def checkpoint_list(checkpoints: Sequence[tuple[str, Mapping[str, float]]]) -> bytes:
    """Make Ray Train's list of checkpoints, oldest first, each a folder's name and its metrics."""
    results = [
        {"version": 0, "checkpoint_dir_name": name, "metrics": dict(metrics)}
        for name, metrics in checkpoints
    ]
    names: dict[str, Any] = {
        f"{what}_checkpoint_dir_names": []
        for what in ("validated", "timed_out_validation", "failed_validation")
    }
    state = names | {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(results))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(results),
    }
    return json.dumps(state).encode()


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
