"""Embedding images by their ids, and one epoch of fine-tuning (Sec. 3.4).

m images, t tuples of p positives and n negatives each, d dims, s steps, b images of a batch.
Everything here runs alone or as one of several ranks of `torch.distributed`; any number of ranks
follows the trajectory of one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed
import torch.distributed.nn
from torch import Tensor, nn

from mmray.config.choices import Loss, Precision
from mmray.descriptors.embedding import as_batch, embed
from mmray.descriptors.inference import fused
from mmray.descriptors.network import EmbeddingNet
from mmray.images.collection import ImageFile
from mmray.images.decoding import MAX_PIXELS, load_image, same_shape_batches
from mmray.losses import tuple_loss
from mmray.optimization import set_learning_rate
from mmray.system.arrays import Features, Ids, Pixels
from mmray.system.errors import InputError
from mmray.system.locations import ahead
from mmray.tuples import Tuples

CHUNK = 256  # images decoded together when a set is embedded
AHEAD = 64  # images read ahead of their use
THREADS = 2  # that read them

View = Callable[[Pixels, int], Pixels]


class ImageSource:
    """Reads, decodes and resizes images by their id, in threads, ahead of their use.

    Parameters
    ----------
    items : the images, an image's id being its place among them
    longest_side : pixels to which images are reduced
    view : what is made of an image, by a number that is given with it
    """

    def __init__(
        self,
        items: Sequence[ImageFile],
        *,
        longest_side: int,
        max_pixels: int = MAX_PIXELS,
        view: View = lambda pixels, key: pixels,
    ) -> None:
        self.items, self.longest_side, self.max_pixels = items, longest_side, max_pixels
        self.view = view

    def seen_as(self, view: View) -> "ImageSource":
        """The same images under another view."""
        return ImageSource(
            self.items, longest_side=self.longest_side, max_pixels=self.max_pixels, view=view
        )

    def _load(self, request: tuple[int, int]) -> Pixels:
        image_id, key = request
        item = self.items[image_id]
        decoded = load_image(item, longest_side=self.longest_side, max_pixels=self.max_pixels)
        if decoded.pixels is None:
            raise InputError(
                f"{item.location}: {decoded.error}; this image could be read before: restore it, "
                "or start again with another --storage"
            )
        return self.view(decoded.pixels, key)

    def groups(
        self, groups: Sequence[Ids], keys: Sequence[Ids] | None = None
    ) -> Iterator[list[Pixels]]:
        """The images of each group of ids in turn; the keys are for the view, one an image."""
        flat = np.concatenate([*groups, np.empty(0, np.int64)]).tolist()
        of_images = [0] * len(flat) if keys is None else np.concatenate(keys).tolist()
        images = ahead(self._load, zip(flat, of_images, strict=True), AHEAD, threads=THREADS)
        for group in groups:
            yield list(islice(images, len(group)))


def embed_ids(
    model: EmbeddingNet,
    source: ImageSource,
    ids: Ids,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision = "float32",
) -> Features:
    """`embed` for images of a source: (m, d), shared between the ranks, whole on every rank.

    The model stays as it is: a copy of it, made for inference, embeds.
    """
    rank, size = rank_and_size()
    stripe = ids[rank::size]
    chunks = [stripe[start : start + CHUNK] for start in range(0, len(stripe), CHUNK)]
    faster = fused(model, dtype=getattr(torch, precision))
    rows = [np.zeros((0, model.dim), np.float32)]
    rows += [
        embed(faster, images, ["embedding"], batch_size=batch_size, device=device)[:, 0]
        for images in source.groups(chunks)
    ]
    return _gather_stripes(np.concatenate(rows), len(ids), device)


def rank_and_size() -> tuple[int, int]:
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _gather_stripes(stripe: Features, total: int, device: torch.device) -> Features:
    """All ranks' rows [rank::size] put back in order: (total, ...)."""
    _, size = rank_and_size()
    if size == 1:
        return stripe
    longest = -(-total // size)
    padded = torch.zeros((longest, *stripe.shape[1:]), device=device)
    padded[: len(stripe)] = torch.from_numpy(stripe).to(device)
    stripes = [torch.empty_like(padded) for _ in range(size)]
    torch.distributed.all_gather(stripes, padded)
    return torch.stack(stripes, 1).flatten(0, 1)[:total].cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class StepRule:
    """How a step follows from a batch of tuples.

    Attributes
    ----------
    loss, margin, weighted, sum_negatives : see `losses.tuple_loss`
    batch_size : tuples in a step, over all ranks together
    precision : of the forward and backward pass through the backbone; weights, embeddings and
        losses are in float32 always
    clip_norm : a gradient with a larger norm is scaled down to it; None: never
    """

    loss: Loss
    margin: float | None
    weighted: bool
    batch_size: int
    precision: Precision = "float32"
    clip_norm: float | None = None
    sum_negatives: bool = False


class Steps(Protocol):
    """The steps of an epoch: which images, and what their embeddings cost.

    Attributes
    ----------
    images : (i,) int64, of the whole epoch, an image perhaps more than once
    sizes : what each step counts for in the mean loss
    """

    images: Ids
    sizes: list[int]

    def places(self, step: int) -> Ids:
        """Places in `images` of what this rank embeds."""

    def loss(self, step: int, embeddings: Tensor) -> Tensor:
        """What this rank adds to the step's mean loss, a scalar.

        The shares add up to the loss, and the mean over the ranks of `size` times their gradients
        is its gradient.
        """


class TupleSteps:
    """Steps of `batch_size` tuples: each rank takes the tuples [rank::size] of a step."""

    def __init__(self, tuples: Tuples, rule: StepRule) -> None:
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

    def _stripe(self, step: int) -> Ids:
        # A rank without a tuple in a short last step repeats the first one at weight 0, to keep up.
        tuples = self._steps[step]
        return tuples[self.rank :: self.size] if len(tuples) > self.rank else tuples[:1]

    def places(self, step: int) -> Ids:
        return self._places[self._stripe(step)].ravel()

    def loss(self, step: int, embeddings: Tensor) -> Tensor:
        """However uneven the stripes are, every tuple counts the same."""
        stripe, rule = self._stripe(step), self.rule
        rows = embeddings.unflatten(0, (len(stripe), -1))
        p = self.tuples.positives.shape[1]
        anchor, positives, negatives = rows.split([1, p, rows.shape[1] - 1 - p], dim=1)
        weights = torch.from_numpy(self.tuples.weights[stripe]).to(rows.device)
        losses = tuple_loss(
            anchor[:, 0],
            positives,
            negatives,
            loss=rule.loss,
            margin=rule.margin,
            weights=weights if rule.weighted else None,
            sum_negatives=rule.sum_negatives,
        )
        counted = 1.0 if self.sizes[step] > self.rank else 0.0
        return losses.sum() * counted / self.sizes[step]


class ClassSteps:
    """Steps of batches of labelled images, whose loss takes all of a batch together.

    Each rank embeds the images [rank::size] of a batch and gathers those of the others.

    Parameters
    ----------
    batches : (s, b) int64, images
    classes : (n,) int64, of every image
    loss : see `supervised.rival_loss`
    first : number of the first step, over all epochs
    """

    def __init__(self, batches: Ids, classes: Ids, loss: nn.Module, *, first: int) -> None:
        self.batches, self.classes, self.of_batch, self.first = batches, classes, loss, first
        self.rank, self.size = rank_and_size()
        self.images, self.sizes = batches.ravel(), [batches.shape[1]] * len(batches)

    def places(self, step: int) -> Ids:
        b = self.batches.shape[1]
        places: Ids = step * b + np.arange(b)[self.rank :: self.size]
        return places

    def loss(self, step: int, embeddings: Tensor) -> Tensor:
        """Every rank has all of it: its gradient reaches each rank's images once from each rank."""
        ids = self.batches[step]
        rows = _gather_with_gradient(embeddings, len(ids))
        labels = torch.from_numpy(self.classes[ids]).to(rows.device)
        value: Tensor = self.of_batch(rows, labels, self.first + step)
        return value / self.size


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
    """One pass over the steps; returns their mean loss and the mean norm of the gradients.

    Parameters
    ----------
    optimizers : the network's, then those of what the loss has to learn, if anything
    source : its view is given the place of an image in the epoch
    learning_rate : of the network in a step, by the share of the epoch, in (0, 1], that is done
        after it; None: the optimiser's own

    Raises
    ------
    InputError
        The loss is not finite: training has diverged.
    """
    _, size = rank_and_size()
    count, total, done = len(steps.sizes), sum(steps.sizes), 0
    places = [steps.places(step) for step in range(count)]
    images_of_steps = source.groups([steps.images[each] for each in places], places)
    model.train()
    sums = torch.zeros(2, device=device)  # of the losses, of the norms of the gradients
    for step, images in enumerate(images_of_steps):
        done += steps.sizes[step]
        if learning_rate is not None:
            set_learning_rate(optimizers[0], learning_rate(done / total))
        with torch.autocast(
            device.type, torch.bfloat16, enabled=rule.precision == "bfloat16", cache_enabled=False
        ):
            embeddings = _forward(model, images, device)
        share = steps.loss(step, embeddings)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
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
    return {"loss": loss, "gradient_norm": norm}


def _gather_with_gradient(stripe: Tensor, total: int) -> Tensor:
    """All ranks' rows [rank::size] put back in order, (total, d); gradients flow back to each."""
    _, size = rank_and_size()
    if size == 1:
        return stripe
    missing = -(-total // size) - len(stripe)
    padded = nn.functional.pad(stripe, (0, 0, 0, missing))
    stripes = torch.distributed.nn.functional.all_gather(padded)
    return torch.stack(tuple(stripes), 1).flatten(0, 1)[:total]


def _forward(model: nn.Module, images: Sequence[Pixels], device: torch.device) -> Tensor:
    """Embeddings (m, d) of images of mixed shapes by a single forward call, as DDP needs."""
    batches = list(same_shape_batches([image.shape[:2] for image in images], len(images)))
    rows = model([as_batch([images[index] for index in batch], device) for batch in batches])
    order = np.argsort(np.concatenate(batches))
    ordered: Tensor = rows[torch.from_numpy(order).to(device)]
    return ordered
