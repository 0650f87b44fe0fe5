"""The check of a network without labels, on the images to learn from; the choice of an epoch.

`view_agreement` chooses it, see `agreement`. `manifold_map` is mAP with manifold neighbours, found
in the features of the initial network, as the ground truth. They are mostly right where this sees
well; a network that loses much of them has learned to find other things, which may be better ones.
(The positives of anchors would serve worse: they are hard ones only.)

m images, d dims. docs/results/steady-training.md shows how well `manifold_map` and others agree
with labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmray.config.sections import TrainingConfig
from mmray.evaluation.ranking import Query, mean_average_precision, rank
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Floats, Ids
from mmray.training.agreement import ERROR, VIEW_AGREEMENT
from mmray.training.losses import tuple_loss

MANIFOLD_MAP = "manifold_map"
CERTAIN = 2  # standard errors by which a network has to be better than the initial one
LEAST_MAP = 0.9  # of the initial manifold_map; a network below it has learned other things
SPREAD = "spread"
COLLAPSED = 1 / 3  # of the initial spread; below it all images look alike to the network
NEIGHBORS = 50  # manifold neighbours of an item that may be relevant to it
RELEVANT = 0.25  # share of the first neighbour's s_m from which a neighbour is relevant
TRUSTED = 10  # neighbours whose s_m determines the weight of an item
CHECKED = 2  # images to check for each tuple of an epoch, whole and in part
LEAST_CHECKED = 400  # fewer tell nothing


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
        *,
        most: int,
    ) -> "ManifoldValidation":
        """Choose the images to search: items with their neighbours, pools, and others at random.

        Parameters
        ----------
        validation_neighbors : the queries and their manifold neighbours; queries without any are
            left out
        held_out : pools of anchors that are not trained on
        images : number of all images; ids are below it
        rng : draws the other images
        most : images to choose, see `checked_images`. Where there are more, half of them are
            queries with their neighbours, a quarter those of the held-out pools: both in the given
            order, as far as they fit.
        """
        near = validation_neighbors
        given = (near.items, near.neighbors, near.similarity)
        groups = [np.append(item, ids) for item, ids, _ in zip(*given, strict=True)]
        pools = [
            np.concatenate([[anchor], *lists])
            for anchor, *lists in zip(
                held_out.anchors, held_out.positives, held_out.negatives, strict=True
            )
        ]
        asked, kept = len(groups), len(pools)
        if images > most:
            asked, kept = _fitting(groups, most // 2), _fitting(pools, most // 4)
        named = np.unique(np.concatenate([np.empty(0, np.int64), *groups[:asked], *pools[:kept]]))
        others = np.setdiff1d(np.arange(images), named)
        drawn = rng.choice(others, min(len(others), max(most - len(named), 0)), replace=False)
        needed = np.union1d(named, drawn)
        items, queries, weights = [], [], []
        for item, ids, similarity in list(zip(*given, strict=True))[:asked]:
            if len(ids):
                relevant = np.searchsorted(needed, ids[similarity >= RELEVANT * similarity[0]])
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
            held_out=held_out.taken(np.arange(kept)),
        )

    def measure(self, rows: Features, config: TrainingConfig) -> dict[str, float]:
        """Measure the embeddings (m, d) of the images `needed`, by the loss of the settings.

        Returns
        -------
        manifold_map : weighted mAP of the queries, with their manifold neighbours as ground truth
        manifold_map_error : standard error of this mean
        held_out_loss : loss of all tuples of the held-out anchors, unweighted, averaged by anchor
        triplet_accuracy : share of these tuples whose positive is nearer to the anchor than the
            negative; a tie counts half
        spread : 1 - mean cosine of two images; 0 is a collapse

        A metric is left out where there is nothing to measure it on.
        """
        figures = {SPREAD: _spread(rows)} | self._of_held_out(rows, config)
        if len(self.queries):
            _, precisions = mean_average_precision(rank(rows, rows[self.items]), self.queries)
            figures |= _mean(MANIFOLD_MAP, np.asarray(precisions), self.weights)
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


def checked_images(config: TrainingConfig) -> int:
    """Return how many images the check describes: an epoch costs at most 1.5 times its steps."""
    return max(CHECKED * config.anchors_per_epoch, LEAST_CHECKED)


def _fitting(groups: list[Ids], most: int) -> int:
    """Return how many of the first groups fit into a number of images, 1 at least."""
    seen = set[int]()
    for place, ids in enumerate(groups):
        seen.update(ids.tolist())
        if place and len(seen) > most:
            return place
    return len(groups)


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


def _mean(name: str, values: Floats, weights: Floats) -> dict[str, float]:
    """Return a weighted mean with its standard error, as metrics."""
    mean = float(np.average(values, weights=weights))
    error = float(np.linalg.norm(weights * (values - mean)) / weights.sum())
    return {name: mean, name + ERROR: error}


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the first epoch with the highest agreement; 0 is the initial network.

    It is the highest `view_agreement`, and the highest `manifold_map` where no parts were compared.
    A rise that is not above CERTAIN times its standard error is none.

    Parameters
    ----------
    history : metrics of the initial network, and of the network after each epoch
    """
    name = chosen_by(history)
    figures = [initial := history[0].get(name, 0.0)]
    for each in history[1:]:
        value, error = each.get(name, 0.0), each.get(name + ERROR, 0.0)
        figures.append(value if value - CERTAIN * error > initial else -1.0)
    return int(np.argmax(figures))


def chosen_by(history: Sequence[Mapping[str, float]]) -> str:
    """Return the metric that chooses an epoch; checkpoints of earlier versions have but one."""
    return VIEW_AGREEMENT if all(VIEW_AGREEMENT in each for each in history) else MANIFOLD_MAP


def rise(history: Sequence[Mapping[str, float]], epoch: int) -> float:
    """Return how much the metric that chooses an epoch rose from the initial network to one."""
    name = chosen_by(history)
    return history[epoch].get(name, 0.0) - history[0].get(name, 0.0)


def departed(history: Sequence[Mapping[str, float]]) -> bool:
    """Tell whether a network after some epoch lost more than a tenth of the `manifold_map`."""
    least = LEAST_MAP * history[0].get(MANIFOLD_MAP, 0.0)
    return any(figures.get(MANIFOLD_MAP, 0.0) < least for figures in history)


def collapsed(history: list[dict[str, float]]) -> bool:
    """Tell whether the spread after the last epoch is a third of the initial one or less."""
    return history[-1][SPREAD] <= COLLAPSED * history[0][SPREAD]
