"""Rows of a large matrix, read in parts where they are needed.

n rows, d columns.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.formats import read_array, write_header

_WRITTEN_AT_ONCE = 2**16  # rows
_READ_AT_ONCE = 2**26  # bytes of a remote file, of which only some rows are wanted
_IN_MEMORY = 2**28  # bytes of rows that are no trouble in memory


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a matrix; what is opened can be sent to other processes, if `open` can.

    Attributes
    ----------
    open : returns the matrix (m, d) float32: an array, a memory map, or a `RemoteMatrix`
    chosen : (n,) int64, ascending
        The rows of the matrix that count; None: all of them.
    """

    open: Callable[[], Any]
    chosen: Ids | None = None

    @cached_property
    def _matrix(self) -> Any:
        return self.open()

    @property
    def shape(self) -> tuple[int, int]:
        m, d = self._matrix.shape
        return (m if self.chosen is None else len(self.chosen)), d

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, first: int = 0, stop: int | None = None) -> Features:
        """Return rows first..stop-1, or all from the first on; of a local file, a memory map."""
        if self.chosen is None:
            part: Features = self._matrix[first:stop]
            return part
        return self._at(self.chosen[first:stop])

    def mapped(self) -> Features:
        """Return all rows: a memory map where they are large, of a temporary file if need be.

        Raises
        ------
        InputError
            The folder for temporary files has no room for them.
        """
        size = 4 * len(self) * self.shape[1]
        in_place = self.chosen is None and isinstance(self._matrix, np.ndarray)
        if in_place or size <= _IN_MEMORY:
            return self.read()
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"{folder}: a copy of {size / 1e9:.1f} GB of features does not fit into the "
                f"{free / 1e9:.1f} GB that are free: name another folder by TMPDIR"
            )
        with tempfile.TemporaryFile() as copy:  # which is gone once no array maps it
            self._write(copy)
            copy.flush()
            return np.memmap(copy, np.float32, "r", shape=self.shape)

    def take(self, ids: Ids) -> Features:
        """Return a copy of the rows ids (m,), ascending, counted as those that were chosen are."""
        return self._at(ids if self.chosen is None else self.chosen[ids])

    def only(self, ids: Ids) -> "Rows":
        """Return these rows alone, ids (m,) int64 ascending."""
        return Rows(self.open, ids if self.chosen is None else self.chosen[ids])

    def stored(self, folder: Folder, name: str) -> "Rows":
        """Return these rows as a file that every machine can read: written, unless they are one."""
        if isinstance(self.open, StoredMatrix):
            return self
        if folder.has(name):
            return Rows(StoredMatrix(folder, name))
        with folder.writing(name) as sink:
            write_header(sink, self.shape)
            self._write(sink)
        return Rows(StoredMatrix(folder, name))

    def _write(self, sink: Any) -> None:
        for first in range(0, len(self), _WRITTEN_AT_ONCE):
            sink.write(self.read(first, first + _WRITTEN_AT_ONCE).tobytes())

    def _at(self, places: Ids) -> Features:
        matrix = self._matrix
        if isinstance(matrix, np.ndarray) or not len(places):
            found: Features = matrix[places] if len(places) else np.empty((0, self.shape[1]), "f4")
            return found
        step = max(1, _READ_AT_ONCE // (4 * self.shape[1]))
        bounds = np.searchsorted(places, np.arange(places[0], places[-1] + 1 + step, step))
        parts = [places[a:b] for a, b in pairwise(bounds) if b > a]
        return np.concatenate([matrix[p[0] : p[-1] + 1][p - p[0]] for p in parts])

    def __getstate__(self) -> dict[str, Any]:
        return {"open": self.open, "chosen": self.chosen}


@dataclass(frozen=True)
class StoredMatrix:
    """The opening of a float32 .npy file in a folder, in any process that reaches the folder."""

    folder: Folder
    name: str

    def __call__(self) -> Any:
        if self.folder.local is None:
            return RemoteMatrix(self.folder, self.name)
        return read_array(self.folder, self.name)


class RemoteMatrix:
    """A float32 .npy file that is not local: a slice of it is read with one request."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.name = folder, name
        with folder.reading(name) as source:
            np.lib.format.read_magic(source)
            self.shape, by_columns, dtype = np.lib.format.read_array_header_1_0(source)
            self.start = source.tell()
        if by_columns or dtype != np.float32 or len(self.shape) != 2:
            raise ValueError(f"{folder.location(name)}: not rows of float32, in C order")

    def __getitem__(self, rows: slice) -> Features:
        first, stop, _ = rows.indices(self.shape[0])
        width = 4 * self.shape[1]
        with self.folder.reading(self.name) as source:
            source.seek(self.start + first * width)
            content = source.read(max(0, stop - first) * width)
        found: Features = np.frombuffer(content, np.float32).reshape(-1, self.shape[1])
        return found
