"""Approximate search of sets too large for memory: k-means cells, compressed vectors.

n items, q queries, d dimensions, k neighbours.

faiss proposes candidates from the cells nearest to a query by codes of 64 bytes (IVF-PQ: Jégou,
Douze, Schmid, "Product quantization for nearest neighbor search", PAMI 2011). Their similarities
are then computed from the vectors themselves, which may lie on a disk: an item may be missed, but
the order and the similarities of those found are exact.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmray.mining.knn.faiss_library import (
    add,
    enough_memory,
    faiss,
    faiss_has_gpu,
    faiss_threads,
    train,
)
from mmray.mining.knn.results import Neighbors, checked_norms, rescored
from mmray.serving.index_check import check_restorable
from mmray.system.arrays import Device, Features
from mmray.system.errors import InputError

FEWEST = 10_000  # items needed to learn 256 centroids for every part of a vector
_CODE = 64  # bytes of an item, at most
_FETCH = 10  # candidates for each neighbour
_POINTS_PER_CELL = 64  # size of the sample that k-means learns from, per cell
_BLOCK_ROWS = 2**16  # rows given to faiss at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class CompressedIndex:
    """A database, memory-mapped or not, with the IVF-PQ index of faiss over it.

    Attributes
    ----------
    database : (n, d) float32
    index : faiss.IndexIVFPQ
    """

    database: Features
    index: Any

    @classmethod
    def of(
        cls, database: Features, *, seed: int = 0, device: Device = "cpu", threads: int = 1
    ) -> "CompressedIndex":
        """Build an index: learn 4 √n cells and the codes from a sample, then add all items.

        Parameters
        ----------
        database : (n, d) float32, l2-normalised
        seed : of the sample
        device : "cpu" or "cuda", where cells are learned and items assigned, if faiss has a GPU
        threads : CPU threads, at least 1

        Raises
        ------
        ValueError
            There are too few items to learn from.
        InputError
            The GPU has too little memory.
        """
        n, d = database.shape
        if n < FEWEST:
            raise ValueError(f"{n} items are too few for codes: there must be {FEWEST:,}")
        cells = max(1, min(round(4 * n**0.5), n // _POINTS_PER_CELL))
        drawn = np.random.default_rng(seed).choice(n, min(n, _POINTS_PER_CELL * cells), False)
        parts = max(part for part in range(1, min(_CODE, d) + 1) if d % part == 0)
        metric = faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(d), d, cells, parts, 8, metric)
        # Codes are of the vectors themselves, not of their differences from the centroid: centroids
        # are normalised, so the difference is longer than the vector where their cosine is below
        # 0.5, as for four in five whitened descriptors. On photos, with 64 probes, this found more
        # of the true neighbours, also where the cosine is 0.8.
        index.by_residual = False
        gpu = device == "cuda" and faiss_has_gpu()
        blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, n, _BLOCK_ROWS)]
        with faiss_threads(threads), enough_memory("building cells and codes", "--num-gpus 0"):
            train(index, np.ascontiguousarray(database[np.sort(drawn)]), gpu=gpu)
            add(index, (np.ascontiguousarray(database[rows]) for rows in blocks), gpu=gpu)
        return cls(database=database, index=index)

    def search(self, queries: Features, k: int, *, probes: int, threads: int = 1) -> Neighbors:
        """Find the k most similar items among those in the cells nearest to each query.

        Parameters
        ----------
        queries : (q, d) float32
        k : from 1 to n
        probes : cells to search, at least 1; more are searched where these hold fewer than k items
        threads : CPU threads, at least 1

        Raises
        ------
        ValueError
            The dimensions differ, k is outside 1..n, probes is not positive, or a row is not
            finite.
        """
        checked_norms(self.database, queries, k)
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        n, queries = len(self.database), np.ascontiguousarray(queries)
        while True:
            parameters = faiss.SearchParametersIVF(nprobe=min(probes, self.index.nlist))
            with faiss_threads(threads):
                candidates = self.index.search(queries, min(n, _FETCH * k), params=parameters)[1]
            counts = np.count_nonzero(candidates >= 0, axis=1)
            if (counts >= k).all():
                break
            if probes >= self.index.nlist:  # with all cells, all items are found
                raise InputError("the compressed index lacks items that there are; make it anew")
            probes *= 4
        if candidates.max(initial=-1) >= n:
            raise InputError("the compressed index names items that there are not; make it anew")
        candidates[candidates < 0] = n
        candidates.sort(axis=1)
        return rescored(self.database, queries, candidates, counts, k)

    def to_bytes(self) -> bytes:
        """Serialise the index of faiss, without the database."""
        return bytes(faiss.serialize_index(self.index))

    @classmethod
    def from_bytes(
        cls, stored: bytes, database: Features, *, digest: str | None = None
    ) -> "CompressedIndex":
        """Restore an index over a database (n, d) from the output of `to_bytes`.

        Parameters
        ----------
        stored : compared with the digest before faiss sees it, which may crash on damaged bytes
        database : (n, d) float32
        digest : `digest_of` what was written; None, as in indexes of earlier versions: faiss
            tries it in a process of its own first

        Raises
        ------
        ValueError, RuntimeError
            The bytes are damaged, or of an index of other vectors.
        """
        if digest is None:
            check_restorable(stored)
        elif digest_of(stored) != digest:
            raise ValueError("its checksum is another than when it was written")
        index = faiss.deserialize_index(np.frombuffer(stored, np.uint8))
        if not isinstance(index, faiss.IndexIVFPQ) or (index.ntotal, index.d) != database.shape:
            raise ValueError(f"not an index of these {len(database)} vectors")
        return cls(database=database, index=index)


def digest_of(stored: bytes) -> str:
    """Return the checksum of a serialised index."""
    return hashlib.sha256(stored).hexdigest()
