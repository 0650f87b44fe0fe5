"""Measure what one GPU could do and what mmray gets out of it: a line of JSON a measurement.

Under nine minutes on an H100, and what `ivf` takes, which was not timed. Without a GPU everything
runs small on the CPU: a test of these parts, not a measurement. Deviations and seconds keep five
digits, however small they are.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

import numba
import pyarrow as pa
import ray
import scipy
import torch

from benchmarks.gpu_jobs import demo, stage
from benchmarks.gpu_mining import ivf, knn, mine
from benchmarks.gpu_networks import extract, net, shapes, train
from benchmarks.gpu_trial import Trial
from benchmarks.options import GpuPart, Scale


def measure_parts(parts: Sequence[GpuPart], scale: Scale | None = None) -> list[GpuPart]:
    """Measure parts in turn; returns those that failed, each after its traceback.

    Parameters
    ----------
    scale : None: full on a GPU, small on a CPU
    """
    cuda = torch.cuda.is_available()
    full = cuda if scale is None else scale == "full"
    trial = Trial(full=full, device="cuda" if cuda else "cpu")
    failed = []
    for part in parts:
        try:
            PARTS[part](trial)
        except Exception as error:  # whatever it is, the other parts are worth their figures
            trial.say(part, failed=True, error=repr(error))
            traceback.print_exc()
            sys.stderr.flush()
            failed.append(part)
        if cuda:
            torch.cuda.empty_cache()
    return failed


def env(trial: Trial) -> None:
    """Name the machine, and the libraries that speed depends on."""
    trial.say(
        "env",
        torch=torch.__version__,
        ray=ray.__version__,
        pyarrow=pa.__version__,
        numba=numba.__version__,
        scipy=scipy.__version__,
        cpus=os.cpu_count(),
        gpu=torch.cuda.get_device_name() if trial.cuda else "none",
        cudnn_tf32=torch.backends.cudnn.allow_tf32,
        matmul_tf32=torch.backends.cuda.matmul.allow_tf32,
    )


PARTS: dict[GpuPart, Callable[[Trial], None]] = {
    "env": env,
    "net": net,
    "shapes": shapes,
    "extract": extract,
    "train": train,
    "knn": knn,
    "ivf": ivf,
    "mine": mine,
    "stage": stage,
    "demo": demo,
}
