"""Small JPEG files of decoded images, as pages show them."""

import io

import numpy as np
from PIL import Image

from mmray.system.arrays import Pixels

_QUALITY = 80


def reduced_jpeg(pixels: Pixels, side: int) -> bytes:
    """Encode an image as a small JPEG file.

    Parameters
    ----------
    pixels : (h, w, 3) uint8
    side : largest number of pixels of the longer side; a smaller image is not enlarged

    Raises
    ------
    ValueError
        The array is not an image, or the side is below 1.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(
            f"a thumbnail needs pixels (h, w, 3) uint8, got {pixels.shape} {pixels.dtype}"
        )
    if side < 1:
        raise ValueError(f"side = {side}: give at least 1 pixel")
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    if scale < 1:
        width, height = (max(1, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=_QUALITY, optimize=True)
    return jpeg.getvalue()
