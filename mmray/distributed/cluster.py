"""The Ray cluster a job runs on: joining it, and how its resources are shared out."""

import logging
import os
from dataclasses import replace

import ray
import ray.data

from mmray.distributed.stage import Pool
from mmray.errors import InputError


def connect() -> None:
    """Join the cluster that is there, or start one on this machine.

    A cluster is there if this is a submitted job, RAY_ADDRESS names one, or one was started on this
    machine. Our own has at least four logical CPUs: Ray Data waits for ever in silence when its
    actors take them all, and two are kept for its tasks.
    """
    if not ray.is_initialized():
        try:
            ray.init(address="auto", logging_level=logging.WARNING)
        except ConnectionError:
            ray.init(
                address="local",
                num_cpus=max(4, os.cpu_count() or 1),
                include_dashboard=False,
                logging_level=logging.WARNING,
            )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours count images, not blocks
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def in_uploaded_folder() -> bool:
    """Whether this job runs in a copy of the user's folder that vanishes with the job."""
    return bool(ray.get_runtime_context().runtime_env.get("working_dir"))


def with_gpus(pool: Pool) -> Pool:
    """A GPU for every actor, where the cluster has any."""
    return replace(pool, gpus=1.0) if ray.cluster_resources().get("GPU", 0) >= 1 else pool


def training_resources(workers: int | None) -> tuple[int, dict[str, float]]:
    """Number of training workers, and what each takes.

    One a GPU; without any, one, which has all CPUs but two.

    Raises
    ------
    InputError
        The cluster has fewer GPUs, or CPUs, than the workers asked for.
    """
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 0))
    count = workers or max(1, gpus)
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    share = min((cpus - 2) // count, largest)
    if share < 1 or (gpus and count > gpus):
        raise InputError(
            f"--training.workers {count}: the cluster has {cpus} CPUs (two are kept for other "
            f"tasks) and {gpus} GPUs; ask for fewer workers or add machines"
        )
    if gpus:
        return count, {"GPU": 1, "CPU": 1}
    return count, {"CPU": share}
