"""Anchors: the strict local maxima of the stationary distribution of the random walk (Sec. 3.2).

n items, a anchors.
"""

import numpy as np

from mmray.arrays import Floats, Graph, Ids
from mmray.graph import component_labels, weighted_degrees


def stationary_distribution(graph: Graph) -> Floats:
    """Probability π that a random walk with P = D⁻¹A stands at each item, in closed form.

    On a connected undirected graph π P = π has the one solution π ∝ degree. The paper iterates the
    power method, which oscillates on bipartite parts and mixes slowly between loose ones. Of
    several components, each carries its share of the items that have an edge: the limit of a lazy
    walk that starts at any of these with equal chance.

    Parameters
    ----------
    graph : (n, n) CSR
        A of eq. (1): symmetric, not negative, without stored zeros.

    Returns
    -------
    (n,) float64 : sums to 1; 0 for isolated items (all of it 0 if no item has an edge).
    """
    degrees = weighted_degrees(graph)
    labels, sizes = component_labels(graph)
    volumes = np.bincount(labels, weights=degrees)
    connected = volumes > 0
    share = np.zeros_like(volumes)
    np.divide(sizes, volumes * sizes[connected].sum(), out=share, where=connected)
    return degrees * share[labels]


def select_anchors(graph: Graph, count: int) -> Ids:
    """The items more important than each of their direct neighbours, most important first.

    Parameters
    ----------
    graph : (n, n) CSR
        A of eq. (1).
    count : int
        How many at most, from 1.

    Returns
    -------
    (a,) int64 : a <= count; importance π descending, then id ascending. Items that tie with a
        neighbour are no strict maxima, isolated items neither.

    Raises
    ------
    ValueError
        count is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    importance = stationary_distribution(graph)
    linked = np.flatnonzero(np.diff(graph.indptr))
    maxima = linked
    if len(linked):
        # Empty rows are left out: reduceat would give them the entry of the next row.
        highest = np.maximum.reduceat(importance[graph.indices], graph.indptr[linked])
        maxima = linked[importance[linked] > highest]
    order = np.lexsort((maxima, -importance[maxima]))
    return maxima[order][:count].astype(np.int64)
