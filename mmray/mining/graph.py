"""The reciprocal nearest-neighbour graph of eq. (1), its normalisation and its components.

n items, k neighbours of each.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csgraph, csr_array, get_index_dtype

from mmray.system.arrays import Features, Floats, Graph, Ids


def reciprocal_knn_graph(neighbors: Ids, similarities: Features, *, power: float = 3.0) -> Graph:
    """Build the adjacency matrix A of eq. (1): [x_iᵀx_j]₊^power where i and j list each other.

    Parameters
    ----------
    neighbors : (n, k) int64
        Row i lists the k items most similar to i, without repeats. Where i lists itself, the entry
        takes one of the k places and gives no edge; among duplicate images it may stand anywhere.
    similarities : (n, k) float32
        Their cosine similarities; negative ones count as 0.
    power : float
        Above 0; 3 in the paper.

    Returns
    -------
    (n, n) float32 CSR : exactly symmetric, zero diagonal, indices sorted, no stored zeros.

    Raises
    ------
    ValueError
        The shapes differ, an id is outside 0..n-1 or repeated in its row, a similarity is not
        finite, or power is not positive.

    Examples
    --------
    >>> neighbors = np.array([[1], [0], [1]])  # 0 and 1 list each other, 2 lists 1
    >>> similarities = np.array([[0.5], [0.5], [0.4]], np.float32)
    >>> reciprocal_knn_graph(neighbors, similarities).toarray()
    array([[0.   , 0.125, 0.   ],
           [0.125, 0.   , 0.   ],
           [0.   , 0.   , 0.   ]], dtype=float32)
    """
    _check_neighbors(neighbors, similarities)
    if not power > 0:
        raise ValueError(f"power must be positive, got {power}")
    n = len(neighbors)
    weights = np.maximum(similarities, 0) ** np.float32(power)
    keep = (neighbors != np.arange(n)[:, None]) & (weights > 0)
    index_dtype = get_index_dtype(maxval=max(n, neighbors.size))
    starts = np.zeros(n + 1, index_dtype)
    np.cumsum(np.count_nonzero(keep, axis=1), out=starts[1:])
    directed = csr_array((weights[keep], neighbors[keep].astype(index_dtype), starts), shape=(n, n))
    # Similarities are >= 0, so the minimum is 0 unless both directions exist; it also makes A
    # exactly symmetric where the two directions of a pair were rounded differently.
    graph = directed.minimum(directed.T.tocsr()).tocsr()
    graph.sort_indices()
    return graph


def normalize_graph(graph: Graph) -> Graph:
    """Normalise A to Â = D^-½ A D^-½, with D the weighted degrees; isolated items stay empty rows.

    Parameters
    ----------
    graph : (n, n) float32 or float64 CSR
        Symmetric, not negative.

    Returns
    -------
    (n, n) CSR of the same dtype and pattern : exactly symmetric if `graph` is.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> path = csr_array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    >>> normalize_graph(path).toarray().round(3)
    array([[0.   , 0.707, 0.   ],
           [0.707, 0.   , 0.707],
           [0.   , 0.707, 0.   ]])
    """
    degrees = weighted_degrees(graph)
    inverse = np.zeros_like(degrees)
    np.divide(1.0, np.sqrt(degrees), out=inverse, where=degrees > 0)
    rows = np.repeat(np.arange(len(degrees)), np.diff(graph.indptr))
    # The scale is formed first: a product of two commutes, so both directions round alike.
    data = (graph.data * (inverse[rows] * inverse[graph.indices])).astype(graph.dtype)
    return csr_array((data, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape)


def weighted_degrees(graph: Graph) -> Floats:
    """Compute the weighted degrees (n,) float64 of the items: the sums of the rows."""
    # Not graph.sum(dtype=float64), which adds up in the graph's own precision.
    degrees: Floats = graph @ np.ones(graph.shape[1])
    return degrees


def component_labels(graph: Graph) -> tuple[Ids, Ids]:
    """Label the connected components.

    Returns
    -------
    labels : (n,) int64
        Component of each item; components are numbered in the order of their smallest members.
    sizes : (c,) int64
        Items of each component.
    """
    _, labels = csgraph.connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    renumbered = np.argsort(np.argsort(first))[inverse].astype(np.int64)
    return renumbered, np.bincount(renumbered).astype(np.int64)


def largest_component(graph: Graph) -> Ids:
    """Return the items (m,) int64 of the largest connected component, ascending.

    Of components of equal size, it is the one with the smallest id.
    """
    labels, sizes = component_labels(graph)
    return np.flatnonzero(labels == np.argmax(sizes)).astype(np.int64)


def _check_neighbors(neighbors: Ids, similarities: Features) -> None:
    if neighbors.ndim != 2 or neighbors.shape != similarities.shape:
        raise ValueError(
            "neighbors and similarities must be two-dimensional and of one shape, "
            f"got {neighbors.shape} and {similarities.shape}"
        )
    n = len(neighbors)
    _raise_at_first_row((neighbors < 0) | (neighbors >= n), f"holds an id outside 0..{n - 1}")
    _raise_at_first_row(~np.isfinite(similarities), "has a similarity that is NaN or infinite")
    ordered = np.sort(neighbors, axis=1)
    _raise_at_first_row(ordered[:, 1:] == ordered[:, :-1], "lists an item twice")


def _raise_at_first_row(bad: NDArray[np.bool_], problem: str) -> None:
    rows = np.flatnonzero(bad.any(axis=1))
    if len(rows):
        raise ValueError(f"neighbours of item {rows[0]}: the row {problem}")
