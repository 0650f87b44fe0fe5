"""Pools before training: anchors that tuples can be drawn of, their weights, and those held out.

An anchor is usable if it has both a positive and a negative.
"""

from dataclasses import replace

import numpy as np

from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Ids
from mmray.system.errors import InputError


def with_mean_weight_one(pools: Pools) -> Pools:
    """Divide the positive similarities of pools by their mean.

    The scale of s_m depends on the graph and on alpha; unless it is removed, +W also changes the
    effective learning rate.

    Parameters
    ----------
    pools : as mined
        The mean is over all positives of all usable anchors, the pairs that may be drawn. Pools
        without a usable anchor are returned unchanged.

    Raises
    ------
    InputError
        The mean is not above 0; that of manifold similarities always is.
    ValueError
        The lists of the pools do not match.
    """
    usable = usable_anchors(pools)
    if not len(usable):
        return pools
    mean = np.concatenate([pools.positive_similarity[i] for i in usable]).mean(dtype=np.float64)
    if not mean > 0:
        raise InputError(
            f"the similarities of the positives have the mean {mean:g}, which cannot be scaled to "
            "1: train without these weights (--training.no-weighted)"
        )
    return replace(
        pools,
        positive_similarity=tuple(
            (values / mean).astype(np.float32) for values in pools.positive_similarity
        ),
    )


def hold_out(pools: Pools, fraction: float, rng: np.random.Generator) -> tuple[Pools, Pools]:
    """Split the usable anchors at random into those to train on and those held out for a check.

    Only anchors are split: their images may still be positives or negatives of other anchors.

    Parameters
    ----------
    pools : as mined
    fraction : from 0, below 1
        Share of the usable anchors to hold out, rounded to whole anchors. If it is above 0 and
        there are two or more, at least one is held out and at least one is left.

    Returns
    -------
    Pools to train on and pools held out, both in the given order. Anchors that are not usable stay
    in the first.

    Raises
    ------
    ValueError
        The fraction is not in [0, 1), or the lists of the pools do not match.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction = {fraction}: hold out a share from 0 to below 1")
    usable = usable_anchors(pools)
    count = 0
    if fraction > 0 and len(usable):
        count = min(max(round(fraction * len(usable)), 1), len(usable) - 1)
    held = np.sort(rng.choice(usable, count, replace=False))
    return pools.taken(np.setdiff1d(np.arange(len(pools.anchors)), held)), pools.taken(held)


def usable_anchors(pools: Pools) -> Ids:
    """Return the places of the anchors with both a positive and a negative, ascending."""
    _check(pools)
    both = zip(pools.positives, pools.negatives, strict=True)
    return np.array([i for i, ids in enumerate(both) if all(map(len, ids))], dtype=np.int64)


def _check(pools: Pools) -> None:
    a = len(pools.anchors)
    for name in ("positives", "positive_similarity", "negatives"):
        if len(getattr(pools, name)) != a:
            raise ValueError(f"{a} anchors, but {len(getattr(pools, name))} lists of {name}")
    for anchor, ids, values in zip(
        pools.anchors, pools.positives, pools.positive_similarity, strict=True
    ):
        if len(ids) != len(values):
            raise ValueError(
                f"anchor {anchor}: {len(ids)} positives, but {len(values)} similarities"
            )
