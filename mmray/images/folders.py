"""Local and remote folders: listing of the images in them, and detection of changes."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from mmray.images.collection import SUFFIXES, ImageFile
from mmray.images.left_out import SPECIAL, LeftOut, by_suffix, hidden, hidden_in
from mmray.system import locations
from mmray.system.locations import as_text, error_line, is_text, local_path, uri_of

TAR, PARQUET = ".tar", ".parquet"
WANTED = (*SUFFIXES, TAR, PARQUET)


@dataclass(frozen=True)
class Stamp:
    """Size and modification time of a file or folder, by which a change is detected.

    Attributes
    ----------
    uri : path or URI of the file or folder
    size : bytes; 0: a folder; -1: it could not be seen
    modified : nanoseconds since 1970; -1: not known, so that it always counts as changed
    """

    uri: str
    size: int
    modified: int


# -- what is in a folder --------------------------------------------------------------------------


def walk(root: Path, wanted: tuple[str, ...] = WANTED) -> Iterator[ImageFile | Stamp | LeftOut]:
    """Yield the image, tar and Parquet files below a local folder, and a stamp of each folder.

    They come in no order. Links are followed, though not in circles. A file or folder that cannot
    be seen or listed is an item with an `error`; one that is left out is counted by a `LeftOut`:
    files with other suffixes, and hidden files and folders, which are not looked into.

    Parameters
    ----------
    root : the folder
    wanted : suffixes of the files; ("",) takes all

    Raises
    ------
    OSError
        The folder itself cannot be listed.
    """
    pending: list[tuple[str, str, frozenset[tuple[int, int]]]]
    pending = [(str(root.absolute()), "", frozenset())]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            status = Path(folder).stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                continue
            # Taken before the files are: what is added meanwhile will show as a change.
            yield Stamp(uri_of(Path(folder)), 0, status.st_mtime_ns)
            for child in _children(folder, prefix, wanted):
                if isinstance(child, os.DirEntry):
                    pending.append((child.path, f"{prefix}{child.name}/", above | {here}))
                    continue
                yield child
                if isinstance(child, ImageFile) and child.error:
                    yield Stamp(child.uri, -1, 0)
        except OSError as error:
            if not prefix:
                raise
            uri = uri_of(Path(folder))
            text = f"this folder cannot be listed ({error_line(error)})"
            yield ImageFile(uri=uri, name=as_text(prefix.rstrip("/")), error=text)
            yield Stamp(uri, 0, -1)


def _children(
    folder: str, prefix: str, wanted: tuple[str, ...]
) -> Iterator[ImageFile | LeftOut | os.DirEntry[str]]:
    """Yield the wanted files and the folders directly in a folder, and what is left out there."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                # Only wanted files, perhaps few of a million, are asked for more than their name.
                is_folder = entry.is_dir()
                unseen = hidden(entry.name, is_folder=is_folder)
                if unseen is not None:
                    yield unseen
                elif is_folder:
                    yield entry
                elif entry.name.lower().endswith(wanted):
                    status = entry.stat()
                    regular = stat.S_ISREG(status.st_mode)
                    yield _file(entry, prefix, size=status.st_size) if regular else SPECIAL
                else:
                    yield by_suffix(entry.name)
            except OSError as error:
                # What is hidden need not be read, so that it is no error.
                unseen = hidden(entry.name, is_folder=False)
                yield unseen or _file(entry, prefix, error=error_line(error))


def _file(
    entry: os.DirEntry[str], prefix: str, *, size: int = -1, error: str | None = None
) -> ImageFile:
    uri = entry.path if is_text(entry.path) else uri_of(Path(entry.path))
    return ImageFile(uri=uri, name=as_text(prefix + entry.name), size=size, error=error)


def remote_files(folder: str, wanted: tuple[str, ...] = WANTED) -> Iterator[ImageFile | LeftOut]:
    """Yield the image, tar and Parquet files below a remote folder, and what is left out there.

    Parameters
    ----------
    folder : its URI
    wanted : suffixes of the files; ("",) takes all

    Raises
    ------
    OSError, pa.ArrowException
        The folder cannot be listed.
    """
    filesystem, path = locations.open_folder(folder)
    selector = fs.FileSelector(path, recursive=True)
    entries = locations.with_retries(lambda: filesystem.get_file_info(selector), folder)
    parts = urlsplit(folder)
    root = urlunsplit(parts._replace(path=parts.path.rstrip("/"), query="", fragment=""))
    query = f"?{parts.query}" if parts.query else ""
    known: set[str] = set()  # hidden folders
    for entry in entries:
        name = entry.path.removeprefix(path).lstrip("/")
        # Object stores mark a folder by an object whose name ends in "/".
        if entry.type != fs.FileType.File or name.endswith("/") or not name:
            continue
        unseen = hidden_in(name, known)
        if unseen is not None:
            yield from unseen
        elif name.lower().endswith(wanted):
            yield ImageFile(uri=f"{root}/{quote(name)}{query}", name=name, size=entry.size)
        else:
            yield by_suffix(name.rpartition("/")[2])


# -- whether it changed ---------------------------------------------------------------------------


def stamps(uris: Sequence[str]) -> list[Stamp]:
    """Return the present stamps of files and local folders; remote ones in one call per bucket."""
    found = {uri: _local_stamp(uri, path) for uri in uris if (path := local_path(uri)) is not None}
    groups: dict[tuple[str, str], list[str]] = {}
    for uri in uris:
        if uri not in found:
            root, query = "/".join(uri.split("/", 3)[:3]), uri.partition("?")[2]
            groups.setdefault((root, query), []).append(uri)
    for group in groups.values():
        found.update((stamp.uri, stamp) for stamp in _remote_stamps(group))
    return [found[uri] for uri in uris]


def unchanged(stamps_then: Sequence[Stamp]) -> bool:
    """Tell whether all stamped files and folders are unchanged, without listing them again.

    Changes that no stamp shows are not noticed: an image of a folder that is overwritten in place,
    and the files of a remote folder. A folder that could not be listed always counts as changed.
    """
    if any(stamp.modified == -1 for stamp in stamps_then):
        return False
    for stamp in stamps_then:
        path = local_path(stamp.uri)
        if path is not None and _local_stamp(stamp.uri, path) != stamp:
            return False
    remote = [stamp for stamp in stamps_then if local_path(stamp.uri) is None]
    return stamps([stamp.uri for stamp in remote]) == remote


def _local_stamp(uri: str, path: Path) -> Stamp:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL character
        return Stamp(uri, -1, 0)
    folder = stat.S_ISDIR(status.st_mode)
    return Stamp(uri, 0 if folder else status.st_size, status.st_mtime_ns)


def _remote_stamps(uris: Sequence[str]) -> Iterable[Stamp]:
    """Return the stamps of files of one file system; if it cannot be reached, none is seen."""
    try:
        opened = [locations.open_remote(uri) for uri in uris]
        filesystem = opened[0][0]
        infos = filesystem.get_file_info([path for _, path in opened])
    except (pa.ArrowException, OSError):
        return [Stamp(uri, -1, -1) for uri in uris]
    found = []
    for uri, info in zip(uris, infos, strict=True):
        if info.type == fs.FileType.File:
            found.append(Stamp(uri, info.size, info.mtime_ns or 0))  # not every store tells it
        else:
            found.append(Stamp(uri, -1, 0))
    return found
