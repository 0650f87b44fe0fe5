"""Images: listing a collection, reading, decoding and resizing, query crops, batches of one shape.

n images, h x w pixels. Resizing is Lanczos, as in the released code.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image, UnidentifiedImageError
from pyarrow import fs

from mmray.arrays import Pixels
from mmray.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
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

Box = tuple[float, float, float, float]  # left, top, right, bottom: pixels from the top left


@dataclass(frozen=True)
class ImageFile:
    """A listed image, or a part of one.

    Attributes
    ----------
    uri : what `read_bytes` takes
    name : path below the listed folder
    size : bytes on disk
    box : the part that is meant, see `decode`; None: the whole
    """

    uri: str
    name: str
    size: int
    box: Box | None = None


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


def list_images(folder: str) -> list[ImageFile]:
    """The images below a folder, sorted by name: links followed, hidden files and folders not.

    Parameters
    ----------
    folder : a local path, or a URI that pyarrow.fs reads (s3://bucket/photos), percent-encoded

    Raises
    ------
    InputError
        The folder is missing, a file, out of reach or without images, or a name is not UTF-8.
    """
    found = _list_uri(folder) if _is_uri(folder) else _list_local(folder)
    images = sorted(found, key=lambda image: image.name)
    if not images:
        raise InputError(f"{folder}: no images in this folder (looked for {' '.join(SUFFIXES)})")
    for image in images:
        try:
            image.name.encode()
        except UnicodeEncodeError as error:  # it could not be written to a table either
            reason = f"the file name {image.name!a} is not UTF-8; rename the file"
            raise InputError(f"{folder}: {reason}") from error
    return images


def read_exclusions(file: str) -> set[str]:
    """Names in a text file, one a line; InputError if it cannot be read."""
    try:
        lines = read_bytes(file).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--exclude {file}: {error}; name a text file of image names, one a line"
        ) from error
    return {line.strip() for line in lines if line.strip()}


def without(images: Sequence[ImageFile], names: set[str]) -> list[ImageFile]:
    """The images of none of the names: each a path below the folder, a file name, or its stem."""
    return [
        image
        for image in images
        if names.isdisjoint({image.name, Path(image.name).name, Path(image.name).stem})
    ]


def read_bytes(uri: str) -> bytes:
    """The content of a file that `list_images` named.

    Raises
    ------
    OSError
        It cannot be read.
    """
    if not _is_uri(uri):
        return Path(uri).read_bytes()
    parts = urlsplit(uri)
    folder, _, name = parts.path.rpartition("/")
    filesystem, path = _open_uri(urlunsplit(parts._replace(path=folder)))
    with filesystem.open_input_stream(f"{path}/{unquote(name)}", compression=None) as stream:
        content: bytes = stream.read()
    return content


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


def _is_uri(path: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


# Kept, as making a client of S3 takes longer than reading an image.
@lru_cache(maxsize=1024)
def _open_uri(folder: str) -> tuple[fs.FileSystem, str]:
    filesystem, path = fs.FileSystem.from_uri(folder)
    return filesystem, path.rstrip("/")


def _list_uri(folder: str) -> list[ImageFile]:
    try:
        filesystem, path = _open_uri(folder)
        kind = filesystem.get_file_info(path).type
        if isinstance(filesystem, fs.LocalFileSystem):
            return _list_local(path)
        if kind == fs.FileType.NotFound:
            raise InputError(f"{folder}: no such folder")
        if kind == fs.FileType.File:
            raise InputError(f"{folder}: this is a file; give the folder that holds the images")
        entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{folder}: cannot be listed ({error})") from error
    parts = urlsplit(folder)
    images = []
    for entry in entries:
        name = entry.path[len(path) + 1 :]
        hidden = any(part.startswith(".") for part in name.split("/"))
        if entry.type == fs.FileType.File and not hidden and name.lower().endswith(SUFFIXES):
            uri = parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}")
            images.append(ImageFile(urlunsplit(uri), name, entry.size))
    return images


def _list_local(folder: str) -> list[ImageFile]:
    root = Path(folder).absolute()
    try:
        if not root.exists():
            raise InputError(f"{folder}: no such folder")
        if not root.is_dir():
            raise InputError(f"{folder}: this is a file; give the folder that holds the images")
        return [
            ImageFile(str(path), path.relative_to(root).as_posix(), path.stat().st_size)
            for path in _walk(root, frozenset())
        ]
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error})") from error


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Image files below a folder, through links; not into a link to one of the folders `above`."""
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, above | {here})
        elif path.is_file() and path.name.lower().endswith(SUFFIXES):
            yield path
