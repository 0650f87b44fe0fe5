"""The Ray cluster of a job: connecting to it, and the division of its resources."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

import ray
import ray.data

from mmray.config.run import RunConfig
from mmray.pipeline.distributed.capacity import Capacity, working_machines
from mmray.pipeline.distributed.ray_internals import (
    CHATTY,
    kept_sigterm_handler,
    on_loopback,
    quiet_core,
    read_ray_address,
    tidy_lines_of_workers,
)
from mmray.pipeline.distributed.starting import start
from mmray.pipeline.distributed.units import ActorPool
from mmray.system.arrays import Device
from mmray.system.errors import InputError, MachineError
from mmray.system.progress import announce


def connect(capacity: Capacity | None = None) -> None:
    """Join the running cluster, or start one on this machine.

    A cluster is running if this is a submitted job, RAY_ADDRESS names one, or `ray start` was
    called on this machine.

    Parameters
    ----------
    capacity : CPUs and GPUs that the job may use; a cluster started here has these CPUs

    Raises
    ------
    InputError
        RAY_ADDRESS names a cluster that does not answer or cannot be joined, or the capacity has
        more GPUs than this machine, where there is no other.
    MachineError
        Ray does not start on this machine.
    """
    capacity = capacity or Capacity()
    if not ray.is_initialized():
        address = running_cluster()
        tidy_lines_of_workers(colours=sys.stdout.isatty() and sys.stderr.isatty())
        with kept_sigterm_handler():
            if address:
                _join(address)
            else:
                start(capacity.given_cpus)
                _refuse_more_gpus(capacity)
        announce(f"ray: {summary(capacity)}")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours count images, not blocks
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []  # they warn of units that are large or slow
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It prints what is raised anyway.
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def _join(address: str) -> None:
    """Join the cluster at this address.

    Raises
    ------
    InputError
        It cannot be joined.
    """
    _refuse_other_encryption(address)
    # Ray would look for a cluster that listens on loopback at the machine's other address.
    local = address.startswith(("127.", "[::1]", "localhost:"))
    try:
        with on_loopback() if local else nullcontext(), quiet_core():
            ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the Ray cluster {address} cannot be joined: {reason}; mend this, or set "
            "RAY_ADDRESS=local to work on this machine alone"
        ) from error


def _refuse_other_encryption(address: str) -> None:
    """Refuse a cluster that speaks TLS where this job does not, or the other way round.

    Ray would try for minutes, in silence. A server of HTTP/2 answers its preface with a frame,
    whose first byte is 0, and ends the connection where it waits for TLS.
    """
    if address == "auto":
        return
    try:
        with socket.create_connection(_host_and_port(address), timeout=5) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            encrypted = connection.recv(1) != b"\0"
    except ConnectionResetError:
        encrypted = True
    except OSError:  # Ray says why
        return
    if encrypted != (os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")):
        found = "speaks TLS, this job does not: set RAY_USE_TLS=1 and the paths of certificates"
        if not encrypted:
            found = "does not speak TLS, this job does: unset RAY_USE_TLS"
        raise InputError(f"the Ray cluster {address} cannot be joined: it {found}")


def _refuse_more_gpus(capacity: Capacity) -> None:
    """Refuse more GPUs than this machine has: its own Ray does not grow."""
    present = Capacity().gpus
    if capacity.gpus > present:
        raise InputError(
            f"--num-gpus {capacity.gpus}: this machine has {present}, and no Ray runs on it whose "
            "cluster could grow; leave the flag out, or submit the job to a cluster"
        )


def running_cluster() -> str | None:
    """Return the address of the cluster to join, if one answers.

    Raises
    ------
    InputError
        RAY_ADDRESS is not the address of a cluster, or no cluster answers there.
    """
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if named == "local":
        return None
    if named == "auto":
        return named
    # The file of `ray start` stays even when its machine was switched off: Ray would then try to
    # join for minutes.
    address = named or read_ray_address()
    if not address:
        return None
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        if named:
            raise InputError(
                f"RAY_ADDRESS {named}: no cluster answers there ({error}); start it, or unset the "
                "variable to work on this machine alone"
            ) from error
        return None
    return address


def _host_and_port(address: str) -> tuple[str, int]:
    """Split an address such as head:6379 or [::1]:6379.

    Raises
    ------
    InputError
        It has another form, such as those of Ray Client and of a dashboard.
    """
    scheme, separator, rest = address.rpartition("://")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is none, or an open bracket
        host = port = None
    if separator:
        # Ray Data and Ray Train, on which all stages run, do not work through Ray Client.
        what = "Ray Client" if scheme == "ray" else "a server for jobs"
        named = f"[{host}]" if ":" in (host or "") else host or "HEAD"
        dashboard = address if scheme.startswith("http") else f"http://{named}:8265"
        raise InputError(
            f"RAY_ADDRESS {address}: this is the address of {what}, through which a job cannot "
            f"work; submit it: ray job submit --address {dashboard} -- python jobs/..."
        )
    if not (host and port):
        raise InputError(
            f"RAY_ADDRESS {address}: not an address; write HOST:PORT, as head:6379 or [::1]:6379, "
            "or unset the variable to work on this machine alone"
        )
    return host, port


@contextmanager
def reporting_losses() -> Iterator[None]:
    """Raise a MachineError where Ray lost a process or an object of the job, and gave it up.

    An error of the code that Ray ran is raised as it is.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError):
            raise
        reason = next(iter(str(error).splitlines()), "").rstrip(".")
        raise MachineError(
            f"Ray lost a part of this job, perhaps for lack of memory ({type(error).__name__}: "
            f"{reason}); the same command goes on from here"
        ) from error


