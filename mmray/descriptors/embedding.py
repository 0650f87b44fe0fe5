"""Embedding of images of any shapes by a network, in batches of one shape.

m images, p poolings, d dims.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmray.config.choices import Descriptor
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.pooling import region_vectors
from mmray.descriptors.regions import Rmac
from mmray.images.decoding import BatchLimit, same_shape_batches
from mmray.system.arrays import Features, Pixels

# On a CPU the maps of larger batches leave its caches: for 362 x 272 pixels, batches of eight take
# VGG16 8% more time than single images, in bfloat16 30%. While maps are small, they spare overhead.
CPU_PIXELS = 1 << 18
GPU_PIXELS = 1 << 24  # a map of 64 channels at full size, in float32, then has 4 GB
# Below sixteen images, and with one thread, a row of EfficientNet-Lite0 does not depend on the rest
# of a batch, to the bit. From there on oneDNN sums up in another order, and rows of 85 x 128 pixels
# differ by 3e-7; those of the other networks differ by as much whatever the batch.
CPU_IMAGES = 15


def configure_torch(threads: int) -> None:
    """Configure torch for images of many shapes; call it before the process runs a network.

    Parameters
    ----------
    threads : number of threads of an operator on CPUs
    """
    # oneDNN compiles a kernel for each layer and shape of a batch, and keeps but 1,024: with images
    # of many shapes it would compile most of the time (bfloat16: 11.4 ms an image instead of 8).
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    # On GPUs PyTorch rounds the factors of convolutions in "float32" to 10 bits unless told not to.
    allow_tf32(False)
    torch.set_num_threads(threads)


def allow_tf32(allowed: bool) -> None:
    """Let convolutions and products in float32 on GPUs round their factors to 10 bits, or not."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def batch_limit(device_type: str, batch_size: int) -> BatchLimit:
    """Return the limit for "cpu" or "cuda", with at most `batch_size` images."""
    if device_type == "cpu":
        return BatchLimit(min(batch_size, CPU_IMAGES), CPU_PIXELS)
    return BatchLimit(batch_size, GPU_PIXELS)


def as_batch(
    images: Sequence[Pixels] | NDArray[np.uint8], device: torch.device, *, fill: int = 0
) -> Tensor:
    """Stack images of one shape into a tensor (m, 3, height, width) uint8.

    Parameters
    ----------
    images : m images, each (height, width, 3), or an array of them
    device : of the tensor; pixels go to a GPU out of page-locked memory, and without waiting
    fill : images that the batch has at least; what is missing is black
    """
    stack = images if isinstance(images, np.ndarray) else np.stack(images)
    cuda, missing = device.type == "cuda", max(0, fill - len(stack))
    if not (cuda or missing) and stack.flags.writeable:
        return torch.from_numpy(stack).permute(0, 3, 1, 2)
    shape = (len(stack) + missing, *stack.shape[1:])
    staged = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
    staged.numpy()[: len(stack)] = stack
    staged[len(stack) :] = 0
    # PyTorch keeps the page-locked memory until the copy is done.
    return staged.to(device, non_blocking=True).permute(0, 3, 1, 2)


def embed(
    model: EmbeddingNet,
    images: Sequence[Pixels],
    poolings: Sequence[Descriptor],
    *,
    batch_size: int,
    device: torch.device,
    scales: Sequence[float] = (1.0,),
    regions: Rmac | None = None,
) -> Features:
    """Compute the descriptors of images of any shapes.

    Images of one shape share a forward pass; none is padded, so the result is that of one image at
    a time to rounding, with EfficientNet-Lite0 and one thread of a CPU to the bit.

    Parameters
    ----------
    model : left in evaluation mode
    images : m images, each (height, width, 3) uint8 RGB
    poolings : p names of descriptors
    batch_size : most images in a forward pass
    device : of the model
    scales, regions : as for `EmbeddingNet.descriptors`

    Returns
    -------
    (m, p, d) float32, l2-normalised; rows in the order of the images.
    """
    rows = np.zeros((len(images), len(poolings), model.width(poolings)), np.float32)
    model.eval()
    with torch.inference_mode():
        for batch in _batches(images, batch_size, device):
            pixels = as_batch([images[index] for index in batch], device)
            found = model.descriptors(pixels, poolings, scales=scales, regions=regions)
            rows[batch] = found.float().cpu().numpy()
    return rows


def region_rows(
    model: EmbeddingNet, images: Tensor, regions: Rmac, *, scales: Sequence[float]
) -> Tensor:
    """Compute the vectors of all regions of images of one shape, at all scales.

    Parameters
    ----------
    model : left in evaluation mode
    images : (m, 3, h, w) uint8 RGB
    regions : variant of R-MAC that defines the r regions; its whitening is not applied
    scales : multiples of the size of an image

    Returns
    -------
    (m, r, c) float32, what region whitening is learned from.
    """
    model.eval()
    with torch.inference_mode():
        maps = [model.maps(images, scale) for scale in scales]
        found = [region_vectors(each, regions.levels, whole=regions.whole) for each in maps]
        return torch.cat(found, dim=1)


def _batches(images: Sequence[Pixels], batch_size: int, device: torch.device) -> list[list[int]]:
    limit = batch_limit(device.type, batch_size)
    shapes = [image.shape[:2] for image in images]
    return same_shape_batches(shapes, limit.images, most_pixels=limit.pixels)
