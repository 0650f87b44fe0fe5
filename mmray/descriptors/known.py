"""Descriptors of earlier extractions, found by the content of images.

n known images, p poolings, d dims.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmray.descriptors.shards import HASH, HASHES, column_of, rows_of
from mmray.system.arrays import Features
from mmray.system.errors import DamagedFileError
from mmray.system.folder import Folder

_OPEN_SHARDS = 4  # kept in memory: images of a unit lie in few shards of an earlier extraction
_KEY = np.dtype(">u8")


@dataclass(frozen=True, eq=False)
class KnownDescriptors:
    """Images that were described before, by the same network in the same way.

    Attributes
    ----------
    keys : (n, 2) uint64, ascending by the first column
        The first 16 bytes of the digest of each content.
    places : (n, 3) int32, the number of the extraction, the shard in it, and the row in this
    sizes : (n, 2) int32, width and height of the whole image, pixels
    shards : the folder of the shards of each extraction, and the names in it
    poolings : p names, of the columns of descriptors
    """

    keys: NDArray[np.uint64]
    places: NDArray[np.int32]
    sizes: NDArray[np.int32]
    shards: Sequence[tuple[Folder, Sequence[str]]]
    poolings: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, extractions: Sequence[Folder], poolings: Sequence[str]) -> "KnownDescriptors":
        """Collect what finished extractions described; those of earlier versions have no digests.

        Parameters
        ----------
        extractions : their folders, with images.parquet
        poolings : of all of them
        """
        keys, places, sizes = [], [], []
        shards: list[tuple[Folder, Sequence[str]]] = []
        for folder in extractions:
            try:
                table = folder.read_table(
                    "images.parquet", ["digest", "shard", "row", "width", "height"]
                )
            except (DamagedFileError, FileNotFoundError):
                continue
            keys.append(_keys(table["digest"]))
            shards.append((folder / "features", (folder / "features").names()))
            number = pa.chunked_array([np.full(len(table), len(shards) - 1, np.int32)])
            places.append(_columns(number, table["shard"], table["row"]))
            sizes.append(_columns(table["width"], table["height"]))
        joined = np.concatenate([np.empty((0, 2), np.uint64), *keys])
        order = np.unique(joined[:, 0], return_index=True)[1]
        return cls(
            joined[order],
            np.concatenate([np.empty((0, 3), np.int32), *places])[order],
            np.concatenate([np.empty((0, 2), np.int32), *sizes])[order],
            shards,
            poolings,
        )

    def count(self, digests: pa.ChunkedArray) -> int:
        """Count the images that are known, by their digests."""
        wanted, known = np.sort(_keys(digests)[:, 0]), self.keys[:, 0]
        # Sorted ones are found one beside the other: a thirtieth of the time of `np.isin`.
        places = np.searchsorted(known, wanted)
        there = places < len(known)
        return int(np.count_nonzero(known[places[there]] == wanted[there]))

    def find(self, digest: bytes) -> "KnownImage | None":
        """Return what is known of the image whose content has this digest (32 bytes)."""
        first, second = np.frombuffer(digest[:16], _KEY).astype(np.uint64)
        place = int(np.searchsorted(self.keys[:, 0], first))
        if place == len(self) or not np.array_equal(self.keys[place], (first, second)):
            return None
        number, shard, row = self.places[place].tolist()
        folder, names = self.shards[number]
        columns = tuple(column_of(self.poolings, pooling) for pooling in self.poolings)
        found = _read_shard(folder, names[shard], columns) if shard < len(names) else None
        # Where shards were lost, others have their numbers: the row itself says whose it is.
        if found is None or row >= len(found.digests) or found.digests[row] != digest:
            return None
        width, height = self.sizes[place].tolist()
        return KnownImage(width, height, found.descriptors[row], found.hashes[row])


@dataclass(frozen=True, eq=False)
class _Shard:
    """The descriptors (m, p, d) in a shard, and the digest and hash of each content."""

    descriptors: Features
    digests: Sequence[bytes | None]
    hashes: Sequence[int | None]


@lru_cache(_OPEN_SHARDS)
def _read_shard(folder: Folder, name: str, columns: tuple[str, ...]) -> _Shard | None:
    """Read what is in a shard; None where it cannot be read any more."""
    try:
        table = folder.read_table(name, ["digest", *columns], HASHES)
    except (DamagedFileError, FileNotFoundError):
        return None
    rows = np.stack([rows_of(table[column]) for column in columns], axis=1)
    return _Shard(rows, table["digest"].to_pylist(), table[HASH].to_pylist())


@dataclass(frozen=True, eq=False)
class KnownImage:
    """A known image: its size in pixels, its descriptors (p, d) float32, its perceptual hash.

    The hash is None where an earlier version described it.
    """

    width: int
    height: int
    descriptors: Features
    perceptual_hash: int | None


def _keys(digests: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return the first 16 bytes of digests of 32 bytes as (n, 2) uint64."""
    parts = [np.empty((0, 2), np.uint64)]
    for chunk in digests.chunks:  # as bytes objects, ten million take a GB and seconds
        words = np.frombuffer(chunk.buffers()[1] or b"", _KEY).reshape(-1, 4)
        parts.append(words[chunk.offset : chunk.offset + len(chunk), :2].astype(np.uint64))
    return np.concatenate(parts)


def _columns(*columns: Any) -> NDArray[np.int32]:
    return np.stack([column.to_numpy().astype(np.int32) for column in columns], axis=1)
