"""The pairs of items that list each other, eq. (1): a join of each edge (i, j) with (j, i).

n items, k neighbours of each, m rows.

The rows are cut into partitions. A first pass over the neighbours sorts the edges into temporary
files, one for each partition that has their targets. A second pass takes the rows of one partition
after the other into memory, and looks the edges of its file up in them. What it finds, the rows of
the graph, goes to temporary files too, which are then mapped to memory. Where the neighbours are in
memory, so are these files. The join is fast because a partition stays in a cache: with all rows as
one it takes three times as long.

One process does this. An edge takes some ten nanoseconds; sending it to another process, through
Ray's object store, would take longer. Threads read ahead meanwhile.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_array, get_index_dtype

from mmray.mining import graph_kernels
from mmray.mining.knn.results import Neighbors
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.system.arrays import Features, Graph, Ids, read_only
from mmray.system.folder import temporary_file
from mmray.system.locations import prefetch

PARTITION_BYTES = 1 << 23
_MOST_PARTITIONS = 512  # each has a file open
_ENTRY_BYTES = 12  # of a target, its weight, and the weight of the pair
_READ_EDGES = 1 << 18  # at a time
_THREADS = 2

_Edges = NDArray[np.void]  # records of row, column and weight
_Csr = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # data, indices, indptr


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows from number `first` on: targets (m, k), and weights, which are 0 for no edge."""

    first: int
    ids: NDArray[np.integer]
    weights: Features


def reciprocal_graph(
    neighbors: NeighborBlocks, *, power: float, partition_bytes: int = PARTITION_BYTES
) -> Graph:
    """Build A of eq. (1), as `reciprocal_knn_graph` does, in little memory.

    Parameters
    ----------
    neighbors, power : see `reciprocal_knn_graph`
    partition_bytes : most bytes of the rows of a partition; more where there would be over 512

    Returns
    -------
    (n, n) float32 CSR : mapped from temporary files, unless the neighbours are in memory.
    """
    if not power > 0:
        raise ValueError(f"power must be positive, got {power}")
    join = _Join(neighbors, power, partition_bytes)
    with join.scratch() as data_file, join.scratch() as index_file:
        starts = [np.zeros(1, join.index_dtype)]
        for data, indices, indptr in join.parts():
            data_file.write(data.data)
            index_file.write(indices.data)
            starts.append(starts[-1][-1] + indptr[1:])
        parts = (_content(data_file, np.float32), _content(index_file, join.index_dtype))
    return csr_array((*parts, np.concatenate(starts)), shape=(neighbors.count, neighbors.count))


