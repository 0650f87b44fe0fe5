"""A training job: what is trained, on what, and by which rule."""

from dataclasses import dataclass

import torch
from torch import nn

from mmray.config.sections import TrainingConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.images.collection import Collection
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import Pools
from mmray.training.optimization import make_optimizer
from mmray.training.steps import StepRule
from mmray.training.supervised.labelled_tuples import LabelledPairs
from mmray.training.supervised.losses import LabelledImages

History = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What is trained, and on what.

    Attributes
    ----------
    images : those that the pools name, by their place
    validation_neighbors : manifold neighbours of some items, see `validation`
    labelled : is measured on after every `monitor_every` epochs; nothing follows from it
    supervision : what is learned from instead of the pools, with labels: pairs, and the labels
        under which negatives are chosen, see `labelled_tuples`; or the class of every image, see
        `supervised`. None: no labels
    """

    model: EmbeddingNet
    images: Collection
    pools: Pools
    validation_neighbors: ManifoldNeighbors
    config: TrainingConfig
    seed: int
    max_pixels: int
    labelled: LabelledSet | None
    supervision: LabelledPairs | LabelledImages | None = None


def optimizer_of(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    return make_optimizer(
        model.parameters(),
        name=config.optimizer,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def step_rule(config: TrainingConfig) -> StepRule:
    return StepRule(
        loss=config.loss,
        margin=config.margin,
        weighted=config.weighted,
        batch_size=config.batch_size,
        precision=config.precision,
        clip_norm=config.clip_norm,
        sum_negatives=config.sum_negatives,
    )
