"""A folder, local or in a bucket: s3:// and gs://.

Files appear whole or not at all, so a reader never meets a half-written one: locally they are
written beside their place, synced to the disk, and renamed, so that this holds when the power fails
too; an object store shows an object when its upload is complete.
"""

import errno
import lzma
import os
import secrets
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from mmray.system import locations
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.tables import read_table_file, table_file

Parsed = TypeVar("Parsed")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_PAGE = 4096
# Raised by numpy, zipfile, json, pyarrow, torch, h5py and mmray for files that are damaged or of
# another format; OSError is for both a disk that cannot read them and a checksum that differs.
DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),
    *(AssertionError, AttributeError, MemoryError, SyntaxError, SystemError, tokenize.TokenError),
    *(zlib.error, lzma.LZMAError, struct.error, zipfile.BadZipFile, pa.ArrowException),
)


@dataclass(frozen=True)
class Folder:
    """A folder, given by its absolute path or URI.

    It is cheap to send to a worker, which opens the file system anew.
    """

    uri: str

    @cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        return locations.open_folder(self.uri)

    def __getstate__(self) -> dict[str, str]:
        return {"uri": self.uri}

    @property
    def local(self) -> Path | None:
        """The folder's path if it lies on this machine's file system, else None."""
        filesystem, path = self._opened
        return Path(path) if isinstance(filesystem, pafs.LocalFileSystem) else None

    @property
    def scratch(self) -> Path:
        """A folder on this machine for temporary files: the system's, where this one is remote."""
        return self.local or Path(tempfile.gettempdir())

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.location(name))

    def location(self, name: str) -> str:
        """Return the path or URI of a file in this folder, as a person would type it."""
        return locations.joined(self.uri, name)

    def names(self) -> list[str]:
        """Return the sorted names of the files directly in this folder, without unfinished ones."""
        filesystem, path = self._opened
        selector = pafs.FileSelector(path, allow_not_found=True)
        found = (info for info in filesystem.get_file_info(selector) if info.is_file)
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def folders(self) -> list[str]:
        """Return the sorted names of the folders directly in this folder."""
        filesystem, path = self._opened
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file in this folder and below it, by relative name."""
        filesystem, path = self._opened
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        files = (info for info in filesystem.get_file_info(selector) if info.is_file)
        sizes = {info.path[len(path) + 1 :]: int(info.size) for info in files}
        return {name: size for name, size in sorted(sizes.items()) if "/." not in f"/{name}"}

    def times(self) -> dict[str, float]:
        """Return when each file directly in this folder was written, in seconds since 1970."""
        filesystem, path = self._opened
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        files = (info for info in found if info.is_file and not info.base_name.startswith("."))
        return {info.base_name: info.mtime_ns / 1e9 for info in files}

    def has(self, name: str) -> bool:
        filesystem, path = self._opened
        return bool(filesystem.get_file_info(f"{path}/{name}").is_file)

    def read(self, name: str) -> bytes:
        with self.reading(name) as source:
            return bytes(source.read())

    def write(self, name: str, data: bytes | bytearray) -> None:
        with self.writing(name) as sink:
            sink.write(data)

    def read_table(
        self, name: str, columns: list[str] | None = None, optional: pa.Schema | None = None
    ) -> pa.Table:
        """Read a table that `write_table` wrote, as `read_table_file` does; raises as `parsed`."""
        return self.parsed(
            name, lambda source: read_table_file(source.read_buffer(), columns, optional)
        )

    def write_table(self, name: str, table: pa.Table, **layout: Any) -> None:
        """Write Parquet; the layout is options of `pyarrow.parquet.write_table`."""
        self.write(name, table_file(table, **layout))

    def parsed(self, name: str, parse: Callable[[Any], Parsed]) -> Parsed:
        """Parse a file that mmray wrote.

        Parameters
        ----------
        name : of the file
        parse : takes a seekable file of bytes; its errors are those of a damaged file

        Raises
        ------
        DamagedFileError
            The file cannot be parsed.
        FileNotFoundError
            There is no such file.
        OSError
            A remote file cannot be read.
        """
        if self.local is None:  # a failing network is no damage, so the file is fetched first
            source: Any = pa.BufferReader(self.read(name))
        else:
            source = self.reading(name)
        with source:
            try:
                return parse(source)
            except DAMAGE as error:
                raise DamagedFileError(self.location(name), locations.error_line(error)) from error

    def reading(self, name: str) -> Any:
        """Open a file for reading, as a seekable pyarrow file."""
        filesystem, path = self._opened
        return filesystem.open_input_file(f"{path}/{name}")

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file that gets its name when the block ends without an exception."""
        filesystem, path = self._opened
        target = Path(f"{path}/{name}")
        if self.local is None:
            filesystem.create_dir(str(target.parent), recursive=True)
            # A stream closed by an exception would complete the upload of half a file.
            with temporary_file(self.scratch) as file:
                yield file
                file.seek(0)
                with filesystem.open_output_stream(str(target)) as sink:
                    shutil.copyfileobj(file, sink, 1 << 20)
            return
        unfinished = target.with_name(f".{target.name}.part-{secrets.token_hex(4)}")
        with _room_for(target):
            _make_folder(target.parent)
            try:
                # Opened for reading too, or numpy would write by another way, whose errors have no
                # number.
                with unfinished.open("w+b") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(target)
                _sync(target.parent)
            finally:
                unfinished.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        filesystem, path = self._opened
        filesystem.delete_file(f"{path}/{name}")

    def remove(self) -> None:
        """Delete the folder with all its content, if it exists."""
        filesystem, path = self._opened
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            filesystem.delete_dir(path)


