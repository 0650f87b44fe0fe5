"""What a run leaves on disk: every file of a stage, written and read in one place.

n items, d dims, p poolings, a anchors. Only formats that execute nothing on load: Parquet, .npy and
.npz without pickles, safetensors, JSON.
"""

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mmray.arrays import Features, Floats, Graph, Ids
from mmray.errors import InputError
from mmray.neighbors import Neighbors
from mmray.pools import Pools
from mmray.storage import Folder
from mmray.whitening import Whitening

SUCCESS = "_SUCCESS.json"
PACKAGES = ("mmray", "ray", "torch", "torchvision", "numpy", "scipy", "pyarrow")


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

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Mark the stage as done; what it counted, how long this process took, and versions."""
        record = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "seconds": round(time.monotonic() - self.started, 3),
            "counts": dict(counts),
            "versions": {package: version(package) for package in PACKAGES},
        }
        write_json(self.folder, SUCCESS, record)

    @property
    def counts(self) -> dict[str, Any]:
        """What `finish` was given."""
        return dict(read_json(self.folder, SUCCESS)["counts"])


def write_json(folder: Folder, name: str, value: Any) -> None:
    folder.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(folder: Folder, name: str) -> Any:
    return json.loads(folder.read(name))


def write_array(folder: Folder, name: str, array: NDArray[Any]) -> None:
    with folder.writing(name) as sink:
        np.lib.format.write_array(sink, np.ascontiguousarray(array), allow_pickle=False)


def read_array(folder: Folder, name: str) -> NDArray[Any]:
    """An .npy file: mapped without reading it where it is local, else read into memory."""
    if folder.local is not None:
        array: NDArray[Any] = np.load(folder.local / name, mmap_mode="r", allow_pickle=False)
        return array
    return np.asarray(np.load(io.BytesIO(folder.read(name)), allow_pickle=False))


# -- extraction -----------------------------------------------------------------------------------


def column_of(poolings: Sequence[str], pooling: str) -> str:
    """Column of a descriptor in the shards: `embedding` for the first pooling, else its name."""
    return "embedding" if pooling == poolings[0] else pooling


def features_table(
    images: Sequence[dict[str, Any]], poolings: Sequence[str], descriptors: Features
) -> pa.Table:
    """A shard of features.

    Parameters
    ----------
    images : m records with `image_id`, `uri`, `width`, `height`, `error` (None, or why it is bad)
    descriptors : (m, p, d) float32; rows of bad images are ignored
    """
    _, p, d = descriptors.shape
    assert p == len(poolings), (p, poolings)
    columns: dict[str, pa.Array] = {
        "image_id": pa.array([image["image_id"] for image in images], pa.int64()),
        "uri": pa.array([image["uri"] for image in images], pa.string()),
        "width": pa.array([image["width"] for image in images], pa.int32()),
        "height": pa.array([image["height"] for image in images], pa.int32()),
        "error": pa.array([image["error"] for image in images], pa.string()),
    }
    for index, pooling in enumerate(poolings):
        flat = pa.array(np.ascontiguousarray(descriptors[:, index]).reshape(-1), pa.float32())
        rows = pa.FixedSizeListArray.from_arrays(flat, d)
        tensor = pa.fixed_shape_tensor(pa.float32(), [d])
        columns[column_of(poolings, pooling)] = pa.ExtensionArray.from_storage(tensor, rows)
    return pa.table(columns)


def rows_of(column: pa.ChunkedArray) -> Features:
    """(m, d) float32 of a fixed-shape tensor column."""
    parts = [chunk.to_numpy_ndarray() for chunk in column.chunks if len(chunk)]
    if not parts:
        return np.empty((0, column.type.shape[0]), np.float32)
    return np.concatenate(parts)


def finish_features(
    stage: Stage, poolings: Sequence[str], *, max_bad_fraction: float
) -> dict[str, int]:
    """Give good images dense ids and set the bad ones aside; returns the counts of both.

    Every step leaves the same files however often it runs, so a kill in between does no harm: the
    bad ones are read from the raw shards, all of them, before any shard is rewritten.

    Raises
    ------
    InputError
        No image, or too few of them, could be read. The shards are removed, so that the same
        command tries again once the cause is mended; quarantine.parquet stays.
    """
    shards = stage.folder / "features"
    if not stage.folder.has("images.parquet"):
        meta = pa.concat_tables(
            shards.read_table(name, ["uri", "width", "height", "error"]) for name in shards.names()
        )
        bad = pc.is_valid(meta["error"])
        good = meta.filter(pc.invert(bad)).drop_columns("error")
        ids = pa.array(np.arange(len(good), dtype=np.int64))
        stage.folder.write_table("quarantine.parquet", meta.filter(bad).select(["uri", "error"]))
        _refuse_bad(stage, int(pc.sum(bad).as_py()), len(meta), max_bad_fraction)
        stage.folder.write_table("images.parquet", good.add_column(0, "image_id", ids))
    counts = {
        "images": len(stage.folder.read_table("images.parquet", ["image_id"])),
        "quarantined": len(stage.folder.read_table("quarantine.parquet", ["error"])),
    }
    _number_densely(shards)
    for pooling in poolings:
        _gather(stage.folder, shards, column_of(poolings, pooling), counts["images"])
    return counts


def _refuse_bad(stage: Stage, bad: int, total: int, limit: float) -> None:
    if bad == total or bad > limit * total:
        first = stage.folder.read_table("quarantine.parquet").slice(0, 1).to_pylist()[0]
        (stage.folder / "features").remove()
        raise InputError(
            f"{bad} of {total} images could not be read ({bad / total:.1%} > "
            f"--extraction.max-bad-fraction {limit:.1%}), the first of them {first['uri']}: "
            f"{first['error']}; see {stage.folder.location('quarantine.parquet')} for each"
        )


def _number_densely(shards: Folder) -> None:
    """Drop bad rows and renumber, shard by shard; a shard that is right already is left alone."""
    next_id = 0
    for name in shards.names():
        head = shards.read_table(name, ["image_id", "error"])
        wanted = np.arange(next_id, next_id + head["error"].null_count)
        if not np.array_equal(head["image_id"].to_numpy(), wanted):
            table = shards.read_table(name)
            table = table.filter(pc.is_null(table["error"]))
            table = table.set_column(0, "image_id", pa.array(wanted, pa.int64()))
            shards.write_table(name, table)
        next_id += len(wanted)


def _gather(folder: Folder, shards: Folder, column: str, n: int) -> None:
    """Write one descriptor of all shards as <column>.npy ("features" for `embedding`)."""
    names = shards.names()
    d = rows_of(shards.read_table(names[0], [column])[column]).shape[1]
    header = {"descr": "<f4", "fortran_order": False, "shape": (n, d)}
    with folder.writing(array_name(column)) as sink:
        np.lib.format.write_array_header_1_0(sink, header)
        for name in names:
            sink.write(rows_of(shards.read_table(name, [column])[column]).tobytes())


def array_name(column: str) -> str:
    return "features.npy" if column == "embedding" else f"features-{column}.npy"


def read_features(stage: Stage, poolings: Sequence[str], pooling: str) -> Features:
    """(n, d) float32 of one pooling, rows in the order of images.parquet."""
    return read_array(stage.folder, array_name(column_of(poolings, pooling)))


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


# -- whitening ------------------------------------------------------------------------------------


def write_whitening(folder: Folder, name: str, whitening: Whitening) -> None:
    with folder.writing(name) as sink:
        whitening.save(sink)


def read_whitening(folder: Folder, name: str) -> Whitening:
    with folder.reading(name) as source:
        return Whitening.load(source)
