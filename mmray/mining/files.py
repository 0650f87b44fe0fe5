"""Files of the mined data as Parquet: neighbours, anchors, pools, manifold neighbours.

a anchors, k neighbours.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from mmray.mining.knn.results import Neighbors
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Floats, Ids
from mmray.system.folder import Folder
from mmray.system.locations import prefetch


def neighbors_table(found: Neighbors) -> pa.Table:
    """Build a shard of the k-NN search: for each of q items, k ids and their similarities."""
    k = found.ids.shape[1]
    return pa.table(
        {
            "neighbors": pa.FixedSizeListArray.from_arrays(found.ids.ravel(), k),
            "similarities": pa.FixedSizeListArray.from_arrays(found.similarities.ravel(), k),
        }
    )


def neighbors_in(table: pa.Table) -> Neighbors:
    """Return the content of a shard that `neighbors_table` built."""
    k = table["neighbors"].type.list_size
    ids, similarities = (
        np.concatenate([chunk.values.to_numpy() for chunk in table[name].chunks]).reshape(-1, k)
        for name in ("neighbors", "similarities")
    )
    return Neighbors(ids, similarities)


def read_neighbors(folder: Folder, count: int, k: int) -> NeighborBlocks:
    """Return the shards of neighbors/, with k neighbours of `count` items, as blocks."""
    shards = folder / "neighbors"

    def block(name: str) -> Neighbors:
        return neighbors_in(shards.read_table(name))

    return NeighborBlocks(count, k, lambda: prefetch(block, shards.names()), folder.scratch)


def write_anchors(folder: Folder, anchors: Ids, importance: Floats) -> None:
    """Write anchors.parquet: image ids, most important first, with their probability π."""
    folder.write_table("anchors.parquet", pa.table({"image_id": anchors, "importance": importance}))


_LISTS = {
    "positives": pa.int64(),
    "positive_similarity": pa.float32(),
    "positive_rank_e": pa.int64(),
    "negatives": pa.int64(),
    "negative_similarity": pa.float32(),
    "negative_rank_m": pa.int64(),
    "manifold_neighbors": pa.int64(),
}
_SCALARS = {
    "zero_positives": pa.int64(),
    "residual": pa.float64(),
    "iterations": pa.int64(),
}


def pools_table(pools: Pools) -> pa.Table:
    """Build a shard of pools: a row for each anchor, with the residual of its diffusion."""
    columns = {"anchor": pa.array(pools.anchors, pa.int64())}
    for name, kind in _LISTS.items():
        columns[name] = pa.array(list(getattr(pools, name)), pa.list_(kind))
    for name, kind in _SCALARS.items():
        columns[name] = pa.array(getattr(pools, name), kind)
    return pa.table(columns)


def _rows(lists: pa.ChunkedArray) -> tuple[Any, ...]:
    """Return the rows of a column of lists as arrays; each as an object of Arrow takes 6 µs."""
    rows: list[Any] = []
    for chunk in lists.chunks:
        values, bounds = chunk.values.to_numpy(), chunk.offsets.to_numpy().tolist()
        rows += map(values.__getitem__, map(slice, bounds, bounds[1:]))
    return tuple(rows)


def read_pools(folder: Folder) -> Pools:
    """Read all shards of pools/, in order: anchors from the most important on."""
    shards = folder / "pools"
    table = pa.concat_tables(shards.read_table(name) for name in shards.names())
    lists: dict[str, Any] = {name: _rows(table[name]) for name in _LISTS}
    scalars: dict[str, Any] = {name: table[name].to_numpy() for name in _SCALARS}
    return Pools(anchors=table["anchor"].to_numpy(), **lists, **scalars)


def write_manifold(folder: Folder, near: ManifoldNeighbors) -> None:
    """Write manifold.parquet: a row for each item, with its neighbours and their s_m."""
    columns = {
        "image_id": pa.array(near.items, pa.int64()),
        "neighbors": pa.array(list(near.neighbors), pa.list_(pa.int64())),
        "similarity": pa.array(list(near.similarity), pa.list_(pa.float32())),
    }
    folder.write_table("manifold.parquet", pa.table(columns))


def read_manifold(folder: Folder) -> ManifoldNeighbors:
    table = folder.read_table("manifold.parquet")
    return ManifoldNeighbors(
        items=table["image_id"].to_numpy(),
        neighbors=_rows(table["neighbors"]),
        similarity=_rows(table["similarity"]),
    )
