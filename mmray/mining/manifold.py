"""Neighbours of items on the manifold: rankings by s_m, from which pools are chosen.

n items, q of them queried.
"""

from dataclasses import dataclass

import numpy as np

from mmray.mining.diffusion.reordering import ReorderedGraph
from mmray.mining.diffusion.solver import Diffuser, Solver
from mmray.system.arrays import Features, Ids


class Ranking:
    """A ranking of all items by a similarity (n,), descending, ties by id ascending."""

    def __init__(self, similarity: Features) -> None:
        self.similarity = similarity
        self._ascending = np.sort(similarity)

    def first(self, k: int) -> Ids:
        """Return the first k items (k,) int64, in order; k in 1..n."""
        threshold = self._ascending[-k]
        above = np.flatnonzero(self.similarity > threshold)
        tied = np.flatnonzero(self.similarity == threshold)[: k - len(above)]
        ids = np.concatenate([above, tied])
        return ids[np.lexsort((ids, -self.similarity[ids]))]

    def places(self, ids: Ids) -> Ids:
        """Return the places (m,) int64 of given items (m,), from 1."""
        values = self.similarity[ids]
        above = len(self._ascending) - np.searchsorted(self._ascending, values, side="right")
        tied_before = [
            np.count_nonzero(self.similarity[:i] == value)
            for i, value in zip(ids, values, strict=True)
        ]
        return above + np.array(tied_before, np.int64) + 1


@dataclass(frozen=True, eq=False, kw_only=True)
class ManifoldNeighbors:
    """The neighbours of q items on the manifold; each tuple holds one array for each item.

    Attributes
    ----------
    items : (q,) int64
    neighbors : int64
        By descending s_m, ties by id; neither the item itself nor items with s_m = 0.
    similarity : float32
        s_m of each neighbour.
    """

    items: Ids
    neighbors: tuple[Ids, ...]
    similarity: tuple[Features, ...]

    @classmethod
    def none(cls) -> "ManifoldNeighbors":
        """Return the neighbours of no items."""
        return cls(items=np.empty(0, np.int64), neighbors=(), similarity=())

    def renamed(self, ids: Ids) -> "ManifoldNeighbors":
        """Return a copy in which ids[i] replaces every item i; ids is (n,) int64."""
        return ManifoldNeighbors(
            items=ids[self.items],
            neighbors=tuple(ids[near] for near in self.neighbors),
            similarity=self.similarity,
        )


def manifold_neighbors(
    normalized: ReorderedGraph,
    items: Ids,
    k: int,
    solver: Solver = Solver(),  # noqa: B008 (it is frozen)
    *,
    threads: int = 1,
) -> ManifoldNeighbors:
    """Find the first k neighbours of each item on the manifold, the item itself not counted.

    Parameters
    ----------
    normalized : (n, n)
        Â from `normalize_graph`, reordered.
    items : (q,) int64, in 0..n-1
    k : int
        From 1; all other items where there are fewer.
    solver
        Parameters of the diffusion.
    threads : int
        CPU threads, from 1; the result does not depend on them.
    """
    k = min(k + 1, normalized.graph.shape[0])
    neighbors: dict[int, Ids] = {}
    similarity: dict[int, Features] = {}
    for rows, diffusion in Diffuser(normalized, solver, threads=threads).blocks(items):
        for row, values in zip(rows, diffusion.similarity, strict=True):
            near = Ranking(values).first(k)
            near = near[(near != items[row]) & (values[near] > 0)][: k - 1]
            neighbors[row], similarity[row] = near, values[near]
    order = range(len(items))
    return ManifoldNeighbors(
        items=items.astype(np.int64),
        neighbors=tuple(neighbors[row] for row in order),
        similarity=tuple(similarity[row] for row in order),
    )
