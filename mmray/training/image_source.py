"""Images by id, made ready ahead of use, and their embedding by all ranks."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import torch.distributed
import torch.distributed.nn

from mmray.config.choices import Descriptor, Precision
from mmray.descriptors.embedding import embed
from mmray.descriptors.inference import fused
from mmray.descriptors.network import EmbeddingNet
from mmray.images.collection import ImageFile
from mmray.images.decoding import MAX_PIXELS, load_image
from mmray.images.pixel_shards import PixelShards
from mmray.system.arrays import Features, Ids, Pixels
from mmray.system.errors import InputError
from mmray.system.locations import prefetch

CHUNK = 256  # images decoded together when a set is embedded
AHEAD = 64  # images read ahead of use
THREADS = 2  # fewest threads that read images

View = Callable[[Pixels, int], Pixels]


class ImageSource:
    """Images by id, which threads read, decode and resize ahead of use.

    Parameters
    ----------
    items : the images, or the pixels of images that are reduced already; the id of an image is its
        place among them
    longest_side : pixels to which images are reduced
    max_pixels : an image with more cannot be read
    view : (pixels, key) -> pixels, a transformation of each image, such as a crop
    """

    def __init__(
        self,
        items: Sequence[ImageFile] | PixelShards,
        *,
        longest_side: int,
        max_pixels: int = MAX_PIXELS,
        view: View = lambda pixels, key: pixels,
    ) -> None:
        self.items, self.longest_side, self.max_pixels = items, longest_side, max_pixels
        self.view = view

    def seen_as(self, view: View) -> "ImageSource":
        """Return a source of the same images with another view."""
        return ImageSource(
            self.items, longest_side=self.longest_side, max_pixels=self.max_pixels, view=view
        )

    def _load(self, request: tuple[int, int]) -> Pixels:
        image_id, key = request
        if isinstance(self.items, PixelShards):
            return self.view(self.items[image_id], key)
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
        """Yield the images of each group of ids; `keys` has a key of the view for each image."""
        flat = np.concatenate([*groups, np.empty(0, np.int64)]).tolist()
        of_images = [0] * len(flat) if keys is None else np.concatenate(keys).tolist()
        threads = max(THREADS, torch.get_num_threads())
        images = prefetch(self._load, zip(flat, of_images, strict=True), AHEAD, threads=threads)
        for group in groups:
            yield list(islice(images, len(group)))


def slowest(seconds: float, device: torch.device) -> float:
    """Return the seconds of the slowest rank, the same on all of them."""
    if rank_and_size()[1] == 1:
        return seconds
    longest = torch.tensor(seconds, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
    return float(longest)


def embed_ids(
    model: EmbeddingNet,
    source: ImageSource,
    ids: Ids,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision = "float32",
    descriptor: Descriptor = "embedding",
    advance: Callable[[int], None] = lambda images: None,
) -> Features:
    """Embed images by their ids; all ranks share the work, and each receives all rows.

    The model stays unchanged: a copy of it, made for inference, embeds.

    Parameters
    ----------
    model : the network
    source : the images; the key of a view is the image's id
    ids : (m,) int64, their places in the source
    batch_size : most images of a forward pass
    device : where to compute
    precision : of the convolutions
    descriptor : of the network
    advance : called with the number of images that this rank has embedded since

    Returns
    -------
    (m, d) float32, l2-normalised, in the order of the ids; the same on every rank.

    Raises
    ------
    InputError
        A row is not finite: training has diverged, or an image can no longer be read.
    """
    rank, size = rank_and_size()
    stripe = ids[rank::size]
    chunks = [stripe[start : start + CHUNK] for start in range(0, len(stripe), CHUNK)]
    faster = fused(model, precision=precision).on(device)
    rows = [np.zeros((0, model.dimensions(descriptor)), np.float32)]
    for images in source.groups(chunks, chunks):
        found = embed(faster, images, (descriptor,), batch_size=batch_size, device=device)
        rows.append(found[:, 0])
        advance(len(images))
    gathered = _gather_stripes(np.concatenate(rows), len(ids), device)
    bad = np.flatnonzero(~np.isfinite(gathered).all(axis=1))
    if len(bad):
        raise InputError(
            f"the embedding of image {ids[bad[0]]} is not finite ({len(bad)} of {len(ids)} images):"
            " training diverged; lower --training.learning-rate"
        )
    return gathered


def rank_and_size() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks; (0, 1) without torch.distributed."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _gather_stripes(stripe: Features, total: int, device: torch.device) -> Features:
    """Gather the rows [rank::size] of all ranks in their order, (total, ...)."""
    _, size = rank_and_size()
    if size == 1:
        return stripe
    longest = -(-total // size)
    padded = torch.zeros((longest, *stripe.shape[1:]), device=device)
    padded[: len(stripe)] = torch.from_numpy(stripe).to(device)
    stripes = [torch.empty_like(padded) for _ in range(size)]
    torch.distributed.all_gather(stripes, padded)
    return torch.stack(stripes, 1).flatten(0, 1)[:total].cpu().numpy()
