"""Recall of an approximate search, measured against the exact one."""

import numpy as np

from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.results import Neighbors


def recall(found: Neighbors, exact: Neighbors) -> float:
    """Compute the recall of an approximate result: the share of the exact one found, 0 to 1.

    An item counts if it is as similar as the k-th of the exact result: which of equally similar
    items are found makes no difference.

    Parameters
    ----------
    found, exact : q rows of k neighbours of the same queries

    Raises
    ------
    ValueError
        The results have different shapes, or no rows.
    """
    if found.ids.shape != exact.ids.shape or not exact.ids.size:
        raise ValueError(
            "recall compares the same k >= 1 neighbours of q >= 1 queries, "
            f"got shapes {found.ids.shape} and {exact.ids.shape}"
        )
    return float(np.mean(found.similarities >= exact.similarities[:, -1:]))


def measured_recall(
    index: ApproximateIndex,
    exact: ExactIndex,
    k: int,
    *,
    effort: int,
    sample: int = 1000,
    seed: int = 0,
    threads: int = 1,
) -> float:
    """Measure the recall of the k neighbours of some of the database's items, drawn at random.

    Each item finds itself, as it does when a graph is built: this contributes 1/k to the recall.

    Parameters
    ----------
    index, exact
        Indexes of the same database.
    k, effort, threads
        See `ApproximateIndex.search`.
    sample : int
        Number of items to draw without replacement, from 1; all where there are fewer.
    seed : int
        Of the draw.

    Raises
    ------
    ValueError
        The databases have different shapes, or an argument is outside its range.
    """
    if index.database.shape != exact.database.shape:
        raise ValueError(
            "both indexes must be of the same database, "
            f"got shapes {index.database.shape} and {exact.database.shape}"
        )
    if sample < 1:
        raise ValueError(f"sample must be at least 1, got {sample}")
    n = len(index.database)
    drawn = np.random.default_rng(seed).choice(n, min(sample, n), replace=False)
    queries = index.database[np.sort(drawn)]
    found = index.search(queries, k, effort=effort, threads=threads)
    return recall(found, exact.search(queries, k, threads=threads))
