"""Sampling of tuples by labels: the baseline of Radenović, Tolias, Chum (ECCV 2016) in Table 3.

The labels are the clusters of structure from motion: the 3D model that an image belongs to. Pairs
(query, positive) are given. Each epoch draws some of them, and at random one pool of images for all
of them. The negatives of a query are the images of the pool nearest to it in the current embedding,
none of them of the query's cluster and no two of the same cluster. Sampling has the two steps of
`tuples`, which exchange the same data.

m pairs (query, positive), n images, t of the pairs in an epoch, d dimensions.
"""

from dataclasses import dataclass, replace

import numpy as np

from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Floats, Ids
from mmray.system.errors import InputError
from mmray.training.tuples import Pairs, Tuples, check_embeddings

_BLOCK = 256  # queries that are compared with the pool at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledPairs:
    """Matching pairs, and the label of every image.

    Attributes
    ----------
    queries, positives : (m,) int64
        A query may occur several times, each time with another positive.
    clusters : (n,) int64
    """

    queries: Ids
    positives: Ids
    clusters: Ids

    def as_pools(self) -> Pools:
        """Convert the pairs to pools: each pair an anchor with one positive of weight 1."""
        matching = tuple(self.positives[:, None])
        return replace(
            Pools.empty(self.queries),
            positives=matching,
            positive_similarity=(np.ones(1, np.float32),) * len(matching),
            manifold_neighbors=matching,
        )


NO_POOLS = Pools.empty(np.empty(0, np.int64))


def sample_labelled_pairs(
    labelled: LabelledPairs,
    count: int,
    rng: np.random.Generator,
    *,
    hard_negatives: int = 5,
    negative_pool: int,
) -> Pairs:
    """Draw pairs without replacement, and the pool of images for the negatives of all of them.

    Parameters
    ----------
    count : at least 1
        Pairs to draw; all, in random order, if there are no more.
    hard_negatives : at least 1
        Images of other clusters that are hard, see `add_labelled_negatives`.
    negative_pool : at least 1
        Images to draw, without replacement; all if there are no more.

    Raises
    ------
    ValueError
        A number is below 1.
    """
    if min(count, negative_pool) < 1:
        raise ValueError(f"count = {count}, negative_pool = {negative_pool}: draw at least one")
    if hard_negatives < 1:
        raise ValueError(f"hard_negatives = {hard_negatives}: choose at least 1")
    n = len(labelled.clusters)
    chosen = rng.permutation(len(labelled.queries))[:count]
    drawn = np.sort(rng.choice(n, min(negative_pool, n), replace=False))
    anchors = labelled.queries[chosen]
    return Pairs(
        anchors=anchors,
        positives=labelled.positives[chosen, None],
        weights=np.ones((len(chosen), 1), np.float32),
        candidates=(drawn,) * len(chosen),
        hard=np.full(len(chosen), hard_negatives),
        related=tuple(np.flatnonzero(labelled.clusters == labelled.clusters[q]) for q in anchors),
        needed=np.union1d(anchors, drawn),
    )


def add_labelled_negatives(
    pairs: Pairs,
    embeddings: Features,
    clusters: Ids,
    *,
    negatives: int = 5,
    rng: np.random.Generator,
) -> Tuples:
    """Choose the negatives of each query: its nearest images of other clusters, one per cluster.

    Each cluster offers its image of the largest inner product with the query; equal ones are
    ordered by ascending id. `pairs.hard` of these may be drawn, all if there are no more.

    Parameters
    ----------
    pairs : as drawn by `sample_labelled_pairs`
    embeddings : (m, d) float32
        Rows of the images `pairs.needed` by the current network, l2-normalised.
    clusters : (n,) int64
        Cluster of every image.
    negatives : at least 1
        Negatives of each query. Where there are more hard ones, they are drawn among these without
        replacement; where there are fewer, all of them, nearest first, repeated.
    rng : draws among the hard negatives

    Raises
    ------
    InputError
        The pool has no image of another cluster than a query's.
    ValueError
        There is not one row for each needed image, or a number is below 1.
    """
    check_embeddings(pairs, embeddings, negatives)
    pool = pairs.candidates[0]  # the same for all, ascending
    # Sort the pool by cluster, and within a cluster by ascending id.
    pool = pool[np.argsort(clusters[pool], kind="stable")]
    _, starts = np.unique(clusters[pool], return_index=True)
    rows = embeddings[np.searchsorted(pairs.needed, pool)].astype(np.float64)
    chosen = []
    for start in range(0, len(pairs.anchors), _BLOCK):
        queries = pairs.anchors[start : start + _BLOCK]
        of_queries = embeddings[np.searchsorted(pairs.needed, queries)].astype(np.float64)
        nearest = _nearest_of_groups(of_queries @ rows.T, pool, starts)
        counts = pairs.hard[start : start + _BLOCK]
        for query, ids, count in zip(queries, nearest, counts, strict=True):
            hard = ids[clusters[ids] != clusters[query]][:count]
            if not len(hard):
                raise InputError(
                    f"none of the {len(pool)} images drawn is of another cluster than image "
                    f"{query}, so that it has no negative: raise --training.negative-pool"
                )
            if len(hard) > negatives:
                hard = rng.choice(hard, negatives, replace=False)
            chosen.append(np.resize(hard, negatives))  # filled up with repeats from the start
    return Tuples(
        anchors=pairs.anchors,
        positives=pairs.positives,
        negatives=np.array(chosen, np.int64),
        weights=pairs.weights,
        related=pairs.related,
    )


def _nearest_of_groups(products: Floats, pool: Ids, starts: Ids) -> Ids:
    """Return the most similar image of each group, the most similar first: (b, groups) int64.

    Parameters
    ----------
    products : (b, p) float64
        Inner products of b queries with the images of the pool.
    pool : (p,) int64
        Image ids, sorted by group, then by id.
    starts : (groups,) int64
        First place of each group in the pool.
    """
    # Rounding hides the order of summation: equal images tie, and ids decide.
    similarities = products.astype(np.float32)
    best = np.maximum.reduceat(similarities, starts, axis=1)
    sizes = np.diff(np.append(starts, len(pool)))
    ids = np.where(similarities == np.repeat(best, sizes, axis=1), pool, np.iinfo(np.int64).max)
    first = np.minimum.reduceat(ids, starts, axis=1)
    nearest: Ids = np.take_along_axis(first, np.lexsort((first, -best)), axis=1)
    return nearest
