"""The neighbours of items on the manifold: the rankings by s_m that pools are chosen from.

n items, q of them asked for.
"""

from dataclasses import dataclass

import numpy as np

from mmray.diffusion import diffuse_blocks
from mmray.pools import Ranking
from mmray.reordering import ReorderedGraph
from mmray.system.arrays import Features, Ids


@dataclass(frozen=True, eq=False, kw_only=True)
class ManifoldNeighbors:
    """What lies near q items on the manifold; each tuple holds one array for each of them.

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
        """Of no items."""
        return cls(items=np.empty(0, np.int64), neighbors=(), similarity=())

    def renamed(self, ids: Ids) -> "ManifoldNeighbors":
        """The same with ids[i] (n,) int64 written for every item i."""
        return ManifoldNeighbors(
            items=ids[self.items],
            neighbors=tuple(ids[near] for near in self.neighbors),
            similarity=self.similarity,
        )


def manifold_neighbors(
    normalized: ReorderedGraph,
    items: Ids,
    k: int,
    *,
    alpha: float = 0.99,
    rtol: float = 1e-10,
    max_iter: int = 20,
    threads: int = 1,
) -> ManifoldNeighbors:
    """The first k items of NN^m of each item, the item itself not counted.

    Parameters
    ----------
    normalized : (n, n)
        Â from `normalize_graph`, reordered.
    items : (q,) int64, in 0..n-1
    k : int
        From 1; all others where there are no more.
    alpha, rtol, max_iter, threads
        See `diffuse`.
    """
    k = min(k + 1, normalized.graph.shape[0])
    neighbors: dict[int, Ids] = {}
    similarity: dict[int, Features] = {}
    for rows, diffusion in diffuse_blocks(
        normalized, items, alpha=alpha, rtol=rtol, max_iter=max_iter, threads=threads
    ):
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
