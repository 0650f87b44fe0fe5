"""Graph, anchors, manifold similarity and pools: eqs. (1) to (6)."""

from typing import TYPE_CHECKING

from mmray.system.lazy import lazy

if TYPE_CHECKING:
    from mmray.mining.anchors import select_anchors as select_anchors
    from mmray.mining.anchors import stationary_distribution as stationary_distribution
    from mmray.mining.diffusion.solver import Diffusion as Diffusion
    from mmray.mining.diffusion.solver import diffuse as diffuse
    from mmray.mining.graph import normalize_graph as normalize_graph
    from mmray.mining.graph import reciprocal_knn_graph as reciprocal_knn_graph
    from mmray.mining.knn.exact import nearest_neighbors as nearest_neighbors
    from mmray.mining.knn.results import Neighbors as Neighbors
    from mmray.mining.pool_lists import Pools as Pools
    from mmray.mining.pools import mine_pools as mine_pools

__all__ = [
    "Diffusion",
    "Neighbors",
    "Pools",
    "diffuse",
    "mine_pools",
    "nearest_neighbors",
    "normalize_graph",
    "reciprocal_knn_graph",
    "select_anchors",
    "stationary_distribution",
]

__getattr__ = lazy(
    __name__,
    {
        "nearest_neighbors": "knn.exact",
        "reciprocal_knn_graph": "graph",
        "normalize_graph": "graph",
        "stationary_distribution": "anchors",
        "select_anchors": "anchors",
        "Diffusion": "diffusion.solver",
        "diffuse": "diffusion.solver",
        "Pools": "pool_lists",
        "mine_pools": "pools",
        "Neighbors": "knn.results",
    },
)
