"""Crops of images: at random for fine-grained learning, central for its embeddings, parts to check.

h x w pixels of an image. Retrieval trains on whole images; a part of each tells how well a network
recognises it.

Resizing is bilinear and antialiased, as torchvision's transforms are by default, and by PIL: its
integers are the same on every CPU, while torch's resizing, at most a fifth faster for images of 256
pixels, depends on the CPU's vector instructions.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmray.config.choices import Interpolation
from mmray.system.arrays import Pixels

FILTERS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
MOST_RESIZED = 1 << 24  # pixels of an image that is resized as a whole before it is cut
ATTEMPTS = 10  # draws of a crop that may not fit into the image, as in torchvision


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Random resized crop and horizontal flip, drawn from an explicit generator.

    The rule is that of torchvision's RandomResizedCrop, which however draws from torch's global
    generator, so that its crops change with the number of workers and the order of threads. Here
    the number of draws varies too: give each image a generator of its own.

    Attributes
    ----------
    size : pixels of a side of the result
    scale : least and greatest share of the image's area that is kept
    ratio : least and greatest width / height of what is kept, before it becomes a square
    flip : probability of mirroring left and right

    Raises
    ------
    ValueError
        An attribute is outside its range.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}, it must be 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio}, it must be 0 < low <= high, both finite")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}, it must be a probability in 0..1")

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Crop (h, w, 3) uint8 pixels at random to a new (size, size, 3) uint8, enlarged if needed.

        Parameters
        ----------
        pixels : (h, w, 3) uint8
        rng : source of all random choices
        """
        region = self.region(pixels.shape[0], pixels.shape[1], rng)
        image = Image.fromarray(pixels[region])
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(image)

    def region(self, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
        """Draw the rows and columns to keep of an image of h x w pixels, at least one of each.

        The area is uniform in `scale`, the ratio log-uniform, the place uniform. Where no attempt
        fits, it is the largest central region whose ratio is allowed, at least 1 pixel wide and
        high; torchvision rounds less than half a pixel to nothing.
        """
        low, high = np.log(self.ratio)
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                top = int(rng.integers(height - rows + 1))
                left = int(rng.integers(width - columns + 1))
                return slice(top, top + rows), slice(left, left + columns)
        rows, columns = height, width
        if width / height < self.ratio[0]:
            rows = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            columns = max(1, round(height * self.ratio[1]))
        top, left = (height - rows) // 2, (width - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)


def random_part(pixels: Pixels, rng: np.random.Generator, share: float = 0.5) -> Pixels:
    """Cut out a part of an image at a random place, of the image's shape; nothing is resized.

    Parameters
    ----------
    pixels : (h, w, 3) uint8
    rng : draws the place
    share : of the area, above 0 and up to 1

    Returns
    -------
    A view (h', w', 3) uint8 of the pixels, 1 pixel wide and high at least.
    """
    height, width = (max(1, round(side * math.sqrt(share))) for side in pixels.shape[:2])
    top = int(rng.integers(pixels.shape[0] - height + 1))
    left = int(rng.integers(pixels.shape[1] - width + 1))
    return pixels[top : top + height, left : left + width]


def center_crop(
    pixels: Pixels,
    size: int,
    resize_size: int | None = None,
    interpolation: Interpolation = "bilinear",
) -> Pixels:
    """Resize the shorter side and cut out the centre, as networks trained on crops embed.

    The result is that of torchvision's Resize and CenterCrop on a PIL image, to the bit where the
    resized image has up to 16 megapixels.

    Parameters
    ----------
    pixels : (h, w, 3) uint8
    size : pixels of a side of the result
    resize_size : pixels of the shorter side before the cut, at least `size`; smaller images are
        enlarged. None: `size`
    interpolation : of resizing

    Returns
    -------
    A new (size, size, 3) uint8.

    Raises
    ------
    ValueError
        `size` is below 1, or above `resize_size`.
    """
    _check_size(size)
    short = size if resize_size is None else resize_size
    if short < size:
        raise ValueError(f"resize_size is {short}, it must be at least the size, {size}")
    height, width = pixels.shape[:2]
    side = min(height, width)
    resized = [short * length // side for length in (width, height)]
    left, top = (round((length - size) / 2) for length in resized)
    image, kind = Image.fromarray(pixels), FILTERS[interpolation]
    if math.prod(resized) <= MOST_RESIZED:
        whole = image.resize((resized[0], resized[1]), kind)
        return np.array(whole.crop((left, top, left + size, top + size)))
    # The whole of a long image might not fit into memory. The filter reads beyond the box, as if
    # all of it had been resized, but for a gray level or two.
    x, y = width / resized[0], height / resized[1]
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return np.array(image.resize((size, size), kind, box=box))


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size is {size}, it must be at least 1")
