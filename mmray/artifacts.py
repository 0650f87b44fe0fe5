"""What a run leaves on disk: every file of a stage, written and read in one place.

n items, d dims, p poolings, a anchors. Only formats that execute nothing on load: Parquet, .npy and
.npz without pickles, safetensors, JSON.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from mmray import __version__
from mmray.manifold import ManifoldNeighbors
from mmray.neighbors import Neighbors
from mmray.pools import Pools
from mmray.system.arrays import Floats, Graph, Ids
from mmray.system.folder import Folder
from mmray.system.formats import read_json, write_json
from mmray.whitening import Whitening

SUCCESS = "_SUCCESS.json"
PACKAGES = ("ray", "torch", "torchvision", "numpy", "scipy", "pyarrow")


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits that change whenever one of the JSON-like parts does."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass
class Stage:
    """A stage's own folder, named by what determines its content."""

    name: str
    fingerprint: str
    folder: Folder
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, storage: Folder, name: str, *inputs: Any) -> "Stage":
        """The folder `<storage>/<name>-<fingerprint of inputs>`."""
        mark = fingerprint(name, inputs)
        return cls(name, mark, storage / f"{name}-{mark}")

    @property
    def done(self) -> bool:
        return self.folder.has(SUCCESS)

    def finish(self, counts: Mapping[str, Any], *, within: float = 0.0) -> None:
        """Mark the stage as done; what it counted, how long this process took, and versions.

        Parameters
        ----------
        within : seconds that stages within this one took, which are theirs
        """
        record = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "seconds": round(time.monotonic() - self.started - within, 3),
            "counts": dict(counts),
            "versions": {"mmray": __version__} | {name: version(name) for name in PACKAGES},
        }
        write_json(self.folder, SUCCESS, record)

    @property
    def counts(self) -> dict[str, Any]:
        """What `finish` was given."""
        return dict(read_json(self.folder, SUCCESS)["counts"])

    @property
    def seconds(self) -> float:
        """How long the process took that finished it."""
        return float(read_json(self.folder, SUCCESS)["seconds"])


# -- graph, anchors, pools ------------------------------------------------------------------------


def neighbors_table(found: Neighbors) -> pa.Table:
    """A shard of k-NN: rows of (q, k) ids and similarities."""
    k = found.ids.shape[1]
    return pa.table(
        {
            "neighbors": pa.FixedSizeListArray.from_arrays(found.ids.ravel(), k),
            "similarities": pa.FixedSizeListArray.from_arrays(found.similarities.ravel(), k),
        }
    )


def read_neighbors(folder: Folder) -> Neighbors:
    """All shards of neighbors/, in order."""
    shards = folder / "neighbors"
    tables = [shards.read_table(name) for name in shards.names()]
    k = tables[0]["neighbors"].type.list_size
    ids, similarities = (
        np.concatenate(
            [chunk.values.to_numpy() for table in tables for chunk in table[name].chunks]
        ).reshape(-1, k)
        for name in ("neighbors", "similarities")
    )
    return Neighbors(ids, similarities)


def write_graph(folder: Folder, *, raw: Graph, normalized: Graph, items: Ids) -> None:
    """graph.npz: both matrices over the kept items as CSR parts, and the items' image ids."""
    with folder.writing("graph.npz") as sink:
        np.savez(
            sink,
            raw=raw.data,
            normalized=normalized.data,
            indices=raw.indices,
            indptr=raw.indptr,
            items=items,
        )


@dataclass(frozen=True)
class StoredGraph:
    """Content of graph.npz: raw and normalised adjacency of the kept items, and their image ids."""

    raw: Graph
    normalized: Graph
    items: Ids


def read_graph(folder: Folder) -> StoredGraph:
    with folder.reading("graph.npz") as source, np.load(source, allow_pickle=False) as stored:
        parts = (stored["indices"], stored["indptr"])
        n = len(stored["items"])
        raw = csr_array((stored["raw"], *parts), shape=(n, n))
        normalized = csr_array((stored["normalized"], *parts), shape=(n, n))
        return StoredGraph(raw, normalized, stored["items"])


def write_anchors(folder: Folder, anchors: Ids, importance: Floats) -> None:
    """anchors.parquet: image ids, most important first, with the stationary distribution."""
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
    """One row an anchor: lists of the pools, residual and iterations of its diffusion."""
    columns = {"anchor": pa.array(pools.anchors, pa.int64())}
    for name, kind in _LISTS.items():
        columns[name] = pa.array(list(getattr(pools, name)), pa.list_(kind))
    for name, kind in _SCALARS.items():
        columns[name] = pa.array(getattr(pools, name), kind)
    return pa.table(columns)


def read_pools(folder: Folder) -> Pools:
    """All shards of pools/, in order: anchors from the most important on."""
    shards = folder / "pools"
    table = pa.concat_tables(shards.read_table(name) for name in shards.names())
    lists: dict[str, Any] = {
        name: tuple(row.values.to_numpy() for row in table[name]) for name in _LISTS
    }
    scalars: dict[str, Any] = {name: table[name].to_numpy() for name in _SCALARS}
    return Pools(anchors=table["anchor"].to_numpy(), **lists, **scalars)


def write_manifold(folder: Folder, near: ManifoldNeighbors) -> None:
    """manifold.parquet: a row an item, its neighbours and their s_m."""
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
        neighbors=tuple(row.values.to_numpy() for row in table["neighbors"]),
        similarity=tuple(row.values.to_numpy() for row in table["similarity"]),
    )


# -- whitening ------------------------------------------------------------------------------------


def whitening_name(pooling: str, trained: str) -> str:
    """File in a model's folder with the whitening of a descriptor; the network trained with one."""
    return "whitening.npz" if pooling == trained else f"whitening-{pooling}.npz"


def write_whitening(folder: Folder, name: str, whitening: Whitening) -> None:
    with folder.writing(name) as sink:
        whitening.save(sink)


def read_whitening(folder: Folder, name: str) -> Whitening:
    with folder.reading(name) as source:
        return Whitening.load(source)
