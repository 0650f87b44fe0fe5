"""k-NN of all items: blocks of query rows against an index that all workers of a node share."""

from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmray.arrays import Device, Features
from mmray.artifacts import neighbors_table
from mmray.distributed.stage import ITEMS, UNIT, Pool, run_units
from mmray.neighbors import ExactIndex
from mmray.storage import Folder


class NeighborWorker:
    """Searches the whole database for a block of its rows."""

    def __init__(self, index: list[ray.ObjectRef[Any]], k: int, options: dict[str, Any]) -> None:
        self.index: ExactIndex = ray.get(index[0])  # its arrays are views of shared memory
        self.k, self.options = k, options

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        queries = self.index.database[unit["first"] : unit["first"] + unit[ITEMS]]
        found = self.index.search(queries, self.k, **self.options)
        return neighbors_table(found)


def nearest_neighbors(
    features: Features,
    k: int,
    *,
    block: int,
    output: Folder,
    pool: Pool,
    device: Device = "cpu",
) -> None:
    """Write the k nearest of every row as shards of `block` rows."""
    starts = np.arange(0, len(features), block)
    work = pa.table(
        {
            UNIT: np.arange(len(starts)),
            ITEMS: np.minimum(block, len(features) - starts),
            "first": starts,
        }
    )
    options = {"device": device, "threads": pool.cpus}
    shared = [ray.put(ExactIndex.of(np.asarray(features)))]
    run_units(work, NeighborWorker, (shared, k, options), output=output, pool=pool, label="k-NN")
