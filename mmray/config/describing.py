"""Settings of describing images by a network."""

from dataclasses import dataclass
from typing import Annotated

from mmray.config.bounds import Between
from mmray.config.choices import Descriptor, Precision

SCALE = Between(0.05, 4)  # multiples of an image's size


@dataclass(frozen=True, kw_only=True)
class DescribingConfig:
    """Precision, batches and limits of describing images."""

    precision: Precision = "float32"
    """The others are several times as fast on hardware that has them; the deviation is reported."""
    shard_size: Annotated[int, Between(1, 1_000_000)] = 256
    """Images in a shard, the unit of work that is repeated after an interruption."""
    batch_size: Annotated[int, Between(1, 65_536)] = 32
    """Most images in a forward pass; all have one shape."""
    fixed_batches: bool = False
    """Fill up each batch of a shape to the same number of images: on GPUs too, with any network,
    a descriptor is then equal to the bit whatever images are beside it; slower, on mixed shapes."""
    max_pixels: Annotated[int, Between(1, 10**12)] = 178_956_970
    """Images with more pixels are not decoded: a file of a few bytes can claim to be huge."""


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig(DescribingConfig):
    """Features Y for mining (Sec. 4.3)."""

    longest_side: Annotated[int | None, Between(32, 16_384)] = 362
    """Longest side that images are reduced to, pixels; None: original size."""
    enlarge: bool = False
    """Enlarge images that are smaller."""
    scales: Annotated[tuple[float, ...], SCALE] = (1.0,)
    """Each image is described at these multiples of its size, and the descriptors are summed."""
    poolings: tuple[Descriptor, ...] = ("rmac", "mac")
    """Descriptors taken from one forward pass; mining uses the first. embedding, alone: the
    network's own output, with its head in later rounds, so that they mine on f(x; θ) (Sec. 3.4)."""
    rmac_whole: bool = True
    """R-MAC includes the MAC of the whole map; both variants are in the literature."""
    region_whitening: bool = False
    """R-MAC whitens each region by a PCA learned from regions, as in Tolias et al. 2016."""
    pca: Annotated[int | None, Between(1, 100_000)] = None
    """Dimensions left by a PCA whitening of the features, learned from them; None: no whitening."""
    max_bad_fraction: Annotated[float, Between(0, 1)] = 0.5
    """Largest share of images that may be unreadable; more stop the job."""
