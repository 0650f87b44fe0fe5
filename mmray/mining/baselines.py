"""Baselines for the choice of positives and negatives that the paper compares with (Tables 1, 2).

n items, k neighbours, a anchors. `nearest` lists the items most similar to each anchor, most
similar first, as `nearest_neighbors` finds them: the anchor itself is usually the first of them.

Every function treats one anchor after the other, so the result for an anchor depends neither on the
other anchors of the batch nor on their order. Each result is a tuple of one int64 array for each
anchor, which repeats no item and never holds the anchor.

Li et al. is "Unsupervised visual representation learning by graph-based consistent constraints",
ECCV 2016; statements about their method describe their released code (extract_pairs_pos.m and
extract_pairs_neg.m of dongli12/FeatureLearning).
"""

import numpy as np
from scipy.sparse import csgraph, csr_array

from mmray.system.arrays import Floats, Graph, Ids

# Far below the lengths that float32 similarities can tell from 0 (2e-4), so it changes no order.
_SHORTEST = 1e-6


def euclidean_positives(nearest: Ids, anchors: Ids, k: int = 5) -> tuple[Ids, ...]:
    """Choose the nearest neighbours of each anchor: rows NN^e_5 of Table 1, Hadsell et al. 2006.

    Parameters
    ----------
    nearest : (a, m) int64
        m >= k; without repeats.
    anchors : (a,) int64
    k : int
        Places, one of which is the anchor's own, as in eq. (5); from 1.

    Returns
    -------
    The k - 1 items most similar to each anchor, most similar first. Where exact duplicates of the
    anchor fill its first k places, it still counts as one of the k, and the last duplicate is left
    out.

    Raises
    ------
    ValueError
        k is below 1, or nearest has too few places, not one row an anchor, or a repeated item.
    """
    _check_nearest(nearest, anchors, k)
    return tuple(
        row[row != anchor][: k - 1] for row, anchor in zip(nearest[:, :k], anchors, strict=True)
    )


def random_negatives(
    n: int, nearest: Ids, anchors: Ids, *, k: int = 5, count: int, seed: int
) -> tuple[Ids, ...]:
    r"""Draw items at random that are not nearest neighbours: rows X \ NN^e_5 of Table 1.

    Parameters
    ----------
    n : int
        Items to draw from.
    nearest : (a, m) int64, in 0..n-1
        m >= k; without repeats.
    anchors : (a,) int64, in 0..n-1
    k : int
        The first k of `nearest` are never drawn, nor is the anchor; from 1.
    count : int
        Number of items to draw, from 1; all that can be drawn where they are fewer.
    seed : int
        Not negative; an anchor's draw depends on it, on the anchor's id and on its first k.

    Returns
    -------
    A uniform draw without replacement, in random order, so that its first few are such a draw too.

    Raises
    ------
    ValueError
        k or count is below 1, seed is negative, an id is outside 0..n-1, or nearest has too few
        places, not one row an anchor, or a repeated item.
    """
    _check_nearest(nearest, anchors, k)
    _check_ids("nearest", nearest, n)
    _check_ids("anchors", anchors, n)
    _check_count(count)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return tuple(
        _draw(n, np.union1d(row, anchor), count, np.random.default_rng([seed, int(anchor)]))
        for row, anchor in zip(nearest[:, :k], anchors, strict=True)
    )


