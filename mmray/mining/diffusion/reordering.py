"""Reordering of a graph's items, so that neighbours lie near each other in memory.

n items.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csgraph, csr_array

from mmray.system.arrays import Graph, Ids

_PAYS_FROM = 100_000  # items; with about 100 anchors there, 40 at 300,000


@dataclass(frozen=True, eq=False)
class ReorderedGraph:
    """A graph whose row r is item items[r].

    Attributes
    ----------
    graph : (n, n) CSR
    items : (n,) int64
        A permutation of 0..n-1.
    """

    graph: Graph
    items: Ids

    @property
    def positions(self) -> Ids:
        """The row (n,) int64 of each item."""
        return inverse(self.items)


def reorder(graph: Graph) -> ReorderedGraph:
    """Reorder a graph by reverse Cuthill-McKee, which narrows the band of its entries.

    A sparse product then finds the rows it gathers in the cache, instead of all over memory.

    Parameters
    ----------
    graph : (n, n) CSR
        Symmetric.

    Returns
    -------
    ReorderedGraph : indices sorted; equal graphs give equal orders.
    """
    items = csgraph.reverse_cuthill_mckee(graph, symmetric_mode=True).astype(np.int64)
    moved = graph[items]
    # Renaming the columns keeps every row's entries, and costs less than graph[items][:, items].
    columns = inverse(items).astype(moved.indices.dtype)[moved.indices]
    result = csr_array((moved.data, columns, moved.indptr), shape=graph.shape)
    result.sort_indices()
    return ReorderedGraph(result, items)


def ordered(graph: Graph | ReorderedGraph) -> ReorderedGraph:
    """Reorder a graph of 100,000 items or more; leave a smaller or a reordered one as it is.

    The number of anchors plays no part: a result must not depend on it, and the order changes the
    rounding.
    """
    if isinstance(graph, ReorderedGraph):
        return graph
    n = graph.shape[0]
    return ReorderedGraph(graph, np.arange(n)) if n < _PAYS_FROM else reorder(graph)


def inverse(permutation: Ids) -> Ids:
    """Invert a permutation (n,) of 0..n-1: return the place (n,) int64 of each number in it."""
    places = np.empty_like(permutation)
    places[permutation] = np.arange(len(permutation))
    return places
