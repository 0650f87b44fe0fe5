"""Decoding and resizing of images, crops of queries, batches of one shape.

n images, h x w pixels. Resizing is Lanczos, as in the released code.
"""

import logging
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmray.images.bombs import ImageContent, bomb
from mmray.images.collection import ImageFile
from mmray.images.containers import read_image
from mmray.images.image_formats import (
    READERS,
    box_as_stored,
    format_of,
    to_rgb,
    upright,
    upright_box,
)
from mmray.system.arrays import Box, Pixels
from mmray.system.locations import error_line

MAX_PIXELS = 178_956_970  # PIL refuses more too

_LIMIT_OF_PIL = threading.Lock()
_WARNINGS = ("ignore", None, UserWarning, re.compile(r"PIL\.(Png|Tiff)ImagePlugin"), 0)
_TIFF_LOG = logging.getLogger("PIL.TiffImagePlugin")


@dataclass(frozen=True)
class Decoded:
    """The pixels of an image, or the reason why there are none.

    Attributes
    ----------
    pixels : (h, w, 3) uint8 RGB, after cropping and resizing; None on error
    width, height : of the whole original image, upright; 0 where it was not decoded
    error : one line, or None
    """

    pixels: Pixels | None
    width: int
    height: int
    error: str | None


def byte_limit(max_pixels: int) -> int:
    """Return the limit in bytes for an image file: 8 per pixel (16-bit RGBA) and 16 MiB."""
    return 8 * max_pixels + (16 << 20)