class _Join:
    """The join of all edges with their reverse."""

    def __init__(self, neighbors: NeighborBlocks, power: float, partition_bytes: int) -> None:
        n, k = neighbors.count, neighbors.k
        self.neighbors, self.power = neighbors, np.float32(power)
        self.index_dtype = np.dtype(get_index_dtype(maxval=max(n, n * k)))
        columns = [("row", self.index_dtype), ("column", self.index_dtype), ("weight", np.float32)]
        self.record = np.dtype(columns)
        # A power of two of rows: a shift gives the partition of an item.
        rows = max(1, partition_bytes // (_ENTRY_BYTES * max(1, k)))
        fewest = max(0, -(-n // _MOST_PARTITIONS) - 1)
        self.shift = max(rows.bit_length() - 1, fewest.bit_length())
        self.partitions = -(-n >> self.shift)

    def parts(self) -> Iterator[_Csr]:
        """Yield the rows of the graph, partition by partition."""
        with ExitStack() as stack:
            files = [stack.enter_context(self.scratch()) for _ in range(self.partitions)]
            for by_partition in self._sorted_edges():
                for file, reversed_edges in zip(files, by_partition, strict=True):
                    file.write(reversed_edges.data)
            pieces = self._pieces()
            for number, file in enumerate(files):
                yield _reciprocal(self._partition(number, pieces), self._read(file))

    def scratch(self) -> AbstractContextManager[IO[bytes]]:
        """Open a temporary file."""
        folder = self.neighbors.scratch
        return BytesIO() if folder is None else temporary_file(folder)

    def _sorted_edges(self) -> Iterator[list[_Edges]]:
        """Yield the reversed edges of all blocks, sorted by the partition of their targets."""
        for rows in self._blocks():
            edges = np.empty(rows.ids.size, self.record)
            ends = np.zeros(self.partitions, np.int64)
            graph_kernels.scatter(rows.ids, rows.weights, rows.first, self.shift, ends, edges)
            yield np.split(read_only(edges)[: ends[-1]], ends[:-1])

    def _read(self, file: IO[bytes]) -> Iterator[_Edges]:
        file.seek(0)
        while content := file.read(_READ_EDGES * self.record.itemsize):
            yield np.frombuffer(content, self.record)

    def _partition(self, number: int, pieces: Iterator[_Rows]) -> _Rows:
        """Put the rows of a partition together from the pieces that come next."""
        first = number << self.shift
        shape = (min(1 << self.shift, self.neighbors.count - first), self.neighbors.k)
        ids, weights = np.empty(shape, self.index_dtype), np.empty(shape, np.float32)
        filled = 0
        while filled < len(ids):
            piece = next(pieces)
            end = filled + len(piece.ids)
            ids[filled:end], weights[filled:end] = piece.ids, piece.weights
            filled = end
        return _Rows(first, ids, weights)

    def _pieces(self) -> Iterator[_Rows]:
        """Yield the blocks cut where partitions begin."""
        height = 1 << self.shift
        for rows in self._blocks():
            cuts = [0, *range(height - rows.first % height, len(rows.ids), height), len(rows.ids)]
            for start, end in pairwise(cuts):
                yield _Rows(rows.first + start, rows.ids[start:end], rows.weights[start:end])

    def _blocks(self) -> Iterator[_Rows]:
        return prefetch(self._weighted, self.neighbors.numbered(), threads=_THREADS)

    def _weighted(self, block: tuple[Neighbors, Ids]) -> _Rows:
        found, items = block
        _check(found, items, self.neighbors.count)
        weights = np.maximum(found.similarities, 0) ** self.power
        weights[found.ids == items[:, None]] = 0
        return _Rows(int(items[0]), np.ascontiguousarray(found.ids, self.index_dtype), weights)


def _reciprocal(rows: _Rows, edges: Iterable[_Edges]) -> _Csr:
    """Return the rows of the graph: edges whose reverse is there, with the smaller weight."""
    mutual = np.zeros_like(rows.weights)
    for each in edges:
        graph_kernels.match(each, rows.first, rows.ids, rows.weights, mutual)
    count = np.count_nonzero(mutual)
    data, indices = np.empty(count, mutual.dtype), np.empty(count, rows.ids.dtype)
    indptr = np.empty(len(mutual) + 1, rows.ids.dtype)
    graph_kernels.collect(rows.ids, mutual, indptr, indices, data)
    return data, indices, indptr


def _content(file: IO[bytes], dtype: DTypeLike) -> NDArray[Any]:
    """Return what was written to a temporary file, mapped to memory, or a copy of it in memory."""
    file.flush()
    if isinstance(file, BytesIO) or not file.tell():  # an empty file cannot be mapped
        file.seek(0)
        return np.frombuffer(bytearray(file.read()), dtype)
    return np.asarray(np.memmap(file, dtype, "r"))


def _check(found: Neighbors, items: Ids, n: int) -> None:
    """Check the neighbours of some items; ValueError if they cannot be used."""
    ids = found.ids

    def refuse_first(bad: NDArray[np.bool_], problem: str) -> None:
        rows = np.flatnonzero(bad.any(axis=1))
        if len(rows):
            raise ValueError(f"neighbours of item {items[rows[0]]}: the row {problem}")

    refuse_first((ids < 0) | (ids >= n), f"holds an id outside 0..{n - 1}")
    refuse_first(~np.isfinite(found.similarities), "has a similarity that is NaN or infinite")
    ordered = np.sort(ids, axis=1)
    refuse_first(ordered[:, 1:] == ordered[:, :-1], "lists an item twice")
