"""Whole jobs on a GPU: the extraction stage on Ray, and the demonstration."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

import mmray
from benchmarks.gpu_networks import network, settings_of
from benchmarks.gpu_trial import Trial, photos
from mmray.images.collection import Collection
from mmray.pipeline.distributed import cluster
from mmray.pipeline.distributed.extraction import extract
from mmray.pipeline.distributed.units import ActorPool
from mmray.system.folder import Folder

_FIRST_SHARDS = 4  # of a stage, in which libraries tune themselves
_DEMO_SECONDS = 280  # at most, on a GPU; on a CPU it takes what it takes


def stage(trial: Trial) -> None:
    """Time the extraction stage from JPEG files, decoded ahead on all CPUs, and the GPU's load.

    With one actor a GPU, then with two: does one hide the other's copies?
    """
    start = time.perf_counter()
    with photos(*((12_000, 500) if trial.full else (40, 80))) as images:
        trial.say("stage", photos_s=time.perf_counter() - start)
        with _ray():
            whole = cluster.with_gpus(ActorPool())
            for share in (1.0, 0.5) if whole.gpus else (1.0,):
                _time_stage(trial, images, replace(whole, gpus=share * whole.gpus))


def _time_stage(trial: Trial, images: Collection, pool: ActorPool) -> None:
    settings = settings_of(trial, "bfloat16")
    with tempfile.TemporaryDirectory() as folder, _gpu_load(trial) as load:
        start = time.perf_counter()
        extract(
            images,
            network(trial),
            settings=settings,
            output=Folder(folder),
            pool=pool,
            label="extract",
        )
        seconds = time.perf_counter() - start
        ended = sorted(shard.stat().st_mtime for shard in Path(folder).iterdir())
    steady = None
    if len(ended) > 2 * _FIRST_SHARDS:
        count = (len(ended) - 1 - _FIRST_SHARDS) * settings.shard_size
        steady = count / max(ended[-1] - ended[_FIRST_SHARDS], 1e-9)
    trial.say(
        "stage",
        precision=settings.precision,
        gpu_share=pool.gpus,
        actors=pool.size(),
        images=len(images),
        seconds=seconds,
        images_s_with_start=len(images) / seconds,
        images_s_steady=steady,
        gpu_percent=float(np.mean(load[len(load) // 3 :])) if load else None,
    )


@contextmanager
def _gpu_load(trial: Trial) -> Iterator[list[int]]:
    """Percent of time that the GPU was busy, twice a second; filled in when the block ends."""
    load: list[int] = []
    if not trial.cuda:
        yield load
        return
    command = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")
    with subprocess.Popen([*command, "-lms", "500"], stdout=subprocess.PIPE, text=True) as watch:
        try:
            yield load
        finally:
            watch.terminate()
            load += map(int, watch.communicate()[0].split())


@contextmanager
def _ray() -> Iterator[None]:
    """Ray as jobs have it; one that starts here ends with the block, and is not beside `demo`."""
    joined = ray.is_initialized()
    cluster.connect()
    try:
        yield
    finally:
        if not joined:
            ray.shutdown()


def demo(trial: Trial) -> None:
    """Time the whole demonstration, in a process of its own; its last words go to stderr."""
    script = Path(mmray.__file__).parents[1] / "jobs" / "retrieval.py"
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log, flags = Path(folder) / "log", ("--storage", f"{folder}/runs", "--registered-model", "")
        try:
            with log.open("wb") as output:
                ended = subprocess.run(
                    [sys.executable, str(script), *flags],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=_DEMO_SECONDS if trial.full else None,
                )
        finally:
            last = log.read_bytes()[-3000:].decode(errors="replace")
            print(last, file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    trial.say("demo", status=ended.returncode, seconds=seconds)
    if ended.returncode:
        raise RuntimeError(f"{script} ended with status {ended.returncode}: see what it said above")
