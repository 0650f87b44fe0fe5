"""Images that lie in tar and Parquet files, and the content of listed images of any kind."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from mmray.images.collection import Collection, ImageFile
from mmray.images.parquet_files import has_images, list_parquet, read_parquet
from mmray.images.tar_files import list_tar, read_tar
from mmray.system.errors import InputError
from mmray.system.locations import error_line, is_uri, prefetch, read_bytes
from mmray.system.retrying_file import UNREADABLE, os_error

CONTAINERS = (".tar", ".parquet")  # suffixes, in any case

_LISTED = 65_536  # images made into a table at a time: as objects they take twice the memory


def index(uri: str, *, column: str | None = None) -> Collection:
    """The images of a tar or Parquet file, without reading them.

    Whatever is wrong with the file, it returns: what can be listed, and after it an image with the
    name of the file and the damage as its `error`.

    Parameters
    ----------
    uri : of a file with a suffix of CONTAINERS
    column : the column of image bytes of a Parquet file; None: find it

    Raises
    ------
    ValueError
        The suffix is another.
    """
    suffix = _file_name(uri).suffix.lower()
    if suffix not in CONTAINERS:
        raise ValueError(f"{uri}: not a container of images, they end in {CONTAINERS}")
    listed = list_tar(uri) if suffix == ".tar" else list_parquet(uri, column)
    images, parts = _with_damage(listed, uri), []
    while part := list(islice(images, _LISTED)):
        parts.append(Collection.of(part))
    return Collection.joined(parts)


def holds_images(uri: str, column: str | None = None) -> bool:
    """Whether a Parquet file is one of images, not of anything else such as a list of paths.

    So is a file that cannot be read, or with several columns of bytes none of which stands out:
    `index` then says what is the matter with it.
    """
    try:
        return has_images(uri, column)
    except UNREADABLE:
        return True


def read_images(
    images: Sequence[ImageFile], *, limit: int, threads: int = 8
) -> Iterator[bytes | OSError]:
    """The content of each image, in the order given, or the reason why it cannot be had.

    Neighbours are worth asking for together: images of one tar file by ascending offset are
    fetched up to 64 MiB at a time, rows of one row group in one pass. Any other order is served
    too, more slowly. Boxes are not applied.

    Parameters
    ----------
    images : as they were listed, of any kinds
    limit : bytes; a longer image is an error
    threads : files of their own that are read at a time, and ahead of the one that is asked for

    Yields
    ------
    For an image that fails, an OSError: FileNotFoundError if its file has vanished, errno EFBIG if
    it is longer than the limit, the listed `error` if it has one.
    """
    for (uri, parquet), run in groupby(images, key=_holder):
        if uri is None:
            yield from prefetch(partial(_read_file, limit=limit), run, threads)
        elif parquet:
            yield from read_parquet(uri, run, limit=limit)
        else:
            yield from read_tar(uri, run, limit=limit)


def read_image(image: ImageFile, *, limit: int) -> bytes:
    """The content of one image; raises the OSError that `read_images` yields."""
    (outcome,) = read_images([image], limit=limit, threads=1)
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def _file_name(uri: str) -> PurePosixPath:
    path = unquote(urlsplit(uri).path) if is_uri(uri) else uri
    return PurePosixPath(PurePosixPath(path).name)


def _with_damage(images: Iterable[ImageFile], uri: str) -> Iterator[ImageFile]:
    name = str(_file_name(uri))
    try:
        yield from images
    except InputError as error:
        yield ImageFile(uri=uri, name=name, error=str(error))
    # Of a damaged file nothing is sure, and one such file must not end the listing of the others.
    except Exception as error:
        yield ImageFile(uri=uri, name=name, error=error_line(error))


def _holder(image: ImageFile) -> tuple[str | None, bool]:
    """The file that an image is a part of, None if it is one of its own; whether it is Parquet."""
    return None if image.offset is None else image.uri, image.row_group is not None


def _read_file(image: ImageFile, limit: int) -> bytes | OSError:
    if image.error is not None:
        return OSError(image.error)
    try:
        return read_bytes(image.uri, limit=limit)
    except UNREADABLE as error:
        return os_error(error)
