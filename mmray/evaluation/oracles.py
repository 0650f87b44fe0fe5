"""Pools that labels are a part of: upper bounds of what purer mining could bring, never a result.

n items, d dimensions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmray.evaluation.purity import same_label, without_label
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Ids

OracleSide: TypeAlias = Literal["positives", "negatives", "both"]


def filtered_pools(pools: Pools, labels: NDArray[Any], which: OracleSide) -> Pools:
    """Remove the false pairs from pools by labels.

    Parameters
    ----------
    pools, labels : as for `pool_purity`
    which : "positives" removes positives of another label than the anchor's, "negatives" removes
        negatives of the same label, "both" removes both

    Returns
    -------
    Pools of the same anchors, some perhaps empty now, in the same order; `manifold_neighbors` are
    unchanged.
    """
    if which in ("positives", "both"):
        kept = _split(same_label(pools.anchors, pools.positives, labels), pools.positives)
        pools = replace(
            pools,
            positives=_chosen(pools.positives, kept),
            positive_similarity=_chosen(pools.positive_similarity, kept),
            positive_rank_e=_chosen(pools.positive_rank_e, kept),
        )
    if which in ("negatives", "both"):
        kept = _split(~same_label(pools.anchors, pools.negatives, labels), pools.negatives)
        pools = replace(
            pools,
            negatives=_chosen(pools.negatives, kept),
            negative_similarity=_chosen(pools.negative_similarity, kept),
            negative_rank_m=_chosen(pools.negative_rank_m, kept),
        )
    return pools


def replaced_pools(
    pools: Pools, labels: NDArray[Any], which: OracleSide, features: Features, *, negatives: int
) -> Pools:
    """Replace pools by what labels say.

    Parameters
    ----------
    pools, labels : as for `pool_purity`
    which : "positives" are then all items of the anchor's label, each with the weight 1;
        "negatives" the items of other labels, or of none, that are most similar to the anchor;
        "both" are replaced
    features : (n, d) float32, l2-normalised
    negatives : of an anchor, at most

    Returns
    -------
    Pools of the same anchors, some perhaps empty, in the same order; `manifold_neighbors` are
    unchanged. Ranks that are not known are 0.
    """
    unlabelled = without_label(labels)
    if which in ("positives", "both"):
        positives = []
        for anchor in pools.anchors:
            same = (labels == labels[anchor]) & ~unlabelled[anchor]
            same[anchor] = False
            positives.append(np.flatnonzero(same))
        pools = replace(
            pools,
            positives=tuple(positives),
            positive_similarity=tuple(np.ones(len(ids), np.float32) for ids in positives),
            positive_rank_e=tuple(np.zeros(len(ids), np.int64) for ids in positives),
        )
    if which in ("negatives", "both"):
        _, sizes = np.unique(labels[~unlabelled], return_counts=True)
        k = min(len(features), negatives + int(sizes.max(initial=1)))
        near = nearest_neighbors(features, features[pools.anchors], k)
        places = []
        for ids, anchor in zip(near.ids, pools.anchors, strict=True):
            others = (labels[ids] != labels[anchor]) | unlabelled[anchor]
            places.append(np.flatnonzero((ids != anchor) & others)[:negatives])
        pools = replace(
            pools,
            negatives=_chosen([*near.ids], places),
            negative_similarity=_chosen([*near.similarities], places),
            negative_rank_m=tuple(np.zeros(len(found), np.int64) for found in places),
        )
    return pools


def _split(flags: NDArray[np.bool_], pool: Sequence[Ids]) -> list[NDArray[np.bool_]]:
    """Split the flags of all pairs into one array for each anchor."""
    return np.split(flags, np.cumsum([len(ids) for ids in pool]))[: len(pool)]


def _chosen(lists: Sequence[Any], kept: Sequence[NDArray[Any]]) -> tuple[Any, ...]:
    return tuple(values[flags] for values, flags in zip(lists, kept, strict=True))
