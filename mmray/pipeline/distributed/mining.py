"""Mining on Ray: pools of blocks of anchors, on features and a graph that a node's workers share.

n items, a anchors.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmray.mining.batches import Miner, MiningInput
from mmray.mining.files import pools_table
from mmray.mining.pools import MiningMethod
from mmray.pipeline.distributed.units import ITEMS, UNIT, ActorPool, run_units
from mmray.system.arrays import Device, Ids
from mmray.system.folder import Folder


class MiningWorker:
    """Worker that solves eq. (3) for blocks of anchors and picks their pools, eqs. (5) and (6)."""

    def __init__(
        self, given: list[ray.ObjectRef[Any]], method: MiningMethod, options: dict[str, Any]
    ) -> None:
        shared: MiningInput = ray.get(given[0])  # its arrays are views of shared memory
        self.miner = Miner(shared, method, **options)

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        anchors = np.asarray(unit["anchors"], np.int64)
        return pools_table(self.miner.mine(anchors))


def mine(
    given: MiningInput,
    anchors: Ids,
    method: MiningMethod,
    *,
    block: int,
    output: Folder,
    pool: ActorPool,
    device: Device = "cpu",
) -> None:
    """Write the pools of all anchors as shards of `block` anchors; existing shards are kept.

    Parameters
    ----------
    given : features, graph and image ids of the n items
    anchors : (a,) int64, in 0..n-1
    method : kinds and sizes of the pools, and the solver
    block : anchors of a shard
    output : folder of the shards
    pool : the actors to run
    device : "cpu" or "cuda"
    """
    starts = range(0, len(anchors), block)
    blocks = [anchors[start : start + block] for start in starts]
    work = pa.table(
        {
            UNIT: np.arange(len(blocks)),
            ITEMS: np.array([len(part) for part in blocks], np.int64),
            "anchors": pa.array(blocks, pa.list_(pa.int64())),
        }
    )
    options = {"device": device, "threads": pool.cpus}
    shared = [ray.put(given)]
    run_units(
        work, MiningWorker, (shared, method, options), output=output, pool=pool, label="diffusion"
    )
