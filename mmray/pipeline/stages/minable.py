"""Checks of what mining needs: items, an edge, an anchor and a pair; errors name the remedy.

n items, k neighbours of each.
"""

import numpy as np

from mmray.config.sections import MiningConfig
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.mining.pool_lists import Pools
from mmray.mining.pools import EUCLIDEAN_K
from mmray.system.arrays import Graph, Ids
from mmray.system.errors import InputError
from mmray.system.uris import masked_text


class NothingMinedError(InputError):
    """The images are too few, or their features give no graph, no anchor or no pair to train on.

    Attributes
    ----------
    why, remedy : the two parts of the message: what is wrong, and what to do about it
    """

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(f"{why}: {remedy}")
        self.why, self.remedy = masked_text(why), masked_text(remedy)

    def __reduce__(self) -> tuple[type["NothingMinedError"], tuple[str, str]]:
        return NothingMinedError, (self.why, self.remedy)


def _least(config: MiningConfig) -> int:
    """Return the least number of items to mine: an anchor with its neighbours and a negative."""
    baseline = config.positives == "euclidean" or config.negatives == "random"
    return EUCLIDEAN_K if baseline else 3


def need_items(config: MiningConfig, count: int, what: str) -> None:
    """Check that there are more items than neighbours of each; else NothingMinedError."""
    if count < (least := _least(config)):
        raise NothingMinedError(
            f"too few {what}, {count}", f"mining needs at least {least}, add more"
        )
    for flag, k in (("graph-k", config.graph_k), ("positive-k", config.positive_k)):
        if k is not None and count <= k:
            raise NothingMinedError(
                f"{count} {what} are too few for --mining.{flag} {k}",
                f"add more, or choose --mining.{flag} below {count}",
            )


def need_component(config: MiningConfig, size: int, count: int, what: str) -> None:
    """Check that the largest component has more items than neighbours of each; else InputError."""
    enough, (_, positive_k, _) = size >= _least(config), config.chosen_sizes
    if enough and positive_k < size:
        return
    lower = f", or --mining.positive-k from 2 to {size - 1}" if enough else ""
    needed = (
        f"--mining.positive-k {positive_k}"
        if positive_k >= size
        else f"mining, which needs at least {_least(config)}"
    )
    raise NothingMinedError(
        f"the graph's largest component has {size} of the {count} {what}, too few for {needed}",
        f"choose --mining.component all{lower}",
    )


def need_no_cycles(config: MiningConfig) -> None:
    """Refuse cyclic positives of features that are searched in parts; else InputError."""
    if config.positives == "cyclic":
        raise InputError(
            "--mining.positives cyclic: the features are larger than a machine's share of shared "
            "memory, and cycles are looked for in all of them at once; give --mining.memory more "
            "GB, or choose other positives"
        )


def need_edges(config: MiningConfig, graph: Graph, found: NeighborBlocks, what: str) -> None:
    """Check that the graph (n, n) of the neighbours (n, k) has an edge; else InputError."""
    if graph.nnz:
        return
    n, k = found.count, found.k
    highest = max(
        block.similarities[block.ids != rows[:, None]].max(initial=0)
        for block, rows in found.numbered()
    )
    remedy = "mine on other features"
    if not highest > 0:
        why = (
            "no two of them have a similarity above 0, as where all are zeros or each is "
            "orthogonal to all others"
        )
    elif np.float32(highest) ** np.float32(config.power) == 0:
        why = (
            f"their highest similarity, {highest:.1e}, vanishes when raised to --mining.power "
            f"{config.power:g}"
        )
        remedy = "lower it, for instance to 1"
    else:
        graph_k, _, _ = config.chosen_sizes
        if graph_k < n - 1:
            remedy = f"raise --mining.graph-k, up to {n - 1}, or {remedy}"
        why = f"no two of them are among the {k} nearest of one another with a similarity above 0"
    raise NothingMinedError(f"the graph of the {n} {what} has no edge: {why}", remedy)


def need_anchors(config: MiningConfig, anchors: Ids, graph: Graph, what: str) -> None:
    """Check that an anchor was selected; else InputError."""
    if len(anchors):
        return
    if graph.nnz:
        raise NothingMinedError(
            f"none of the {graph.shape[0]} {what} is an anchor",
            "none is more important in the random walk than all its neighbours, as where features "
            "are equal; choose --mining.selection filled, or leave duplicates out",
        )
    raise NothingMinedError(
        f"the graph of the {graph.shape[0]} {what} has no edge, so that there is no anchor",
        "mine on other features",
    )


def need_pairs(config: MiningConfig, pools: Pools) -> None:
    """Check that an anchor has a positive, and one a negative; else InputError."""
    anchors = f"none of the {len(pools.anchors)} anchors" if len(pools.anchors) > 1 else "no anchor"
    if not any(map(len, pools.positives)):
        if config.positives != "manifold":
            why = "choose --mining.positives manifold, or mine on other features"
        elif config.alpha == 0:
            why = "--mining.alpha 0 reaches no other item: choose 0.99"
        else:
            why = (
                f"the {config.positive_k} nearest on the manifold (--mining.positive-k) are the "
                "nearest in feature space, or no path leads to them; choose another value from 2, "
                "a larger --mining.graph-k, or leave duplicates out"
            )
        raise NothingMinedError(f"{anchors} has a positive", why)
    if not any(map(len, pools.negatives)):
        if config.negatives != "manifold":
            why = "choose --mining.negatives manifold, or mine more items"
        else:
            why = (
                f"the {config.negative_k} nearest in feature space (--mining.negative-k, capped "
                "at half of the items) are the nearest on the manifold; choose another value from "
                "2, a smaller --mining.graph-k, or mine more items"
            )
        raise NothingMinedError(f"{anchors} has a negative", why)
