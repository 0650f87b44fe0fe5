"""Listing of the images in tar and Parquet files, and reading of listed images of any kind."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import groupby
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from mmray.images.collection import Collection, ImageFile
from mmray.images.left_out import LeftOut
from mmray.images.parquet_files import ParquetReader, has_images, list_parquet
from mmray.images.tar_files import list_tar, read_tar
from mmray.system.errors import InputError
from mmray.system.locations import error_line, is_uri, prefetch, read_bytes
from mmray.system.retrying_file import UNREADABLE, os_error

CONTAINERS = (".tar", ".parquet")  # suffixes, in any case

_LISTED = 65_536  # images made into a table at a time: as objects they take twice the memory


def index(uri: str, *, column: str | None = None) -> tuple[Collection, Counter[str]]:
    """List the images of a tar or Parquet file without reading them; count what is left out.

    A damaged file raises nothing: the images that can be listed are followed by one that has the
    name of the file, and the damage as its `error`.

    Parameters
    ----------
    uri : path or URI of a file with a suffix of CONTAINERS
    column : the column of image bytes of a Parquet file; None: detect it

    Raises
    ------
    ValueError
        The file has another suffix.
    """
    suffix = _file_name(uri).suffix.lower()
    if suffix not in CONTAINERS:
        raise ValueError(f"{uri}: not a container of images, they end in {CONTAINERS}")
    listed = list_tar(uri) if suffix == ".tar" else list_parquet(uri, column)
    left_out: Counter[str] = Counter()
    parts, block = [], []
    for item in _with_damage(listed, uri):
        if isinstance(item, LeftOut):
            left_out[item] += 1
            continue
        block.append(item)
        if len(block) == _LISTED:
            parts.append(Collection.of(block))
            block = []
    return Collection.joined([*parts, Collection.of(block)]), left_out


def holds_images(uri: str, column: str | None = None) -> bool:
    """Tell whether a Parquet file holds images, and not something else such as a list of paths.

    A file that cannot be read counts as one of images, and so does one with several columns of
    bytes none of which stands out: `index` then reports the problem.
    """
    try:
        return has_images(uri, column)
    except UNREADABLE:
        return True


def read_images(
    images: Sequence[ImageFile], *, limit: int, threads: int = 8
) -> Iterator[bytes | OSError]:
    """Yield the content of each image, in the order given, or the error why it cannot be read.

    Images that lie side by side are read fastest if they follow one another: those of one tar file
    by ascending offset are fetched up to 64 MiB at a time, rows of one row group in one pass. Any
    other order is allowed, but slower. Boxes are not applied.

    Parameters
    ----------
    images : as they were listed, of any kinds
    limit : bytes; a longer image is an error
    threads : number of threads for images that are files of their own, which are read ahead

    Yields
    ------
    For an image that fails, an OSError: FileNotFoundError if its file has vanished, errno EFBIG if
    it is longer than the limit, the listed `error` if it has one.
    """
    # Kept while images of other files come between, as in a Parquet file some of whose rows name
    # files: it would be read from the start of a row group again.
    with ExitStack() as opened:
        reader: ParquetReader | None = None
        for (uri, parquet), run in groupby(images, key=_holder):
            if uri is None:
                yield from prefetch(partial(_read_file, limit=limit), run, threads)
            elif parquet:
                if reader is None or reader.uri != uri:
                    opened.close()
                    reader = opened.enter_context(closing(ParquetReader(uri)))
                yield from (reader.read(image, limit) for image in run)
            else:
                yield from read_tar(uri, run, limit=limit)


def read_image(image: ImageFile, *, limit: int) -> bytes:
    """Read the content of one image; raises the OSError that `read_images` would yield."""
    (outcome,) = read_images([image], limit=limit, threads=1)
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def _file_name(uri: str) -> PurePosixPath:
    path = unquote(urlsplit(uri).path) if is_uri(uri) else uri
    return PurePosixPath(PurePosixPath(path).name)


def _with_damage(listed: Iterable[ImageFile | LeftOut], uri: str) -> Iterator[ImageFile | LeftOut]:
    name = str(_file_name(uri))
    try:
        yield from listed
    except InputError as error:
        yield ImageFile(uri=uri, name=name, error=str(error))
    # A damaged file may raise anything, and one such file must not end the listing of the others.
    except Exception as error:
        yield ImageFile(uri=uri, name=name, error=error_line(error))


def _holder(image: ImageFile) -> tuple[str | None, bool]:
    """Return the file that an image is a part of, None without one, and whether it is Parquet."""
    return None if image.offset is None else image.uri, image.row_group is not None


def _read_file(image: ImageFile, limit: int) -> bytes | OSError:
    if image.error is not None:
        return OSError(image.error)
    try:
        return read_bytes(image.uri, limit=limit)
    except UNREADABLE as error:
        return os_error(error)
