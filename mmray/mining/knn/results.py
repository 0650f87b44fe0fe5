"""Results of a k-NN search, with the checks and the exact ranking that all searches share.

n items in the database, q queries, d dimensions, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmray.mining.knn import kernels
from mmray.system.arrays import Features, Floats, Ids, read_only


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

    def first(self, k: int) -> "Neighbors":
        """Return the k most similar of each query."""
        return Neighbors(self.ids[:, :k], self.similarities[:, :k])

    def places(self, row: int, ids: Ids) -> Ids:
        """Return the places (m,) int64 of items (m,) among a query's neighbours; 0 for others."""
        found = self.ids[row]
        order = np.argsort(found)
        near = np.searchsorted(found, ids, sorter=order).clip(max=len(found) - 1)
        return np.where(found[order[near]] == ids, order[near] + 1, 0)


def joined(parts: Sequence[Neighbors], k: int) -> Neighbors:
    """Join the neighbours of q queries in parts of a database: the k most similar of all of them.

    Parameters
    ----------
    parts : (q, k_p) each
        In each, the k nearest items of its part, or all of a smaller part; the ids of a part are
        above those of the one before.
    k : int
        At most the sum of the k_p.
    """
    ids, similarities = (
        np.concatenate([getattr(part, name) for part in parts], axis=1)
        for name in ("ids", "similarities")
    )
    # Stable: of equal similarities those of the earlier part come first, which have lower ids.
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return Neighbors(
        np.take_along_axis(ids, order, axis=1), np.take_along_axis(similarities, order, axis=1)
    )


def rescored(
    database: Features, queries: Features, candidates: Ids, counts: Ids, k: int
) -> Neighbors:
    """Rank each query's candidates by their exact similarities, and keep the k most similar.

    Parameters
    ----------
    database, queries : (n, d), (q, d) float32
    candidates : (q, c) int64
        Ascending ids, of which the first counts of each row are used.
    counts : (q,) int64
        At least k.
    k : int
    """
    ids, similarities = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), "f4")
    kernels.settle(read_only(database), read_only(queries), candidates, counts, ids, similarities)
    return Neighbors(ids, similarities)


def pair_similarities(database: Features, queries: Features, ids: Sequence[Ids]) -> list[Features]:
    """Compute the similarities (m_i,) float32 of each query with its own items.

    Parameters
    ----------
    database, queries : (n, d), (q, d) float32
    ids : q arrays (m_i,) int64, in 0..n-1
    """
    found = [np.empty((1, len(wanted)), np.float32) for wanted in ids]
    for query, wanted, result in zip(queries, ids, found, strict=True):
        kernels.pair_similarities(
            read_only(database), read_only(query[None]), read_only(wanted[None]), result
        )
    return [result[0] for result in found]


def checked_norms(database: Features, queries: Features, k: int) -> Floats:
    """Check the arguments of a search, and return the norms (q,) of the queries.

    Raises
    ------
    ValueError
        The dimensions differ, k is outside 1..n, or a query is not finite.
    """
    norms, (n, d) = finite_norms(queries, "queries"), database.shape
    if queries.shape[1] != d:
        raise ValueError(
            "database and queries must have equal second dimensions, "
            f"got shapes {database.shape} and {queries.shape}"
        )
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the {n} items of the database, got {k}")
    return norms


def finite_norms(rows: Features, name: str) -> Floats:
    """Compute the Euclidean norms (m,) of rows (m, d) float32; ValueError if one is not finite."""
    if rows.ndim != 2:
        raise ValueError(f"{name} must be two-dimensional, got shape {rows.shape}")
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
