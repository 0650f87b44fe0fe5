"""Mining on Ray: pools of blocks of anchors, on features and a graph that a node's workers share.

n items, a anchors.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmray.mining.batches import Miner, MiningInput
from mmray.mining.files import neighbors_in, pools_table
from mmray.mining.pools import MiningMethod
from mmray.pipeline.distributed.metrics import BusyDevice, count_residuals
from mmray.pipeline.distributed.neighbors import QUERIES, query_units
from mmray.pipeline.distributed.units import UNIT, ActorPool, run_units, shard_name
from mmray.system.arrays import Device, Ids
from mmray.system.folder import Folder


class MiningWorker:
    """Worker that solves eq. (3) for blocks of anchors and picks their pools, eqs. (5) and (6)."""

    def __init__(
        self,
        given: list[ray.ObjectRef[Any]],
        method: MiningMethod,
        nearest: Folder | None,
        options: dict[str, Any],
    ) -> None:
        shared: MiningInput = ray.get(given[0])  # its arrays are views of shared memory
        self.miner, self.nearest = Miner(shared, method, **options), nearest
        self.busy = BusyDevice(options.get("device", "cpu"))

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        anchors, near = np.asarray(unit[QUERIES], np.int64), None
        if self.nearest is not None:
            near = neighbors_in(self.nearest.read_table(shard_name(unit[UNIT])))
        with self.busy:
            pools = self.miner.mine(anchors, near)
        count_residuals(pools.residual)
        return pools_table(pools)


def mine(
    given: MiningInput,
    anchors: Ids,
    method: MiningMethod,
    *,
    block: int,
    output: Folder,
    pool: ActorPool,
    device: Device = "cpu",
    nearest: Folder | None = None,
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
    nearest : folder of the anchors' neighbours, in the same shards, where `given` has no index
    """
    options = {"device": device, "threads": pool.cpus}
    arguments = ([ray.put(given)], method, nearest, options)
    del given  # a second copy, unless the caller keeps it
    work = query_units(anchors, block)
    run_units(work, MiningWorker, arguments, output=output, pool=pool, label="diffusion")