def load_image(
    item: ImageFile,
    *,
    longest_side: int | None,
    enlarge: bool = False,
    stored_box: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """Read and decode an image; one that cannot be read has the reason as its `error`.

    Parameters
    ----------
    item : the image, of any kind
    longest_side, enlarge, stored_box, max_pixels : as for `decode`
    """
    if item.error is not None:
        return Decoded(None, 0, 0, item.error)
    try:
        data = read_image(item, limit=byte_limit(max_pixels))
    except OSError as error:
        return Decoded(None, 0, 0, error_line(error))
    return decode(
        data,
        longest_side=longest_side,
        enlarge=enlarge,
        box=item.box,
        stored_box=stored_box,
        max_pixels=max_pixels,
    )


def decode(
    data: bytes,
    *,
    longest_side: int | None,
    enlarge: bool = False,
    box: Box | None = None,
    stored_box: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """Decode, crop and reduce one image; data that cannot be decoded gives an `error`.

    The image is turned upright (EXIF, ignored if it is broken), transparent parts become white, 16
    and 12 bits become 8, an animation gives its first frame; colour profiles are not applied.
    Gray of 32 bits, of floats or signed is refused, as its white is not known. So are truncated
    files, and those that would take far more time than their size accounts for (`bombs`); a JPEG
    damaged in the middle may pass, with wrong colours from there on.

    Threads may decode at once. Warnings of PIL's PNG and TIFF readers, which also read EXIF, are
    silenced in the whole process by a filter put first, as no other way holds in threads.

    Parameters
    ----------
    data : the content of an image file
    longest_side : pixels of the longest side of the whole image afterwards; None: the original size
    enlarge : enlarge an image that is smaller
    box : if given, only this part of the upright original, rounded to whole pixels and clipped, and
        reduced by the scale of the *whole* image (the rule of the Oxford and Paris queries)
    stored_box : the box is of the pixels as they are stored, before they are turned upright: that
        is what published boxes are of, as their authors' programs ignore EXIF
    max_pixels : an image whose header claims more is not decoded; may exceed the limit of PIL
    """
    if longest_side is not None and longest_side < 1:
        raise ValueError(f"longest_side is {longest_side}, it must be at least 1")
    if not data:
        return Decoded(None, 0, 0, "empty file (0 bytes)")
    name = format_of(data)
    if name is None:
        return Decoded(None, 0, 0, f"not an image of a known format ({', '.join(READERS)})")
    _silence_pil()
    try:
        content = ImageContent(data)
        with _without_limit_of_pil() as limit:
            image = READERS[name][1](content)
        width, height = image.size
        if width * height > max_pixels:
            error = f"{width} x {height} pixels, more than --extraction.max-pixels {max_pixels}"
            return Decoded(None, 0, 0, error)
        if reason := bomb(name, image, data):
            return Decoded(None, 0, 0, f"{name}: {reason}")
        content.allow(width * height)
        beyond = limit is not None and width * height > limit
        with _without_limit_of_pil() if beyond else nullcontext():
            return _resized(image, longest_side, enlarge, box, stored_box)
    # PIL's decoders meet damaged data with nearly any exception: SyntaxError, struct.error...
    except Exception as error:
        return Decoded(None, 0, 0, f"{name}: {_one_line(error)}")


def stored_box_of(data: bytes, box: Box) -> Box:
    """Return the place in the pixels as they are stored of a box of the upright image.

    Parameters
    ----------
    data : the content of an image file that `decode` can decode
    box : as `decode` takes it without `stored_box`
    """
    name = format_of(data)
    assert name is not None
    with _without_limit_of_pil():
        return box_as_stored(READERS[name][1](ImageContent(data)), box)


@dataclass(frozen=True)
class BatchLimit:
    """Limit on the images of one shape that share a forward pass.

    Attributes
    ----------
    images : most images
    pixels : most pixels of all of them; a single image may have more; None: no limit
    """

    images: int
    pixels: int | None

    def of_shape(self, height: int, width: int) -> int:
        """Return the number of images of this shape that fill a batch; it is at least 1."""
        room = self.images if self.pixels is None else self.pixels // (height * width)
        return max(1, min(self.images, room))


def same_shape_batches(
    shapes: Sequence[tuple[int, int]], batch_size: int, *, most_pixels: int | None = None
) -> list[list[int]]:
    """Group images of equal shape, so that mixed collections can be embedded in batches.

    Parameters
    ----------
    shapes : n pairs (h, w)
    batch_size : at most so many per batch
    most_pixels : at most so many in a batch together, or one image

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
    batches, limit = [], BatchLimit(batch_size, most_pixels)
    for (height, width), group in groups.items():
        size = limit.of_shape(height, width)
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


@contextmanager
def _without_limit_of_pil() -> Iterator[int | None]:
    """Lift PIL's own limit of pixels, which may be below the user's; yields PIL's limit.

    It is a global of PIL, so it is lifted by one thread at a time, and only while PIL looks at it:
    when a file is opened, and beyond the limit when a TIFF is decoded or any image cropped.
    """
    with _LIMIT_OF_PIL:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield limit
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _silence_pil() -> None:
    """Keep a million damaged files from a million lines on the terminal."""
    if warnings.filters[:1] != [_WARNINGS]:
        warnings.filterwarnings("ignore", category=UserWarning, module=_WARNINGS[3].pattern)
    _TIFF_LOG.addFilter(_is_no_error)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR  # PIL raises whatever it logs as an error


def _one_line(error: Exception) -> str:
    """Describe an error in one printable line that is the same each time."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", error_line(error))
    text = text.replace("SyntaxError", "not understood", 1)  # PIL's error for a damaged header
    text = "".join(letter if letter.isprintable() else "?" for letter in text).rstrip(": ")
    return text if len(text) <= 280 else f"{text[:277]}..."


def _resized(
    image: Image.Image,
    longest_side: int | None,
    enlarge: bool,
    box: Box | None,
    stored_box: bool,
) -> Decoded:
    width, height = image.size
    scale = 1.0 if longest_side is None else longest_side / max(width, height)
    if not enlarge:
        scale = min(1.0, scale)
    if box is None:
        # Large JPEGs are decoded at 1/2, 1/4 or 1/8, to at least twice the wanted size: 4 times as
        # fast for 12 megapixels at 362, 0.3 of 255 gray levels away on average. The final size
        # does not depend on it.
        image.draft(None, (max(1, round(2 * width * scale)), max(1, round(2 * height * scale))))
    image.load()
    if box is not None and stored_box:
        box = upright_box(image, box)
    image, turned = upright(image)
    if turned:
        width, height = height, width
    image = to_rgb(image)
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
        # The gap averages blocks of pixels first where the image is reduced to a sixth or less:
        # 20% off the time of a large WebP, 0.2 of 255 gray levels away on average.
        image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Decoded(_pixels(image), width, height, None)


def _pixels(image: Image.Image) -> Pixels:
    """Copy an image into an array by strips: PIL takes 3 times as long for a large one at once."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, (1 << 20) // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels
