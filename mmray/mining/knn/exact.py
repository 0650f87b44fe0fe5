"""Exact nearest neighbours by inner product (cosine similarity of l2-normalised rows).

n items in the database, q queries, d dimensions, k neighbours.

A matrix product proposes candidates, in bfloat16 where the CPU has units for it. Its values alone
can decide nothing, but their error has a bound: an item too far below the k-th value to belong to
the k most similar is left out, while the tile of the product that holds it is in the cache. The
similarity of each candidate is then computed pair by pair in double precision and rounded to
float32. It depends on its two vectors alone, and a row of the result on its query and the database
alone: not on the device, the precision of the product, the other queries or the threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmray.mining.knn import kernels
from mmray.mining.knn.exact_cuda import DeviceIndex, Found
from mmray.mining.knn.products import halved, scaled, starts_in_bfloat16, tensor
from mmray.mining.knn.results import (
    Neighbors,
    checked_norms,
    finite_norms,
    joined,
    rescored,
)
from mmray.system.arrays import Device, Features, Ids
from mmray.system.rows import Rows

_TILE_QUERIES, _TILE_ITEMS = 1024, 4096  # multiplied at once: what is fastest on CPUs
_ROOM_ENTRIES = 2**22  # candidates held at a time, by a thread
_FEWEST_HALF = 16, 4096  # queries, items: for fewer, half precision saves nothing
_PART = 2**20  # items of a database that is read in parts
_MOST_FULL = 0.5  # of the first queries, or half precision is given up for all

_Attempt = Callable[[Features], Found]


def nearest_neighbors(
    database: Features, queries: Features, k: int, *, threads: int = 1
) -> Neighbors:
    """Find the exact k nearest neighbours of queries; ties are broken by id, at the k-th place too.

    Parameters
    ----------
    database : (n, d) float32
    queries : (q, d) float32
    k : int
        1..n.
    threads : int
        CPU threads, from 1; the result does not depend on them.

    Returns
    -------
    Neighbors : each row the same, bit for bit, whatever the other queries are.

    Raises
    ------
    ValueError
        The dimensions differ, k is outside 1..n, or a row is not finite.

    Examples
    --------
    >>> database = np.eye(3, dtype=np.float32)
    >>> found = nearest_neighbors(database, database[1:2], k=2)
    >>> found.ids, found.similarities
    (array([[1, 0]]), array([[1., 0.]], dtype=float32))
    """
    return ExactIndex.of(database).search(queries, k, threads=threads)


def nearest_in_parts(
    database: Rows, queries: Features, k: int, *, part: int = _PART, threads: int = 1
) -> Neighbors:
    """Find neighbours as `nearest_neighbors` does, in a database that is read part by part.

    Parameters
    ----------
    database : Rows of (n, d) float32
    queries, k, threads
        See `nearest_neighbors`.
    part : int
        Rows read at a time; the result does not depend on it.
    """
    found = []
    for first in range(0, len(database), part):
        index = ExactIndex.of(database.read(first, first + part), half=False)
        near = index.search(queries, min(k, len(index.database)), threads=threads)
        found.append(Neighbors(near.ids + first, near.similarities))
    return joined(found, k)


@dataclass(frozen=True, eq=False, kw_only=True)
class ExactIndex:
    """A database prepared for exact search, in plain arrays for shared memory.

    Attributes
    ----------
    database : (n, d) float32
    norm : float
        The largest norm of a row.
    half : (n, d) uint16, or (0, d)
        The bits of the rows in bfloat16, if searches start in it.
    half_error : float
        The largest norm of a row's rounding error in bfloat16.
    """

    database: Features
    norm: float
    half: NDArray[np.uint16]
    half_error: float

    @classmethod
    def of(
        cls, database: Features, *, half: bool | None = None, device: Device = "cpu"
    ) -> "ExactIndex":
        """Prepare a database for searches.

        Parameters
        ----------
        database : (n, d) float32
        half : bool
            Whether searches on CPUs start in bfloat16; by default where they have instructions for
            it.
        device : "cpu" or "cuda"
            Where it will be searched: a GPU makes its own bfloat16.

        Raises
        ------
        ValueError
            The database has another shape or dtype, or a row is not finite.
        """
        norm = float(finite_norms(database, "database").max(initial=0.0))
        database = np.ascontiguousarray(database)
        n, d = database.shape
        if half is None:
            half = n >= _FEWEST_HALF[1] and starts_in_bfloat16(device)
        bits, error = np.empty((n if half else 0, d), np.uint16), 0.0
        for start in range(0, len(bits), _TILE_ITEMS):
            rows = slice(start, start + _TILE_ITEMS)
            rounded, errors = halved(database[rows])
            bits[rows] = rounded.view(torch.uint16).numpy()
            error = max(error, float(errors.max()))
        return cls(database=database, norm=norm, half=bits, half_error=error)

    def search(
        self, queries: Features, k: int, *, device: Device = "cpu", threads: int = 1
    ) -> Neighbors:
        """Find the k nearest neighbours of each query, as `nearest_neighbors` does.

        Parameters
        ----------
        queries, k, threads
            See `nearest_neighbors`.
        device : "cpu" or "cuda"
            Where the matrix product is computed; the result does not depend on it.
        """
        n, norms = len(self.database), checked_norms(self.database, queries, k)
        ids = np.tile(np.arange(k), (len(queries), 1))  # right where all similarities are 0
        similarities = np.zeros((len(queries), k), np.float32)
        pending = np.flatnonzero(norms * self.norm)
        room = min(n, 4 * k + 512)
        half = (len(self.half) > 0 or device == "cuda") and len(pending) >= _FEWEST_HALF[0]
        threads = threads if device == "cpu" else 1  # the device's memory holds one block at a time
        while len(pending):
            attempt = self._attempt(k, room, half, device)
            if half and attempt(queries[pending[: _FEWEST_HALF[0]]])[0].mean() > _MOST_FULL:
                half = False  # it cannot tell so similar items apart: the time would be lost
                continue
            size = max(1, min(_TILE_QUERIES, _ROOM_ENTRIES // room))
            parts = [pending[start : start + size] for start in range(0, len(pending), size)]
            unsettled = []
            for rows, (full, found_ids, found_similarities) in zip(
                parts, _run(attempt, [queries[part] for part in parts], threads), strict=True
            ):
                ids[rows[~full]], similarities[rows[~full]] = found_ids, found_similarities
                unsettled.append(rows[full])
            # Only rows with near-ties past the room, duplicate images above all, come again.
            pending = np.concatenate(unsettled)
            half, room = False, room if half else min(n, 8 * room)
        return Neighbors(ids, similarities)

    def _attempt(self, k: int, room: int, half: bool, device: Device) -> _Attempt:
        if device == "cuda":
            return partial(self._on_device.search, k=k, room=room, half=half)
        return _CandidateSearch(self, k, room, half)

    @cached_property
    def _on_device(self) -> DeviceIndex:
        """The database in the memory of the GPU, from the first search there on."""
        return DeviceIndex(self.database, self.norm, "cuda")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class _CandidateSearch:
    """A search of nonzero queries, with a fixed room for candidates of each."""

    index: ExactIndex
    k: int
    room: int
    half: bool

    def __call__(self, queries: Features) -> Found:
        """Search; return which of m queries had too little room (m,), and results of the others."""
        index = self.index
        unit, slack = scaled(queries, index.norm, index.half_error if self.half else None)
        candidates, counts, full = self._scan(unit, slack)
        found = rescored(index.database, queries[~full], candidates[~full], counts[~full], self.k)
        return full, found.ids, found.similarities

    def _scan(self, unit: torch.Tensor, slack: Features) -> tuple[Ids, Ids, NDArray[np.bool_]]:
        """Collect candidates (m, room), ascending, their counts (m,), and which exceed it (m,)."""
        index, m = self.index, len(unit)
        items = tensor(index.half).view(torch.bfloat16) if self.half else tensor(index.database)
        candidates, values = np.empty((m, self.room), np.int64), np.empty((m, self.room), "f4")
        counts, full = np.zeros(m, np.int64), np.zeros(m, bool)
        thresholds = np.full(m, -np.inf, np.float32)
        tile = torch.empty((m, _TILE_ITEMS), dtype=items.dtype)
        shown = (tile.view(torch.uint16) if self.half else tile).numpy()
        for first in range(0, len(items), _TILE_ITEMS):
            part = items[first : first + _TILE_ITEMS]
            if len(part) == _TILE_ITEMS:
                torch.mm(unit, part.T, out=tile)
            else:
                tile[:, : len(part)] = unit @ part.T
            kernels.scan(
                shown, len(part), first, self.k, slack, candidates, values, counts, thresholds, full
            )
        return candidates, counts, full


def _run(attempt: _Attempt, blocks: list[Features], threads: int) -> list[Found]:
    """Run an attempt on each block of queries, in threads of one CPU each."""
    if threads == 1 or len(blocks) == 1:
        return [attempt(block) for block in blocks]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(attempt, blocks))