def cyclic_positives(neighbors: Ids, anchors: Ids, *, length: int = 4) -> tuple[Ids, ...]:
    """Choose the items on cycles of nearest neighbours through each anchor, after Li et al.

    Their cycles have exactly 4 edges and 4 different items, each among the 4 nearest of the one
    before (the item itself not counted), and every two items of a cycle are a positive pair. That
    two items list each other is therefore not enough. The order is ours; they have none.

    Parameters
    ----------
    neighbors : (n, k) int64
        Row i lists the items most similar to i, most similar first; where i lists itself, the entry
        is ignored. The work for an anchor is k^(length - 1).
    anchors : (a,) int64, in 0..n-1
    length : int
        Edges of a cycle, from 2.

    Returns
    -------
    First the items that a cycle reaches in one step from the anchor, then those in two steps, and
    so on; among these, by their ranks in the lists along the cycle.

    Raises
    ------
    ValueError
        length is below 2, neighbors is not two-dimensional, or an id is outside 0..n-1.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, got {length}")
    if neighbors.ndim != 2:
        raise ValueError(f"neighbors must be two-dimensional, got shape {neighbors.shape}")
    _check_ids("neighbors", neighbors, len(neighbors))
    _check_ids("anchors", anchors, len(neighbors))
    return tuple(_on_cycles(neighbors, anchor, length) for anchor in anchors)


def geodesic_negatives(
    lengths: Graph, nearest: Ids, anchors: Ids, *, count: int, far: float = 0.5
) -> tuple[Ids, ...]:
    """Choose items near in feature space but far along the graph: hard negatives after Li et al.

    Theirs are pairs whose shortest path in the k-NN graph (k = 1,000 of 10,000 items at a time) is
    longer than a threshold, drawn at random. Ours differ where their rule does not carry over:

    * an anchor's negatives are the first of its Euclidean neighbours that are far, in the order of
      P⁻ of eq. (6), not a draw from all far pairs;
    * the threshold is a quantile of the anchor's own distances; theirs, 1.0, suits their features
      and a path that sums up squared lengths;
    * items that no path reaches are infinitely far; theirs leaves them out. In the sparser graph A
      of eq. (1) these may be most items, and the most clearly different ones.

    Parameters
    ----------
    lengths : (n, n) CSR
        Lengths of the edges, not negative, as from `euclidean_lengths`; float64 spares a copy.
        A stored 0 is an edge. Symmetric, or paths follow the edges from row to column.
    nearest : (a, K) int64, in 0..n-1
        K of eq. (6); without repeats.
    anchors : (a,) int64, in 0..n-1
    count : int
        Most negatives of an anchor, from 1.
    far : float
        In 0..1: an item is far if its distance exceeds this quantile of the finite distances from
        the anchor (its own, 0, is one of them); at 1, only items that no path reaches are far.

    Returns
    -------
    The far items among `nearest`, in that order.

    Notes
    -----
    Takes memory for n numbers, besides the graph.

    Raises
    ------
    ValueError
        A length is negative or NaN, an id is outside 0..n-1, count is below 1, far is outside 0..1,
        or nearest has not one row an anchor, or a repeated item.
    """
    n = lengths.shape[0]
    _check_edges("lengths", lengths)
    _check_nearest(nearest, anchors, 1)
    _check_ids("nearest", nearest, n)
    _check_ids("anchors", anchors, n)
    _check_count(count)
    if not 0 <= far <= 1:
        raise ValueError(f"far must be in 0..1, got {far}")
    lengths = lengths.astype(np.float64, copy=False)  # or dijkstra does it for every anchor
    negatives = []
    for row, anchor in zip(nearest, anchors, strict=True):
        distances: Floats = csgraph.dijkstra(lengths, indices=anchor)
        threshold = np.quantile(distances[np.isfinite(distances)], far)
        # The anchor, at distance 0, is never among them.
        negatives.append(row[np.flatnonzero(distances[row] > threshold)[:count]])
    return tuple(negatives)


def euclidean_lengths(graph: Graph, *, power: float = 3.0) -> Graph:
    """Compute the Euclidean lengths ‖x - y‖ = √(2 - 2 xᵀy) of the edges of A, eq. (1).

    The features x are l2-normalised.

    Parameters
    ----------
    graph : (n, n) CSR
        A, which stores [xᵀy]₊^power; not negative.
    power : float
        Above 0; that of `reciprocal_knn_graph`.

    Returns
    -------
    (n, n) float64 CSR of the same pattern : at least 1e-6, so that no step between exact duplicates
        is taken for a missing edge.

    Raises
    ------
    ValueError
        power is not positive, or a weight is negative or NaN.
    """
    if not power > 0:
        raise ValueError(f"power must be positive, got {power}")
    _check_edges("weights", graph)
    similarities = graph.data.astype(np.float64) ** (1 / power)
    data = np.maximum(np.sqrt(np.maximum(2 - 2 * similarities, 0)), _SHORTEST)
    return csr_array((data, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape)


def _draw(n: int, excluded: Ids, count: int, rng: np.random.Generator) -> Ids:
    """Draw `count` of the items 0..n-1 at random, except those excluded (e,), ascending."""
    eligible = n - len(excluded)
    # Places among the eligible items are drawn, which takes time and memory of about `count`.
    drawn: Ids = rng.choice(eligible, min(count, eligible), replace=False)
    for item in excluded:
        drawn += drawn >= item
    return drawn


def _on_cycles(neighbors: Ids, anchor: np.int64, length: int) -> Ids:
    k = neighbors.shape[1]
    paths = np.array([[anchor]])  # one a row, in lexicographic order of the ranks along it
    for _ in range(length - 1):
        steps = neighbors[paths[:, -1]].reshape(-1, 1)
        paths = np.hstack([np.repeat(paths, k, axis=0), steps])
        paths = paths[np.all(paths[:, :-1] != steps, axis=1)]
    closed = np.any(neighbors[paths[:, -1]] == anchor, axis=1)
    reached = paths[closed, 1:].T.ravel()
    _, first = np.unique(reached, return_index=True)
    return reached[np.sort(first)]


def _check_nearest(nearest: Ids, anchors: Ids, k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if nearest.ndim != 2 or len(nearest) != len(anchors):
        raise ValueError(
            f"nearest must have one row for each of {len(anchors)} anchors, "
            f"got shape {nearest.shape}"
        )
    if nearest.shape[1] < k:
        raise ValueError(f"nearest lists {nearest.shape[1]} items an anchor, but k = {k}")
    ordered = np.sort(nearest, axis=1)
    rows = np.flatnonzero(np.any(ordered[:, 1:] == ordered[:, :-1], axis=1))
    if len(rows):
        raise ValueError(f"nearest of anchor {anchors[rows[0]]} lists an item twice")


def _check_ids(name: str, ids: Ids, n: int) -> None:
    outside = ids[(ids < 0) | (ids >= n)]
    if len(outside):
        raise ValueError(f"{name}: id {outside[0]} is outside 0..{n - 1}")


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")


def _check_edges(name: str, graph: Graph) -> None:
    if not np.all(graph.data >= 0):
        raise ValueError(f"the {name} of edges must not be negative or NaN")
