"""Files by path or URI: local, s3:// and gs://.

A URI is percent-encoded. A local file whose name is not UTF-8 is written as a file:// URI.
"""

import errno
import os
import posixpath
import re
import stat
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from mmray.system.errors import InputError
from mmray.system.uris import (
    ONLY,
    inherited,
    is_remote,
    masked,
    masked_text,
    scheme_of,
    without_mask,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

# Errors that a retry would not mend; any other failure of a remote file may be the network's.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_NUMBERS = (errno.EFBIG, errno.EINVAL)
PAUSES = (0.5, 2.0)  # seconds before the second and the third attempt
_FILE = re.compile(r"file://(?:localhost)?(/[^?#]*)", re.IGNORECASE)
_LOCAL = fs.LocalFileSystem()


class UnopenedError(OSError, InputError):
    """A URI that is never opened, whatever it names."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.EINVAL


def is_uri(path: str) -> bool:
    return scheme_of(path) is not None


def bare(uri: str) -> str:
    """Return a URI without query and fragment; a path is returned as it is."""
    return re.split("[?#]", uri, maxsplit=1)[0] if is_uri(uri) else uri


def is_absolute(path: str) -> bool:
    """Tell whether a path or URI means the same wherever a program runs."""
    return is_uri(path) or Path(path).expanduser().is_absolute()


def absolute(path: str) -> str:
    """Return the absolute path, with ~ expanded; of a URI the scheme is in lower case."""
    scheme = scheme_of(path)
    if scheme is not None:
        return scheme + path[len(scheme) :]
    return str(Path(path).expanduser().absolute())


def joined(folder: str, name: str) -> str:
    """Return the path or URI of a file in a folder, as a person would type it."""
    # What follows ? in a URI are options of its file system; in a path it is a part of a name.
    place, mark, options = folder.partition("?") if is_uri(folder) else (folder, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def local_path(uri: str) -> Path | None:
    """Return the path of a local file or folder, or None if it is remote."""
    if not is_uri(uri):
        return Path(uri)
    match = _FILE.match(uri)
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(match[1])))) if match else None


def uri_of(path: Path) -> str:
    """Return the absolute path, or a file:// URI if it is not UTF-8 and would fit no table."""
    absolute = path.absolute()
    return str(absolute) if is_text(str(absolute)) else absolute.as_uri()


def as_text(name: str) -> str:
    """Return a file name, percent-encoded if its bytes are not UTF-8 and would fit no table."""
    return name if is_text(name) else quote(name.encode("utf-8", "surrogateescape"))


def is_text(name: str) -> bool:
    """Tell whether a file name is UTF-8; Python represents other bytes as surrogates."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def resolve(uri: str, name: str) -> str:
    """Resolve a name in the list of files at `uri`: relative names are below the list's folder.

    Which names a list may have, `uris.refusal` tells.
    """
    if is_uri(name):
        return inherited(name, of_list=uri)
    if name.startswith("/"):
        return str(Path(name))  # without the // and /./ by which one file would be two
    if not is_uri(uri):
        return str(Path(uri).absolute().parent / name)
    parts = urlsplit(uri)
    # Object stores do not resolve "." and "..".
    path = posixpath.normpath(f"{parts.path.rpartition('/')[0]}/{quote(name)}")
    return urlunsplit(parts._replace(path=path))


def open_folder(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a folder (absolute path or URI) and the folder's path in it.

    Raises
    ------
    OSError
        The URI is malformed, or its scheme is none of those that are opened.
    """
    path = local_path(uri)
    if path is not None:
        return _LOCAL, str(path).rstrip("/") if is_uri(uri) else uri.rstrip("/")
    parts = _in_bucket(uri)
    try:
        # One client per bucket: a list may name files of more folders than clients are kept.
        filesystem, bucket = _connect(urlunsplit(parts._replace(path="", fragment="")))
    except (pa.ArrowException, ImportError) as error:
        raise OSError(errno.EINVAL, str(error)) from error
    return filesystem, f"{bucket}{unquote(parts.path)}".rstrip("/")


def _in_bucket(uri: str) -> SplitResult:
    """Split the URI of a bucket; raises as `open_folder` where it is none."""
    if not is_remote(uri):
        why = "a file:// URI is one of this machine" if scheme_of(uri) == "file" else ONLY
        raise UnopenedError(f"{masked(uri)}: {why}")
    try:
        parts = urlsplit(without_mask(uri))
    except ValueError as error:  # as of s3://[x
        raise OSError(errno.EINVAL, str(error)) from error
    if not parts.netloc:
        raise UnopenedError(f"{masked(uri)}: no bucket is named, as in s3://bucket/folder")
    return parts


# Cached, because creating an S3 client takes longer than reading an image.
@lru_cache(maxsize=1024)
def _connect(uri: str) -> tuple[fs.FileSystem, str]:
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path


def open_remote(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a file's URI and the file's path in it; raises as `open_folder`."""
    parts = _in_bucket(uri)
    folder, _, name = parts.path.rpartition("/")
    filesystem, path = open_folder(urlunsplit(parts._replace(path=folder)))
    return filesystem, f"{path}/{unquote(name)}"


def open_file(uri: str) -> Any:
    """Open a file for reading: binary and seekable.

    Raises
    ------
    OSError
        It cannot be opened, or is a folder, a pipe or a device.
    """
    try:
        path = local_path(uri)
        if path is None:
            filesystem, name = open_remote(uri)
            return filesystem.open_input_file(name)
        return _open_local(path)
    except UnopenedError:
        raise
    except (pa.ArrowException, ValueError) as error:  # a name that no file can have
        raise OSError(errno.EINVAL, str(error)) from error


def _open_local(path: Path) -> Any:
    # A pipe would wait for a writer, and a device might never end.
    flags = os.O_RDONLY | os.O_NONBLOCK
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        if str(path).isascii():
            raise
        handle = os.open(_as_stored(path), flags)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    why = os.strerror(number) if stat.S_ISDIR(mode) else "not a regular file"
    raise OSError(number, why, str(path))


def _as_stored(path: Path) -> Path:
    """Return a path whose parts are composed or decomposed as those on the disk, if there is one.

    macOS decomposes é into two characters, and most other programs write it as one.
    """
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found = next((found / form for form in forms if (found / form).exists()), found / part)
    return found


def read_bytes(uri: str, *, limit: int | None = None) -> bytes:
    """Read the content of a file; remote files are retried.

    Raises
    ------
    OSError
        It cannot be read, or is longer than `limit` bytes.
    """

    def read() -> bytes:
        with open_file(uri) as file:
            size = file.seek(0, os.SEEK_END)
            if limit is not None and size > limit:
                raise size_error(size, limit)
            file.seek(0)
            return bytes(file.read())

    return with_retries(read, uri)


def with_retries(read: Callable[[], Result], uri: str) -> Result:
    """Call `read`, and again a little later where a remote file fails, as networks make it."""
    pauses = () if local_path(uri) is not None else PAUSES
    for pause in pauses:
        try:
            return read()
        except _LASTING:
            raise
        except OSError as error:
            if error.errno in _LASTING_NUMBERS:
                raise
            time.sleep(pause)
    return read()


def prefetch(
    read: Callable[[Item], Result],
    items: Iterable[Item],
    count: int = 8,
    *,
    threads: int | None = None,
) -> Iterator[Result]:
    """Yield the results of `read` in order, reading ahead because remote files answer slowly.

    Parameters
    ----------
    read : called with each item, in threads
    items : in the order of the results
    count : items that are read ahead
    threads : number of threads that read; None: `count`
    """
    with ThreadPoolExecutor(threads or count) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def size_error(size: int, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"{size} bytes, at most {limit} are read")


def error_line(error: Exception) -> str:
    """Describe in one line why a file could not be read, without its name."""
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {masked_text(' '.join(str(text).split()))}"
