"""A search index: the images it holds, their vectors, and the search for the nearest.

n images that could be read, d dimensions, q queries, k results.

On disk it is a folder: images.parquet (a row for each image, the unreadable ones too), vectors.npy
(n x d), ivf-pq.faiss where the index is compressed, index.json, containers.json (sizes and times of
tar and Parquet files), and the model, so that queries are described as the images were.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from joblib import cpu_count

from mmray.descriptors.settings import is_size
from mmray.images.collection import Collection
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.results import Neighbors
from mmray.serving.catalog import COLUMNS, UNREADABLE, Catalog
from mmray.serving.compressed_index import CompressedIndex, digest_of
from mmray.system.arrays import Device, Features, Ids
from mmray.system.folder import Folder
from mmray.system.foreign import JsonObject, read_npy, reported
from mmray.system.formats import read_array, write_header

IMAGES, VECTORS, COMPRESSED = "images.parquet", "vectors.npy", "ivf-pq.faiss"
ABOUT, CONTAINERS, MODEL = "index.json", "containers.json", "model"
DIGEST = "compressed_sha256"  # key of index.json, where there is ivf-pq.faiss
_REMEDY = "remove the index and make it anew by `jobs/search.py index`"
_BLOCK_ROWS = 65_536
_IN_MEMORY = 1 << 28  # bytes of vectors that are read whole in a tenth of a second


def write_vectors(
    folder: Folder,
    origins: Ids,
    *,
    old: Features,
    new: Features,
    whiten: Callable[[Features], Features],
) -> None:
    """Write vectors.npy, a block of rows at a time.

    Parameters
    ----------
    folder : of the index
    origins : (n,) int64, see `Catalog.with_descriptors`
    old : (m, d) float32, the vectors so far
    new : (l, c) float32, the descriptors of new images
    whiten : (b, c) float32 -> (b, d) float32
    """
    with folder.writing(VECTORS) as sink:
        write_header(sink, (len(origins), old.shape[1]))
        for start in range(0, len(origins), _BLOCK_ROWS):
            part = origins[start : start + _BLOCK_ROWS]
            block = np.empty((len(part), old.shape[1]), np.float32)
            is_old = part >= 0
            block[is_old] = old[part[is_old]]
            if not is_old.all():
                block[~is_old] = whiten(new[-1 - part[~is_old]])
            sink.write(block.tobytes())


def write_codes(folder: Folder, seed: int, device: Device, threads: int) -> str:
    """Write the compressed index of the vectors in a folder, and return its checksum.

    Parameters
    ----------
    folder : of the vectors
    seed, device, threads : see `CompressedIndex.of`
    """
    vectors = read_array(folder, VECTORS)
    compressed = CompressedIndex.of(vectors, seed=seed, device=device, threads=threads)
    stored = compressed.to_bytes()
    folder.write(COMPRESSED, stored)
    return digest_of(stored)


# -- reading --------------------------------------------------------------------------------------


def read_about(folder: Folder) -> JsonObject:
    """Read index.json, in which `longest_side` is checked."""
    about = JsonObject.read(folder, ABOUT, "not the description of an index", _REMEDY)
    expected = "a whole number of pixels from 1, or null"
    about.value("longest_side", lambda side: side is None or is_size(side), expected)
    return about


def read_catalog(folder: Folder) -> Catalog:
    """Read images.parquet; InputError where its columns or rows are others."""
    with reported(folder.location(IMAGES), _REMEDY):
        table = folder.read_table(IMAGES).cast(COLUMNS)
        table.validate(full=True)
        rows = table["row"].to_numpy()
        places = rows[rows >= 0]
        if table["row"].null_count or rows.min(initial=0) < UNREADABLE:
            raise ValueError("an image without the row of its vector")
        if not np.array_equal(places, np.arange(len(places))):
            raise ValueError("rows of vectors that are not 0, 1, 2 and so on")
        return Catalog(table)


def read_vectors(folder: Folder, catalog: Catalog) -> Features:
    """Read vectors.npy; InputError where it does not fit the images.

    It is mapped where it is local and large. Then it must stay as it is: SIGBUS ends a process that
    looks at a page which was cut off meanwhile, or removed on a file system of the network, and no
    check before could rule that out.
    """
    n = int(np.count_nonzero(catalog.rows >= 0))
    with reported(folder.location(VECTORS), _REMEDY):
        with folder.reading(VECTORS) as source:
            size = source.size()
            in_memory = folder.local is None or size <= _IN_MEMORY
            # numpy too compares the size of the file with its header before it maps it.
            vectors = read_npy(source, size) if in_memory else read_array(folder, VECTORS)
        if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.flags.c_contiguous:
            raise ValueError(f"an array of shape {vectors.shape} and type {vectors.dtype}")
        if len(vectors) != n:
            raise ValueError(f"{len(vectors)} vectors of {n} images")
        return vectors


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchIndex:
    """A search index for reading, its vectors as `read_vectors` returns them.

    Attributes
    ----------
    images : n images
    vectors : (n, d) float32, l2-normalised
    compressed : IVF-PQ index of the vectors; None: queries are compared with all of them
    about : settings that the images were described with
    model : folder of the model
    """

    images: Collection
    vectors: Features
    compressed: CompressedIndex | None
    about: dict[str, Any]
    model: Folder

    @classmethod
    def read(cls, folder: Folder) -> "SearchIndex":
        """Read an index from its folder.

        Raises
        ------
        InputError
            A file in it is missing, damaged, or does not fit the others.
        """
        about, catalog = read_about(folder), read_catalog(folder)
        images, vectors, compressed = catalog.readable(), read_vectors(folder, catalog), None
        if folder.has(COMPRESSED):
            with reported(folder.location(COMPRESSED), _REMEDY):
                digest = about.value(DIGEST, _is_text, "write its checksum", None)
                stored = folder.read(COMPRESSED)
                compressed = CompressedIndex.from_bytes(stored, vectors, digest=digest)
        index = cls(
            images=images,
            vectors=vectors,
            compressed=compressed,
            about=dict(about.values),
            model=folder / MODEL,
        )
        if compressed is None:
            with reported(folder.location(VECTORS), _REMEDY):
                _ = index.exact
        return index

    @cached_property
    def exact(self) -> ExactIndex:
        """The vectors, prepared once for all queries; ValueError where one is not finite."""
        # A few queries at a time are faster in float32, and one needs no second copy of vectors.
        return ExactIndex.of(np.asarray(self.vectors), half=False)

    def nearest(self, queries: Features, k: int, *, probes: int) -> Neighbors:
        """Find the k images with the highest cosines, or all if there are fewer.

        Parameters
        ----------
        queries : (q, d) float32, l2-normalised
        k : at least 1
        probes : number of cells that a compressed index searches

        Raises
        ------
        ValueError
            The dimensions differ, k or probes is not positive, or a row is not finite.
        """
        k, threads = min(k, len(self.vectors)), cpu_count()
        if self.compressed is not None:
            return self.compressed.search(queries, k, probes=probes, threads=threads)
        return self.exact.search(queries, k, threads=threads)
