"""Mined lists for each anchor: positives, negatives, manifold neighbours.

n items, a anchors.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mmray.system.arrays import Features, Floats, Ids


@dataclass(frozen=True, eq=False, kw_only=True)
class Pools:
    """The mined pools of some anchors; each tuple holds one array for each anchor.

    Ranks are places among all n items, from 1, which is usually the anchor's own place; 0 is a
    place that is not known.

    Attributes
    ----------
    anchors : (a,) int64
    positives : int64
        P⁺ of eq. (5), by descending s_m; similar on the manifold, far in feature space.
    positive_similarity : float32
        s_m of each positive, the weight of a tuple.
    positive_rank_e : int64
        Its place in NN^e, as far as that is compared (K places); 0: beyond.
    negatives : int64
        P⁻ of eq. (6), by descending s_e.
    negative_similarity : float32
        s_e of each negative.
    negative_rank_m : int64
        Its place in NN^m.
    manifold_neighbors : int64
        NN^m of positive_k places, by descending s_m, without the anchor and without items of
        s_m <= 0: the matching pairs of the whitening.
    zero_positives : (a,) int64
        Number of items of eq. (5) whose s_m is not positive. They are dropped: nothing on the
        manifold leads there, and only their ids rank them (the released code keeps them).
    residual : (a,) float64
    iterations : (a,) int64
        Of the diffusion, see `Diffusion`.
    """

    anchors: Ids
    positives: tuple[Ids, ...]
    positive_similarity: tuple[Features, ...]
    positive_rank_e: tuple[Ids, ...]
    negatives: tuple[Ids, ...]
    negative_similarity: tuple[Features, ...]
    negative_rank_m: tuple[Ids, ...]
    manifold_neighbors: tuple[Ids, ...]
    zero_positives: Ids
    residual: Floats
    iterations: Ids

    @classmethod
    def empty(cls, anchors: Ids) -> "Pools":
        """Return empty pools for anchors (a,), from which nothing was diffused."""
        ids: tuple[Ids, ...] = tuple(np.empty(0, np.int64) for _ in anchors)
        values: tuple[Features, ...] = tuple(np.empty(0, np.float32) for _ in anchors)
        return cls(
            anchors=anchors.astype(np.int64),
            positives=ids,
            positive_similarity=values,
            positive_rank_e=ids,
            negatives=ids,
            negative_similarity=values,
            negative_rank_m=ids,
            manifold_neighbors=ids,
            zero_positives=np.zeros(len(anchors), np.int64),
            residual=np.zeros(len(anchors)),
            iterations=np.zeros(len(anchors), np.int64),
        )

    def renamed(self, items: Ids) -> "Pools":
        """Return a copy in which items[i] replaces every item i; items is (n,) int64."""
        return replace(
            self,
            anchors=items[self.anchors],
            positives=tuple(items[ids] for ids in self.positives),
            negatives=tuple(items[ids] for ids in self.negatives),
            manifold_neighbors=tuple(items[ids] for ids in self.manifold_neighbors),
        )

    def taken(self, places: Ids) -> "Pools":
        """Return the pools of the anchors at some places (t,)."""

        def chosen(column: Any) -> Any:
            return tuple(column[i] for i in places) if isinstance(column, tuple) else column[places]

        return Pools(**{field.name: chosen(getattr(self, field.name)) for field in fields(self)})

    @property
    def members(self) -> Ids:
        """All items that can be trained on: anchors with their positives and negatives, sorted."""
        lists = (*self.positives, *self.negatives)
        return np.unique(np.concatenate([self.anchors, *lists]))

    def related(self, place: int) -> Ids:
        """Return the anchor at a place with its positives and manifold neighbours, no negatives."""
        known = self.anchors[place, None], self.positives[place], self.manifold_neighbors[place]
        return np.setdiff1d(np.concatenate(known), self.negatives[place])


def matching_pairs(pools: Pools, count: int, rng: np.random.Generator) -> Ids:
    """Draw pairs (anchor, manifold neighbour) that show the same object, as far as mining knows.

    Parameters
    ----------
    count : most pairs to draw
    rng : source of the draw

    Returns
    -------
    (2, m) int64 : m <= count pairs drawn without replacement, in the order of the pools.
    """
    sizes = [len(ids) for ids in pools.manifold_neighbors]
    pairs = np.stack(
        [
            np.repeat(pools.anchors, sizes),
            np.concatenate([np.empty(0, np.int64), *pools.manifold_neighbors]),
        ]
    )
    total = pairs.shape[1]
    return pairs[:, np.sort(rng.choice(total, min(count, total), replace=False))]


def summary(pools: Pools) -> dict[str, float]:
    """Summarise pools: counts of anchors, images, positives and negatives, the largest residual."""
    return {
        "anchors": len(pools.anchors),
        "images": len(pools.members),
        "positives": sum(map(len, pools.positives)),
        "negatives": sum(map(len, pools.negatives)),
        "without_positives": sum(not len(ids) for ids in pools.positives),
        "zero_positives": int(pools.zero_positives.sum()),
        "largest_residual": float(pools.residual.max(initial=0)),
        "iterations": int(pools.iterations.max(initial=0)),
    }
