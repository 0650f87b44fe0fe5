"""Exact k-NN of all items: blocks of query rows against the features that all workers share."""

from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmray.arrays import Features
from mmray.distributed.stage import ITEMS, UNIT, Pool, run_units, shard_name
from mmray.neighbors import Neighbors, search
from mmray.storage import Folder


class NeighborWorker:
    """Searches the whole database for a block of its rows."""

    def __init__(self, features: list[ray.ObjectRef[Any]], k: int) -> None:
        self.features: Features = ray.get(features[0])  # a view of shared memory
        self.k = k

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        queries = self.features[unit["first"] : unit["first"] + unit[ITEMS]]
        found = search(self.features, queries, self.k)
        return pa.table(
            {
                "neighbors": pa.FixedSizeListArray.from_arrays(found.ids.ravel(), self.k),
                "similarities": pa.FixedSizeListArray.from_arrays(
                    found.similarities.ravel(), self.k
                ),
            }
        )


def nearest_neighbors(
    features: Features, k: int, *, block: int, output: Folder, pool: Pool
) -> Neighbors:
    """The k nearest of every row, (n, k), computed in shards of `block` rows under `output`."""
    starts = np.arange(0, len(features), block)
    work = pa.table(
        {
            UNIT: np.arange(len(starts)),
            ITEMS: np.minimum(block, len(features) - starts),
            "first": starts,
        }
    )
    run_units(
        work,
        NeighborWorker,
        ([ray.put(np.asarray(features))], k),
        output=output,
        pool=pool,
        label="k-NN",
    )
    shards = [output.read_table(shard_name(unit)) for unit in range(len(starts))]
    ids, similarities = (
        np.concatenate(
            [chunk.values.to_numpy() for shard in shards for chunk in shard[name].chunks]
        ).reshape(len(features), k)
        for name in ("neighbors", "similarities")
    )
    return Neighbors(ids, similarities)
