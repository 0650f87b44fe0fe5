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
from mmray.mining.diffusion.reordering import ReorderedGraph
from mmray.mining.diffusion.solver import Diffuser
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.results import Neighbors, pair_similarities
from mmray.mining.pool_lists import Pools
from mmray.mining.pools import EUCLIDEAN_K, MiningMethod, pools_of
from mmray.system.arrays import Device, Features, Graph, Ids
from mmray.system.rows import Rows

CYCLE_NEIGHBORS = 4  # of Li et al., the item itself not counted


@dataclass(frozen=True, eq=False, kw_only=True)
class MiningInput:
    """Input of mining that all anchors of a run share, in plain arrays for shared memory.

    Attributes
    ----------
    index : ExactIndex or None
        Of the (n, d) features; None: they are too large for a worker, which reads `rows`.
    rows : Rows or None
        The (n, d) features where there is no index.
    normalized : (n, n) ReorderedGraph
        Â of eq. (2), reordered.
    items : (n,) int64
        Image ids of the n items.
    neighbors : (n, k) int64 or None
        Nearest neighbours of each item, most similar first, for cyclic positives.
    lengths : (n, n) CSR or None
        Euclidean lengths of the graph's edges, for geodesic negatives.
    """

    normalized: ReorderedGraph
    items: Ids
    index: ExactIndex | None = None
    rows: Rows | None = None
    neighbors: Ids | None = None
    lengths: Graph | None = None

    @classmethod
    def of(
        cls,
        features: Features | Rows,
        raw: Graph,
        normalized: ReorderedGraph,
        items: Ids,
        *,
        power: float = 3.0,
        positives: Positives = "manifold",
        negatives: Negatives = "manifold",
        device: Device = "cpu",
        threads: int = 1,
    ) -> "MiningInput":
        """Prepare features and graph for mining these kinds of pools.

        Parameters
        ----------
        features : (n, d) float32, l2-normalised
            Rows: they are too large to be shared; a `Miner` is then given the neighbours, and
            there are no cyclic positives.
        raw : (n, n) CSR
            A of eq. (1).
        normalized : (n, n) ReorderedGraph
            Â from `normalize_graph`, reordered.
        items : (n,) int64
            Image ids of the n items.
        power : float
            Exponent of A, above 0; used for geodesic negatives.
        positives, negatives
            Kinds of pools, see `MiningMethod`.
        device
            See `ExactIndex.of`.
        threads : int
            CPU threads, from 1; the result does not depend on them.
        """
        index = rows = neighbors = None
        if isinstance(features, Rows):
            rows = features
        else:
            index = ExactIndex.of(features, device=device)
            if positives == "cyclic":
                k = min(CYCLE_NEIGHBORS + 1, len(features))
                neighbors = index.search(features, k, threads=threads).ids
        return cls(
            index=index,
            rows=rows,
            normalized=normalized,
            items=items,
            neighbors=neighbors,
            lengths=euclidean_lengths(raw, power=power) if negatives == "geodesic" else None,
        )

    def similarities(self, anchors: Ids, ids: tuple[Ids, ...]) -> tuple[Features, ...]:
        """Compute s_e (m_i,) float32 of each anchor (a,) with its own items."""
        if self.index is not None:
            database = self.index.database
            return tuple(pair_similarities(database, database[anchors], ids))
        assert self.rows is not None, "there is an index or rows"
        read = np.unique(np.concatenate([anchors, *ids]))
        some = self.rows.take(read)
        places = [np.searchsorted(read, wanted) for wanted in ids]
        return tuple(pair_similarities(some, some[np.searchsorted(read, anchors)], places))


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
        self.given, self.method, self.device, self.threads = given, method, device, threads
        self.diffuser = None
        if "manifold" in (method.positives, method.negatives):
            self.diffuser = Diffuser(
                given.normalized, method.solver, device=device, threads=threads
            )

    def mine(self, anchors: Ids, nearest: Neighbors | None = None) -> Pools:
        """Mine the pools of some anchors (a,) int64, in 0..n-1, by image id.

        For positives or negatives of a baseline, the similarities are s_e, and the manifold ranks
        of negatives are 0: not known. If both are of baselines, nothing is diffused.

        Parameters
        ----------
        anchors : (a,) int64, in 0..n-1
        nearest : their `method.compared(n)` nearest items; None: the index finds them

        Returns
        -------
        Pools : those of an anchor are the same, bit for bit on CPUs, whatever the other anchors
            are.
        """
        given, method = self.given, self.method
        if nearest is None:
            assert given.index is not None, "without an index, neighbours are found before"
            queries, k = given.index.database[anchors], method.compared(len(given.items))
            nearest = given.index.search(queries, k, device=self.device, threads=self.threads)
        if self.diffuser is not None:
            pools = pools_of(nearest, self.diffuser, anchors, method)
        else:
            pools = Pools.empty(anchors)
        if method.positives != "manifold":
            positives = _positives(given, nearest, anchors, method)
            pools = replace(
                pools,
                positives=positives,
                positive_similarity=given.similarities(anchors, positives),
                positive_rank_e=tuple(map(nearest.places, range(len(anchors)), positives)),
                manifold_neighbors=positives,
                zero_positives=np.zeros(len(positives), np.int64),
            )
        if method.negatives != "manifold":
            negatives = _negatives(given, nearest, anchors, method)
            pools = replace(
                pools,
                negatives=negatives,
                negative_similarity=given.similarities(anchors, negatives),
                negative_rank_m=tuple(np.zeros(len(ids), np.int64) for ids in negatives),
            )
        return pools.renamed(given.items)


def _positives(
    given: MiningInput, nearest: Neighbors, anchors: Ids, method: MiningMethod
) -> tuple[Ids, ...]:
    if method.positives == "cyclic":
        assert given.neighbors is not None, "prepared for other positives"
        return cyclic_positives(given.neighbors, anchors)
    return euclidean_positives(nearest.ids, anchors, EUCLIDEAN_K)


def _negatives(
    given: MiningInput, nearest: Neighbors, anchors: Ids, method: MiningMethod
) -> tuple[Ids, ...]:
    n, count = len(given.items), method.max_negatives
    if method.negatives == "geodesic":
        assert given.lengths is not None, "prepared for other negatives"
        ids = nearest.first(min(method.negative_k, -(-n // 2))).ids
        return geodesic_negatives(given.lengths, ids, anchors, count=count, far=method.geodesic_far)
    return random_negatives(n, nearest.ids, anchors, k=EUCLIDEAN_K, count=count, seed=method.seed)
