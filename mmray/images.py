"""Images: decoding and resizing, query crops, batches of one shape.

n images, h x w pixels. Resizing is Lanczos, as in the released code.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mmray.arrays import Box, Pixels
from mmray.collection import read_bytes

# Other plugins of PIL are not tried: some start programs (EPS), most are never met in collections.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

_UPRIGHT = {  # EXIF orientation: what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoded:
    """Either pixels or the reason for their absence.

    Attributes
    ----------
    pixels : (h, w, 3) uint8 RGB, after cropping and resizing; None on error
    width, height : of the whole original image, upright; 0 where it could not be opened
    error : one sentence, or None
    """

    pixels: Pixels | None
    width: int
    height: int
    error: str | None


def load_image(uri: str, *, longest_side: int, box: Box | None = None) -> Decoded:
    """`read_bytes` and `decode`; a file that cannot be read is an `error` too."""
    try:
        data = read_bytes(uri)
    except OSError as error:
        return Decoded(None, 0, 0, f"{type(error).__name__}: {error.strerror or error}")
    return decode(data, longest_side=longest_side, box=box)


def decode(data: bytes, *, longest_side: int, box: Box | None = None) -> Decoded:
    """Decode, crop and reduce one image. Whatever the data, it returns; the reason is in `error`.

    The image is turned upright (EXIF), transparent parts become white, 16-bit gray becomes 8-bit,
    an animation gives its first frame. PIL's limit of 178,956,970 pixels holds.

    Parameters
    ----------
    data : the content of an image file
    longest_side : pixels of the longest side of the whole image afterwards; never enlarged
    box : if given, only this part of the upright original, rounded to whole pixels and clipped, and
        reduced by the scale of the *whole* image (the rule of the Oxford and Paris queries)
    """
    if longest_side < 1:
        raise ValueError(f"longest_side is {longest_side}, it must be at least 1")
    if not data:
        return Decoded(None, 0, 0, "empty file (0 bytes)")
    try:
        return _decode(data, longest_side, box)
    except UnidentifiedImageError:
        return Decoded(None, 0, 0, f"not an image of a known format ({', '.join(FORMATS)})")
    # PIL's decoders meet damaged data with nearly any exception: SyntaxError, struct.error...
    except Exception as error:
        return Decoded(None, 0, 0, f"{type(error).__name__}: {error}")


def same_shape_batches(shapes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Group images of equal shape, so that mixed collections can be embedded in batches.

    Parameters
    ----------
    shapes : n pairs (h, w)
    batch_size : at most so many per batch

    Returns
    -------
    Batches of positions in `shapes`: each position once, ascending within a shape; shapes in the
    order of their first image.

    Raises
    ------
    ValueError
        `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    groups: dict[tuple[int, int], list[int]] = {}
    for position, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(position)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


def _decode(data: bytes, longest_side: int, box: Box | None) -> Decoded:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    scale = min(1.0, longest_side / max(width, height))
    if box is None:
        # Large JPEGs are decoded at 1/2, 1/4 or 1/8, to at least twice the wanted size: 2.5 times
        # as fast, 0.2 of 255 gray levels away on average. The final size does not depend on it.
        image.draft(None, (round(2 * width * scale), round(2 * height * scale)))
    image.load()
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    image = _to_rgb(image)
    region = (width, height)
    if box is not None:
        left, top, right, bottom = (round(side) for side in box)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if left >= right or top >= bottom:
            error = f"the box {box} holds no pixel of the {width} x {height} image"
            return Decoded(None, width, height, error)
        image = image.crop((left, top, right, bottom))
        region = image.size
    target = (max(1, round(region[0] * scale)), max(1, round(region[1] * scale)))
    if image.size != target:
        image = image.resize(target, Image.Resampling.LANCZOS)
    return Decoded(np.array(image), width, height, None)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # PIL would clip at 255
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit gray (mode {image.mode}): the value of white is not known")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