def summary(capacity: Capacity) -> str:
    """Summarise the cluster in a phrase such as "2 machines, 32 CPUs, 2 GPUs"."""
    machines = sum(node["Alive"] for node in ray.nodes())
    counts = {"machine": machines, "CPU": capacity.real_cpus, "GPU": capacity.gpus}
    return ", ".join(f"{n or 'no'} {what}{'s' * (n > 1)}" for what, n in counts.items())


def with_gpus(pool: ActorPool) -> ActorPool:
    """Give every actor a GPU if the cluster has any, or a share of one if there are too few."""
    gpus = pool.capacity.gpus
    if not gpus:
        return pool
    return replace(pool, gpus=1 / -(-pool.minimum // gpus))


def with_gpus_and_cpus(pool: ActorPool) -> ActorPool:
    """Give every actor a GPU, or a share of one, and a share of the CPUs beside it."""
    pool = with_gpus(pool)
    return replace(pool, cpus=max(pool.cpus, int(pool.gpus * cpus_beside_gpu())))


def cpus_beside_gpu() -> int:
    """Return the CPUs that an actor on a GPU may take: a share of the machine with the fewest.

    Two CPUs of each machine are left to tasks. It is 1 while no machine with a GPU is there.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [(has.get("CPU", 0) - 2) // has["GPU"] for has in machines if "GPU" in has]
    return max(1, int(min(shares, default=1)))


@dataclass(frozen=True, kw_only=True)
class TrainingWorkers:
    """Number of training ranks, and the resources of each.

    Attributes
    ----------
    fewest, most : training continues with any number of ranks between these
    resources : of one rank, name -> amount
    timeout : seconds that training waits for machines while it has no worker
    """

    fewest: int
    most: int
    resources: dict[str, float]
    timeout: float = RunConfig.resource_timeout


def training_workers(workers: int | None, *, fewest: int, capacity: Capacity) -> TrainingWorkers:
    """Choose the number of training workers and their resources.

    Parameters
    ----------
    workers : most workers; None: one per GPU, or without GPUs a single one with all free CPUs
    fewest : workers to continue with where machines are lost
    capacity : of the cluster; a worker has at most the CPUs of one machine

    Raises
    ------
    InputError
        The cluster has fewer GPUs or free CPUs than workers are asked for.
    """
    gpus, cpus = capacity.gpus, capacity.free_cpus
    count = workers or max(1, gpus)
    if cpus // count < 1 or (gpus and count > gpus):
        raise InputError(
            f"--training.workers {count}: the cluster has {capacity.real_cpus} CPUs, of which "
            f"{cpus} are free for workers, and {gpus} GPUs; ask for fewer workers or add machines"
        )
    if gpus:
        resources = {"GPU": 1.0, "CPU": float(cpus_beside_gpu())}
    else:
        largest = max(machine.cpus for machine in working_machines("train", capacity.timeout))
        resources = {"CPU": float(min(cpus // count, largest))}
    return TrainingWorkers(
        fewest=min(fewest, count), most=count, resources=resources, timeout=capacity.timeout
    )


def mining_device(asked: Literal["auto", "cpu", "cuda"], capacity: Capacity) -> Device:
    """Choose the device for mining: GPUs if the cluster has any, unless `asked` says otherwise.

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
