"""The reciprocal nearest-neighbour graph of eq. (1), its normalisation and its components.

n items, k neighbours of each.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mmray.mining import graph_kernels
from mmray.mining.knn.results import Neighbors
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.mining.reciprocity import reciprocal_graph
from mmray.system.arrays import Features, Floats, Graph, Ids, read_only


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
    if neighbors.ndim != 2 or neighbors.shape != similarities.shape:
        raise ValueError(
            "neighbors and similarities must be two-dimensional and of one shape, "
            f"got {neighbors.shape} and {similarities.shape}"
        )
    found = NeighborBlocks.of(Neighbors(neighbors, similarities))
    return reciprocal_graph(found, power=power)


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
    data = np.empty_like(graph.data)
    graph_kernels.scale(parts_of(graph), degree_scales(graph), data)
    return csr_array((data, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape)


def degree_scales(graph: Graph) -> Floats:
    """Compute the diagonal (n,) float64 of D^-½; 0 for isolated items."""
    degrees = weighted_degrees(graph)
    scales = np.zeros_like(degrees)
    np.divide(1.0, np.sqrt(degrees), out=scales, where=degrees > 0)
    return scales


def weighted_degrees(graph: Graph) -> Floats:
    """Compute the weighted degrees (n,) of the items: the sums of the rows in double precision."""
    degrees = np.empty(graph.shape[0])
    graph_kernels.row_sums(parts_of(graph), degrees)
    return degrees


def parts_of(graph: Graph) -> tuple[NDArray[Any], ...]:
    """Return indptr, indices and data, for compiled code."""
    return read_only(graph.indptr), read_only(graph.indices), read_only(graph.data)


def component_labels(graph: Graph) -> tuple[Ids, Ids]:
    """Label the connected components of a symmetric graph.

    Returns
    -------
    labels : (n,) int64
        Component of each item; components are numbered in the order of their smallest members.
    sizes : (c,) int64
        Items of each component.
    """
    labels = np.arange(graph.shape[0])
    count = graph_kernels.label_components(parts_of(graph), labels)
    return labels, np.bincount(labels, minlength=count).astype(np.int64)


def largest_component(graph: Graph) -> Ids:
    """Return the items (m,) int64 of the largest connected component, ascending.

    Of components of equal size, it is the one with the smallest id.
    """
    labels, sizes = component_labels(graph)
    return np.flatnonzero(labels == np.argmax(sizes)).astype(np.int64)
