"""Embedding of images of any shapes by a network, in batches of one shape.

m images, p poolings, d dims.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmray.config.choices import Descriptor
from mmray.descriptors.moments import Moments
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.pooling import Rmac, region_vectors
from mmray.images.decoding import same_shape_batches
from mmray.system.arrays import Features, Pixels

# On a CPU the maps of larger batches leave its caches: for 362 x 272 pixels, batches of eight take
# VGG16 8% more time than single images, in bfloat16 30%. While maps are small, they spare overhead.
CPU_PIXELS = 1 << 18
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
    torch.set_num_threads(threads)


def as_batch(images: Sequence[Pixels], device: torch.device) -> Tensor:
    """Stack images of one shape into a tensor (m, 3, height, width) uint8."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)


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


def region_moments(
    model: EmbeddingNet,
    images: Sequence[Pixels],
    regions: Rmac,
    *,
    scales: Sequence[float],
    batch_size: int,
    device: torch.device,
) -> Moments:
    """Compute the moments of the vectors of all regions of all images, at all scales.

    Parameters
    ----------
    model : left in evaluation mode
    images : m images, each (height, width, 3) uint8 RGB
    regions : variant of R-MAC that defines the regions; its whitening is not applied
    scales : multiples of the size of an image
    batch_size : most images in a forward pass
    device : of the model

    Returns
    -------
    Moments in as many dimensions as the last map has channels; what region whitening is learned
    from.
    """
    total = Moments.none(model.channels)
    model.eval()
    with torch.inference_mode():
        for batch in _batches(images, batch_size, device):
            pixels = as_batch([images[index] for index in batch], device)
            for scale in scales:
                maps = model.maps(pixels, scale)
                vectors = region_vectors(maps, regions.levels, whole=regions.whole)
                total = total.merge(Moments.of(vectors.flatten(0, 1).cpu().numpy()))
    return total


def _batches(images: Sequence[Pixels], batch_size: int, device: torch.device) -> list[list[int]]:
    shapes, most_pixels = [image.shape[:2] for image in images], None
    if device.type == "cpu":
        batch_size, most_pixels = min(batch_size, CPU_IMAGES), CPU_PIXELS
    return same_shape_batches(shapes, batch_size, most_pixels=most_pixels)
