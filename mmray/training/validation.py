"""The check without labels: mAP of a network with manifold neighbours as the ground truth.

The manifold neighbours of items drawn at random, found in the features of the initial network,
serve as the ground truth. They are mostly right, hard and easy ones alike. The positives of anchors
would serve worse: they are hard ones only, and a network can learn impure ones and get worse.

m images, d dims. docs/results/steady-training.md shows how well this check agrees with labels, and
which checks agreed less.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmray.config.sections import TrainingConfig
from mmray.evaluation.ranking import Query, mean_average_precision, rank
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Floats, Ids
from mmray.training.losses import tuple_loss

MANIFOLD_MAP = "manifold_map"  # the metric that decides which network is kept
SPREAD = "spread"
COLLAPSED = 1 / 3  # of the initial spread; below it all images look alike to the network
NEIGHBORS = 50  # manifold neighbours of an item that may be relevant to it
RELEVANT = 0.25  # share of the first neighbour's s_m from which a neighbour is relevant
TRUSTED = 10  # neighbours whose s_m determines the weight of an item
DATABASE = 5000  # most images to search beside the items, their neighbours and the held-out pools


@dataclass(frozen=True, eq=False, kw_only=True)
class ManifoldValidation:
    """Queries, ground truth and held-out pools that a network is checked on without labels.

    Attributes
    ----------
    needed : (m,) int64
        The images whose embeddings `measure` takes, ascending.
    items : (q,) int64
        The queries, as places in `needed`.
    queries : ground truth of the q queries
    weights : (q,) float64
        Weight of each query: the sum of s_m over its first TRUSTED neighbours, divided by TRUSTED.
        Queries in dense groups are the most reliable.
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
        """Choose the images to search: those in the neighbours and pools, and others at random.

        Parameters
        ----------
        validation_neighbors : the queries and their manifold neighbours; queries without any are
            left out
        held_out : pools of anchors that are not trained on
        images : number of all images; ids are below it
        rng : draws the other images
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
                # Not the mean of those there are: in a group of two or three s_m is always high.
                weights.append(similarity[:TRUSTED].sum(dtype=np.float64) / TRUSTED)
        return cls(
            needed=needed,
            items=np.array(items, np.int64),
            queries=queries,
            weights=np.array(weights),
            held_out=held_out,
        )

    def measure(self, rows: Features, config: TrainingConfig) -> dict[str, float]:
        """Measure the embeddings (m, d) of the images `needed`, by the loss of the settings.

        Returns
        -------
        manifold_map : weighted mAP of the queries, with their manifold neighbours as ground truth
        held_out_loss : loss of all tuples of the held-out anchors, unweighted, averaged by anchor
        triplet_accuracy : share of these tuples whose positive is nearer to the anchor than the
            negative; a tie counts half
        spread : 1 - mean cosine of two images; 0 is a collapse

        A metric is left out where there is nothing to measure it on.
        """
        figures = {SPREAD: _spread(rows)} | self._of_held_out(rows, config)
        if len(self.queries):
            _, precisions = mean_average_precision(rank(rows, rows[self.items]), self.queries)
            figures[MANIFOLD_MAP] = float(np.average(precisions, weights=self.weights))
        return figures

    def _of_held_out(self, rows: Features, config: TrainingConfig) -> dict[str, float]:
        pools, losses, ordered = self.held_out, [], []
        rule: dict[str, Any] = {
            "loss": config.loss,
            "margin": config.margin,
            "temperature": config.temperature,
        }
        columns = (pools.anchors[:, None], pools.positives, pools.negatives)
        for lists in zip(*columns, strict=True):
            query, near, far = (rows[np.searchsorted(self.needed, ids)] for ids in lists)
            tensors = (torch.from_numpy(part) for part in (query, near[None], far[None]))
            losses.append(float(tuple_loss(*tensors, **rule)))
            difference = _cosines(near, query)[:, None] - _cosines(far, query)
            ordered.append(np.mean((np.sign(difference) + 1) / 2))
        if not losses:
            return {}
        return {
            "held_out_loss": float(np.mean(losses)),
            "triplet_accuracy": float(np.mean(ordered)),
        }


def _cosines(rows: Features, query: Features) -> Features:
    """Return the cosines (m,) of rows (m, d) with a query (1, d)."""
    # Rounding hides the order of summation: equal images tie, and count half.
    cosines: Features = (rows.astype(np.float64) @ query[0].astype(np.float64)).astype(np.float32)
    return cosines


def _spread(rows: Features) -> float:
    """Return 1 - the mean cosine of two different rows (m, d), computed from their sum."""
    m, total = len(rows), rows.sum(axis=0, dtype=np.float64)
    own = np.square(rows, dtype=np.float64).sum()
    return float(1 - (total @ total - own) / max(m * (m - 1), 1))


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the first epoch with the highest `manifold_map`; 0 is the initial network.

    Parameters
    ----------
    history : metrics of the initial network, and of the network after each epoch
    """
    return int(np.argmax([figures.get(MANIFOLD_MAP, 0.0) for figures in history]))


def collapsed(history: list[dict[str, float]]) -> bool:
    """Tell whether the spread after the last epoch is a third of the initial one or less."""
    return history[-1][SPREAD] <= COLLAPSED * history[0][SPREAD]
