"""One epoch of fine-tuning (Sec. 3.4).

m images, t tuples of p positives and n negatives each, d dims, s steps, b images of a batch. A step
is one micro-batch after the other, whose gradients are accumulated, then one of the optimiser's.
The code runs in a single process or as one of several ranks of `torch.distributed`; any number of
ranks follows the trajectory of one.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmray.config.choices import TrainingPrecision
from mmray.descriptors.embedding import as_batch
from mmray.images.decoding import same_shape_batches
from mmray.system.arrays import Pixels
from mmray.system.errors import InputError
from mmray.training.image_source import ImageSource, rank_and_size, slowest
from mmray.training.optimization import set_learning_rate
from mmray.training.steps import StepRule, Steps


def train_epoch(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    steps: Steps,
    source: ImageSource,
    rule: StepRule,
    *,
    device: torch.device,
    learning_rate: Callable[[float], float] | None = None,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, float]:
    """Train for one epoch; return the mean loss, the mean norm of the gradients, and a time.

    Parameters
    ----------
    model : the network, perhaps wrapped by DDP; takes a list of batches (b, 3, h, w) uint8. Under
        DDP the gradients are averaged over the ranks once a step
    optimizers : the one of the network, then that of the loss, where the loss has parameters
    steps : images and losses of the epoch
    source : images by id; the key of its view is the place of an image in the epoch
    rule : precision and the limit of the gradients' norm
    device : where the network is
    learning_rate : share of the epoch that is done after a step, in (0, 1] -> learning rate of the
        network in that step; None: the optimiser's own rate
    progress : called after each step with its size

    Returns
    -------
    {"loss": ..., "gradient_norm": ..., "image_seconds": ...}, the last of which is how long the
    slowest rank waited for its images.

    Raises
    ------
    InputError
        The loss is not finite: training has diverged.
    """
    _, size = rank_and_size()
    count, total, done = len(steps.sizes), sum(steps.sizes), 0
    micro_batches = [steps.micro_batches(step) for step in range(count)]
    places = [each for of_step in micro_batches for each in of_step]
    images = source.groups([steps.images[each] for each in places], places)
    model.train()
    sums = torch.zeros(2, device=device)  # of the losses, of the norms of the gradients
    waited = 0.0
    for step, of_step in enumerate(micro_batches):
        done += steps.sizes[step]
        if learning_rate is not None:
            set_learning_rate(optimizers[0], learning_rate(done / total))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        for micro_batch in range(len(of_step)):
            asked = time.monotonic()
            ready = next(images)
            waited += time.monotonic() - asked
            with _synchronised(model, last=micro_batch == len(of_step) - 1):
                embeddings = _forward(model, ready, device, rule.precision)
                share = steps.loss(step, micro_batch, embeddings)
                (share * size).backward()
            sums[0] += share.detach() * steps.sizes[step]
        # Without a limit this only measures: the factor is 1.
        limit = float("inf") if rule.clip_norm is None else rule.clip_norm
        sums[1] += nn.utils.clip_grad_norm_(model.parameters(), limit) / size
        for optimizer in optimizers:
            optimizer.step()
        progress(steps.sizes[step])
    if size > 1:
        torch.distributed.all_reduce(sums)
    loss, norm = (sums / torch.tensor([max(total, 1), max(count, 1)], device=device)).tolist()
    if not np.isfinite(loss):
        raise InputError(
            f"the loss became {loss}: training diverged; lower --training.learning-rate"
        )
    return {"loss": loss, "gradient_norm": norm, "image_seconds": slowest(waited, device)}


def _synchronised(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Keep DDP from averaging the gradients over the ranks before the last pass of a step."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[None] = model.no_sync()
    return waiting


def _forward(
    model: nn.Module, images: Sequence[Pixels], device: torch.device, precision: TrainingPrecision
) -> Tensor:
    """Embed images of mixed shapes, (m, d), in a single forward call, as DDP requires."""
    batches = list(same_shape_batches([image.shape[:2] for image in images], len(images)))
    inputs = [as_batch([images[index] for index in batch], device) for batch in batches]
    half = precision == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
        rows = model(inputs)
    order = np.argsort(np.concatenate(batches))
    ordered: Tensor = rows[torch.from_numpy(order).to(device)]
    return ordered
