"""A training job: the network, its data, and the settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from mmray.config.sections import TrainingConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.images.collection import Collection
from mmray.images.pixel_shards import PixelShards
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import Pools
from mmray.training.optimization import learning_rate, make_optimizer
from mmray.training.steps import StepRule
from mmray.training.supervised.labelled_tuples import LabelledPairs
from mmray.training.supervised.losses import LabelledImages

CENTRE_RATE = 1e-2  # Adam's learning rate for proxies or centres of a supervised baseline

History = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A network to train, with its images, pools, checks and settings.

    Attributes
    ----------
    images : the images; ids in the pools are places among them
    validation_neighbors : manifold neighbours of some items, see `validation`
    max_pixels : an image with more cannot be read
    labelled : set to measure on every `monitor_every` epochs, for display only; None: not measured
    seconds : for all epochs; the last one is expected to end before. None: as long as it takes
    supervision : labels to learn from instead of the pools: matching pairs with the clusters of
        all images, see `supervised.labelled_tuples`, or the class of every image, see
        `supervised.losses`. None: training is on the pools, without labels
    """

    model: EmbeddingNet
    images: Collection | PixelShards
    pools: Pools
    validation_neighbors: ManifoldNeighbors
    config: TrainingConfig
    seed: int
    max_pixels: int
    labelled: LabelledSet | None
    supervision: LabelledPairs | LabelledImages | None = None
    seconds: float | None = None


def trainable(network: EmbeddingNet, config: TrainingConfig) -> EmbeddingNet:
    """Make the exponent of GeM a parameter of a network, where the settings train it."""
    return network.learn_p() if config.gem_rate else network


def optimizer_of(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimiser that the settings name, see `make_optimizer`.

    A learned exponent of GeM has its own rate and no weight decay, as in cirtorch, and stays at
    least 1.
    """
    weights: list[nn.Parameter] = []
    exponents: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (exponents if name.rpartition(".")[2] == "p" else weights).append(parameter)
    groups: list[dict[str, Any]] = [{"params": weights}]
    if exponents:
        rate = {"lr": config.learning_rate * config.gem_rate, "lr_scale": config.gem_rate}
        groups.append({"params": exponents, "weight_decay": 0.0} | rate)
    optimizer = make_optimizer(
        groups,
        name=config.optimizer,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        dampening=config.dampening,
        weight_decay=config.weight_decay,
    )
    if exponents:
        optimizer.register_step_post_hook(lambda *_: _keep_above_one(exponents))
    return optimizer


@torch.no_grad()
def _keep_above_one(exponents: Sequence[nn.Parameter]) -> None:
    for p in exponents:
        p.clamp_(min=1)


def optimizers_of(
    model: nn.Module, baseline: nn.Module | None, config: TrainingConfig
) -> list[torch.optim.Optimizer]:
    """Make the optimiser of the network, and that of a baseline's loss if it has parameters."""
    optimizers = [optimizer_of(model, config)]
    if baseline is not None and (centres := list(baseline.parameters())):
        optimizers.append(torch.optim.Adam(centres, lr=CENTRE_RATE))
    return optimizers


def learning_rate_of(config: TrainingConfig) -> Callable[[float], float]:
    """Return the learning rate by the epochs that are done, see `learning_rate`."""
    return partial(
        learning_rate,
        base=config.learning_rate,
        schedule=config.schedule,
        epochs=config.epochs,
        decay=config.decay,
        decay_epochs=config.decay_epochs,
        warmup_epochs=config.warmup_epochs,
    )


def step_rule(config: TrainingConfig) -> StepRule:
    """Return the settings of a training step."""
    return StepRule(
        loss=config.loss,
        margin=config.margin,
        weighted=config.weighted,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        precision=config.precision,
        clip_norm=config.clip_norm,
        mean_of_pairs=config.mean_of_pairs,
        temperature=config.temperature,
    )


def epoch_seconds(metrics: Mapping[str, float]) -> float:
    """Return how long an epoch took, with the embedding before it."""
    return metrics.get("embed_seconds", 0.0) + metrics.get("train_seconds", 0.0)


def time_for_more(history: History, seconds: float | None) -> bool:
    """Tell whether another epoch, as long as the longest so far, ends within so many seconds."""
    took = [epoch_seconds(metrics) for metrics in history]
    return seconds is None or sum(took) + max(took) <= seconds
