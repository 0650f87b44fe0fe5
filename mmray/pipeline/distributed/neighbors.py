"""k-NN search on Ray: blocks of queries against an index that a node's workers share.

A database that is larger than a node's share of memory is searched part by part: its parts follow
one another, each is shared by all nodes while it is searched, and the neighbours found in each are
joined. No node ever holds more than a part, and the result does not depend on their number.

n items in the database, k neighbours.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmray.mining.files import neighbors_in, neighbors_table
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.results import Neighbors, joined
from mmray.pipeline.distributed.units import (
    ITEMS,
    UNIT,
    ActorPool,
    missing_units,
    release_kept,
    run_units,
    shard_name,
)
from mmray.system.arrays import Device, Ids
from mmray.system.folder import Folder
from mmray.system.progress import announce
from mmray.system.rows import Rows

QUERIES = "queries"  # column of a table of work: rows that are asked for, in any order


class NeighborWorker:
    """Worker that searches an index for the neighbours of a unit's queries.

    Parameters
    ----------
    shared : references to the index and to the Rows of the queries (None: those of the index)
    k : neighbours of a query
    first : number of the index's first item in the whole database
    options : further keyword arguments of the index's `search`
    """

    def __init__(
        self, shared: list[ray.ObjectRef[Any]], k: int, first: int, options: dict[str, Any]
    ) -> None:
        # The arrays of both are views of shared memory.
        self.index: ExactIndex | ApproximateIndex = ray.get(shared[0])
        queries: Rows | None = ray.get(shared[1])
        self.queries = Rows(lambda: self.index.database) if queries is None else queries
        self.k, self.first, self.options = k, first, options

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        asked = np.asarray(unit[QUERIES], np.int64)
        ascending, back = np.unique(asked, return_inverse=True)
        queries = self.queries.take(ascending)[back]
        found = self.index.search(queries, self.k, **self.options)
        return neighbors_table(Neighbors(found.ids + self.first, found.similarities))


class JoiningWorker:
    """Worker that joins the neighbours of a unit's queries that were found in each part."""

    def __init__(self, parts: list[Folder], k: int) -> None:
        self.parts, self.k = parts, k

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        name = shard_name(unit[UNIT])
        found = [neighbors_in(part.read_table(name)) for part in self.parts]
        return neighbors_table(joined(found, self.k))


def query_units(queries: Ids, block: int) -> pa.Table:
    """Return the table of work for queries (q,): units of `block` of them."""
    starts = np.arange(0, len(queries), block)
    bounds = np.append(starts, len(queries)).astype(np.int32)
    return pa.table(
        {
            UNIT: np.arange(len(starts)),
            ITEMS: np.diff(bounds).astype(np.int64),
            QUERIES: pa.ListArray.from_arrays(pa.array(bounds), pa.array(queries, pa.int64())),
        }
    )


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
    work = query_units(np.arange(len(index.database)), block)
    shared = [ray.put(index), ray.put(None)]
    _search(work, shared, k, 0, options, output=output, pool=pool, label="k-NN")


def find_neighbors_in_parts(
    database: Rows,
    work: pa.Table,
    k: int,
    *,
    parts: int,
    scratch: Folder,
    output: Folder,
    pool: ActorPool,
    device: Device = "cpu",
) -> None:
    """Write the exact k nearest rows of some rows of a database that no node has room for.

    Parameters
    ----------
    database : (n, d) float32, l2-normalised; every node can read it
    work : from `query_units`, rows of the database
    k : neighbours of a query, in 1..n
    parts : of the database, from 1; the result does not depend on it
    scratch : folder for what is found in each part, for as long as it is needed
    output : folder of the shards; existing ones are kept
    pool : the actors to run
    device : "cpu" or "cuda"
    """
    if not len(missing_units(work, output)[0]):
        return
    bounds = np.linspace(0, len(database), parts + 1).astype(int).tolist()
    folders = [scratch / f"{first:012d}-{stop:012d}" for first, stop in pairwise(bounds)]
    queries, options = ray.put(database), {"device": device}
    for number, folder in enumerate(folders):
        if not len(missing_units(work, folder)[0]):
            continue
        first, stop = bounds[number], bounds[number + 1]
        release_kept()  # of the part before
        announce(f"k-NN: part {number + 1} of {parts}, items {first:,} to {stop - 1:,}")
        half = None if device == "cpu" else False
        index = ray.put(ExactIndex.of(database.read(first, stop), half=half))
        most, label = min(k, stop - first), f"k-NN {number + 1}/{parts}"
        _search(work, [index, queries], most, first, options, output=folder, pool=pool, label=label)
        del index
    run_units(work, JoiningWorker, (folders, k), output=output, pool=pool, label="k-NN, joining")
    for folder in folders:
        folder.remove()


def _search(
    work: pa.Table,
    shared: list[Any],
    k: int,
    first: int,
    options: dict[str, Any],
    *,
    output: Folder,
    pool: ActorPool,
    label: str,
) -> None:
    arguments = (shared, k, first, options | {"threads": pool.cpus})
    run_units(work, NeighborWorker, arguments, output=output, pool=pool, label=label)
