"""Mining of pools for batches of anchors, by any of the methods compared (Tables 1 and 2).

n items, d dimensions, a anchors.
"""

from dataclasses import dataclass, replace

import numpy as np

from mmray.config.choices import Negatives, Positives
from mmray.mining.baselines import (
    cyclic_positives,
    euclidean_lengths,
    euclidean_positives,
    geodesic_negatives,
    random_negatives,
)
from mmray.mining.diffusion.reordering import ReorderedGraph, reorder
from mmray.mining.diffusion.solver import Diffuser
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.pool_lists import Pools
from mmray.mining.pools import MiningMethod, pools_of
from mmray.system.arrays import Device, Features, Graph, Ids

EUCLIDEAN_K = 5  # NN^e_5 of Table 1, the anchor counted
CYCLE_NEIGHBORS = 4  # of Li et al., the item itself not counted


@dataclass(frozen=True, eq=False, kw_only=True)
class MiningInput:
    """Input of mining that all anchors of a run share, in plain arrays for shared memory.

    Attributes
    ----------
    index : ExactIndex of the (n, d) features
    normalized : (n, n) ReorderedGraph
        Â of eq. (2), reordered.
    items : (n,) int64
        Image ids of the n items.
    neighbors : (n, k) int64 or None
        Nearest neighbours of each item, most similar first, for cyclic positives.
    lengths : (n, n) CSR or None
        Euclidean lengths of the graph's edges, for geodesic negatives.
    """

    index: ExactIndex
    normalized: ReorderedGraph
    items: Ids
    neighbors: Ids | None = None
    lengths: Graph | None = None

    @classmethod
    def of(
        cls,
        features: Features,
        raw: Graph,
        normalized: Graph,
        items: Ids,
        *,
        power: float = 3.0,
        positives: Positives = "manifold",
        negatives: Negatives = "manifold",
        threads: int = 1,
    ) -> "MiningInput":
        """Prepare features and graph for mining these kinds of pools.

        Parameters
        ----------
        features : (n, d) float32, l2-normalised
        raw : (n, n) CSR
            A of eq. (1).
        normalized : (n, n) CSR
            Â from `normalize_graph`.
        items : (n,) int64
            Image ids of the n items.
        power : float
            Exponent of A, above 0; used for geodesic negatives.
        positives, negatives
            Kinds of pools, see `MiningMethod`.
        threads : int
            CPU threads, from 1; the result does not depend on them.
        """
        index = ExactIndex.of(features)
        neighbors = None
        if positives == "cyclic":
            k = min(CYCLE_NEIGHBORS + 1, len(features))
            neighbors = index.search(features, k, threads=threads).ids
        return cls(
            index=index,
            normalized=reorder(normalized),
            items=items,
            neighbors=neighbors,
            lengths=euclidean_lengths(raw, power=power) if negatives == "geodesic" else None,
        )


class Miner:
    """Mining of batches of anchors: it keeps in place what all batches share.

    A worker makes it once: the work arrays of the diffusion and, on a GPU, the graph.

    Parameters
    ----------
    given : prepared for the kinds of pools of `method`
    method : kinds and sizes of the pools
    device, threads
        See `diffuse`.
    """

    def __init__(
        self,
        given: MiningInput,
        method: MiningMethod,
        *,
        device: Device = "cpu",
        threads: int = 1,
    ) -> None:
        self.given, self.method = given, method
        self.diffuser = None
        if "manifold" in (method.positives, method.negatives):
            self.diffuser = Diffuser(
                given.normalized, method.solver, device=device, threads=threads
            )

    def mine(self, anchors: Ids) -> Pools:
        """Mine the pools of some anchors (a,) int64, in 0..n-1, by image id.

        For positives or negatives of a baseline, the similarities are s_e, and the manifold ranks
        of negatives are 0: not known. If both are of baselines, nothing is diffused.

        Returns
        -------
        Pools : those of an anchor are the same, bit for bit on CPUs, whatever the other anchors
            are.
        """
        given, method = self.given, self.method
        if self.diffuser is not None:
            pools = pools_of(given.index, self.diffuser, anchors, method)
        else:
            pools = Pools.empty(anchors)
        if method.positives != "manifold":
            pools = _with_positives(pools, given.index, _positives(given, anchors, method))
        if method.negatives != "manifold":
            pools = _with_negatives(pools, given.index, _negatives(given, anchors, method))
        return pools.renamed(given.items)


def _positives(given: MiningInput, anchors: Ids, method: MiningMethod) -> tuple[Ids, ...]:
    if method.positives == "cyclic":
        assert given.neighbors is not None, "prepared for other positives"
        return cyclic_positives(given.neighbors, anchors)
    return euclidean_positives(_nearest(given.index, anchors, EUCLIDEAN_K), anchors, EUCLIDEAN_K)


def _negatives(given: MiningInput, anchors: Ids, method: MiningMethod) -> tuple[Ids, ...]:
    n = len(given.index.database)
    if method.negatives == "geodesic":
        assert given.lengths is not None, "prepared for other negatives"
        nearest = _nearest(given.index, anchors, min(method.negative_k, -(-n // 2)))
        return geodesic_negatives(
            given.lengths, nearest, anchors, count=method.max_negatives, far=method.geodesic_far
        )
    nearest = _nearest(given.index, anchors, EUCLIDEAN_K)
    return random_negatives(
        n, nearest, anchors, k=EUCLIDEAN_K, count=method.max_negatives, seed=method.seed
    )


def _nearest(index: ExactIndex, anchors: Ids, k: int) -> Ids:
    return index.search(index.database[anchors], k).ids


def _with_positives(pools: Pools, index: ExactIndex, positives: tuple[Ids, ...]) -> Pools:
    queries = index.database[pools.anchors]
    return replace(
        pools,
        positives=positives,
        positive_similarity=tuple(index.similarities(queries, positives)),
        positive_rank_e=tuple(index.ranks(queries, positives)),
        manifold_neighbors=positives,
        zero_positives=np.zeros(len(positives), np.int64),
    )


def _with_negatives(pools: Pools, index: ExactIndex, negatives: tuple[Ids, ...]) -> Pools:
    queries = index.database[pools.anchors]
    return replace(
        pools,
        negatives=negatives,
        negative_similarity=tuple(index.similarities(queries, negatives)),
        negative_rank_m=tuple(np.zeros(len(ids), np.int64) for ids in negatives),
    )
