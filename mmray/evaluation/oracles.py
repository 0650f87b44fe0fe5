"""Pools that labels are a part of: upper bounds of what purer mining could bring, never a result.

n items, d dimensions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.config.choices import Oracle
from mmray.evaluation.purity import same_label, without_label
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Ids


def oracle_pools(
    pools: Pools, labels: NDArray[Any], which: Oracle, features: Features, *, negatives: int
) -> Pools:
    """Return pools of which labels are a part: an oracle, the upper bound of purer mining.

    Parameters
    ----------
    pools, labels : as for `pool_purity`
    which : "filter-positives" removes positives of another label than the anchor's,
        "filter-negatives" negatives of the same label, and "filter-both" both. In place of those
        mined, "replace-positives" takes all items of the anchor's label, each with the weight 1;
        "replace-negatives" the items of other labels, or of none, that are most similar to it;
        "replace-both" both
    features : (n, d) float32, l2-normalised
    negatives : of an anchor, where they are replaced

    Returns
    -------
    Pools of the same anchors, some perhaps empty, in the same order; `manifold_neighbors` are
    unchanged. What is not known of those that replace others is 0.
    """
    how, _, side = which.partition("-")
    if how == "filter":
        return _filtered(pools, labels, side)
    unlabelled = without_label(labels)
    if side in ("positives", "both"):
        chosen = [
            np.flatnonzero((labels == labels[anchor]) & ~unlabelled[anchor])
            for anchor in pools.anchors
        ]
        positives = tuple(
            ids[ids != anchor] for ids, anchor in zip(chosen, pools.anchors, strict=True)
        )
        pools = replace(
            pools,
            positives=positives,
            positive_similarity=tuple(np.ones(len(ids), np.float32) for ids in positives),
            positive_rank_e=tuple(np.zeros(len(ids), np.int64) for ids in positives),
        )
    if side in ("negatives", "both"):
        _, sizes = np.unique(labels[~unlabelled], return_counts=True)
        k = min(len(features), negatives + int(sizes.max(initial=1)))
        near = nearest_neighbors(features, features[pools.anchors], k)
        lists = [
            np.flatnonzero((ids != anchor) & ((labels[ids] != labels[anchor]) | unlabelled[anchor]))
            for ids, anchor in zip(near.ids, pools.anchors, strict=True)
        ]
        places = [found[:negatives] for found in lists]
        pools = replace(
            pools,
            negatives=_chosen([*near.ids], places),
            negative_similarity=_chosen([*near.similarities], places),
            negative_rank_m=tuple(np.zeros(len(ids), np.int64) for ids in places),
        )
    return pools


def _filtered(pools: Pools, labels: NDArray[Any], side: str) -> Pools:
    """Remove false positives, false negatives or both from pools."""
    if side in ("positives", "both"):
        kept = _split(same_label(pools.anchors, pools.positives, labels), pools.positives)
        pools = replace(
            pools,
            positives=_chosen(pools.positives, kept),
            positive_similarity=_chosen(pools.positive_similarity, kept),
            positive_rank_e=_chosen(pools.positive_rank_e, kept),
        )
    if side in ("negatives", "both"):
        kept = _split(~same_label(pools.anchors, pools.negatives, labels), pools.negatives)
        pools = replace(
            pools,
            negatives=_chosen(pools.negatives, kept),
            negative_similarity=_chosen(pools.negative_similarity, kept),
            negative_rank_m=_chosen(pools.negative_rank_m, kept),
        )
    return pools


def _split(flags: NDArray[np.bool_], pool: Sequence[Ids]) -> list[NDArray[np.bool_]]:
    """Split the flags of all pairs into one array for each anchor."""
    return np.split(flags, np.cumsum([len(ids) for ids in pool]))[: len(pool)]


def _chosen(lists: Sequence[Any], kept: Sequence[NDArray[Any]]) -> tuple[Any, ...]:
    return tuple(values[flags] for values, flags in zip(lists, kept, strict=True))
