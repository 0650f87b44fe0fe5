"""Numbers of neighbours to compare, chosen from a collection without labels.

n items, k neighbours of each.
"""

from dataclasses import replace

import numpy as np

from mmray.config.sections import MiningConfig
from mmray.mining.graph import component_labels
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.mining.reciprocity import reciprocal_graph

SMALLEST_K, LARGEST_K = 4, 10  # neighbours in the graph that are tried, the item among them
SHARE = 0.25  # of all items in one component, above which it joins things of many kinds


def with_chosen_sizes(config: MiningConfig, found: NeighborBlocks) -> tuple[MiningConfig, str]:
    """Fill in the numbers of neighbours that are None; also return what was chosen, and why.

    The graph gets as many neighbours as leave at most SHARE of the items in its largest component.
    With one more, paths lead from thing to thing through most of a collection (the percolation of
    random graphs), and what diffusion finds along them is false. Positives are sought among twice
    as many neighbours on the manifold as an item has in the graph, negatives among the nearest 1%,
    the paper's share of its collection, from 100 to the paper's 10,000.

    Parameters
    ----------
    config : settings, of which some may be None
    found : (n, k) neighbours, of which at most k are compared in the graph
    """
    n, said = found.count, []
    if config.graph_k is None:
        graph_k, shares = _graph_k(config, found)
        config = replace(config, graph_k=graph_k)
        why = f"{shares[graph_k]:.0%} of the items are in its largest component"
        if graph_k + 1 in shares:
            why += f", with {graph_k + 1} {shares[graph_k + 1]:.0%} would be"
        said.append(f"graph-k {graph_k} ({why})")
    if config.positive_k is None:
        assert config.graph_k is not None, "filled in"
        config = replace(config, positive_k=max(2, min(2 * (config.graph_k - 1), n - 1)))
        said.append(f"positive-k {config.positive_k} (twice the neighbours in the graph)")
    if config.negative_k is None:
        config = replace(config, negative_k=int(np.clip(n // 100, 100, 10_000)))
        said.append(f"negative-k {config.negative_k:,}")
    return config, ", ".join(said)


def _graph_k(config: MiningConfig, found: NeighborBlocks) -> tuple[int, dict[int, float]]:
    """Choose graph_k; also return the share of the largest component for all that were tried."""
    most = found.k - config.width(0)
    smallest, largest = min(SMALLEST_K, most), min(LARGEST_K, most)
    shares: dict[int, float] = {}
    for k in range(smallest, largest + 1):
        graph = reciprocal_graph(found.first(config.width(k)), power=config.power)
        _, sizes = component_labels(graph)
        shares[k] = float(sizes.max() / found.count)
        if shares[k] > SHARE:
            return max(smallest, k - 1), shares
    return largest, shares