def as_folder(place: str | os.PathLike[str] | Folder) -> Folder:
    """Return a folder that is given as itself, or by its path or URI."""
    return place if isinstance(place, Folder) else Folder(locations.absolute(os.fspath(place)))


def open_storage(uri: str) -> Folder:
    """Open the storage folder: create it if needed, and check that it can be written.

    Raises
    ------
    InputError
        The URI has an unknown scheme, or nothing can be written there.
    """
    folder = Folder(locations.absolute(uri))
    try:
        folder.uri.encode()  # before anything is made
        folder.write(".writable", bytes(_PAGE))  # no empty file, for which a full disk has room
        filesystem, path = folder._opened
        filesystem.delete_file(f"{path}/.writable")
    except UnicodeEncodeError as error:
        raise InputError(
            f"--storage {uri}: Python takes its name for bytes that are not UTF-8; set "
            "PYTHONUTF8=1, or choose another name"
        ) from error
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        reason, remedy = str(error), "choose a folder or URI you can write to"
        if isinstance(error.__cause__, OSError):  # of `_room_for`, whose sentence ends otherwise
            reason, remedy = error.__cause__.strerror or reason, f"make room, or {remedy}"
        raise InputError(f"--storage {uri}: cannot write there ({reason}); {remedy}") from error
    return folder


@contextmanager
def temporary_file(folder: Path) -> Iterator[IO[bytes]]:
    """Open a file of which nothing is left, however the process ends; raises as `writing`."""
    with _room_for(folder), tempfile.TemporaryFile(dir=folder) as file:
        yield file


@contextmanager
def _room_for(place: str | os.PathLike[str]) -> Iterator[None]:
    """Raise an InputError in place of an OSError that says that there is no room to write."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InputError(
            f"{place}: cannot be written ({os.strerror(error.errno)}); make room, then run the "
            "same command again: what is done is kept"
        ) from error


def _make_folder(folder: Path) -> None:
    """Create a local folder with its parents, each of which is synced where it is new."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    if folder.is_file():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Sync the names in a local folder to the disk, where its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse it for folders
            os.fsync(handle)
    finally:
        os.close(handle)
