"""A check of a network that needs no labels: does it find what the manifold says is near?

The manifold neighbours of items drawn at random, found in the features of the network that
training starts from, are taken for the truth. They are mostly right, hard and easy ones alike; the
positives of anchors are hard ones only, and a network can learn impure ones and get worse.

m images, d dims. RESULTS.md shows how well this agrees with labels, and what agreed less.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mmray.config.choices import Loss
from mmray.evaluation.ranking import Query, mean_average_precision, rank
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Floats, Ids
from mmray.training.losses import tuple_loss

MANIFOLD_MAP = "manifold_map"  # the metric by which a network is kept
SPREAD = "spread"
COLLAPSED = 1 / 3  # of the initial spread: all images have become alike
NEIGHBORS = 50  # manifold neighbours of an item that may be relevant to it
RELEVANT = 0.25  # share of the first one's s_m from which they are
TRUSTED = 10  # neighbours whose s_m tells how much an item counts
DATABASE = 5000  # images that are searched beside those that are named, at most


@dataclass(frozen=True, eq=False, kw_only=True)
class ManifoldValidation:
    """What a network is measured on.

    Attributes
    ----------
    needed : (m,) int64
        The images that `measure` asks the embeddings of, ascending.
    items : (q,) int64
        Those to search with, as places in `needed`.
    queries : q, what each of them is to find
    weights : (q,) float64
        How much each counts: its mean s_m to its first 10, 0 where there are fewer. Those in
        dense groups are surest.
    held_out : pools of anchors that are not trained on
    """

    needed: Ids
    items: Ids
    queries: list[Query]
    weights: Floats
    held_out: Pools

    @classmethod
    def of(
        cls,
        validation_neighbors: ManifoldNeighbors,
        held_out: Pools,
        images: int,
        rng: np.random.Generator,
    ) -> "ManifoldValidation":
        """Choose the images to search: those that are named, and others at random.

        Parameters
        ----------
        checked : items and their manifold neighbours; those without any are left out
        images : how many there are; ids are below
        """
        named = np.unique(
            np.concatenate(
                [
                    *(validation_neighbors.items, *validation_neighbors.neighbors),
                    *(held_out.anchors, *held_out.positives, *held_out.negatives),
                ]
            )
        )
        others = np.setdiff1d(np.arange(images), named)
        drawn = rng.choice(others, min(len(others), DATABASE), replace=False)
        needed = np.union1d(named, drawn)
        items, queries, weights = [], [], []
        for item, near, similarity in zip(
            validation_neighbors.items,
            validation_neighbors.neighbors,
            validation_neighbors.similarity,
            strict=True,
        ):
            if len(near):
                relevant = np.searchsorted(needed, near[similarity >= RELEVANT * similarity[0]])
                items.append(np.searchsorted(needed, item))
                itself = np.array([items[-1]])
                queries.append(Query("", "", None, positives=relevant, junk=itself))
                # Not their mean: in a group of two or three, s_m is high for want of others.
                weights.append(similarity[:TRUSTED].sum(dtype=np.float64) / TRUSTED)
        return cls(
            needed=needed,
            items=np.array(items, np.int64),
            queries=queries,
            weights=np.array(weights),
            held_out=held_out,
        )

    def measure(self, rows: Features, *, loss: Loss, margin: float | None) -> dict[str, float]:
        """What the embeddings (m, d) of `needed` are like.

        Returns
        -------
        manifold_map : weighted mAP of the items, their manifold neighbours being what is relevant
        held_out_loss : mean over the held-out anchors, of all their tuples, unweighted
        triplet_accuracy : share of these tuples whose positive is nearer to the anchor than the
            negative; a tie counts half
        spread : 1 - mean cosine of two images; 0 is a collapse

        A figure is left out where there is nothing to measure it on.
        """
        figures = {SPREAD: _spread(rows)} | self._of_held_out(rows, loss, margin)
        if len(self.queries):
            _, precisions = mean_average_precision(rank(rows, rows[self.items]), self.queries)
            figures[MANIFOLD_MAP] = float(np.average(precisions, weights=self.weights))
        return figures

    def _of_held_out(self, rows: Features, loss: Loss, margin: float | None) -> dict[str, float]:
        pools, losses, ordered = self.held_out, [], []
        columns = (pools.anchors[:, None], pools.positives, pools.negatives)
        for lists in zip(*columns, strict=True):
            query, near, far = (rows[np.searchsorted(self.needed, ids)] for ids in lists)
            tensors = (torch.from_numpy(part) for part in (query, near[None], far[None]))
            losses.append(float(tuple_loss(*tensors, loss=loss, margin=margin)))
            difference = _cosines(near, query)[:, None] - _cosines(far, query)
            ordered.append(np.mean((np.sign(difference) + 1) / 2))
        if not losses:
            return {}
        return {
            "held_out_loss": float(np.mean(losses)),
            "triplet_accuracy": float(np.mean(ordered)),
        }


def _cosines(rows: Features, query: Features) -> Features:
    """Of rows (m, d) with a query (1, d): (m,)."""
    # Rounding the sums hides their order of summation: equal images tie, and count half.
    cosines: Features = (rows.astype(np.float64) @ query[0].astype(np.float64)).astype(np.float32)
    return cosines


def _spread(rows: Features) -> float:
    """1 - the mean cosine of two different rows (m, d), from their sum."""
    m, total = len(rows), rows.sum(axis=0, dtype=np.float64)
    own = np.square(rows, dtype=np.float64).sum()
    return float(1 - (total @ total - own) / max(m * (m - 1), 1))


def best_epoch(history: list[dict[str, float]]) -> int:
    """The first epoch of the highest `manifold_map`; 0 is the initial network.

    Parameters
    ----------
    history : figures of the initial network, and after each epoch
    """
    return int(np.argmax([figures.get(MANIFOLD_MAP, 0.0) for figures in history]))


def collapsed(history: list[dict[str, float]]) -> bool:
    """Whether the embedding has shrunk, after the last of these epochs, to a third or less."""
    return history[-1][SPREAD] <= COLLAPSED * history[0][SPREAD]
