"""Exact nearest neighbours by inner product (cosine similarity of l2-normalised rows).

n items in the database, q queries, d dimensions, k neighbours.

A matrix product proposes candidates, in bfloat16 where the CPU has units for it. Its values alone
can decide nothing, but their error has a bound: an item too far below the k-th value to belong to
the k most similar is left out, while the tile of the product that holds it is in the cache. The
similarity of each candidate is then computed pair by pair in double precision and rounded to
float32. It depends on its two vectors alone, and a row of the result on its query and the database
alone: not on the device, the precision of the product, the other queries or the threads.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmray.mining.knn import kernels
from mmray.mining.knn.exact_cuda import most_similar
from mmray.mining.knn.results import Neighbors, checked_norms, finite_norms, rescored
from mmray.system.arrays import Device, Features, Floats, Ids, read_only

_TILE_QUERIES, _TILE_ITEMS = 1024, 4096  # multiplied at once: what is fastest on CPUs
_ROOM_ENTRIES = 2**22  # candidates held at a time, by a thread
_FEWEST_HALF = 16, 4096  # queries, items: for fewer, half precision saves nothing
_MOST_FULL = 0.5  # of the first queries, or half precision is given up for all
_ROUNDED = 2.0**-9  # by which bfloat16 rounds a number of at most 1

_Candidates = tuple[Ids, Ids, NDArray[np.bool_]]
_Found = tuple[NDArray[np.bool_], Ids, Features]


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
    def of(cls, database: Features, *, half: bool | None = None) -> "ExactIndex":
        """Prepare a database for searches.

        Parameters
        ----------
        database : (n, d) float32
        half : bool
            Whether to start in bfloat16; by default where the CPU has matrix units for it.

        Raises
        ------
        ValueError
            The database has another shape or dtype, or a row is not finite.
        """
        norm = float(finite_norms(database, "database").max(initial=0.0))
        database = np.ascontiguousarray(database)
        n, d = database.shape
        if half is None:
            half = n >= _FEWEST_HALF[1] and bool(torch.cpu.get_capabilities().get("amx_bf16"))
        bits, error = np.empty((n if half else 0, d), np.uint16), 0.0
        for start in range(0, len(bits), _TILE_ITEMS):
            rows = slice(start, start + _TILE_ITEMS)
            rounded, errors = _halved(database[rows])
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
        # A GPU sorts what it has room for, a CPU does so only when the room is full.
        room = min(n, 4 * k + 512 if device == "cpu" else k + k // 8 + 64)
        half = len(self.half) > 0 and device == "cpu" and len(pending) >= _FEWEST_HALF[0]
        while len(pending):
            items = _tensor(self.half).view(torch.bfloat16) if half else _tensor(self.database)
            attempt = _CandidateSearch(self, items.to(device), k, room, half)
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

    def ranks(self, queries: Features, ids: Sequence[Ids]) -> list[Ids]:
        """Compute the places (from 1) of given items in the complete ranking by similarity.

        Parameters
        ----------
        queries : (q, d) float32
        ids : q arrays (m_i,) int64, in 0..n-1
            The items asked for, for each query.

        Returns
        -------
        q arrays (m_i,) int64 : 1 for the nearest item. Exact, ties by id included.

        Raises
        ------
        ValueError
            The lengths differ, or a row is not finite.
        """
        norms, (n, d) = finite_norms(queries, "queries"), self.database.shape
        if len(ids) != len(queries):
            raise ValueError(f"ids has {len(ids)} arrays, but there are {len(queries)} queries")
        # A float32 inner product, summed in any order, errs by d u |x| |y| at most, u = 2^-24; the
        # constant covers the rounding of what is compared.
        bounds = norms * self.norm * (d + 32) * 2.0**-24
        database, queries = read_only(self.database), np.ascontiguousarray(queries)
        products = np.full((1, -(-n // kernels.WIDTH) * kernels.WIDTH), -np.inf, np.float32)
        places = [np.empty(len(wanted), np.int64) for wanted in ids]
        for row, wanted in enumerate(ids):
            query = read_only(queries[row : row + 1])
            products[:, :n] = query @ database.T
            (exact,) = self.similarities(query, [wanted])
            kernels.places(products, database, query, 0, wanted, exact, bounds[row], places[row])
        return places

    def similarities(self, queries: Features, ids: Sequence[Ids]) -> list[Features]:
        """Compute the similarities (m_i,) float32 of each query (q, d) with its ids[i] (m_i,)."""
        found = [np.empty((1, len(wanted)), np.float32) for wanted in ids]
        for query, wanted, result in zip(queries, ids, found, strict=True):
            kernels.pair_similarities(
                read_only(self.database), read_only(query[None]), read_only(wanted[None]), result
            )
        return [result[0] for result in found]


@dataclass(frozen=True)
class _CandidateSearch:
    """A search of nonzero queries, with a fixed room for candidates of each."""

    index: ExactIndex
    items: torch.Tensor  # its rows, in the precision and on the device of this attempt
    k: int
    room: int
    half: bool

    def __call__(self, queries: Features) -> _Found:
        """Search; return which of m queries had too little room (m,), and results of the others."""
        database, k = self.index.database, self.k
        scaled, slack = self._scaled(queries)
        propose = self._scan if self.items.device.type == "cpu" else self._sort
        candidates, counts, full = propose(scaled, slack)
        found = rescored(database, queries[~full], candidates[~full], counts[~full], k)
        return full, found.ids, found.similarities

    def _scaled(self, queries: Features) -> tuple[torch.Tensor, Features]:
        """Scale queries so that no product exceeds 1, and bound the errors of the products.

        The bound is twice the error of a product: items whose values differ by more are in order.
        """
        norm, lost = self.index.norm, self.index.half_error
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        scaled = torch.from_numpy((queries * (0.99 / (lengths * norm))[:, None]).astype(np.float32))
        # Sums of d products in single precision, in any order; 32 for the roundings beside them.
        summed = (queries.shape[1] + 32) * 2.0**-24
        if not self.half:
            return scaled, np.full(len(queries), 2 * summed, np.float32)
        rounded, errors = _halved(scaled.numpy())
        error = errors * (norm + lost) + lost / norm + summed + _ROUNDED
        return rounded, (2 * error).astype(np.float32)

    def _scan(self, scaled: torch.Tensor, slack: Features) -> _Candidates:
        """Collect candidates (m, room), ascending, their counts (m,), and which exceed it (m,)."""
        m, items = len(scaled), self.items
        candidates, values = np.empty((m, self.room), np.int64), np.empty((m, self.room), "f4")
        counts, full = np.zeros(m, np.int64), np.zeros(m, bool)
        thresholds = np.full(m, -np.inf, np.float32)
        tile = torch.empty((m, _TILE_ITEMS), dtype=items.dtype)
        shown = (tile.view(torch.uint16) if self.half else tile).numpy()
        for first in range(0, len(items), _TILE_ITEMS):
            part = items[first : first + _TILE_ITEMS]
            if len(part) == _TILE_ITEMS:
                torch.mm(scaled, part.T, out=tile)
            else:
                tile[:, : len(part)] = scaled @ part.T
            kernels.scan(
                shown, len(part), first, self.k, slack, candidates, values, counts, thresholds, full
            )
        return candidates, counts, full

    def _sort(self, scaled: torch.Tensor, slack: Features) -> _Candidates:
        return most_similar(self.items, scaled, self.k, self.room, slack)


def _run(attempt: _CandidateSearch, blocks: list[Features], threads: int) -> list[_Found]:
    """Run an attempt on each block of queries, in threads of one CPU each."""
    if threads == 1 or len(blocks) == 1:
        return [attempt(block) for block in blocks]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(attempt, blocks))


def _halved(rows: Features) -> tuple[torch.Tensor, Floats]:
    """Round rows (m, d) to bfloat16; return them and the norms (m,) of their errors."""
    rounded = _tensor(rows).bfloat16()
    errors: Floats = np.linalg.norm(rounded.double().numpy() - rows, axis=1)
    return rounded, errors


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """Wrap an array as a tensor that is only read."""
    with warnings.catch_warnings():
        # Arrays in shared memory cannot be written, of which PyTorch warns; nobody writes them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)
