"""Sampling of an epoch's tuples (anchor, positives, negatives) from mined pools (Sec. 3.4).

Hard negatives depend on the current network, and embedding every image of the pools would cost more
than the epoch. So sampling has two steps: `sample_pairs` says which images have to be embedded, of
anchors with more negatives than are hard, and `add_negatives` takes their embeddings. Both use one
generator: the same seed, pools and embeddings give the same tuples on any number of workers.

Still, 50 candidates of each anchor cost more than to train on its tuple, unless anchors share them,
as in a small collection. So they may be limited to some drawn at random.

t tuples, p positives and n negatives in each (1 and 1 in the paper), m images to embed,
d dimensions.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError
from mmray.training.usable_pools import usable_anchors


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
        Mined negatives P^-(x^r) of each anchor: all, or some at random.
    hard : (t,) int64
        The nearest candidates that a negative may be.
    related : t arrays int64
        The anchor, and what may show the same, as far as is known: no negatives of it.
    needed : (m,) int64
        The images whose embeddings `add_negatives` takes, ascending: anchors with more candidates
        than are hard, and these candidates.
    """

    anchors: Ids
    positives: Ids
    weights: Features
    candidates: tuple[Ids, ...]
    hard: Ids
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


def sample_pairs(
    pools: Pools,
    count: int,
    rng: np.random.Generator,
    *,
    positives: int = 1,
    top_positives: int | None = None,
    hard_negatives: int = 10,
    ranked_images: int | None = None,
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
    hard_negatives : at least 1
        Negatives of an anchor that are hard: those nearest to it in the current embedding.
    ranked_images : at least 2
        Images to embed for each anchor, on the mean. If the pools have more, candidates are drawn
        from them at random, as many of each as fit, and the same share of them is hard. None: all.

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
    if hard_negatives < 1:
        raise ValueError(f"hard_negatives = {hard_negatives}: choose at least 1")
    if ranked_images is not None and ranked_images < 2:
        raise ValueError(f"ranked_images = {ranked_images}: an anchor and a candidate are 2")
    usable = usable_anchors(pools)
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
    candidates, hard = [pools.negatives[i] for i in chosen], np.full(len(chosen), hard_negatives)
    needed = _needed(anchors, candidates, hard)
    if ranked_images is not None and len(needed) > ranked_images * len(anchors):
        candidates, hard = _fewer(anchors, candidates, hard, ranked_images * len(anchors), rng)
        needed = _needed(anchors, candidates, hard)
    return Pairs(
        anchors=anchors,
        positives=np.array([pools.positives[i][j] for i, j in places], dtype=np.int64),
        weights=np.array([pools.positive_similarity[i][j] for i, j in places], dtype=np.float32),
        candidates=tuple(candidates),
        hard=hard,
        related=tuple(pools.related(i) for i in chosen),
        needed=needed,
    )


def _needed(anchors: Ids, candidates: Sequence[Ids], hard: Ids) -> Ids:
    """Return the images to embed, ascending: anchors with candidates to rank, and these."""
    ranked = [
        np.append(ids, anchor)
        for anchor, ids, count in zip(anchors, candidates, hard, strict=True)
        if len(ids) > count
    ]
    return np.unique(np.concatenate([np.empty(0, np.int64), *ranked]))


def _fewer(
    anchors: Ids, candidates: Sequence[Ids], hard: Ids, most: int, rng: np.random.Generator
) -> tuple[list[Ids], Ids]:
    """Draw of each list as many candidates as fit into a number of images; also how many are hard.

    All lists prefer the same images, in a random order: then anchors that are near each other share
    what they draw, and more fits.
    """
    ids = np.unique(np.concatenate(candidates))
    order = rng.permutation(len(ids))
    shuffled = [each[np.argsort(order[np.searchsorted(ids, each)])] for each in candidates]

    def cut(count: int) -> tuple[list[Ids], Ids]:
        kept = [each[:count] for each in shuffled]
        share = [len(few) / len(every) for few, every in zip(kept, candidates, strict=True)]
        return kept, np.ceil(hard * share).astype(np.int64)

    counts = range(1, max(map(len, candidates)) + 1)
    fits = bisect_right(counts, most, key=lambda count: len(_needed(anchors, *cut(count))))
    return cut(counts[max(fits, 1) - 1])


def add_negatives(
    pairs: Pairs,
    embeddings: Features,
    *,
    negatives: int = 1,
    rng: np.random.Generator,
) -> Tuples:
    """Draw the negatives of each anchor among its hard candidates in the current embedding.

    These are the candidates of the largest inner product with the anchor, equal ones by ascending
    id; all if there are no more than may be hard.

    Parameters
    ----------
    pairs : as drawn by `sample_pairs` with the same generator
    embeddings : (m, d) float32
        Rows of the images `pairs.needed` by the current network, l2-normalised.
    negatives : n, at least 1
        Negatives of each anchor, drawn without replacement; if it has fewer hard ones, all of them,
        repeated in the order drawn.
    rng : the generator that `sample_pairs` was given

    Raises
    ------
    ValueError
        There is not one row for each needed image, or a number is below 1.
    """
    check_embeddings(pairs, embeddings, negatives)
    lists = zip(pairs.anchors, pairs.candidates, pairs.hard, strict=True)
    nearest = [
        _nearest(anchor, ids, pairs.needed, embeddings)[:count] if len(ids) > count else ids
        for anchor, ids, count in lists
    ]
    drawn = _draw([len(ids) for ids in nearest], negatives, rng)
    return Tuples(
        anchors=pairs.anchors,
        positives=pairs.positives,
        negatives=np.array([ids[j] for ids, j in zip(nearest, drawn, strict=True)], dtype=np.int64),
        weights=pairs.weights,
        related=pairs.related,
    )


def check_embeddings(pairs: Pairs, embeddings: Features, negatives: int) -> None:
    """Check the arguments of `add_negatives`, and raise its errors."""
    if embeddings.ndim != 2 or len(embeddings) != len(pairs.needed):
        raise ValueError(
            f"embeddings {embeddings.shape}: need one row for each of {len(pairs.needed)} images"
        )
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
