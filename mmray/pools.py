"""Pools of hard positives and hard negatives for each anchor, eqs. (5) and (6).

n items, d dimensions, a anchors. NN^m are the items by manifold similarity s_m (diffusion), NN^e
those by Euclidean similarity s_e (inner product); both break ties by id and count the anchor too.
"""

from dataclasses import dataclass, replace

import numpy as np

from mmray.diffusion import diffuse_blocks
from mmray.graph import normalize_graph
from mmray.neighbors import ExactIndex
from mmray.reordering import ReorderedGraph, reorder
from mmray.system.arrays import Device, Features, Floats, Graph, Ids


@dataclass(frozen=True, eq=False, kw_only=True)
class Pools:
    """What is mined for a anchors; each tuple holds one array for each anchor.

    Ranks start at 1, which is the anchor's own place, and are places among all n items.

    Attributes
    ----------
    anchors : (a,) int64
    positives : int64
        P⁺ of eq. (5), by descending s_m; similar on the manifold, far in feature space.
    positive_similarity : float32
        s_m of each positive, the weight of a tuple.
    positive_rank_e : int64
        Its place in NN^e.
    negatives : int64
        P⁻ of eq. (6), by descending s_e.
    negative_similarity : float32
        s_e of each negative.
    negative_rank_m : int64
        Its place in NN^m.
    manifold_neighbors : int64
        NN^m of positive_k places, by descending s_m, without the anchor and without items of
        s_m <= 0: the matching pairs of the whitening.
    zero_positives : (a,) int64
        How many items eq. (5) names whose s_m is not positive. They are dropped: nothing on the
        manifold leads there, and only their ids rank them (the released code keeps them).
    residual : (a,) float64
    iterations : (a,) int64
        Of the diffusion.
    """

    anchors: Ids
    positives: tuple[Ids, ...]
    positive_similarity: tuple[Features, ...]
    positive_rank_e: tuple[Ids, ...]
    negatives: tuple[Ids, ...]
    negative_similarity: tuple[Features, ...]
    negative_rank_m: tuple[Ids, ...]
    manifold_neighbors: tuple[Ids, ...]
    zero_positives: Ids
    residual: Floats
    iterations: Ids

    def renamed(self, items: Ids) -> "Pools":
        """The same pools with items[i] (n,) int64 written for every item i."""
        return replace(
            self,
            anchors=items[self.anchors],
            positives=tuple(items[ids] for ids in self.positives),
            negatives=tuple(items[ids] for ids in self.negatives),
            manifold_neighbors=tuple(items[ids] for ids in self.manifold_neighbors),
        )


def mine_pools(
    features: Features,
    graph: Graph,
    anchors: Ids,
    *,
    positive_k: int,
    negative_k: int,
    max_negatives: int,
    positive_cut: float = 0.0,
    items: Ids | None = None,
    alpha: float = 0.99,
    rtol: float = 1e-10,
    max_iter: int = 20,
) -> Pools:
    """Diffuse from every anchor and pick its pools: eqs. (2)-(6).

    Parameters
    ----------
    features : (n, d) float32, l2-normalised
    graph : (n, n) CSR
        A of eq. (1), not normalised.
    anchors : (a,) int64
    positive_k, negative_k, max_negatives, positive_cut
        See `pools_of`.
    items : (m,) int64, ascending
        Work on these items only, as if there were no others; all where None. In the retrieval
        setting the largest component.
    alpha, rtol, max_iter
        See `diffuse`.

    Returns
    -------
    Pools : in the ids of `features`, also where `items` are given.

    Raises
    ------
    ValueError
        An anchor is not among `items`, or an argument is refused by `pools_of` or `diffuse`.
    """
    kept = np.arange(len(features)) if items is None else items
    outside = np.setdiff1d(anchors, kept)
    if len(outside):
        raise ValueError(f"anchor {outside[0]} is not one of the {len(kept)} items mined")
    if items is not None:
        features, graph = features[kept], graph[kept][:, kept]
    pools = pools_of(
        ExactIndex.of(features),
        reorder(normalize_graph(graph)),
        np.searchsorted(kept, anchors),
        positive_k=positive_k,
        negative_k=negative_k,
        max_negatives=max_negatives,
        positive_cut=positive_cut,
        alpha=alpha,
        rtol=rtol,
        max_iter=max_iter,
    )
    return pools.renamed(kept)


