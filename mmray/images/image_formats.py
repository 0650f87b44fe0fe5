"""Formats of image files: by what they begin, who reads them, how they say which side is up."""

import re
from collections.abc import Callable
from typing import IO

import numpy as np
from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mmray.system.arrays import Box


def _heif(file: IO[bytes]) -> Image.Image:
    # Imported here, as most collections have no such images.
    from pi_heif import HeifImageFile

    image: Image.Image = HeifImageFile(file)
    return image


# The first bytes of a file, and its reader. Other formats of PIL are not tried: some start programs
# (EPS), most are never met in collections. Photos of two pictures (MPO) are read as the JPEG that
# they begin with.
READERS: dict[str, tuple[bytes, Callable[[IO[bytes]], Image.Image]]] = {
    "JPEG": (rb"\xff\xd8\xff", JpegImageFile),
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "WEBP": (rb"(?s)RIFF.{4}WEBP", WebPImageFile),
    "BMP": (rb"BM", BmpImageFile),
    "TIFF": (rb"(II|MM)(\*\0|\0\*)|II\+\0|MM\0\+", TiffImageFile),
    "GIF": (rb"GIF8[79]a", GifImageFile),
    # Of a general brand (mif1, ...), the brands that follow tell which it is.
    "AVIF": (rb"(?s)....ftyp(avi[fs]|m[is]f1....(....){0,9}?avi[fs])", AvifImageFile),
    "HEIF": (rb"(?s)....ftyp(hei[cxms]|hev[cxms]|m[is]f1)", _heif),
}


# How the web and file systems name these formats.
MEDIA_TYPES = {
    "JPEG": ("image/jpeg", ".jpg"),
    "PNG": ("image/png", ".png"),
    "WEBP": ("image/webp", ".webp"),
    "BMP": ("image/bmp", ".bmp"),
    "TIFF": ("image/tiff", ".tif"),
    "GIF": ("image/gif", ".gif"),
    "AVIF": ("image/avif", ".avif"),
    "HEIF": ("image/heic", ".heic"),
}


def format_of(data: bytes) -> str | None:
    """Return the format that data begin like; None: not an image of a known format."""
    return next((name for name in READERS if re.match(READERS[name][0], data)), None)


_UPRIGHT = {  # EXIF orientation -> operation that turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """Turn a loaded image upright; tell whether its width and height changed places."""
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return image, orientation in (5, 6, 7, 8)


def upright_box(image: Image.Image, box: Box) -> Box:
    """Return the place in the upright image of a box of the image as it is stored."""
    orientation, turned, size = _frame(image)
    left, top, right, bottom = box
    return _flipped((top, left, bottom, right) if turned else box, orientation, size)


def box_as_stored(image: Image.Image, box: Box) -> Box:
    """Return the place in the image as it is stored of a box of the upright image."""
    orientation, turned, size = _frame(image)
    left, top, right, bottom = _flipped(box, orientation, size)
    return (top, left, bottom, right) if turned else (left, top, right, bottom)


def _frame(image: Image.Image) -> tuple[int, bool, tuple[int, int]]:
    """Return the orientation, whether width and height change places, and the upright size."""
    orientation, (width, height) = _orientation(image), image.size
    turned = orientation in (5, 6, 7, 8)
    return orientation, turned, (height, width) if turned else (width, height)


def _flipped(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    if orientation in (2, 3, 6, 7):
        left, right = size[0] - right, size[0] - left
    if orientation in (3, 4, 7, 8):
        top, bottom = size[1] - bottom, size[1] - top
    return left, top, right, bottom


def _orientation(image: Image.Image) -> int:
    if image.format == "HEIF":
        return 1  # libheif has turned it, by the file's own boxes, which alone count
    if image.format == "AVIF":
        image.info.pop("xmp", None)  # PIL made the boxes into EXIF, but would ask XMP where none is
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as broken as data can be, while the pixels may be sound
        return 1
    return orientation if isinstance(orientation, int) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to RGB, transparent parts to white.

    Raises
    ------
    ValueError
        It is gray of 32 bits, of floats or signed: its white is not known.
    """
    if image.mode.startswith("I;16"):
        image = _gray_of_16_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"32-bit, float or signed gray (mode {image.mode}): the value of white is not known; "
            "convert it to 8 or 16 bits"
        )
    if image.mode == "La":  # gray times alpha, which PIL turns into nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray_of_16_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray to 8 bits by its high bytes; PIL would clip at 255."""
    values = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    gray = (values >> (4 if tags.get(BITSPERSAMPLE) == (12,) else 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
        gray = ~gray  # 0 is white, which PIL heeds up to 8 bits only
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = 255
    return Image.fromarray(gray)
