"""Collections of image files, in a folder or behind a URI: listing, leaving out, reading."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from mmray.arrays import Box
from mmray.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class ImageFile:
    """A listed image, or a part of one.

    Attributes
    ----------
    uri : what `read_bytes` takes
    name : path below the listed folder
    size : bytes on disk
    box : the part that is meant, see `images.decode`; None: the whole
    """

    uri: str
    name: str
    size: int
    box: Box | None = None


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
