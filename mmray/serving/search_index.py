"""A search index: the images it holds, their vectors, and the search for the nearest.

n images that could be read, d dimensions, q queries, k results.

On disk it is a folder: images.parquet (a row for each image, the unreadable ones too), vectors.npy
(n x d), ivf-pq.faiss where the index is compressed, index.json, and the model, so that queries are
described as the images were.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmray.descriptors.settings import is_size
from mmray.images.collection import SCHEMA, Collection
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.knn.results import Neighbors, finite_norms
from mmray.serving.compressed_index import CompressedIndex
from mmray.system.arrays import Features, Ids
from mmray.system.folder import Folder
from mmray.system.foreign import JsonObject, reported
from mmray.system.formats import read_array, write_header

IMAGES, VECTORS, COMPRESSED, ABOUT, MODEL = (
    *("images.parquet", "vectors.npy", "ivf-pq.faiss", "index.json", "model"),
)
DIGEST = "compressed_sha256"  # key of index.json, where there is ivf-pq.faiss
_REMEDY = "remove the index and make it anew by `jobs/search.py index`"
COLUMNS = pa.schema([*SCHEMA, pa.field("source", pa.large_string()), pa.field("row", pa.int64())])
FRESH, UNREADABLE = -2, -1  # rows of images without a vector: not described yet, not readable
_BLOCK_ROWS = 65_536


class Catalog:
    """The images of an index as a table: the columns of `Collection`, the source, and the row.

    The row is that of the image's vector, FRESH, or UNREADABLE; then `error` says why.
    """

    def __init__(self, table: pa.Table) -> None:
        assert table.schema.equals(COLUMNS), table.schema
        self.table = table.combine_chunks()

    @classmethod
    def empty(cls) -> "Catalog":
        return cls(COLUMNS.empty_table())

    def __len__(self) -> int:
        return len(self.table)

    @property
    def rows(self) -> Ids:
        """Return the row of each of the m images, (m,) int64."""
        rows: Ids = self.table["row"].to_numpy()
        return rows

    @property
    def images(self) -> Collection:
        return Collection(self.table.select(SCHEMA.names))

    def readable(self) -> Collection:
        """Return the n images with a vector, in the order of the vectors."""
        return self.images.take(np.flatnonzero(self.rows >= 0))

    def unreadable(self) -> list[tuple[str, str]]:
        """List the location of each unreadable image and the reason."""
        bad = self.table.filter(pc.equal(self.table["row"], UNREADABLE))
        places = Collection(bad.select(SCHEMA.names)).locations.to_pylist()
        return list(zip(places, bad["error"].to_pylist(), strict=True))

    def merged(self, listed: Sequence[tuple[str, Collection]], *, retry: bool) -> "Catalog":
        """Update the images of some sources to those listed now; images of other sources stay.

        An image is known by its location and its size; one that is listed twice counts once. Rows
        still refer to the old vectors; a new or changed image has the row FRESH.

        Parameters
        ----------
        listed : each source to update, with its current images
        retry : whether images that could not be read become FRESH too
        """
        named = [source for source, _ in listed]
        others = pc.invert(pc.is_in(self.table["source"], pa.array(named, pa.large_string())))
        parts = [self.table.filter(others)]
        states = zip(self.rows.tolist(), self.table["error"].to_pylist(), strict=True)
        known = dict(zip(_keys(self.table), states, strict=True))
        if retry:
            known = {key: state for key, state in known.items() if state[0] != UNREADABLE}
        for source, images in listed:
            errors = images.table["error"].to_pylist()
            keys = zip(_keys(images.table), errors, strict=True)
            parts.append(_table(images, source, [known.get(k, (FRESH, why)) for k, why in keys]))
        joined = pa.concat_tables(parts)
        first = list({key: place for place, key in reversed([*enumerate(_keys(joined))])}.values())
        return Catalog(joined.take(pa.array(sorted(first), pa.int64())))

    def with_descriptors(self, read: Ids, why: Sequence[str | None]) -> tuple["Catalog", Ids]:
        """Renumber the rows from 0 to n - 1, once the fresh images have been described.

        Parameters
        ----------
        read : (r,) int64, places among the fresh images of those that could be read
        why : the error of each fresh image; None for those that could be read

        Returns
        -------
        (catalog, origins) : the catalog, and for each of its n vectors its origin, (n,) int64: a
        row of the old vectors, or -1 - i for the i-th new vector.
        """
        rows, errors = self.rows.copy(), self.table["error"].to_pylist()
        fresh = np.flatnonzero(rows == FRESH)
        new = np.full(len(fresh), UNREADABLE, np.int64)
        origins = np.where(rows >= 0, rows, 0)
        new[read] = 0
        origins[fresh[read]] = -1 - np.arange(len(read))
        rows[fresh] = new
        for place, reason in zip(fresh, why, strict=True):
            errors[place] = reason
        readable = np.flatnonzero(rows >= 0)
        rows[readable] = np.arange(len(readable))
        columns = dict(zip(COLUMNS.names, self.table.columns, strict=True))
        columns["row"] = pa.array(rows, pa.int64())
        columns["error"] = pa.array(errors, pa.large_string())
        return Catalog(pa.table(columns, COLUMNS)), origins[readable]


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    places = Collection(table.select(SCHEMA.names)).locations.to_pylist()
    return list(zip(places, table["size"].to_pylist(), strict=True))


def _table(images: Collection, source: str, states: Sequence[tuple[int, str | None]]) -> pa.Table:
    """Make the rows of a catalog for the images of a source, with the row and error of each."""
    count, columns = len(images), dict(zip(SCHEMA.names, images.table.columns, strict=True))
    columns["error"] = pa.array([error for _, error in states], pa.large_string())
    columns["source"] = pa.array([source] * count, pa.large_string())
    columns["row"] = pa.array([row for row, _ in states], pa.int64())
    return pa.table(columns, COLUMNS)


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
    """Read vectors.npy, mapped where it is local; InputError where it does not fit the images."""
    n = int(np.count_nonzero(catalog.rows >= 0))
    with reported(folder.location(VECTORS), _REMEDY):
        # numpy compares the size of the file with its header before it maps it.
        vectors = read_array(folder, VECTORS)
        if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.flags.c_contiguous:
            raise ValueError(f"an array of shape {vectors.shape} and type {vectors.dtype}")
        if len(vectors) != n:
            raise ValueError(f"{len(vectors)} vectors of {n} images")
        return vectors


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchIndex:
    """A search index for reading, its vectors memory-mapped where it is local.

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
        else:
            with reported(folder.location(VECTORS), _REMEDY):
                finite_norms(vectors, "vectors")
        return cls(
            images=images,
            vectors=vectors,
            compressed=compressed,
            about=dict(about.values),
            model=folder / MODEL,
        )

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
        k, threads = min(k, len(self.vectors)), os.cpu_count() or 1
        if self.compressed is not None:
            return self.compressed.search(queries, k, probes=probes, threads=threads)
        return nearest_neighbors(np.asarray(self.vectors), queries, k, threads=threads)
