"""faiss: the module as it is loaded, its threads, and its work on a GPU.

An index of inverted lists stays an index of the CPU. A GPU finds the centroids of k-means, assigns
items to lists, and searches a copy; codes are made, and bytes written, by the CPU. Nothing is
converted back from a GPU, so that settings and format are those of an index built without one
(faiss's `index_gpu_to_cpu` would make `by_residual` true in an IVF-PQ, and refuses to copy ours).

What it relies on, of faiss 1.15: k-means asks `clustering_index` for the nearest centroids of its
sample, and does all else itself, by the seed and the settings of the index (`cp`); `add_core` takes
assignments that are made already; `search_preassigned_c` is the same for both kinds of index. A GPU
sums float32 in another order than a CPU, so that an item halfway between two centroids may go to
the other, and the centroids differ in their last bits. Codes of product quantization are learned
and made on the CPU: they cost a small part of what assignments do.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mmray.mining.knn.results import Neighbors
from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError
from mmray.system.extras import import_extra

# In every process, faiss logs which builds of it were not found before the one that was.
logging.getLogger("faiss").setLevel(logging.WARNING)
faiss = import_extra("faiss", "cpu", "gpu")  # its own stubs lack half of what is called here

MOST_ON_GPU = 2048  # candidates of a query, and lists probed, that a GPU of faiss can select


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Set the number of threads of faiss within the block, for calls from this thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def faiss_has_gpu() -> bool:
    """Tell whether faiss was built for GPUs, and there is one for this process."""
    return bool(faiss.get_num_gpus())


def on_gpu(index: Any) -> Any:
    """Copy an index of faiss to the first GPU of this process; it keeps its resources alive."""
    options = faiss.GpuClonerOptions()
    options.use_cuvs = False  # which builds with cuVS prefer, and which has other lists
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)


def train(index: Any, sample: Features, *, gpu: bool) -> None:
    """Train an index of inverted lists on a sample (m, d), with k-means on a GPU or without."""
    if not gpu:
        index.train(sample)
        return
    index.clustering_index = clusters = on_gpu(faiss.IndexFlat(index.d, index.metric_type))
    try:
        index.train(sample)
    finally:
        index.clustering_index = None  # faiss does not own it
        del clusters


def add(index: Any, blocks: Iterable[Features], *, gpu: bool) -> None:
    """Add blocks of rows (m, d) to a trained index, assigned to its lists on a GPU or without."""
    centroids = on_gpu(index.quantizer) if gpu else None
    for rows in blocks:
        if centroids is None:
            index.add(rows)
        else:
            lists = centroids.assign(rows, 1)
            index.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(lists))


def search_lists(index: Any, queries: Features, fetch: int, lists: Neighbors) -> Ids:
    """Find candidates (m, fetch) of queries (m, d) in their own lists; -1 where they are fewer.

    Parameters
    ----------
    index : of inverted lists, or its copy on a GPU
    lists : the p lists to search for each query, and their similarities, which faiss passes on
    """
    shape = len(queries), fetch
    found, values = np.empty(shape, np.int64), np.empty(shape, np.float32)
    index.search_preassigned_c(
        len(queries),
        faiss.swig_ptr(queries),
        fetch,
        faiss.swig_ptr(lists.ids),
        faiss.swig_ptr(lists.similarities),
        faiss.swig_ptr(values),
        faiss.swig_ptr(found),
        False,
        faiss.SearchParametersIVF(nprobe=lists.ids.shape[1]),
    )
    return found


@contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Raise an InputError, with a remedy, where the block finds too little memory on a GPU."""
    try:
        yield
    except RuntimeError as error:  # faiss and torch have the words in common
        if "out of memory" not in str(error):
            raise
        raise InputError(f"{what}: a GPU has too little memory free; choose {remedy}") from error