def pools_of(
    index: ExactIndex,
    normalized: ReorderedGraph,
    anchors: Ids,
    *,
    positive_k: int,
    negative_k: int,
    max_negatives: int,
    positive_cut: float = 0.0,
    alpha: float = 0.99,
    rtol: float = 1e-10,
    max_iter: int = 20,
    device: Device = "cpu",
    threads: int = 1,
) -> Pools:
    """The part of `mine_pools` that is done batch by batch, on what is prepared once.

    Parameters
    ----------
    index : ExactIndex of (n, d) l2-normalised features
    normalized : (n, n)
        Â from `normalize_graph`, reordered.
    anchors : (a,) int64, in 0..n-1
    positive_k : int
        50 in eq. (5), 1..n.
    negative_k : int
        K of eq. (6), from 1; ⌈n/2⌉ where that is less.
    max_negatives : int
        How many of P⁻ are kept, from 1.
    positive_cut : float
        In [0, 1]: positives whose s_m is below this share of that of the anchor's first manifold
        neighbour are left out. Not in the paper (0): its collections have many images an object;
        where an object has fewer than positive_k, NN^m goes on with other objects.
    alpha, rtol, max_iter, device, threads
        See `diffuse`.

    Returns
    -------
    Pools : those of an anchor are the same, bit for bit, whatever the other anchors are.

    Raises
    ------
    ValueError
        The sizes of features and graph differ, a number is outside its range, or an argument is
        refused by `diffuse` or `neighbors.search`.
    """
    n = len(index.database)
    _check_sizes(n, normalized.graph, positive_k, negative_k, max_negatives)
    negative_k = min(negative_k, -(-n // 2))
    queries = index.database[anchors]
    nearest = index.search(queries, max(positive_k, negative_k), device=device, threads=threads)
    mined: dict[int, _AnchorPools] = {}
    residual, iterations = np.empty(len(anchors)), np.empty(len(anchors), np.int64)
    for rows, diffusion in diffuse_blocks(
        normalized,
        anchors,
        alpha=alpha,
        rtol=rtol,
        max_iter=max_iter,
        device=device,
        threads=threads,
    ):
        for row, similarity in zip(rows, diffusion.similarity, strict=True):
            euclidean = nearest.ids[row], nearest.similarities[row]
            mined[row] = _select(
                anchors[row],
                Ranking(similarity),
                euclidean,
                positive_k,
                negative_k,
                max_negatives,
                positive_cut,
            )
        residual[rows], iterations[rows] = diffusion.residual, diffusion.iterations
    chosen = [mined[row] for row in range(len(anchors))]
    positives = tuple(pools.positives for pools in chosen)
    return Pools(
        anchors=anchors.astype(np.int64),
        positives=positives,
        positive_similarity=tuple(pools.positive_similarity for pools in chosen),
        positive_rank_e=tuple(index.ranks(queries, positives)),
        negatives=tuple(pools.negatives for pools in chosen),
        negative_similarity=tuple(pools.negative_similarity for pools in chosen),
        negative_rank_m=tuple(pools.negative_rank_m for pools in chosen),
        manifold_neighbors=tuple(pools.manifold_neighbors for pools in chosen),
        zero_positives=np.array([pools.zero_positives for pools in chosen], np.int64),
        residual=residual,
        iterations=iterations,
    )


def matching_pairs(pools: Pools, count: int, rng: np.random.Generator) -> Ids:
    """Pairs (anchor, manifold neighbour) that show the same object, as far as mining knows.

    Returns
    -------
    (2, m) int64 : m <= count pairs drawn without replacement, in the order of the pools.
    """
    sizes = [len(ids) for ids in pools.manifold_neighbors]
    pairs = np.stack(
        [
            np.repeat(pools.anchors, sizes),
            np.concatenate([np.empty(0, np.int64), *pools.manifold_neighbors]),
        ]
    )
    total = pairs.shape[1]
    return pairs[:, np.sort(rng.choice(total, min(count, total), replace=False))]


def summary(pools: Pools) -> dict[str, float]:
    """Counts of anchors, positives and negatives, and how well the diffusion was solved."""
    return {
        "anchors": len(pools.anchors),
        "positives": sum(map(len, pools.positives)),
        "negatives": sum(map(len, pools.negatives)),
        "without_positives": sum(not len(ids) for ids in pools.positives),
        "zero_positives": int(pools.zero_positives.sum()),
        "largest_residual": float(pools.residual.max(initial=0)),
        "iterations": int(pools.iterations.max(initial=0)),
    }


class Ranking:
    """All items by one similarity (n,), descending, ties by id ascending."""

    def __init__(self, similarity: Features) -> None:
        self.similarity = similarity
        self._ascending = np.sort(similarity)

    def first(self, k: int) -> Ids:
        """The first k items (k,) int64, in order; k in 1..n."""
        threshold = self._ascending[-k]
        above = np.flatnonzero(self.similarity > threshold)
        tied = np.flatnonzero(self.similarity == threshold)[: k - len(above)]
        ids = np.concatenate([above, tied])
        return ids[np.lexsort((ids, -self.similarity[ids]))]

    def places(self, ids: Ids) -> Ids:
        """Places (m,) int64 of given items (m,), from 1."""
        values = self.similarity[ids]
        above = len(self._ascending) - np.searchsorted(self._ascending, values, side="right")
        tied_before = [
            np.count_nonzero(self.similarity[:i] == value)
            for i, value in zip(ids, values, strict=True)
        ]
        return above + np.array(tied_before, np.int64) + 1


@dataclass(frozen=True, eq=False, kw_only=True)
class _AnchorPools:
    """The entries of `Pools` for one anchor, except those that one pass finds for all of them."""

    positives: Ids
    positive_similarity: Features
    negatives: Ids
    negative_similarity: Features
    negative_rank_m: Ids
    manifold_neighbors: Ids
    zero_positives: int


def _select(
    anchor: np.int64,
    manifold: Ranking,
    euclidean: tuple[Ids, Features],
    positive_k: int,
    negative_k: int,
    max_negatives: int,
    positive_cut: float,
) -> _AnchorPools:
    """Eqs. (5) and (6) for one anchor, given NN^e and s_e of at least positive_k and negative_k."""
    nearest_e, similarity_e = euclidean
    nearest_m = manifold.first(max(positive_k, negative_k))

    matching = nearest_m[:positive_k]
    # Among its exact duplicates, the anchor may be missing from its own NN^e or NN^m.
    named = matching[~np.isin(matching, nearest_e[:positive_k]) & (matching != anchor)]
    linked = (manifold.similarity[matching] > 0) & (matching != anchor)
    positives = named[manifold.similarity[named] > 0]
    strongest = manifold.similarity[matching[linked]].max(initial=0)
    strong = positives[manifold.similarity[positives] >= positive_cut * strongest]

    farther = ~np.isin(nearest_e[:negative_k], nearest_m[:negative_k])
    places = np.flatnonzero(farther & (nearest_e[:negative_k] != anchor))[:max_negatives]
    return _AnchorPools(
        positives=strong,
        positive_similarity=manifold.similarity[strong],
        negatives=nearest_e[places],
        negative_similarity=similarity_e[places],
        negative_rank_m=manifold.places(nearest_e[places]),
        manifold_neighbors=matching[linked],
        zero_positives=len(named) - len(positives),
    )


def _check_sizes(
    n: int, normalized: Graph, positive_k: int, negative_k: int, max_negatives: int
) -> None:
    if normalized.shape != (n, n):
        raise ValueError(f"the graph has shape {normalized.shape}, but there are {n} features")
    if not 1 <= positive_k <= n:
        raise ValueError(f"positive_k must be between 1 and the {n} items, got {positive_k}")
    if negative_k < 1:
        raise ValueError(f"negative_k must be at least 1, got {negative_k}")
    if max_negatives < 1:
        raise ValueError(f"max_negatives must be at least 1, got {max_negatives}")
