"""Results of a k-NN search, with the checks and the exact ranking that all searches share.

n items in the database, q queries, d dimensions, k neighbours.
"""

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
