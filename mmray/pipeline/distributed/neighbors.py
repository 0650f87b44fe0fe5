"""k-NN search of all items on Ray: blocks of rows against an index that a node's workers share."""

from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmray.mining.files import neighbors_table
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.pipeline.distributed.units import ITEMS, UNIT, ActorPool, run_units
from mmray.system.folder import Folder


class NeighborWorker:
    """Worker that searches the whole database for a block of its rows."""

    def __init__(self, index: list[ray.ObjectRef[Any]], k: int, options: dict[str, Any]) -> None:
        # Its arrays are views of shared memory.
        self.index: ExactIndex | ApproximateIndex = ray.get(index[0])
        self.k, self.options = k, options

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        queries = self.index.database[unit["first"] : unit["first"] + unit[ITEMS]]
        found = self.index.search(queries, self.k, **self.options)
        return neighbors_table(found)


def find_neighbors(
    index: ExactIndex | ApproximateIndex,
    k: int,
    *,
    block: int,
    output: Folder,
    pool: ActorPool,
    **options: Any,
) -> None:
    """Write the k nearest rows of every row of an index as shards of `block` rows.

    Parameters
    ----------
    index : exact or approximate
    k : neighbours of a row, which is among them
    block : rows of a shard
    output : folder of the shards; existing ones are kept
    pool : the actors to run
    options : further keyword arguments of the index's `search`
    """
    starts = np.arange(0, len(index.database), block)
    work = pa.table(
        {
            UNIT: np.arange(len(starts)),
            ITEMS: np.minimum(block, len(index.database) - starts),
            "first": starts,
        }
    )
    options["threads"] = pool.cpus
    arguments = ([ray.put(index)], k, options)
    run_units(work, NeighborWorker, arguments, output=output, pool=pool, label="k-NN")
