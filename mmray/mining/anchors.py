"""Selection of anchors, by default the strict local maxima of a random walk (Sec. 3.2).

n items, a anchors.
"""

import numpy as np

from mmray.config.choices import Selection
from mmray.mining import graph_kernels
from mmray.mining.graph import component_labels, parts_of, weighted_degrees
from mmray.system.arrays import Floats, Graph, Ids


def stationary_distribution(graph: Graph) -> Floats:
    """Compute the stationary distribution π of the random walk P = D⁻¹A, in closed form.

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

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> path = csr_array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    >>> stationary_distribution(path)
    array([0.25, 0.5 , 0.25])
    """
    degrees = weighted_degrees(graph)
    labels, sizes = component_labels(graph)
    volumes = np.bincount(labels, weights=degrees)
    connected = volumes > 0
    share = np.zeros_like(volumes)
    np.divide(sizes, volumes * sizes[connected].sum(), out=share, where=connected)
    return degrees * share[labels]


def select_anchors(
    graph: Graph, count: int, *, selection: Selection = "walk", seed: int = 0
) -> Ids:
    """Select the items to mine for, most important first.

    Parameters
    ----------
    graph : (n, n) CSR
        A of eq. (1).
    count : int
        Most anchors to select, from 1.
    selection : "walk", "all", "random" or "filled"
        "walk": the items more important than each of their direct neighbours (Sec. 3.2). "all":
        every item that has an edge (as for fine-grained sets, Sec. 4.3). "random": `count` of
        these, drawn by the seed. "filled": those of the walk and, if they are fewer than `count`,
        others drawn by the seed: on a thousand images a walk has only a dozen maxima, on a million
        there is nothing to fill.
    seed : int
        Not negative; of "random" and "filled".

    Returns
    -------
    (a,) int64 : a <= count; importance π descending, then id ascending. Items that tie with a
        neighbour are no strict maxima; isolated items are never anchors.

    Raises
    ------
    ValueError
        count is below 1.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> path = csr_array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    >>> select_anchors(path, 10)
    array([1])
    >>> select_anchors(path, 10, selection="all")
    array([1, 0, 2])
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    importance = stationary_distribution(graph)
    chosen = np.flatnonzero(np.diff(graph.indptr))
    if selection != "all":
        drawn = np.random.default_rng(seed).permutation(chosen)[:count]
        maxima = _strict_maxima(graph, importance)
        others = drawn[~np.isin(drawn, maxima)][: max(0, count - len(maxima))]
        filled = np.concatenate([maxima, others])
        chosen = {"walk": maxima, "random": drawn, "filled": filled}[selection]
    order = np.lexsort((chosen, -importance[chosen]))
    return chosen[order][:count].astype(np.int64)


def _strict_maxima(graph: Graph, importance: Floats) -> Ids:
    marks = np.empty(len(importance), bool)
    graph_kernels.mark_maxima(parts_of(graph), importance, marks)
    return np.flatnonzero(marks)
