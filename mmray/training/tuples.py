"""Sampling of an epoch's tuples (anchor, positives, negatives) from mined pools (Sec. 3.4).

Hard negatives depend on the current network, and embedding every image of the pools would cost more
than the epoch. So sampling has two steps: `sample_pairs` says which images have to be embedded, of
anchors with more negatives than are hard, and `add_negatives` takes their embeddings. Both use one
generator: the same seed, pools and embeddings give the same tuples on any number of workers.

An anchor is usable if it has both a positive and a negative.

t tuples, p positives and n negatives in each (1 and 1 in the paper), m images to embed,
d dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError


@dataclass(frozen=True, eq=False, kw_only=True)
class Pairs:
    """An epoch's anchors and positives, in the order of training.

    Attributes
    ----------
    anchors : (t,) int64
    positives : (t, p) int64
    weights : (t, p) float32
        Manifold similarity s_m(x^r, x^+) of each pair.
    candidates : t arrays int64
        All mined negatives P^-(x^r) of each anchor.
    related : t arrays int64
        The anchor, and what may show the same, as far as is known: no negatives of it.
    needed : (m,) int64
        The images whose embeddings `add_negatives` takes, ascending: anchors with more candidates
        than may be hard, and these candidates.
    """

    anchors: Ids
    positives: Ids
    weights: Features
    candidates: tuple[Ids, ...]
    related: tuple[Ids, ...]
    needed: Ids


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuples:
    """An epoch's tuples, in the order of training.

    Attributes
    ----------
    anchors : (t,) int64
    positives : (t, p) int64
    negatives : (t, n) int64
    weights : (t, p) float32
        Manifold similarity s_m(x^r, x^+), the weight of the loss of a positive (+W).
    related : t arrays int64, as in `Pairs`
    """

    anchors: Ids
    positives: Ids
    negatives: Ids
    weights: Features
    related: tuple[Ids, ...]


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
    usable = _usable(pools)
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
    usable = _usable(pools)
    count = 0
    if fraction > 0 and len(usable):
        count = min(max(round(fraction * len(usable)), 1), len(usable) - 1)
    held = np.sort(rng.choice(usable, count, replace=False))
    return pools.taken(np.setdiff1d(np.arange(len(pools.anchors)), held)), pools.taken(held)


def sample_pairs(
    pools: Pools,
    count: int,
    rng: np.random.Generator,
    *,
    positives: int = 1,
    top_positives: int | None = None,
    hard_negatives: int = 10,
) -> Pairs:
    """Draw anchors without replacement, and for each some positives at random from P^+.

    Parameters
    ----------
    pools : as mined
        Anchors that are not usable are never drawn.
    count : at least 1
        Anchors to draw; all, in random order, if there are no more.
    rng : the generator, to be passed on to `add_negatives`
    positives : p, at least 1
        Positives of each anchor, drawn without replacement; if its pool has fewer, all of them,
        repeated in the order drawn.
    top_positives : at least 1
        Positives are drawn only among the first `top_positives` of a pool, those of the largest
        manifold similarity; None: among all.
    hard_negatives : as of `add_negatives`

    Raises
    ------
    InputError
        No anchor has both a positive and a negative.
    ValueError
        A number is below 1, or the lists of the pools do not match.
    """
    if count < 1:
        raise ValueError(f"count = {count}: draw at least one anchor")
    if positives < 1:
        raise ValueError(f"positives = {positives}: draw at least one for each anchor")
    if top_positives is not None and top_positives < 1:
        raise ValueError(f"top_positives = {top_positives}: choose at least 1")
    usable = _usable(pools)
    if not len(usable):
        raise InputError(
            f"none of the {len(pools.anchors)} anchors has both a positive and a negative: raise "
            "--mining.positive-k for positives, --mining.negative-k for negatives, or "
            "--mining.anchors"
        )
    chosen = rng.permutation(usable)[:count]
    drawn = _draw([len(pools.positives[i][:top_positives]) for i in chosen], positives, rng)
    places = list(zip(chosen, drawn, strict=True))
    anchors = pools.anchors[chosen]
    candidates = tuple(pools.negatives[i] for i in chosen)
    ranked = [
        np.append(ids, anchor)
        for anchor, ids in zip(anchors, candidates, strict=True)
        if len(ids) > hard_negatives
    ]
    return Pairs(
        anchors=anchors,
        positives=np.array([pools.positives[i][j] for i, j in places], dtype=np.int64),
        weights=np.array([pools.positive_similarity[i][j] for i, j in places], dtype=np.float32),
        candidates=candidates,
        related=tuple(pools.related(i) for i in chosen),
        needed=np.unique(np.concatenate([np.empty(0, np.int64), *ranked])),
    )


def add_negatives(
    pairs: Pairs,
    embeddings: Features,
    *,
    hard_negatives: int = 10,
    negatives: int = 1,
    rng: np.random.Generator,
) -> Tuples:
    """Draw the negatives of each anchor among its nearest candidates in the current embedding.

    Parameters
    ----------
    pairs : as drawn by `sample_pairs` with the same generator
    embeddings : (m, d) float32
        Rows of the images `pairs.needed` by the current network, l2-normalised.
    hard_negatives : at least 1, as of `sample_pairs`
        Negatives are drawn among this number of candidates, those of the largest inner product with
        the anchor, equal ones by ascending id; among all if there are no more.
    negatives : n, at least 1
        Negatives of each anchor, drawn without replacement; if it has fewer hard ones, all of them,
        repeated in the order drawn.
    rng : the generator that `sample_pairs` was given

    Raises
    ------
    ValueError
        There is not one row for each needed image, or a number is below 1.
    """
    check_embeddings(pairs, embeddings, hard_negatives=hard_negatives, negatives=negatives)
    nearest = [
        _nearest(anchor, candidates, pairs.needed, embeddings)[:hard_negatives]
        if len(candidates) > hard_negatives
        else candidates
        for anchor, candidates in zip(pairs.anchors, pairs.candidates, strict=True)
    ]
    drawn = _draw([len(ids) for ids in nearest], negatives, rng)
    return Tuples(
        anchors=pairs.anchors,
        positives=pairs.positives,
        negatives=np.array([ids[j] for ids, j in zip(nearest, drawn, strict=True)], dtype=np.int64),
        weights=pairs.weights,
        related=pairs.related,
    )


def check_embeddings(
    pairs: Pairs, embeddings: Features, *, hard_negatives: int, negatives: int
) -> None:
    """Check the arguments of `add_negatives`, and raise its errors."""
    if embeddings.ndim != 2 or len(embeddings) != len(pairs.needed):
        raise ValueError(
            f"embeddings {embeddings.shape}: need one row for each of {len(pairs.needed)} images"
        )
    if hard_negatives < 1:
        raise ValueError(f"hard_negatives = {hard_negatives}: choose at least 1")
    if negatives < 1:
        raise ValueError(f"negatives = {negatives}: draw at least one for each anchor")


def _draw(sizes: Sequence[int], count: int, rng: np.random.Generator) -> Ids:
    """Draw places (t, count) in lists of these sizes without replacement, repeating short lists."""
    return np.stack(
        [np.resize(rng.choice(size, min(size, count), replace=False), count) for size in sizes]
    )


def _nearest(anchor: np.int64, candidates: Ids, needed: Ids, embeddings: Features) -> Ids:
    """Sort candidates by descending similarity to the anchor, then by ascending id."""
    ids = np.sort(candidates)
    rows = embeddings[np.searchsorted(needed, ids)].astype(np.float64)
    query = embeddings[np.searchsorted(needed, anchor)].astype(np.float64)
    # Rounding hides the order of summation: equal images tie, and their ids decide.
    similarities = (rows @ query).astype(np.float32)
    return ids[np.argsort(-similarities, kind="stable")]


def _usable(pools: Pools) -> Ids:
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
