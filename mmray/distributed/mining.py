"""Mining: diffusion and pools for blocks of anchors, on the graph that all workers share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from scipy.sparse import csr_array

from mmray.arrays import Features, Graph, Ids
from mmray.artifacts import pools_table
from mmray.distributed.stage import ITEMS, UNIT, Pool, run_units
from mmray.pools import pools_of
from mmray.storage import Folder


@dataclass(frozen=True)
class SharedGraph:
    """Features and normalised graph of the kept items, and the items' image ids, put once."""

    arrays: ray.ObjectRef[Any]

    @classmethod
    def put(cls, features: Features, normalized: Graph, items: Ids) -> "SharedGraph":
        parts = (normalized.data, normalized.indices, normalized.indptr)
        return cls(ray.put((np.ascontiguousarray(features), *parts, items)))

    def open(self) -> tuple[Features, Graph, Ids]:
        """Read-only views of the node's shared memory."""
        features, data, indices, indptr, items = ray.get(self.arrays)
        n = len(items)
        return features, csr_array((data, indices, indptr), shape=(n, n)), items


class MiningWorker:
    """Solves eq. (3) for blocks of anchors and picks their pools, eqs. (5) and (6)."""

    def __init__(self, shared: SharedGraph, settings: dict[str, Any]) -> None:
        self.features, self.normalized, self.items = shared.open()
        self.settings = settings

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        anchors = np.asarray(unit["anchors"], np.int64)
        pools = pools_of(self.features, self.normalized, anchors, **self.settings)
        return pools_table(pools.renamed(self.items))


def mine(
    features: Features,
    normalized: Graph,
    items: Ids,
    anchors: Ids,
    *,
    block: int,
    output: Folder,
    pool: Pool,
    **settings: Any,
) -> None:
    """Write the pools of all anchors as shards of `block` anchors into `output`.

    Parameters
    ----------
    features : (n, d) float32, of the kept items
    normalized : (n, n) CSR
    items : (n,) int64, their image ids
    anchors : (a,) int64 in 0..n-1
    settings : keyword arguments of `pools_of`
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
    shared = SharedGraph.put(features, normalized, items)
    run_units(work, MiningWorker, (shared, settings), output=output, pool=pool, label="diffusion")
