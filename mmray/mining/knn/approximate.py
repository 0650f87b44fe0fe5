"""Approximate nearest neighbours by inner product, for collections too large for exact search.

n items in the database, q queries, d dimensions, k neighbours.

faiss proposes candidates, from its inverted lists ("ivf") or by walking its graph ("hnsw"). Their
similarities are then computed pair by pair from the database, as in an exact search: the set of
items that are found is approximate, never their order or their similarities. A row of the result
depends on its query, the index and the effort alone: not on the other queries or the threads.
(faiss sums in another order on CPUs with other vector units, and may then propose other items.)

On a GPU, faiss learns the centroids and assigns the items (see `faiss_library`), and searches a
copy of the lists. It sums in another order there too: an index that a GPU built has other
centroids, and a search may propose other items at the edge of the candidates. Past its limits,
2,048 lists or candidates of a query, and for "hnsw", the CPU searches.

faiss holds the vectors in half precision, since they only choose candidates, and compares them by
distance: products of half precision cannot tell near copies of an image apart. Beside the database
that costs 2d + 2 to 2d + 32 bytes an item, and 8 more for "ivf", 272 for "hnsw". All of it lies in
a plain array, which processes can share; only "hnsw" takes 12 bytes an item in each of them.
Building takes some four times the array for a while, and "ivf" a sample of 64 items a list.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.config.choices import ApproximateSearch
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.faiss_library import (
    MOST_ON_GPU,
    add,
    enough_memory,
    faiss,
    faiss_has_gpu,
    faiss_threads,
    on_gpu,
    search_lists,
    train,
)
from mmray.mining.knn.results import Neighbors, checked_norms, finite_norms, rescored
from mmray.system.arrays import Device, Features, Floats, Ids

_POINTS_PER_LIST = 64  # in the sample that k-means learns from; faiss wants at least 39
_LINKS, _BUILD_EFFORT = 32, 100  # M and efConstruction of HNSW
_BLOCK_ENTRIES = 2**22  # candidates and lists held at a time
_BLOCK_ROWS = 2**16  # given to faiss at a time
_GATHERED = 2**27  # numbers of probed centroids on a GPU at a time: a third of its work space
_REMEDY = "--mining.device cpu"
_LANES = 16  # faiss is fast if the number of dimensions is a multiple of this


@dataclass(frozen=True, eq=False, kw_only=True)
class ApproximateIndex:
    """A database with an approximate index by faiss, in plain arrays for shared memory.

    Attributes
    ----------
    database : (n, d) float32
    norm : float
        The largest norm of a row.
    trained : (bytes,) uint8
        The index as faiss writes it.
    method : "ivf" or "hnsw"
        Inverted lists of the cells of k-means, or a hierarchical navigable small-world graph.
    """

    database: Features
    norm: float
    trained: NDArray[np.uint8]
    method: ApproximateSearch

    @classmethod
    def of(
        cls,
        database: Features,
        method: ApproximateSearch,
        *,
        seed: int = 0,
        device: Device = "cpu",
        threads: int = 1,
    ) -> "ApproximateIndex":
        """Build an index of inverted lists or of a graph.

        There are 4 √n lists, or fewer if these would have less than 64 items each.

        Parameters
        ----------
        database : (n, d) float32
            Rows of different lengths take more effort to find than l2-normalised ones.
        method : "ivf" or "hnsw"
            A graph finds more in the same time, and takes far longer to build.
        seed : int
            Of the sample, k-means and the graph's levels.
        device : "cpu" or "cuda"
            Where k-means runs and lists are assigned, if faiss has a GPU; a graph is built on CPUs.
        threads : int
            CPU threads, from 1. Equal seeds give equal bytes with one thread; with several, faiss
            inserts into a graph in no fixed order. Searches need not care: they share the bytes.

        Raises
        ------
        ValueError
            The database has another shape or dtype, is empty, or has a row that is not finite.
        InputError
            The GPU has too little memory.
        """
        if method not in ("ivf", "hnsw"):
            raise ValueError(f"method must be 'ivf' or 'hnsw', got {method!r}")
        norms = finite_norms(database, "database")
        if not database.size:
            raise ValueError(f"database must not be empty, got shape {database.shape}")
        n, norm = len(database), float(norms.max())
        rng, radius = np.random.default_rng(seed), norm or 1.0
        gpu = device == "cuda" and method == "ivf" and faiss_has_gpu()
        with faiss_threads(threads), enough_memory("building inverted lists", _REMEDY):
            if method == "ivf":
                lists = max(1, min(round(4 * n**0.5), n // _POINTS_PER_LIST))
                drawn = np.sort(rng.choice(n, min(n, _POINTS_PER_LIST * lists), replace=False))
                index = _lists(_augmented(database[drawn], norms[drawn], radius), lists, rng, gpu)
            else:
                index = _graph(_lifted_dims(database.shape[1]), rng)
            blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, n, _BLOCK_ROWS)]
            add(index, (_augmented(database[b], norms[b], radius) for b in blocks), gpu=gpu)
        return cls(
            database=np.ascontiguousarray(database),
            norm=norm,
            trained=faiss.serialize_index(index),
            method=method,
        )

    def search(
        self, queries: Features, k: int, *, effort: int, device: Device = "cpu", threads: int = 1
    ) -> Neighbors:
        """Find the k most similar items among those that an effort reaches.

        Parameters
        ----------
        queries : (q, d) float32
        k : int
            1..n.
        effort : int
            From 1. For "ivf", the lists probed (nprobe): the result is exact from their number on.
            For "hnsw", the candidates kept on the walk (efSearch), 2 k at least: exact from n on.
        device : "cpu" or "cuda"
            Where lists are searched, if faiss has a GPU: it may find other items than a CPU.
        threads : int
            CPU threads, from 1; the result does not depend on them.

        Returns
        -------
        Neighbors : k different ids in every row. Where the effort finds fewer than k items, more
            lists are probed, and where a graph's connected part is too small, the row is exact.
            If an item has more copies than k, any of them may be found.

        Raises
        ------
        ValueError
            The dimensions differ, k is outside 1..n, effort is not positive, or a row is not
            finite.
        InputError
            The GPU has too little memory.
        """
        queries = np.ascontiguousarray(queries)
        norms = checked_norms(self.database, queries, k)
        if effort < 1:
            raise ValueError(f"effort must be at least 1, got {effort}")
        shape = len(queries), k
        ids, similarities = np.empty(shape, np.int64), np.empty(shape, np.float32)
        pending, exhaustive = np.flatnonzero(norms), self._exhaustive
        while len(pending) and effort < exhaustive:
            gpu = device == "cuda" and self._fits_gpu(k, effort)
            most = _GATHERED // (effort * _lifted_dims(queries.shape[1])) if gpu else len(pending)
            size = max(1, min(most, _BLOCK_ENTRIES // (2 * k + effort)))
            unfilled = []
            for start in range(0, len(pending), size):
                rows = pending[start : start + size]
                full, found = self._attempt(queries[rows], norms[rows], k, effort, threads, gpu)
                ids[rows[full]], similarities[rows[full]] = found.ids, found.similarities
                unfilled.append(rows[~full])
            pending = np.concatenate(unfilled)
            # A walk that finds too little has seen everything that it can reach.
            effort = 4 * effort if self.method == "ivf" else exhaustive
        # Zeros come here too: all items are equally similar to them, and the first ids are known.
        left = np.concatenate([np.flatnonzero(norms == 0), pending])
        found = self._exact.search(queries[left], k, threads=threads)
        ids[left], similarities[left] = found.ids, found.similarities
        return Neighbors(ids, similarities)

    @property
    def _exact(self) -> ExactIndex:
        none = np.empty((0, self.database.shape[1]), np.uint16)
        return ExactIndex(database=self.database, norm=self.norm, half=none, half_error=0.0)

    @property
    def _exhaustive(self) -> int:
        """The effort that leaves no item out."""
        return len(self._centroids.database) if self.method == "ivf" else len(self.database)

    def _attempt(
        self, queries: Features, norms: Floats, k: int, effort: int, threads: int, gpu: bool = False
    ) -> tuple[NDArray[np.bool_], Neighbors]:
        """Search m nonzero queries once; return which found k items (m,), and their neighbours."""
        n = len(self.database)
        fetch = min(n, 2 * k)  # includes items that half precision ranks somewhat too low
        lifted = _augmented(queries, norms, norms)
        if self.method == "ivf":
            candidates = self._probe(lifted, fetch, effort, threads, gpu)
        else:
            candidates = self._walk(lifted, fetch, effort, threads)
        candidates[candidates < 0] = n
        candidates.sort(axis=1)
        counts = np.count_nonzero(candidates < n, axis=1)
        full = counts >= k
        return full, rescored(self.database, queries[full], candidates[full], counts[full], k)

    def _probe(self, queries: Features, fetch: int, effort: int, threads: int, gpu: bool) -> Ids:
        """Find candidates (m, fetch) in the lists nearest to each query; -1 if they are fewer."""
        with faiss_threads(threads), enough_memory("searching inverted lists", _REMEDY):
            # Not chosen by faiss, whose products round differently in batches of other sizes.
            nearest = self._centroids.search(
                queries, effort, device="cuda" if gpu else "cpu", threads=threads
            )
            return search_lists(self._copy_on_gpu if gpu else self._index, queries, fetch, nearest)

    def _fits_gpu(self, k: int, effort: int) -> bool:
        """Tell whether faiss has a GPU that can search so many lists for k neighbours."""
        most = max(min(len(self.database), 2 * k), effort)
        return self.method == "ivf" and most <= MOST_ON_GPU and faiss_has_gpu()

    def _walk(self, queries: Features, fetch: int, effort: int, threads: int) -> Ids:
        """Find candidates (m, fetch) by walking the graph; -1 where there are fewer."""
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort, fetch))
        with faiss_threads(threads):
            found: Ids = self._index.search(queries, fetch, params=parameters)[1]
        return found

    @cached_property
    def _index(self) -> Any:
        """The index of faiss, whose vectors and links stay where they lie in `trained`."""
        return faiss.read_index(
            faiss.ZeroCopyIOReader(faiss.swig_ptr(self.trained), self.trained.size)
        )

    @cached_property
    def _copy_on_gpu(self) -> Any:
        """The index in the memory of the GPU, from the first search there on."""
        return on_gpu(self._index)

    @cached_property
    def _centroids(self) -> ExactIndex:
        return ExactIndex.of(self._index.quantizer.reconstruct_n(0, self._index.nlist))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _augmented(rows: Features, norms: Floats, radius: float | Floats) -> Features:
    """Map rows (m, d) to points of the unit sphere, (m, d + 1 or more), nearer if more similar.

    x goes to (x/r, sqrt(1 - |x|²/r²)), the radius r the largest norm in the database. Its own norm
    is the radius of a query q, which goes to (q/|q|, 0): their squared distance is
    2 - 2 qᵀx / (r|q|) (Bachrach et al., RecSys 2014).
    """
    d = rows.shape[1]
    lifted = np.zeros((len(rows), _lifted_dims(d)), np.float32)
    np.divide(rows, np.reshape(radius, (-1, 1)), out=lifted[:, :d], casting="same_kind")
    lifted[:, d] = np.sqrt(1 - (norms / radius) ** 2)
    return lifted


def _lifted_dims(d: int) -> int:
    return (d // _LANES + 1) * _LANES


def _lists(sample: Features, lists: int, rng: np.random.Generator, gpu: bool) -> Any:
    """Create an empty faiss index of inverted lists, around centroids of points of the sphere."""
    d = sample.shape[1]
    # The difference from the centroid is rounded, which is shorter than the vector.
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatL2(d), d, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2, True
    )
    if lists == 1:  # all items go there, wherever it is
        index.quantizer.add(sample[:1])
    index.cp.spherical = True
    index.cp.seed = int(rng.integers(2**31))
    train(index, sample, gpu=gpu)
    return index


def _graph(d: int, rng: np.random.Generator) -> Any:
    """Create an empty faiss index of a navigable graph of points with d coordinates."""
    index = faiss.IndexHNSWSQ(d, faiss.ScalarQuantizer.QT_fp16, _LINKS, faiss.METRIC_L2)
    index.hnsw.efConstruction = _BUILD_EFFORT
    index.hnsw.rng = faiss.RandomGenerator(int(rng.integers(2**31)))
    return index
