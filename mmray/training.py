"""Embedding images by their ids, and one epoch of fine-tuning (Sec. 3.4).

m images, t tuples, p poolings, d dims. Everything here runs alone or as one of several ranks of
`torch.distributed`; any number of ranks follows the trajectory of one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from mmray.arrays import Features, Ids, Pixels
from mmray.collection import ImageFile
from mmray.config import Loss, Pooling
from mmray.embedding import as_batch, embed
from mmray.errors import InputError
from mmray.images import MAX_PIXELS, load_image, same_shape_batches
from mmray.losses import contrastive_loss, triplet_loss
from mmray.models import EmbeddingNet
from mmray.tuples import Tuples

MARGINS: dict[Loss, float] = {"contrastive": 0.7, "triplet": 0.5}  # m of eqs. (7) and (8)
LOSSES = {"contrastive": contrastive_loss, "triplet": triplet_loss}
CHUNK = 256  # images decoded together when a set is embedded


class ImageSource:
    """Reads, decodes and resizes images by their id, in threads, one group ahead of its use.

    Parameters
    ----------
    items : the images, an image's id being its place among them
    longest_side : pixels to which images are reduced
    """

    def __init__(
        self,
        items: Sequence[ImageFile],
        *,
        longest_side: int,
        max_pixels: int = MAX_PIXELS,
        threads: int = 2,
    ) -> None:
        self.items, self.longest_side, self.max_pixels = items, longest_side, max_pixels
        self.threads = ThreadPoolExecutor(threads)

    def _load(self, image_id: int) -> Pixels:
        item = self.items[image_id]
        decoded = load_image(item, longest_side=self.longest_side, max_pixels=self.max_pixels)
        if decoded.pixels is None:
            raise InputError(
                f"{item.location}: {decoded.error}; this image could be read before: restore it, "
                "or start again with another --storage"
            )
        return decoded.pixels

    def groups(self, groups: Iterable[Ids]) -> Iterator[list[Pixels]]:
        """The images of each group of ids in turn."""
        waiting: list[Future[Pixels]] | None = None
        for group in groups:
            following = [self.threads.submit(self._load, int(image_id)) for image_id in group]
            if waiting is not None:
                yield [future.result() for future in waiting]
            waiting = following
        if waiting is not None:
            yield [future.result() for future in waiting]


def embed_ids(
    model: EmbeddingNet,
    source: ImageSource,
    ids: Ids,
    poolings: Sequence[Pooling],
    *,
    batch_size: int,
    device: torch.device,
) -> Features:
    """`embed` for images of a source: (m, p, d), shared between the ranks, whole on every rank."""
    rank, size = rank_and_size()
    stripe = ids[rank::size]
    chunks = [stripe[start : start + CHUNK] for start in range(0, len(stripe), CHUNK)]
    rows = [np.zeros((0, len(poolings), model.dim), np.float32)]
    rows += [
        embed(model, images, poolings, batch_size=batch_size, device=device)
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


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tuples: Tuples,
    source: ImageSource,
    *,
    loss: Loss,
    margin: float | None,
    weighted: bool,
    batch_size: int,
    device: torch.device,
    progress: Callable[[int], Any] = lambda tuples_done: None,
) -> float:
    """One pass over the tuples; returns their mean loss.

    A step takes the gradient of the mean loss of `batch_size` tuples. Each rank computes the tuples
    [rank::size] of the step; what they add is scaled so that DDP's mean over the ranks is the mean
    over the tuples, however uneven the stripes.

    Raises
    ------
    InputError
        The loss is not finite: training has diverged.
    """
    rank, size = rank_and_size()
    margin = MARGINS[loss] if margin is None else margin
    starts = range(0, len(tuples.anchors), batch_size)
    steps = [np.arange(start, min(start + batch_size, len(tuples.anchors))) for start in starts]
    # A rank without a tuple in a short last step repeats the first one at weight 0, to keep up.
    stripes = [step[rank::size] if len(step) > rank else step[:1] for step in steps]
    triples = np.stack([tuples.anchors, tuples.positives, tuples.negatives])
    model.train()
    total = torch.zeros((), device=device)
    images_of_steps = source.groups(triples[:, stripe].reshape(-1) for stripe in stripes)
    for step, stripe, images in zip(steps, stripes, images_of_steps, strict=True):
        weight = torch.from_numpy(tuples.weights[stripe]).to(device) if weighted else None
        embeddings = _forward(model, images, device).unflatten(0, (3, len(stripe)))
        losses = LOSSES[loss](*embeddings, margin=margin, weight=weight)
        share = losses.sum() * (1.0 if len(step) > rank else 0.0)
        optimizer.zero_grad(set_to_none=True)
        (share * size / len(step)).backward()
        optimizer.step()
        total += share.detach()
        progress(len(step))
    if size > 1:
        torch.distributed.all_reduce(total)
    mean = float(total) / max(len(tuples.anchors), 1)
    if not np.isfinite(mean):
        raise InputError(
            f"the loss became {mean}: training diverged; lower --training.learning-rate"
        )
    return mean


def _forward(model: nn.Module, images: Sequence[Pixels], device: torch.device) -> Tensor:
    """Embeddings (m, d) of images of mixed shapes by a single forward call, as DDP needs."""
    batches = list(same_shape_batches([image.shape[:2] for image in images], len(images)))
    rows = model([as_batch([images[index] for index in batch], device) for batch in batches])
    order = np.argsort(np.concatenate(batches))
    ordered: Tensor = rows[torch.from_numpy(order).to(device)]
    return ordered
