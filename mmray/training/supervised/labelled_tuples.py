"""Drawing tuples under labels: the supervised peer (Radenović, Tolias, Chum, ECCV 2016; Table 3).

Here the labels are the clusters of structure from motion, the 3D model that an image belongs to;
nothing else in this package learns from labels. Pairs (query, positive) are given. Each epoch draws
some of them, and one pool of images at random for all of them. The negatives of a query are the
images of the pool nearest to it in the embedding as it is, none of them of the query's cluster and
no two of the same cluster. The two steps, and what they share, are those of `tuples`.

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
        """The pairs as if they were mined: an anchor each, one positive of weight 1."""
        matching = tuple(self.positives[:, None])
        return replace(
            Pools.empty(self.queries),
            positives=matching,
            positive_similarity=(np.ones(1, np.float32),) * len(matching),
            manifold_neighbors=matching,
        )


NO_POOLS = Pools.empty(np.empty(0, np.int64))


def sample_labelled_pairs(
    labelled: LabelledPairs, count: int, rng: np.random.Generator, *, negative_pool: int
) -> Pairs:
    """Draw pairs without replacement, and the images among which all of them find negatives.

    Parameters
    ----------
    count : at least 1
        Pairs to draw; all, in random order, if there are no more.
    negative_pool : at least 1
        Images to draw, without replacement; all if there are no more.

    Raises
    ------
    ValueError
        A number is below 1.
    """
    if min(count, negative_pool) < 1:
        raise ValueError(f"count = {count}, negative_pool = {negative_pool}: draw at least one")
    n = len(labelled.clusters)
    chosen = rng.permutation(len(labelled.queries))[:count]
    drawn = np.sort(rng.choice(n, min(negative_pool, n), replace=False))
    anchors = labelled.queries[chosen]
    return Pairs(
        anchors=anchors,
        positives=labelled.positives[chosen, None],
        weights=np.ones((len(chosen), 1), np.float32),
        candidates=(drawn,) * len(chosen),
        needed=np.union1d(anchors, drawn),
    )


def add_labelled_negatives(
    pairs: Pairs,
    embeddings: Features,
    clusters: Ids,
    *,
    hard_negatives: int = 5,
    negatives: int = 5,
    rng: np.random.Generator,
) -> Tuples:
    """Choose for each query the nearest images of the pool, one a cluster and none of its own.

    Parameters
    ----------
    pairs : as drawn by `sample_labelled_pairs`
    embeddings : (m, d) float32
        Rows of the images `pairs.needed`, l2-normalised, by the network as it is.
    clusters : (n,) int64
        That of every image.
    hard_negatives : at least 1
        How many are nearest: of each cluster the image of the largest inner product with the query,
        and of these the largest; equal ones by ascending id. All if there are no more.
    negatives : at least 1
        Negatives of each query: the nearest first. Where there are fewer, all of them and then the
        same again; where there are more, they are drawn among them without replacement.

    Raises
    ------
    InputError
        The pool has no image of another cluster than a query's.
    ValueError
        Not one row for each needed image, a row that is not finite, or a number below 1.
    """
    check_embeddings(pairs, embeddings, hard_negatives=hard_negatives, negatives=negatives)
    pool = pairs.candidates[0]  # the same for all, ascending
    # The images of a cluster one after the other, still by ascending id.
    pool = pool[np.argsort(clusters[pool], kind="stable")]
    _, starts = np.unique(clusters[pool], return_index=True)
    rows = embeddings[np.searchsorted(pairs.needed, pool)].astype(np.float64)
    chosen = []
    for start in range(0, len(pairs.anchors), _BLOCK):
        queries = pairs.anchors[start : start + _BLOCK]
        of_queries = embeddings[np.searchsorted(pairs.needed, queries)].astype(np.float64)
        nearest = _nearest_of_groups(of_queries @ rows.T, pool, starts)
        for query, ids in zip(queries, nearest, strict=True):
            hard = ids[clusters[ids] != clusters[query]][:hard_negatives]
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
    )


def _nearest_of_groups(products: Floats, pool: Ids, starts: Ids) -> Ids:
    """The most similar image of each group, the most similar ones first: (b, groups).

    Parameters
    ----------
    products : (b, p) float64
        Of b queries with the images of the pool (p,), which stand by group, then by id.
    starts : (groups,) int64
        Where in the pool each group starts.
    """
    # Rounding the sums hides their order of summation: equal images tie, and ids decide.
    similarities = products.astype(np.float32)
    best = np.maximum.reduceat(similarities, starts, axis=1)
    sizes = np.diff(np.append(starts, len(pool)))
    ids = np.where(similarities == np.repeat(best, sizes, axis=1), pool, np.iinfo(np.int64).max)
    first = np.minimum.reduceat(ids, starts, axis=1)
    nearest: Ids = np.take_along_axis(first, np.lexsort((first, -best)), axis=1)
    return nearest
