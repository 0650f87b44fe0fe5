"""The private functions of Ray that mmray uses; no other module imports private ones.

They are those of the version that requirements.txt pins; with another version
tests/pipeline/distributed/test_ray_internals.py shows what breaks.
"""

import ctypes
import json
import os
import re
import signal
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_system_temp_dir as system_temp_dir
from ray._private import ray_constants, ray_logging, state, utils
from ray._private.authentication import authentication_token_setup
from ray._private.node import Node
from ray._private.state import available_resources_per_node
from ray._private.utils import read_ray_address
from ray._private.worker import global_worker
from ray.data._internal.execution.execution_callback import ExecutionCallback

__all__ = [
    "CHATTY",
    "CHECKPOINT_LIST",
    "ON_LOOPBACK",
    "WRITTEN_FOR",
    "ExecutionCallback",
    "available_resources_per_node",
    "checkpoint_list",
    "checkpoint_names",
    "failures_in",
    "kept_sigterm_handler",
    "living_actors",
    "map_blocks",
    "on_loopback",
    "private_token",
    "quiet_core",
    "read_ray_address",
    "set_callbacks",
    "stop_processes_of",
    "system_temp_dir",
    "tidy_lines_of_workers",
    "wait_for_dashboard",
    "was_restarted",
]

WRITTEN_FOR = "2.60.0"

# The environment of processes of a Ray on loopback: what `on_loopback` does for this process.
ON_LOOPBACK = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}

# Loggers of Ray Data with needless warnings: the first says each time that its progress bars are
# off, the second calls CPUs and GPUs of one actor experimental.
CHATTY = (
    "ray.data._internal.progress",
    "ray.data._internal.execution.operators.map_operator",
)

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


def failures_in(error: Exception) -> list[Exception]:
    """Return the errors by which training functions, their processes or the controller failed."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    failures += [error.controller_failure] if hasattr(error, "controller_failure") else []
    return [getattr(failure, "_base_exc", failure) for failure in failures]


def living_actors() -> list[str]:
    """Return the class names of this job's actors that live, or start in a process of their own.

    No public call filters by job. An actor without a port waits for resources, or for a process.
    """
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = state.actors(job_id=job).values()
    return [
        str(actor["ActorClassName"])
        for actor in actors
        if actor["State"] == "ALIVE" or (actor["State"] != "DEAD" and actor["Address"]["Port"])
    ]


def other_jobs() -> list[str]:
    """Return the commands of other jobs on this cluster whose actors live."""
    own = ray.get_runtime_context().get_job_id()
    return [
        str(job["Entrypoint"])
        for job in state.jobs()
        if not job["IsDead"] and job["JobID"] != own and _lives(ray.JobID.from_hex(job["JobID"]))
    ]


def _lives(job: ray.JobID) -> bool:
    return any(actor["State"] == "ALIVE" for actor in state.actors(job_id=job).values())


def was_restarted() -> bool:
    """Tell whether this actor, or this task, runs again because its process or machine was lost."""
    context, core_worker = ray.get_runtime_context(), vars(global_worker)["core_worker"]
    if context.get_actor_id() is None:
        return bool(core_worker.get_current_task_attempt_number())
    with warnings.catch_warnings(action="ignore"):  # Ray warns about its own call
        return bool(context.was_current_actor_reconstructed)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let Ray take 127.0.0.1 for the address of this machine, as it does on macOS.

    Elsewhere it replaces 127.0.0.1 by the machine's address in the network, in what it is given
    too, and listens on all addresses.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def private_token() -> Iterator[None]:
    """Let nobody else read the token in ~/.ray that Ray makes, or made before, for its clusters.

    Whoever has it can run programs as this user, and Ray would let every user of the machine.
    """
    before = authentication_token_setup.generate_and_save_token

    def generate() -> None:
        mask = os.umask(0o077)
        try:
            before()
        finally:
            os.umask(mask)

    with suppress(OSError, RuntimeError):  # there is none yet, or no home
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
    authentication_token_setup.generate_and_save_token = generate
    try:
        yield
    finally:
        authentication_token_setup.generate_and_save_token = before


@contextmanager
def kept_sigterm_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM while Ray starts; under Ray's, a job would end without a word.

    Where Ray would install its own, this one is installed again: the core has one in C, too.
    """
    before, kept = utils.set_sigterm_handler, signal.getsignal(signal.SIGTERM)
    utils.set_sigterm_handler = lambda handler: signal.signal(signal.SIGTERM, kept)
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
        signal.signal(signal.SIGTERM, kept)


def wait_for_dashboard(seconds: int) -> None:
    """Let a start wait so long for the dashboard, unless the user has set how long."""
    name = "RAY_DASHBOARD_STARTUP_TIMEOUT_S"  # which Ray read when it was imported
    if name not in os.environ:
        ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = seconds


@contextmanager
def quiet_core() -> Iterator[None]:
    """Keep Ray's C++ core from also writing its log to stderr, if it is loaded in the block.

    It writes there that an actor of Ray Data "has constructor arguments in the object store", which
    all have. Its level cannot be set without another such line. The log is still a file of the
    session, errors are raised, and lines of workers come another way.
    """
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    try:
        stderr = ctypes.c_void_p.in_dll(library, "stderr")
    except ValueError:  # this C library has another name for it
        yield
        return
    before = stderr.value
    stderr.value = library.fopen(b"/dev/null", b"w")  # never closed: the core keeps it
    try:
        yield
    finally:
        stderr.value = before


def stop_processes_of(error: Exception) -> None:
    """Stop the processes of a node whose start failed with this error; Ray leaves them running."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node) and hasattr(node, "all_processes"):
            node.kill_all_processes(check_alive=False)
            return


def tidy_lines_of_workers(*, colours: bool) -> None:
    """Leave out what Ray's C++ core logs in other processes, and Ray's colours unless asked.

    Its errors are those of single calls, which Ray repeats or raises: among others, that an actor
    had ended before it was told to. Fatal ones are passed on, as is all that Python prints.
    """
    line = r"^\[\d{4}-\d\d-\d\d [\d:,]+ [DIWE] \d+ \d+\] "
    for lines in (ray_logging.stdout_deduplicator, ray_logging.stderr_deduplicator):
        chosen = lines.skip_re.pattern if lines.skip_re else ""  # the user's
        lines.skip_re = re.compile(chosen if line in chosen else "|".join({chosen, line} - {""}))
    if not colours:
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        ray_logging._color = lambda msg: msg  # of the count of repeated lines


def map_blocks(dataset: "ray.data.Dataset", fn: Any, **options: Any) -> "ray.data.Dataset":
    """Map whole blocks of a dataset as Arrow tables, on GPUs too.

    `Dataset.map_batches` wants a number of rows where GPUs are asked for, though blocks may be
    batches already.

    Parameters
    ----------
    dataset : whose blocks are mapped
    fn, options : as for `Dataset.map_batches`
    """
    mapped: ray.data.Dataset = dataset.map_batches_internal(
        fn, batch_size=None, batch_format="pyarrow", **options
    )
    return mapped


def set_callbacks(dataset: "ray.data.Dataset", *callbacks: type[Any]) -> None:
    """Register `ExecutionCallback`s that Ray Data calls while it runs a dataset.

    An exception in a callback is raised where the dataset is iterated.
    """
    dataset.context.custom_execution_callback_classes = list(callbacks)
