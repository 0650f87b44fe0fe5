"""The optimiser of fine-tuning, and the schedule of its learning rate (Sec. 4.3).

The rate of a step depends on the progress alone: training that resumes from a checkpoint uses the
same rates as training without a stop.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mmray.config.choices import Optimizer, Schedule


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    name: Optimizer,
    learning_rate: float,
    momentum: float,
    dampening: float = 0.0,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Make an optimiser: SGD with momentum as in the paper, Adam, or AdamW.

    Parameters
    ----------
    parameters : at least one; or groups of them with options of their own, as torch takes them
    name : "sgd", "adam" or "adamw"
    learning_rate : rate of the first step, unless `set_learning_rate` changes it before
    momentum : in [0, 1], of SGD only; Adam and AdamW keep torch's betas, 0.9 and 0.999
    dampening : in [0, 1], of SGD only: a gradient counts 1 - dampening in the momentum, but for the
        first one
    weight_decay : at least 0
        SGD and Adam add weight_decay times the parameter to its gradient; AdamW shrinks the
        parameter by learning_rate * weight_decay instead.
    """
    if name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=learning_rate,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
        )
    adam = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return adam(parameters, lr=learning_rate, weight_decay=weight_decay)


def learning_rate(
    epochs_done: float,
    *,
    base: float,
    schedule: Schedule,
    epochs: int,
    decay: float,
    decay_epochs: int,
    warmup_epochs: float,
) -> float:
    """Return the learning rate of the step that ends when `epochs_done` epochs are done.

    Parameters
    ----------
    epochs_done : in [0, epochs]
        Progress at the end of the step, so that the first step of a warm-up is not 0: for step i of
        s steps in an epoch, both from 0, epoch + (i + 1) / s.
    base : the rate before any decay
    schedule
        "step" multiplies by `decay` every `decay_epochs` epochs (the paper: 1e-2, by 0.1 every 10);
        the step that ends an epoch still belongs to it. "cosine" falls along half a cosine from
        `base` at 0 to 0 at `epochs`, which is the last step's rate. "constant" stays at `base`.
    epochs, decay_epochs : at least 1
    warmup_epochs : at least 0
        During the warm-up the rate of the schedule is multiplied by the share of it that is done.

    Raises
    ------
    ValueError
        epochs_done is outside [0, epochs].
    """
    if not 0 <= epochs_done <= epochs:
        raise ValueError(f"epochs_done = {epochs_done}: choose a value from 0 to {epochs}")
    rate = base
    if schedule == "step":
        rate *= decay ** max(math.ceil(epochs_done / decay_epochs) - 1, 0)
    elif schedule == "cosine":
        rate *= (1 + math.cos(math.pi * epochs_done / epochs)) / 2
    return rate * epochs_done / warmup_epochs if epochs_done < warmup_epochs else rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters; that of a group is `lr_scale` times as high."""
    for group in optimizer.param_groups:
        # torch.load(weights_only=True) refuses a checkpoint that holds a NumPy number.
        group["lr"] = float(rate) * group.get("lr_scale", 1.0)
