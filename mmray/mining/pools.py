"""Mining of hard positives and hard negatives for each anchor, eqs. (5) and (6).

n items, d dimensions, a anchors. NN^m are the items by manifold similarity s_m (diffusion), NN^e
those by Euclidean similarity s_e (inner product); both break ties by id and include the anchor.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mmray.config.choices import Negatives, Positives
from mmray.config.sections import MiningConfig
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.diffusion.solver import Diffuser, Solver
from mmray.mining.graph import normalize_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.knn.results import Neighbors
from mmray.mining.manifold import Ranking
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Graph, Ids

EUCLIDEAN_K = 5  # NN^e_5 of Table 1, the anchor counted


@dataclass(frozen=True, kw_only=True)
class MiningMethod:
    """A method of mining: the kinds of positives and negatives, and the sizes of the pools.

    Attributes
    ----------
    positives, negatives
        "manifold", eqs. (5) and (6), or a baseline, see `mmray.mining.baselines`.
    positive_k : int
        50 in eq. (5), 1..n.
    negative_k : int
        K of eq. (6), from 1; ⌈n/2⌉ where that is less.
    max_negatives : int
        Most items of P⁻ to keep, from 1.
    positive_cut : float
        In [0, 1]: positives whose s_m is below this share of that of the anchor's first manifold
        neighbour are left out. Not in the paper (0): its collections have many images an object;
        where an object has fewer than positive_k, NN^m goes on with other objects.
    geodesic_far : float
        In 0..1, for geodesic negatives: `far` of `geodesic_negatives`.
    solver : of the diffusion
    seed : of random negatives
    """

    positives: Positives = "manifold"
    negatives: Negatives = "manifold"
    positive_k: int
    negative_k: int
    max_negatives: int
    positive_cut: float = 0.0
    geodesic_far: float = 0.5
    solver: Solver = Solver()  # noqa: RUF009 (it is frozen)
    seed: int = 0

    @classmethod
    def of(cls, config: MiningConfig, seed: int) -> "MiningMethod":
        """Take the method from a job's settings, in which all sizes are known."""
        _, positive_k, negative_k = config.chosen_sizes
        return cls(
            positives=config.positives,
            negatives=config.negatives,
            positive_k=positive_k,
            negative_k=negative_k,
            max_negatives=config.max_negatives,
            positive_cut=config.positive_cut,
            geodesic_far=config.geodesic_far,
            solver=Solver(config.alpha, config.rtol, config.max_iter, config.hops),
            seed=seed,
        )

    def compared(self, n: int) -> int:
        """Return the nearest neighbours of an anchor that are compared, of n items: K of NN^e."""
        return min(n, max(self.positive_k, min(self.negative_k, -(-n // 2)), EUCLIDEAN_K))

    def stored(self) -> dict[str, Any]:
        """Return all but the seed as JSON-like values, for a stage's fingerprint."""
        flat = asdict(self)
        solver: dict[str, Any] = flat.pop("solver")
        if solver["hops"] is None:  # as it was before there was such a limit
            del solver["hops"]
        return solver | flat | {"seed": 0}


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
    """Mine the pools of anchors: diffuse from each, then compare its neighbours, eqs. (2)-(6).

    Parameters
    ----------
    features : (n, d) float32, l2-normalised
    graph : (n, n) CSR
        A of eq. (1), not normalised.
    anchors : (a,) int64
    positive_k, negative_k, max_negatives, positive_cut
        See `MiningMethod`.
    items : (m,) int64, ascending, or None
        Work on these items only, as if there were no others; None: all. In the retrieval setting
        they are the largest component.
    alpha, rtol, max_iter
        See `Solver`.

    Returns
    -------
    Pools : in the ids of `features`, also where `items` are given.

    Raises
    ------
    ValueError
        An anchor is not among `items`, or an argument is refused by `pools_of` or `diffuse`.

    Examples
    --------
    Two parallel curves of 20 items: hard positives of item 10 are far along its own curve, hard
    negatives near it on the other.

    >>> from mmray.mining import nearest_neighbors, reciprocal_knn_graph
    >>> angles, heights = np.tile(np.arange(0, 2, 0.1), 2), np.repeat([0, 0.3], 20)
    >>> points = np.stack([np.cos(angles), np.sin(angles), heights], axis=1)
    >>> x = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    >>> found = nearest_neighbors(x, x, 3)
    >>> graph = reciprocal_knn_graph(found.ids, found.similarities)
    >>> anchors, sizes = np.array([10]), {"positive_k": 12, "negative_k": 12, "max_negatives": 3}
    >>> pools = mine_pools(x, graph, anchors, **sizes)
    >>> pools.positives, pools.negatives
    ((array([14,  6, 15,  5, 16]),), (array([30, 29, 31]),))
    """
    kept = np.arange(len(features)) if items is None else items
    outside = np.setdiff1d(anchors, kept)
    if len(outside):
        raise ValueError(f"anchor {outside[0]} is not one of the {len(kept)} items mined")
    if items is not None:
        features, graph = features[kept], graph[kept][:, kept]
    method = MiningMethod(
        positive_k=positive_k,
        negative_k=negative_k,
        max_negatives=max_negatives,
        positive_cut=positive_cut,
        solver=Solver(alpha, rtol, max_iter),
    )
    places = np.searchsorted(kept, anchors)
    diffuser = Diffuser(reorder(normalize_graph(graph)), method.solver)
    _check_sizes(len(kept), diffuser.graph.graph, method)
    nearest = nearest_neighbors(features, features[places], method.compared(len(kept)))
    return pools_of(nearest, diffuser, places, method).renamed(kept)


def pools_of(
    nearest: Neighbors,
    diffuser: Diffuser,
    anchors: Ids,
    method: MiningMethod,
) -> Pools:
    """Mine the pools of some anchors from their neighbours and a prepared graph, eqs. (2)-(6).

    Parameters
    ----------
    nearest : NN^e of each anchor, of `method.compared(n)` places or more
    diffuser : on Â of the n items
    anchors : (a,) int64, in 0..n-1
    method : sizes of the pools; its kinds are not used, both pools are those of the manifold

    Returns
    -------
    Pools : those of an anchor are the same, bit for bit on CPUs, whatever the other anchors are.

    Raises
    ------
    ValueError
        There are too few neighbours, a number is outside its range, or an argument is refused by
        `Diffuser`.
    """
    n = len(diffuser.graph.items)
    _check_sizes(n, diffuser.graph.graph, method)
    found, compared = nearest.ids.shape[1], method.compared(n)
    if found < compared:
        raise ValueError(
            f"there are {found} nearest items of each anchor, but {compared} are compared"
        )
    method = replace(method, negative_k=min(method.negative_k, -(-n // 2)))
    mined: dict[int, _AnchorPools] = {}
    residual, iterations = np.empty(len(anchors)), np.empty(len(anchors), np.int64)

    def select(row: int, similarity: Features) -> _AnchorPools:
        euclidean = nearest.ids[row], nearest.similarities[row]
        return _select(anchors[row], Ranking(similarity), euclidean, method)

    with ThreadPoolExecutor(diffuser.threads) as threads:
        for rows, diffusion in diffuser.blocks(anchors):
            found_pools = threads.map(select, rows.tolist(), diffusion.similarity)
            mined.update(zip(rows.tolist(), found_pools, strict=True))
            residual[rows], iterations[rows] = diffusion.residual, diffusion.iterations
    chosen = [mined[row] for row in range(len(anchors))]
    positives = tuple(pools.positives for pools in chosen)
    return Pools(
        anchors=anchors.astype(np.int64),
        positives=positives,
        positive_similarity=tuple(pools.positive_similarity for pools in chosen),
        positive_rank_e=tuple(map(nearest.places, range(len(anchors)), positives)),
        negatives=tuple(pools.negatives for pools in chosen),
        negative_similarity=tuple(pools.negative_similarity for pools in chosen),
        negative_rank_m=tuple(pools.negative_rank_m for pools in chosen),
        manifold_neighbors=tuple(pools.manifold_neighbors for pools in chosen),
        zero_positives=np.array([pools.zero_positives for pools in chosen], np.int64),
        residual=residual,
        iterations=iterations,
    )


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
    method: MiningMethod,
) -> _AnchorPools:
    """Select the pools of one anchor, eqs. (5) and (6).

    `euclidean` is NN^e with s_e, of at least positive_k and negative_k places.
    """
    nearest_e, similarity_e = euclidean
    positive_k, negative_k = method.positive_k, method.negative_k
    nearest_m = manifold.first(max(positive_k, negative_k))

    matching = nearest_m[:positive_k]
    # Among its exact duplicates, the anchor may be missing from its own NN^e or NN^m.
    named = matching[~np.isin(matching, nearest_e[:positive_k]) & (matching != anchor)]
    linked = (manifold.similarity[matching] > 0) & (matching != anchor)
    positives = named[manifold.similarity[named] > 0]
    strongest = manifold.similarity[matching[linked]].max(initial=0)
    strong = positives[manifold.similarity[positives] >= method.positive_cut * strongest]

    farther = ~np.isin(nearest_e[:negative_k], nearest_m[:negative_k])
    places = np.flatnonzero(farther & (nearest_e[:negative_k] != anchor))[: method.max_negatives]
    return _AnchorPools(
        positives=strong,
        positive_similarity=manifold.similarity[strong],
        negatives=nearest_e[places],
        negative_similarity=similarity_e[places],
        negative_rank_m=manifold.places(nearest_e[places]),
        manifold_neighbors=matching[linked],
        zero_positives=len(named) - len(positives),
    )


def _check_sizes(n: int, normalized: Graph, method: MiningMethod) -> None:
    if normalized.shape != (n, n):
        raise ValueError(f"the graph has shape {normalized.shape}, but there are {n} features")
    if not 1 <= method.positive_k <= n:
        raise ValueError(f"positive_k must be between 1 and the {n} items, got {method.positive_k}")
    if method.negative_k < 1:
        raise ValueError(f"negative_k must be at least 1, got {method.negative_k}")
    if method.max_negatives < 1:
        raise ValueError(f"max_negatives must be at least 1, got {method.max_negatives}")
