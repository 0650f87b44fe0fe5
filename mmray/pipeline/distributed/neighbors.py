"""k-NN search on Ray: blocks of queries against an index that a node's workers share.

A database that is larger than a node's share of memory is searched part by part: its parts follow
one another, each is shared by all nodes while it is searched, and what is found is joined with what
was found in the parts before. No node ever holds more than a part, and the result does not depend
on their number.

n items in the database, k neighbours.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmray.config.choices import ApproximateSearch
from mmray.mining.files import neighbors_in, neighbors_table
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.faiss_library import faiss_has_gpu
from mmray.mining.knn.results import Neighbors, joined
from mmray.pipeline.distributed.cluster import with_gpus_and_cpus
from mmray.pipeline.distributed.tasks import run_once
from mmray.pipeline.distributed.units import (
    ITEMS,
    UNIT,
    ActorPool,
    missing_units,
    release_kept,
    run_units,
    shard_name,
)
from mmray.system.arrays import Device, Features, Ids
from mmray.system.folder import Folder
from mmray.system.formats import write_array
from mmray.system.progress import announce
from mmray.system.rows import Rows

QUERIES = "queries"  # column of a table of work: rows that are asked for, in any order


class NeighborWorker:
    """Worker that searches an index for the neighbours of a unit's queries.

    Parameters
    ----------
    shared : references to the index and to the Rows of the queries (None: those of the index)
    k : neighbours of a query
    options : further keyword arguments of the index's `search`
    first : number of the index's first item in the whole database
    before : folder of the neighbours among the items before the first, in the same shards
    """

    def __init__(
        self,
        shared: list[ray.ObjectRef[Any]],
        k: int,
        options: dict[str, Any],
        first: int = 0,
        before: Folder | None = None,
    ) -> None:
        # The arrays of both are views of shared memory.
        self.index: ExactIndex | ApproximateIndex = ray.get(shared[0])
        queries: Rows | None = ray.get(shared[1])
        self.queries = Rows(lambda: self.index.database) if queries is None else queries
        self.k, self.options, self.first, self.before = k, options, first, before

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        asked = np.asarray(unit[QUERIES], np.int64)
        ascending, back = np.unique(asked, return_inverse=True)
        queries, size = self.queries.take(ascending)[back], len(self.index.database)
        found = self.index.search(queries, min(self.k, size), **self.options)
        found = Neighbors(found.ids + self.first, found.similarities)
        if self.before is not None:
            earlier = neighbors_in(self.before.read_table(shard_name(unit[UNIT])))
            found = joined([earlier, found], min(self.k, self.first + size))
        return neighbors_table(found)


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
    arguments = ([ray.put(index), ray.put(None)], k, options | {"threads": pool.cpus})
    del index  # a second copy, unless the caller keeps it
    run_units(work, NeighborWorker, arguments, output=output, pool=pool, label="k-NN")


def faiss_pool(pool: ActorPool, label: str) -> tuple[ActorPool, Device]:
    """Return the pool and the device for inverted lists: GPUs if there are any that faiss can use.

    Where there are GPUs, but the package there is faiss-cpu, it says that CPUs do the work.
    """
    gpus = with_gpus_and_cpus(pool)
    if not gpus.gpus:
        return pool, "cpu"
    if run_once(faiss_has_gpu, pool=gpus, label=label):
        return gpus, "cuda"
    announce(
        f"{label}: faiss cannot use the GPUs, and works on CPUs; requirements-gpu.txt has the "
        "package that can"
    )
    return pool, "cpu"


def write_index(
    database: Features,
    method: ApproximateSearch,
    folder: Folder,
    name: str,
    seed: int,
    device: Device,
    threads: int,
) -> None:
    """Build an approximate index, and write its bytes as an array into a folder.

    Parameters
    ----------
    database, method, seed, device, threads : see `ApproximateIndex.of`
    folder, name : of the file
    """
    index = ApproximateIndex.of(database, method, seed=seed, device=device, threads=threads)
    write_array(folder, name, index.trained)


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
    scratch : folder for what is found up to a part, until the next one is searched
    output : folder of the shards; existing ones are kept
    pool : the actors to run
    device : "cpu" or "cuda"
    """
    if _complete(work, output):
        return
    n = len(database)
    # Each folder has the neighbours among all items below its number.
    known = [int(name) for name in scratch.folders() if name.isdigit()]
    reached = max((stop for stop in known if _complete(work, scratch / _name(stop))), default=0)
    left = -(-parts * (n - reached) // n)
    bounds = np.linspace(reached, n, left + 1).astype(int).tolist()
    queries, options = ray.put(database), {"device": device, "threads": pool.cpus}
    for number, (first, stop) in enumerate(pairwise(bounds), parts - left + 1):
        before = scratch / _name(first) if first else None
        release_kept()  # of the part before
        announce(f"k-NN: part {number} of {parts}, items {first:,} to {stop - 1:,}")
        index = ray.put(ExactIndex.of(database.read(first, stop), device=device))
        run_units(
            work,
            NeighborWorker,
            ([index, queries], k, options, first, before),
            output=output if stop == n else scratch / _name(stop),
            pool=pool,
            label=f"k-NN {number}/{parts}",
        )
        del index
        if before is not None:
            before.remove()


def _name(stop: int) -> str:
    return f"{stop:012d}"


def _complete(work: pa.Table, output: Folder) -> bool:
    return not len(missing_units(work, output)[0])
