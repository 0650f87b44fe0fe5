"""Steps of an epoch: the images of each step, and the loss of their embeddings."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed
import torch.distributed.nn
from torch import Tensor, nn

from mmray.config.choices import Loss, TrainingPrecision
from mmray.system.arrays import Ids
from mmray.training.image_source import rank_and_size
from mmray.training.losses import TEMPERATURE, info_nce_loss, tuple_loss
from mmray.training.tuples import Tuples


@dataclass(frozen=True, kw_only=True)
class StepRule:
    """Settings of a training step.

    Attributes
    ----------
    loss, margin, weighted, mean_of_pairs, temperature : see `losses.tuple_loss`
    batch_size : tuples of a step, in total over all ranks
    micro_batch_size : most tuples of a rank in one forward and backward pass; None: all that it has
    precision : of the forward and backward pass through the backbone; weights, embeddings and
        losses are always float32
    clip_norm : a gradient with a larger norm is scaled down to it; None: never
    """

    loss: Loss
    margin: float | None
    weighted: bool
    batch_size: int
    micro_batch_size: int | None = None
    precision: TrainingPrecision = "float32"
    clip_norm: float | None = None
    mean_of_pairs: bool = False
    temperature: float = TEMPERATURE


class Steps(Protocol):
    """Interface of an epoch's steps: the images of each step, and the loss of their embeddings.

    Attributes
    ----------
    images : (i,) int64, image ids of the whole epoch; an image may occur more than once
    sizes : weight of each step in the mean loss of the epoch
    """

    images: Ids
    sizes: list[int]

    def micro_batches(self, step: int) -> list[Ids]:
        """Return the places in `images` that this rank embeds in each pass of a step.

        All ranks have equally many passes.
        """

    def loss(self, step: int, micro_batch: int, embeddings: Tensor) -> Tensor:
        """Return the share of one micro-batch of this rank in the mean loss of a step, a scalar.

        The shares add up to the loss, and the mean over the ranks of `size` times their gradients,
        accumulated over the passes, is its gradient.
        """


class TupleSteps:
    """Steps of `batch_size` tuples, of which each rank takes the tuples [rank::size].

    A rank takes them in as few micro-batches as their size allows. With InfoNCE all images of a
    step are negatives of an anchor, but those that are related to it.

    Raises
    ------
    ValueError
        InfoNCE is to be taken in micro-batches.
    """

    def __init__(self, tuples: Tuples, rule: StepRule) -> None:
        if rule.loss == "infonce" and rule.micro_batch_size is not None:
            raise ValueError("InfoNCE compares all images of a step: micro_batch_size must be None")
        self.tuples, self.rule = tuples, rule
        self.rank, self.size = rank_and_size()
        total = len(tuples.anchors)
        self._steps = [
            np.arange(start, min(start + rule.batch_size, total))
            for start in range(0, total, rule.batch_size)
        ]
        self.sizes = [len(step) for step in self._steps]
        members = np.hstack([tuples.anchors[:, None], tuples.positives, tuples.negatives])
        self.images = members.ravel()
        self._places = np.arange(members.size).reshape(members.shape)

    def _own(self, step: int) -> list[tuple[Ids, float]]:
        """Return the tuples of each of this rank's micro-batches of a step, and their weight."""
        tuples = self._steps[step]
        longest = -(-len(tuples) // self.size)
        count = -(-longest // (self.rule.micro_batch_size or longest))
        parts = np.array_split(tuples[self.rank :: self.size], count)
        # A rank that runs out of tuples repeats the step's first one at weight 0, to keep up.
        return [(part, 1.0) if len(part) else (tuples[:1], 0.0) for part in parts]

    def micro_batches(self, step: int) -> list[Ids]:
        return [self._places[part].ravel() for part, _ in self._own(step)]

    def loss(self, step: int, micro_batch: int, embeddings: Tensor) -> Tensor:
        """Return a micro-batch's share of the mean loss of a step: every tuple counts the same."""
        (own, counted), rule = self._own(step)[micro_batch], self.rule
        rows = embeddings.unflatten(0, (len(own), -1))
        p = self.tuples.positives.shape[1]
        anchor, positives, negatives = rows.split([1, p, rows.shape[1] - 1 - p], dim=1)
        weights = torch.from_numpy(self.tuples.weights[own]).to(rows.device)
        given = weights if rule.weighted else None
        if rule.loss == "infonce":
            losses = info_nce_loss(
                anchor[:, 0],
                positives,
                self._to_negatives(step, own, anchor[:, 0], rows),
                weights=given,
                temperature=rule.temperature,
            )
        else:
            losses = tuple_loss(
                anchor[:, 0],
                positives,
                negatives,
                loss=rule.loss,
                margin=rule.margin,
                weights=given,
                mean_of_pairs=rule.mean_of_pairs,
            )
        return losses.sum() * counted / self.sizes[step]

    def _to_negatives(self, step: int, own: Ids, anchors: Tensor, rows: Tensor) -> Tensor:
        """Compare anchors (b, d) with all images of a step, of which b tuples (b, r, d) are here.

        `own` (b,) are the places of these tuples.

        Returns
        -------
        Inner products, -inf with images that are no negatives of the anchor.
        """
        every = _gather_with_gradient(rows.flatten(1), self.sizes[step])
        products = anchors @ every.unflatten(1, rows.shape[1:]).flatten(0, 1).T
        ids = self.images[self._places[self._steps[step]].ravel()]
        related = np.stack([np.isin(ids, self.tuples.related[i]) for i in own])
        masked: Tensor = products.masked_fill(
            torch.from_numpy(related).to(products.device), -torch.inf
        )
        return masked


class ClassSteps:
    """Steps on batches of labelled images, with a loss of the whole batch.

    Each rank embeds the images [rank::size] of a batch and gathers the embeddings of the others.

    Parameters
    ----------
    batches : (s, b) int64, ids of the images of each step
    classes : (n,) int64, class of every image
    loss : see `supervised.losses.baseline_loss`
    first : number of the first step, counted over all epochs
    """

    def __init__(self, batches: Ids, classes: Ids, loss: nn.Module, *, first: int) -> None:
        self.batches, self.classes, self.of_batch, self.first = batches, classes, loss, first
        self.rank, self.size = rank_and_size()
        self.images, self.sizes = batches.ravel(), [batches.shape[1]] * len(batches)

    def micro_batches(self, step: int) -> list[Ids]:
        b = self.batches.shape[1]
        return [step * b + np.arange(b)[self.rank :: self.size]]

    def loss(self, step: int, micro_batch: int, embeddings: Tensor) -> Tensor:
        """Return an equal share of the loss of a batch, which is in one pass."""
        # Every rank computes the whole loss, and its gradient reaches each image from every rank.
        ids = self.batches[step]
        rows = _gather_with_gradient(embeddings, len(ids))
        labels = torch.from_numpy(self.classes[ids]).to(rows.device)
        value: Tensor = self.of_batch(rows, labels, self.first + step)
        return value / self.size


def _gather_with_gradient(stripe: Tensor, total: int) -> Tensor:
    """Gather the rows [rank::size] of all ranks in order, (total, d), with gradients to each."""
    _, size = rank_and_size()
    if size == 1:
        return stripe
    missing = -(-total // size) - len(stripe)
    padded = nn.functional.pad(stripe, (0, 0, 0, missing))
    stripes = torch.distributed.nn.functional.all_gather(padded)
    return torch.stack(tuple(stripes), 1).flatten(0, 1)[:total]
