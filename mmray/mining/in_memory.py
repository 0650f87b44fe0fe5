"""Mining in this process, from features that fit into its memory; jobs mine any number.

n items, d dimensions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import cpu_count

from mmray.config.bounds import checked
from mmray.config.presets import RETRIEVAL
from mmray.config.sections import MiningConfig
from mmray.mining.anchors import select_anchors
from mmray.mining.batches import Miner, MiningInput
from mmray.mining.diffusion.reordering import ReorderedGraph, reorder
from mmray.mining.diffusion.solver import Solver
from mmray.mining.graph import largest_component, normalize_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.manifold import ManifoldNeighbors, manifold_neighbors
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.mining.pool_lists import Pools
from mmray.mining.pools import MiningMethod
from mmray.mining.reciprocity import reciprocal_graph
from mmray.mining.sizes import LARGEST_K, with_chosen_sizes
from mmray.system.arrays import Features, Graph, Ids
from mmray.system.errors import InputError


@dataclass(frozen=True, eq=False, kw_only=True)
class Mined:
    """Result of `mine`.

    Attributes
    ----------
    pools : anchors with their positives and negatives, by row of the features
    graph : (n, n) CSR, A of eq. (1)
    config : the settings, with the numbers of neighbours that were chosen
    items : (m,) the rows in the graph's component that was mined, by default all
    normalized : (m, m), Â of these, reordered
    """

    pools: Pools
    graph: Graph
    config: MiningConfig
    items: Ids
    normalized: ReorderedGraph

    def neighbors_of_some(self, count: int, k: int, seed: int) -> ManifoldNeighbors:
        """Find k manifold neighbours of items drawn at random, by which training is checked."""
        raw = self.graph[self.items][:, self.items]
        drawn = select_anchors(raw, max(count, 1), selection="random", seed=seed)[:count]
        solver = Solver(self.config.alpha, self.config.rtol, self.config.max_iter)
        near = manifold_neighbors(self.normalized, drawn, k, solver, threads=cpu_count())
        return near.renamed(self.items)


def mine(features: Features, *, seed: int = 0, **settings: Any) -> Mined:
    """Mine anchors and their pools from features (Sec. 3).

    Parameters
    ----------
    features : (n, d) float32, l2-normalised
    seed : of the random choices
    settings : of `MiningConfig`, such as graph_k=10 or selection="walk"; by default those of
        --recipe auto, which chooses the numbers of neighbours

    Raises
    ------
    InputError
        A setting is outside its bounds, or no two images are neighbours of each other.
    ValueError
        The features are not as said.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = rng.standard_normal((60, 8)).astype("f4").repeat(5, axis=0)
    >>> rows += rng.standard_normal(rows.shape).astype("f4") / 4
    >>> mined = mine(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    >>> len(mined.pools.anchors)
    300
    """
    config = checked(RETRIEVAL.mining, settings)
    n, threads = len(features), cpu_count()
    if n < 3:
        raise InputError(f"features: {n} rows; 3 at least are needed")
    k = config.width(min(config.graph_k or LARGEST_K, n - 1))
    found = NeighborBlocks.of(nearest_neighbors(features, features, k))
    if None in config.sizes:
        config, _ = with_chosen_sizes(config, found)
    compared = found.first(min(config.width(config.chosen_sizes[0]), k))
    graph: Graph = reciprocal_graph(compared, power=config.power)
    if not graph.nnz:
        raise InputError(
            f"features: no two of {n} rows are among the {compared.k} nearest of each other; give "
            "more rows, or a larger graph_k"
        )
    items = np.arange(n) if config.component == "all" else largest_component(graph)
    raw = graph[items][:, items]
    count = len(items) if config.anchors is None else config.anchors
    anchors = select_anchors(raw, count, selection=config.selection, seed=seed)
    normalized = reorder(normalize_graph(raw))
    kinds: Any = {"positives": config.positives, "negatives": config.negatives}
    given = MiningInput.of(
        features[items], raw, normalized, items, power=config.power, threads=threads, **kinds
    )
    pools = Miner(given, MiningMethod.of(config, seed), threads=threads).mine(anchors)
    return Mined(pools=pools, graph=graph, config=config, items=items, normalized=normalized)
