"""Reading parts of a local or remote file, with retries."""

import errno
import io
import os
from typing import Any

import pyarrow as pa

from mmray.system.errors import InputError
from mmray.system.locations import error_line, open_file, with_retries

# Raised by open_file, tarfile and pyarrow for a file that is gone, damaged or misnamed.
UNREADABLE = (OSError, pa.ArrowException, ValueError, LookupError, OverflowError)


class RetryingFile(io.RawIOBase):
    """A file whose parts are read with retries: opened when first read, again after a failure."""

    def __init__(self, uri: str) -> None:
        self.uri, self._length, self._position = uri, 0, 0
        self._file: Any = None

    def at(self, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`, fewer at the end of the file; OSError if it fails."""

        def read() -> bytes:
            try:
                length = self._opened()
                count = min(size, length - offset)
                if count <= 0:
                    return b""
                self._file.seek(offset)
                return bytes(self._file.read(count))
            except OSError:
                self._release()  # the connection may be broken too
                raise

        return with_retries(read, self.uri)

    def length(self) -> int:
        """Return the size of the file in bytes when it was opened; OSError if that fails."""
        return with_retries(self._opened, self.uri)

    def _opened(self) -> int:
        if self._file is None:
            self._file = open_file(self.uri)
            self._length = self._file.seek(0, os.SEEK_END)
        return self._length

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self.length() - self._position)
        data = self.at(self._position, rest if size is None or size < 0 else size)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
        self._position = offset + (start[whence] if whence in start else self.length())
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._release()
        super().close()


def os_error(error: Exception) -> OSError:
    """Return an OSError as it is, and another error as an OSError with the same message."""
    if isinstance(error, OSError):
        return error
    return OSError(errno.EIO, str(error) if isinstance(error, InputError) else error_line(error))
