"""The Ray cluster a job runs on: joining it, and how its resources are shared out."""

import json
import logging
import os
import signal
import socket
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
import ray.data

from mmray.config.run import RunConfig
from mmray.pipeline.distributed.capacity import Capacity, WorkerWatchdog, run_watched
from mmray.pipeline.distributed.ray_internals import read_ray_address
from mmray.pipeline.distributed.units import ActorPool
from mmray.system.arrays import Device
from mmray.system.errors import InputError


def connect(capacity: Capacity | None = None) -> None:
    """Join the cluster that is there, or start one on this machine.

    A cluster is there if this is a submitted job, RAY_ADDRESS names one, or `ray start` was called
    on this machine. Our own has at least four logical CPUs: Ray Data waits for ever, in silence,
    when its actors take them all, and two are kept for its tasks.

    Parameters
    ----------
    capacity : what the job is told to count on; CPUs of our own are as many as that

    Raises
    ------
    InputError
        RAY_ADDRESS names a cluster that does not answer, or GPUs are counted on that this machine,
        alone, has not.
    """
    capacity = capacity or Capacity()
    if not ray.is_initialized():
        address = running_cluster()
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if address:
            ray.init(address=address, logging_level=logging.WARNING)
        else:
            _start(capacity)
        # Ray puts its own in place, which aborts: no run would be ended, no sentence said.
        signal.signal(signal.SIGTERM, on_sigterm)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours count images, not blocks
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []  # they warn of units that are large or slow
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # One says each time that its own bars are off, the other shows what is raised as well.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)


def _start(capacity: Capacity) -> None:
    """A Ray on this machine alone, which knows itself from others that run there.

    Ray Train asks the dashboard whether the one that directs the training lives. Its process looks
    the address up anew, and may find that of another Ray, which has never heard of it: what the
    training has of the cluster would be taken away in the middle.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = f"http://127.0.0.1:{port}"  # all processes of this Ray inherit it
    try:
        ray.init(
            address="local",
            # Two more than there are: as many are left to tasks, which have next to nothing to do.
            num_cpus=capacity.given_cpus or max(4, (os.cpu_count() or 1) + 2),
            dashboard_port=port,
            logging_level=logging.WARNING,
        )
    finally:
        del os.environ[name]  # of this process, which may submit jobs elsewhere
        if before is not None:
            os.environ[name] = before
    present = Capacity().gpus
    if capacity.gpus > present:
        raise InputError(
            f"--num-gpus {capacity.gpus}: this machine has {present}, and no Ray runs on it whose "
            "cluster could grow; leave the flag out, or submit the job to a cluster"
        )


def running_cluster() -> str | None:
    """Address of the cluster to join, if there is one that answers."""
    named = os.environ.get("RAY_ADDRESS", "")
    # What `ray start` leaves for `ray.init`, also when its machine was switched off: Ray would then
    # try to join for minutes.
    address = named or read_ray_address()
    host, _, port = (address or "").rpartition(":")
    if not port.isdigit():
        return named or None  # "auto", "local", ray://...
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        if named:
            raise InputError(
                f"RAY_ADDRESS {named}: no cluster answers there ({error}); start it, or unset the "
                "variable to work on this machine alone"
            ) from error
        return None
    return address


def summary(capacity: Capacity) -> str:
    """What a job has to work with, as in "2 machines, 32 CPUs, 2 GPUs"."""
    machines = sum(node["Alive"] for node in ray.nodes())
    counts = {"machine": machines, "CPU": capacity.cpus, "GPU": capacity.gpus}
    return ", ".join(f"{n or 'no'} {what}{'s' * (n > 1)}" for what, n in counts.items())


def in_uploaded_folder() -> bool:
    """Whether this job runs in a copy of the user's folder that vanishes with the job."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return bool(job.get("runtime_env", {}).get("working_dir"))


def with_gpus(pool: ActorPool) -> ActorPool:
    """A GPU for every actor, where the cluster has any; a share of one if actors must share."""
    gpus = pool.capacity.gpus
    if not gpus:
        return pool
    return replace(pool, gpus=1 / -(-pool.minimum // gpus))


@dataclass(frozen=True, kw_only=True)
class TrainingWorkers:
    """How many ranks train, and what each takes of the cluster.

    Attributes
    ----------
    fewest, most : training goes on with any number between them
    resources : of one
    patience : seconds that it waits for machines while it has none
    """

    fewest: int
    most: int
    resources: dict[str, float]
    timeout: float = RunConfig.resource_timeout


def training_workers(workers: int | None, *, fewest: int, capacity: Capacity) -> TrainingWorkers:
    """The workers that train.

    Parameters
    ----------
    workers : at most; None: one a GPU; without any, one, which has all CPUs that are free
    fewest : to go on with where machines are lost
    capacity : of the cluster; a worker's CPUs are those of one machine at most

    Raises
    ------
    InputError
        The cluster has fewer GPUs, or CPUs, than the workers asked for.
    """
    gpus, cpus = capacity.gpus, capacity.free_cpus
    count = workers or max(1, gpus)
    if cpus // count < 1 or (gpus and count > gpus):
        raise InputError(
            f"--training.workers {count}: the cluster has {capacity.cpus} CPUs, of which {cpus} "
            f"are free for workers, and {gpus} GPUs; ask for fewer workers or add machines"
        )
    resources = {"GPU": 1.0, "CPU": 1.0}
    if not gpus:
        resources = {"CPU": float(min(cpus // count, _largest_machine(capacity)))}
    return TrainingWorkers(
        fewest=min(fewest, count), most=count, resources=resources, timeout=capacity.timeout
    )


def _largest_machine(capacity: Capacity) -> int:
    """CPUs of the machine that has most of them, of those that are there."""

    def largest() -> int:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return max(int(resources.get("CPU", 0)) for resources in machines)

    if not largest():  # all were idle, and went: how large they are shows when one is back
        needs = {"CPU": 1.0}
        scout: Any = ray.remote(_ScaleUpProbe).options(num_cpus=1).remote()
        watchdog = WorkerWatchdog(
            "train", workers=_ScaleUpProbe.__name__, needs=needs, timeout=capacity.timeout
        )
        run_watched(lambda: ray.get(scout.ping.remote()), watchdog.check)
        ray.kill(scout)
    return largest()


class _ScaleUpProbe:
    """An actor that makes an autoscaler start a machine."""

    def ping(self) -> None:
        """Returns when it is there."""


def mining_device(asked: Literal["auto", "cpu", "cuda"], capacity: Capacity) -> Device:
    """Where mining computes: on GPUs if the cluster has any, unless told otherwise.

    Raises
    ------
    InputError
        GPUs were asked for, and the cluster has none.
    """
    if asked == "cuda" and not capacity.gpus:
        raise InputError(
            "--mining.device cuda: the cluster has no GPU; choose cpu or auto, or say with "
            "--num-gpus how many an autoscaler adds"
        )
    return "cuda" if capacity.gpus and asked != "cpu" else "cpu"
