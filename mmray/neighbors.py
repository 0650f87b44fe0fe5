"""Exact nearest neighbours by inner product (cosine similarity of l2-normalised rows).

n items in the database, q queries, d dimensions, k neighbours.

BLAS rounds the same product differently in blocks of different shapes, so its values alone can
decide no tie. Here faiss proposes more candidates than wanted, the similarity of each is computed
again pair by pair in double precision and rounded to float32, and a row counts as settled only when
the error bound of faiss's own values rules out every item it left behind. A similarity therefore
depends on its two vectors alone, and a row of the result on its query and the database alone: not
on the other queries, the blocks or the number of threads.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmray.arrays import Features, Floats, Ids

# faiss tells, in every process, which builds of it were not found before the one that was.
logging.getLogger("faiss").setLevel(logging.WARNING)
import faiss  # noqa: E402

_BLOCK_QUERIES = 4096  # as many as faiss itself takes at once
_BLOCK_ENTRIES = 2**23  # candidates, or similarities, held at a time: about 100 MB
_BLOCK_PAIRS = 256  # gathered rows that stay in the cache while they are multiplied


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k items most similar to each query: similarity descending, then id ascending.

    Attributes
    ----------
    ids : (q, k) int64
    similarities : (q, k) float32
        Inner products, summed in float64 and rounded to float32.
    """

    ids: Ids
    similarities: Features


def search(database: Features, queries: Features, k: int) -> Neighbors:
    """Exact k nearest neighbours, ties resolved by id also at the k-th place.

    Parameters
    ----------
    database : (n, d) float32
    queries : (q, d) float32
    k : int
        1..n.

    Returns
    -------
    Neighbors : each row the same, bit for bit, whatever the other queries are.

    Raises
    ------
    ValueError
        The dimensions differ, k is outside 1..n, or a row is not finite.
    """
    n = len(database)
    norms, query_norms = _checked_norms(database, queries)
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the {n} items of the database, got {k}")
    bounds = _error_bounds(query_norms, norms, database.shape[1])
    database, queries = np.ascontiguousarray(database), np.ascontiguousarray(queries)
    ids = np.empty((len(queries), k), np.int64)
    similarities = np.empty((len(queries), k), np.float32)

    pending, fetch = np.arange(len(queries)), k + 8 + k // 16
    while len(pending):
        # Half of the database or more: taking all of it costs less than choosing.
        fetch = n if 2 * fetch >= n else fetch
        size = max(1, min(_BLOCK_QUERIES, _BLOCK_ENTRIES // fetch))
        unsettled = []
        for start in range(0, len(pending), size):
            rows = pending[start : start + size]
            found, unseen = _candidates(database, queries[rows], fetch)
            exact = _pair_similarities(database, queries[rows], found)
            order = np.lexsort((found, -exact))[:, :k]
            ids[rows] = np.take_along_axis(found, order, axis=1)
            similarities[rows] = np.take_along_axis(exact, order, axis=1)
            unsettled.append(rows[unseen + bounds[rows] >= similarities[rows, -1]])
        # Only rows with near-ties past what was fetched, duplicate images above all, come again.
        pending, fetch = np.concatenate(unsettled), 4 * fetch
    return Neighbors(ids, similarities)


def ranks(database: Features, queries: Features, ids: Sequence[Ids]) -> list[Ids]:
    """Places (from 1) of given items in the complete ranking that `search` would give.

    Parameters
    ----------
    database : (n, d) float32
    queries : (q, d) float32
    ids : q arrays (m_i,) int64, in 0..n-1
        The items asked for, for each query.

    Returns
    -------
    q arrays (m_i,) int64 : 1 for the nearest item. Exact, ties by id included.

    Raises
    ------
    ValueError
        The dimensions or lengths differ, or a row is not finite.
    """
    norms, query_norms = _checked_norms(database, queries)
    if len(ids) != len(queries):
        raise ValueError(f"ids has {len(ids)} arrays, but there are {len(queries)} queries")
    bounds = _error_bounds(query_norms, norms, database.shape[1])
    size = max(1, min(_BLOCK_QUERIES, _BLOCK_ENTRIES // len(database)))
    places: list[Ids] = []
    for start in range(0, len(queries), size):
        rounded = queries[start : start + size] @ database.T
        for row, approximate in enumerate(rounded, start):
            wanted = ids[row]
            exact = _pair_similarities(database, queries[row : row + 1], wanted[None])[0]
            ordered = np.sort(approximate)
            place = len(database) - np.searchsorted(ordered, exact + bounds[row], side="right")
            for j, (item, similarity) in enumerate(zip(wanted, exact, strict=True)):
                near = np.flatnonzero(np.abs(approximate - similarity) <= bounds[row])
                rivals = _pair_similarities(database, queries[row : row + 1], near[None])[0]
                before = (rivals > similarity) | ((rivals == similarity) & (near < item))
                place[j] += 1 + np.count_nonzero(before)
            places.append(place)
    return places


def _candidates(database: Features, queries: Features, fetch: int) -> tuple[Ids, Floats]:
    """Ids (q, fetch) of items, and a bound (q,) on faiss's similarity of every other item."""
    n = len(database)
    if fetch == n:
        everything = np.broadcast_to(np.arange(n), (len(queries), n))
        return everything, np.full(len(queries), -np.inf)
    values, ids = faiss.knn(queries, database, fetch, metric=faiss.METRIC_INNER_PRODUCT)
    return ids, values[:, -1].astype(np.float64)


def _pair_similarities(database: Features, queries: Features, ids: Ids) -> Features:
    """Inner products (q, m) float32 of each query with its own items ids (q, m)."""
    similarities = np.empty(ids.shape, np.float32)
    wide = queries.astype(np.float64)
    queries_at_once = max(1, _BLOCK_PAIRS // max(1, ids.shape[1]))
    for top in range(0, len(ids), queries_at_once):
        rows = slice(top, top + queries_at_once)
        for left in range(0, ids.shape[1], _BLOCK_PAIRS):
            part = rows, slice(left, left + _BLOCK_PAIRS)
            items = database[ids[part]].astype(np.float64)
            similarities[part] = np.vecdot(items, wide[rows, None])
    return similarities


def _error_bounds(query_norms: Floats, norms: Floats, d: int) -> Floats:
    """Largest error (q,) of a float32 inner product, summed in any order: d u |x| |y|, u = 2^-24.

    The constant on top of d covers the rounding of the exact value to float32 and of the norms.
    """
    relative = (d + 16) * 2.0**-24 * float(norms.max(initial=0.0))
    return query_norms * relative


def _checked_norms(database: Features, queries: Features) -> tuple[Floats, Floats]:
    """Norms of the rows of both; ValueError where they cannot be compared."""
    if database.ndim != 2 or queries.ndim != 2 or database.shape[1] != queries.shape[1]:
        raise ValueError(
            "database and queries must be two-dimensional with equal second dimensions, "
            f"got shapes {database.shape} and {queries.shape}"
        )
    return _finite_norms(database, "database"), _finite_norms(queries, "queries")


def _finite_norms(rows: Features, name: str) -> Floats:
    """Euclidean norms (m,) of rows (m, d) float32."""
    if rows.dtype != np.float32:
        raise ValueError(f"{name} must be float32, got {rows.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        squares: Features = np.einsum("md,md->m", rows, rows)
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise ValueError(
            f"{name}: row {bad[0]} holds NaN, infinity or a number too large to square "
            f"({len(bad)} of {len(rows)} rows do); leave such rows out"
        )
    norms: Floats = np.sqrt(squares.astype(np.float64))
    return norms
