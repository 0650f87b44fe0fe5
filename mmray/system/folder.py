"""A folder, local or in a bucket: s3:// and gs://.

Files appear whole or not at all, so a reader never meets a half-written one: locally they are
written beside their place and renamed; an object store shows an object when its upload is complete.
"""

import errno
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mmray.system import locations
from mmray.system.errors import InputError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


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

    def has(self, name: str) -> bool:
        filesystem, path = self._opened
        return bool(filesystem.get_file_info(f"{path}/{name}").is_file)

    def read(self, name: str) -> bytes:
        with self.reading(name) as source:
            return bytes(source.read())

    def write(self, name: str, data: bytes) -> None:
        with self.writing(name) as sink:
            sink.write(data)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        with self.reading(name) as source:
            return pq.read_table(source, columns=columns)

    def write_table(self, name: str, table: pa.Table, **layout: Any) -> None:
        """Write Parquet; the layout is options of `pyarrow.parquet.write_table`."""
        with self.writing(name) as sink:
            pq.write_table(table, sink, **layout)

    def reading(self, name: str) -> Any:
        """Open a file for reading, as a seekable pyarrow file."""
        filesystem, path = self._opened
        return filesystem.open_input_file(f"{path}/{name}")

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file that gets its name when the block ends without an exception."""
        filesystem, path = self._opened
        target = Path(f"{path}/{name}")
        filesystem.create_dir(str(target.parent), recursive=True)
        if self.local is None:
            # A stream closed by an exception would complete the upload of half a file.
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                with filesystem.open_output_stream(str(target)) as sink:
                    shutil.copyfileobj(file, sink, 1 << 20)
            return
        unfinished = target.with_name(f".{target.name}.part-{secrets.token_hex(4)}")
        try:
            with unfinished.open("wb") as file:
                yield file
            unfinished.replace(target)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise InputError(
                f"{target}: cannot be written ({error.strerror}); make room, then run the same "
                "command again: what is done is kept"
            ) from error
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


def open_storage(uri: str) -> Folder:
    """Open the storage folder: create it if needed, and check that it can be written.

    Raises
    ------
    InputError
        The URI has an unknown scheme, or nothing can be written there.
    """
    folder = Folder(locations.absolute(uri))
    try:
        folder.write(".writable", b"")
        filesystem, path = folder._opened
        filesystem.delete_file(f"{path}/.writable")
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise InputError(
            f"--storage {uri}: cannot write there ({error}); "
            "choose a folder or URI you can write to"
        ) from error
    return folder
