"""Collections of images, with the facts that are known of each before it is opened.

n images. An image is a file of its own, or a part of a tar or Parquet file.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmray.system.arrays import Box, Ids
from mmray.system.errors import InputError
from mmray.system.locations import read_bytes

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".jpe", ".jfif", ".mpo", ".avif", ".heic", ".heif", ".hif"),
)


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """A listed image, or a part of one.

    Attributes
    ----------
    uri : path or URI of its file, or of the tar or Parquet file that holds it
    name : path below the listed folder, or name within the file that holds it
    size : bytes; -1: not known
    offset : its first byte in a tar file, its row within the row group in a Parquet file; None: it
        is a file of its own
    row_group, column : its place in a Parquet file
    box : the part that is meant, see `decode`; None: the whole
    error : why it cannot be read, if that was seen when it was listed
    """

    uri: str
    name: str
    size: int = -1
    offset: int | None = None
    row_group: int | None = None
    column: str | None = None
    box: Box | None = None
    error: str | None = None

    @property
    def location(self) -> str:
        """The image's file, for one in a tar or Parquet file followed by # and its name there."""
        return self.uri if self.offset is None else f"{self.uri}#{self.name}"


SCHEMA = pa.schema(
    {
        "uri": pa.large_string(),
        "name": pa.large_string(),
        "size": pa.int64(),
        "offset": pa.int64(),
        "row_group": pa.int32(),
        "column": pa.large_string(),
        "box": pa.list_(pa.float64()),
        "error": pa.large_string(),
    }
)


class Collection(Sequence[ImageFile]):
    """A sequence of images, kept as the columns of a table: a million take 200 MB, not a GB.

    An image's id is its place in the sequence.
    """

    def __init__(self, table: pa.Table) -> None:
        assert table.schema.equals(SCHEMA), table.schema
        self.table = table.combine_chunks()

    @classmethod
    def of(cls, images: Iterable[ImageFile]) -> "Collection":
        rows = images if isinstance(images, list) else list(images)
        columns = {
            field.name: pa.array([getattr(row, field.name) for row in rows], field.type)
            for field in SCHEMA
        }
        return cls(pa.table(columns, SCHEMA))

    @classmethod
    def joined(cls, parts: Iterable["Collection"]) -> "Collection":
        return cls(pa.concat_tables([part.table for part in parts] or [SCHEMA.empty_table()]))

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> "Collection": ...
    def __getitem__(self, index: int | slice) -> "ImageFile | Collection":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        return image_of(self.table.slice(place, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[ImageFile]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from map(image_of, batch.to_pylist())

    def take(self, places: Ids) -> "Collection":
        """Return the images at some places (m,), in the order of the places."""
        return Collection(self.table.take(pa.array(places, pa.int64())))

    @property
    def locations(self) -> pa.ChunkedArray:
        """Column of strings: `ImageFile.location` of every image."""
        uris, names = self.table["uri"], self.table["name"]
        within = pc.binary_join_element_wise(uris, names, pa.scalar("#", pa.large_string()))
        return pc.if_else(pc.is_null(self.table["offset"]), uris, within)

    def digest(self) -> str:
        """Return a fingerprint of all that is known of the images."""
        digest = hashlib.sha256(str(len(self)).encode())
        for start in range(0, len(self), 65_536):
            part = self.table.slice(start, 65_536)
            for name in SCHEMA.names:
                digest.update(repr(part[name].to_pylist()).encode())
        return digest.hexdigest()


def image_of(row: Mapping[str, Any]) -> ImageFile:
    """Return the image that a row of a collection's table describes."""
    box = row["box"]
    return ImageFile(**{**row, "box": None if box is None else tuple(box)})


def read_exclusions(file: str) -> set[str]:
    """Read the names in a text file, one per line; InputError if it cannot be read."""
    try:
        lines = read_bytes(file).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--exclude {file}: {error}; name a text file of image names, one a line"
        ) from error
    return {line.strip() for line in lines if line.strip()}


def without(images: Collection, names: AbstractSet[str]) -> Collection:
    """Return the images without those named; a name is an image's name, file name or stem."""
    kept = []
    for place, name in enumerate(images.table["name"].to_pylist()):
        path = PurePosixPath(name)
        if names.isdisjoint((name, path.name, path.stem)):
            kept.append(place)
    return images.take(np.array(kept, np.int64))


def sample(images: Collection, count: int, seed: int) -> Collection:
    """Draw images at random among those without an error, and keep their order; all if fewer."""
    usable = np.flatnonzero(pc.is_null(images.table["error"]).to_numpy(zero_copy_only=False))
    count = min(count, len(usable))
    return images.take(np.sort(np.random.default_rng(seed).choice(usable, count, replace=False)))
