"""Drawing an epoch's training tuples (anchor, positive, negative) from the mined pools (Sec. 3.4).

Negatives depend on the network as it is, and to embed every image of the pools would cost more than
the epoch. So the draw has two steps: `sample_pairs` says which images have to be embedded, and
`add_negatives` takes their embeddings. Both use one generator: the same seed, pools and embeddings
give the same tuples, however many workers there are.

t tuples, m images to embed, d dimensions.
"""

from dataclasses import dataclass

import numpy as np

from mmray.arrays import Features, Ids
from mmray.errors import InputError
from mmray.pools import Pools


@dataclass(frozen=True, eq=False, kw_only=True)
class Pairs:
    """An epoch's anchors and positives, in the order of training.

    Attributes
    ----------
    anchors, positives : (t,) int64
    weights : (t,) float32
        Manifold similarity s_m(x^r, x^+) of each pair.
    candidates : t arrays int64
        All mined negatives P^-(x^r) of each anchor.
    needed : (m,) int64
        The images that `add_negatives` asks the embeddings of: anchors and candidates, ascending.
    """

    anchors: Ids
    positives: Ids
    weights: Features
    candidates: tuple[Ids, ...]
    needed: Ids


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuples:
    """An epoch's tuples, in the order of training.

    Attributes
    ----------
    anchors, positives, negatives : (t,) int64
    weights : (t,) float32
        Manifold similarity s_m(x^r, x^+): the factor on a tuple's loss (+W).
    """

    anchors: Ids
    positives: Ids
    negatives: Ids
    weights: Features


def sample_pairs(pools: Pools, count: int, rng: np.random.Generator) -> Pairs:
    """Draw anchors without replacement, and for each a positive at random from P^+.

    Parameters
    ----------
    pools : what was mined
        Anchors without positives or without negatives are never drawn.
    count : at least 1
        Anchors to draw; all, in random order, if there are no more.
    rng : to be passed on to `add_negatives`.

    Raises
    ------
    InputError
        No anchor has both a positive and a negative.
    ValueError
        count is below 1, or the lists of the pools do not belong together.
    """
    if count < 1:
        raise ValueError(f"count = {count}: draw at least one anchor")
    _check(pools)
    usable = [
        i
        for i, (positives, negatives) in enumerate(
            zip(pools.positives, pools.negatives, strict=True)
        )
        if len(positives) and len(negatives)
    ]
    if not usable:
        raise InputError(
            f"none of the {len(pools.anchors)} anchors has both a positive and a negative: raise "
            "--mining.positive-k for positives, --mining.negative-k for negatives, or "
            "--mining.anchors"
        )
    chosen = rng.permutation(usable)[:count]
    drawn = rng.integers([len(pools.positives[i]) for i in chosen])
    places = list(zip(chosen, drawn, strict=True))
    anchors = pools.anchors[chosen]
    candidates = tuple(pools.negatives[i] for i in chosen)
    return Pairs(
        anchors=anchors,
        positives=np.array([pools.positives[i][j] for i, j in places], dtype=np.int64),
        weights=np.array([pools.positive_similarity[i][j] for i, j in places], dtype=np.float32),
        candidates=candidates,
        needed=np.unique(np.concatenate([anchors, *candidates])),
    )


def add_negatives(
    pairs: Pairs, embeddings: Features, *, hard_negatives: int = 10, rng: np.random.Generator
) -> Tuples:
    """Draw for each anchor a negative among the candidates nearest to it in the current embedding.

    Parameters
    ----------
    pairs : as drawn by `sample_pairs` with the same generator
    embeddings : (m, d) float32
        Rows of the images `pairs.needed`, l2-normalised, by the network as it is.
    hard_negatives : at least 1
        A negative is drawn among so many candidates: those of the largest inner product with the
        anchor, equal ones by ascending id; among all if there are no more.

    Raises
    ------
    ValueError
        Not one row for each needed image, a row that is not finite, or hard_negatives below 1.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(pairs.needed):
        raise ValueError(
            f"embeddings {embeddings.shape}: need one row for each of {len(pairs.needed)} images"
        )
    if hard_negatives < 1:
        raise ValueError(f"hard_negatives = {hard_negatives}: choose at least 1")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the embedding of image {pairs.needed[bad[0]]} is not finite ({bad.size} of "
            f"{len(embeddings)} images): the network has diverged, lower the learning rate"
        )
    nearest = [
        _nearest(anchor, candidates, pairs.needed, embeddings)[:hard_negatives]
        for anchor, candidates in zip(pairs.anchors, pairs.candidates, strict=True)
    ]
    drawn = rng.integers([len(ids) for ids in nearest])
    return Tuples(
        anchors=pairs.anchors,
        positives=pairs.positives,
        negatives=np.array([ids[j] for ids, j in zip(nearest, drawn, strict=True)], dtype=np.int64),
        weights=pairs.weights,
    )


def _nearest(anchor: np.int64, candidates: Ids, needed: Ids, embeddings: Features) -> Ids:
    """Candidates by descending similarity to the anchor, then by ascending id."""
    ids = np.sort(candidates)
    rows = embeddings[np.searchsorted(needed, ids)].astype(np.float64)
    query = embeddings[np.searchsorted(needed, anchor)].astype(np.float64)
    # Rounding the sums hides their order of summation: equal images tie, and their ids decide.
    similarities = (rows @ query).astype(np.float32)
    return ids[np.argsort(-similarities, kind="stable")]


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
