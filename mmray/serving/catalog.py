"""The images of a search index: where their vectors are, and which are to be described.

m images, n of which could be read.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmray.images.collection import SCHEMA, Collection
from mmray.system.arrays import Ids
from mmray.system.uris import masked

COLUMNS = pa.schema([*SCHEMA, pa.field("source", pa.large_string()), pa.field("row", pa.int64())])
FRESH, UNREADABLE = -2, -1  # rows of images without a vector: not described yet, not readable


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

    def masked(self) -> "Catalog":
        """Return the catalog with the credentials in URIs hidden, to be stored."""
        table = self.table
        for name, hidden in (
            ("uri", self.images.masked().table["uri"]),
            ("source", pa.array(map(masked, table["source"].to_pylist()), pa.large_string())),
        ):
            table = table.set_column(COLUMNS.get_field_index(name), COLUMNS.field(name), hidden)
        return Catalog(table)

    def readable(self) -> Collection:
        """Return the n images with a vector, in the order of the vectors."""
        return self.images.take(np.flatnonzero(self.rows >= 0))

    def unreadable(self) -> list[tuple[str, str]]:
        """List the location of each unreadable image and the reason."""
        bad = self.table.filter(pc.equal(self.table["row"], UNREADABLE))
        places = Collection(bad.select(SCHEMA.names)).locations.to_pylist()
        return list(zip(places, bad["error"].to_pylist(), strict=True))

    def merged(
        self,
        listed: Sequence[tuple[str, Collection]],
        *,
        retry: bool,
        changed: AbstractSet[str] = frozenset(),
    ) -> "Catalog":
        """Update the images of some sources to those listed now; images of other sources stay.

        An image is identified by its place (`Collection.places`) and counts once, wherever it is
        listed. Rows still refer to the old vectors; a new or changed image has the row FRESH.

        Parameters
        ----------
        listed : each source to update, with its current images
        retry : whether images that could not be read become FRESH too
        changed : tar and Parquet files whose content is another than when they were described
        """
        named = [source for source, _ in listed]
        others = pc.invert(pc.is_in(self.table["source"], pa.array(named, pa.large_string())))
        parts = [self.table.filter(others)]
        known = dict(zip(_places(self.table), _seen(self.table), strict=True))
        for source, images in listed:
            states = [
                _state(known.get(place), now, retry=retry, changed=changed)
                for place, now in zip(_places(images.table), _seen(images.table), strict=True)
            ]
            parts.append(_table(images, source, states))
        joined = pa.concat_tables(parts)
        first: dict[str, int] = {}
        kept = len(parts[0])  # a source that is not named may know what has changed since
        for place, (key, row) in enumerate(
            zip(_places(joined), joined["row"].to_pylist(), strict=True)
        ):
            if row == FRESH and place >= kept and first.get(key, kept) < kept:
                first[key] = place
            first.setdefault(key, place)
        return Catalog(joined.take(pa.array(sorted(first.values()), pa.int64())))

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


def _places(table: pa.Table) -> list[str]:
    places: list[str] = Collection(table.select(SCHEMA.names)).places.to_pylist()
    return places


class _Seen(NamedTuple):
    """The facts about an image by which a change of its content is noticed."""

    uri: str
    name: str
    size: int
    offset: int | None
    error: str | None
    row: int


def _seen(table: pa.Table) -> Iterator[_Seen]:
    columns = [table[name].to_pylist() for name in _Seen._fields if name != "row"]
    rows = table["row"].to_pylist() if "row" in table.column_names else [FRESH] * len(table)
    return map(_Seen._make, zip(*columns, rows, strict=True))


def _state(
    known: _Seen | None, now: _Seen, *, retry: bool, changed: AbstractSet[str]
) -> tuple[int, str | None]:
    """Return the row and the error of a listed image, given what is known of its place."""
    if known is None or now.uri in changed or (retry and known.row == UNREADABLE):
        return FRESH, now.error
    other_size = -1 not in (known.size, now.size) and known.size != now.size
    # The name of a file of its own depends on the folder that is listed.
    other_name = now.offset is not None and known.name != now.name
    return (FRESH, now.error) if other_size or other_name else (known.row, known.error)


def _table(images: Collection, source: str, states: Sequence[tuple[int, str | None]]) -> pa.Table:
    """Make the rows of a catalog for the images of a source, with the row and error of each."""
    count, columns = len(images), dict(zip(SCHEMA.names, images.table.columns, strict=True))
    columns["error"] = pa.array([error for _, error in states], pa.large_string())
    columns["source"] = pa.array([source] * count, pa.large_string())
    columns["row"] = pa.array([row for row, _ in states], pa.int64())
    return pa.table(columns, COLUMNS)
