"""Ways to search an index, as `jobs/search.py query` does: how fast, how large, how much is found.

n items, d dims, q queries, k neighbours.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from benchmarks.mining import manifold_features, seconds
from mmray.mining.knn.exact import ExactIndex, nearest_neighbors
from mmray.mining.knn.recall import recall
from mmray.mining.knn.results import Neighbors
from mmray.serving.compressed_index import FEWEST, CompressedIndex, digest_of
from mmray.serving.search_index import VECTORS
from mmray.system.arrays import Features
from mmray.system.folder import Folder
from mmray.system.formats import read_array, write_array


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The figures of one way to search.

    Attributes
    ----------
    probes : cells looked into, None where there are none
    building : seconds, beside writing the vectors
    size : MB that are searched first: the vectors, or what faiss keeps of them
    alone : ms of a query that comes alone, the median
    together : ms of a query where all come at once, the mean
    recall : how much of the exact result is found, from 0 to 1
    """

    way: str
    probes: int | None
    building: float
    size: float
    alone: float
    together: float
    recall: float

    def row(self) -> tuple[str, ...]:
        """Return the row of the printed table."""
        probes = "" if self.probes is None else str(self.probes)
        times = f"{self.alone:.2f}", f"{self.together:.2f}"
        return (
            *(self.way, probes, f"{self.building:.1f}", f"{self.size:,.1f}"),
            *(*times, f"{self.recall:.3f}"),
        )


class _Search(Protocol):
    def __call__(self, queries: Features, k: int, *, threads: int) -> Neighbors: ...


def stored_features(
    folder: Folder, n: int, d: int, *, queries: int, intrinsic: int
) -> tuple[Features, Features]:
    """Features of one manifold: vectors in a file, as an index has them, and queries beside them.

    Returns
    -------
    (n, d) float32, memory-mapped, and (queries, d) float32, none of which is in the file.
    """
    features = manifold_features(n + queries, d, intrinsic=intrinsic)
    write_array(folder, VECTORS, features[:n])
    return read_array(folder, VECTORS), features[n:].copy()


def compare_search(
    vectors: Features, queries: Features, k: int, *, probes: Sequence[int], threads: int
) -> list[Searched]:
    """Exact search, then a compressed index with so many probes each.

    The vectors are in memory where they fit in it: they have just been read.

    Parameters
    ----------
    vectors : (n, d) float32, l2-normalised
    queries : (q, d) float32

    Raises
    ------
    ValueError
        There are too few vectors for codes.
    """
    start = time.perf_counter()
    flat = ExactIndex.of(vectors, half=False).search  # as `SearchIndex` does
    preparing = time.perf_counter() - start
    for some in (queries[:1], queries):
        nearest_neighbors(vectors[:FEWEST], some, k)  # compiles
    exact = flat(queries, k, threads=threads)
    start = time.perf_counter()
    stored = CompressedIndex.of(vectors, threads=threads).to_bytes()
    building = time.perf_counter() - start
    compressed = CompressedIndex.from_bytes(stored, vectors, digest=digest_of(stored))

    def searched(
        way: str, probed: int | None, find: _Search, building: float, size: int
    ) -> Searched:
        found = find(queries, k, threads=threads)
        alone = [
            seconds(partial(find, queries[row : row + 1], k, threads=threads))
            for row in range(len(queries))
        ]
        return Searched(
            way=way,
            probes=probed,
            building=building,
            size=size / 1e6,
            alone=float(np.median(alone)) * 1e3,
            together=seconds(partial(find, queries, k, threads=threads)) / len(queries) * 1e3,
            recall=recall(found, exact),
        )

    return [
        searched("flat", None, flat, preparing, vectors.nbytes),
        *(
            searched("ivf-pq", each, partial(compressed.search, probes=each), building, len(stored))
            for each in probes
        ),
    ]
