"""Collections of images, with the facts that are known of each before it is opened.

n images. An image is a file of its own, or a part of a tar or Parquet file.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmray.images.column_text import list_text
from mmray.images.names import forms, likely
from mmray.system.arrays import Box, Ids
from mmray.system.errors import InputError
from mmray.system.locations import is_uri, local_path, read_bytes, uri_of
from mmray.system.text_files import normalized, read_names
from mmray.system.uris import masked, unmasked

NAMELESS = "this row of the list names no file"  # error of an image that lies nowhere
_OTHER_FORMS = "(?is)^file:|://.*[@:?#]"  # what may be a file:// URI or have credentials
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
    box : the part that is meant, of the pixels as they are stored, see `decode`; None: the whole
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
        """The image's file, for one in a tar or Parquet file followed by # and its name there.

        It is for people: credentials are hidden, and names in one file may be the same. What tells
        images apart is `Collection.places`.
        """
        alone = self.offset is None and self.error != NAMELESS
        return masked(self.uri) if alone else f"{masked(self.uri)}#{self.name}"


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
    def places(self) -> pa.ChunkedArray:
        """Column of strings: where every image lies, the same for no two images.

        That is its file, the part of the file, and the box; neither its name nor its size, nor the
        credentials by which it is reached.
        """
        table = self.table
        is_row = pc.equal(pc.fill_null(table["error"], ""), NAMELESS)
        row = pc.if_else(is_row, table["name"], pa.scalar(None, pa.large_string()))
        inside = (table["row_group"], table["column"], table["offset"], row)
        places = _joined("\0", self._uris(_canonical), *inside)
        if table["box"].null_count == len(table):
            return places
        boxed = pc.is_valid(table["box"])
        boxes = map(str, table["box"].filter(boxed).to_pylist())
        boxes = pa.chunked_array([boxes], pa.large_string())
        return _replaced(places, boxed, _joined("\0", places.filter(boxed), boxes))

    @property
    def locations(self) -> pa.ChunkedArray:
        """Column of strings: `ImageFile.location` of every image, that of no two the same.

        Where names in a tar or Parquet file are repeated, the place in the file follows.
        """
        table, uris = self.table, self._uris(masked)
        is_part = pc.is_valid(table["offset"])
        inside = pc.or_(is_part, pc.equal(pc.fill_null(table["error"], ""), NAMELESS))
        named = _joined("", uris, "#", table["name"])
        counts = pc.value_counts(pc.filter(named, is_part))
        repeated = pc.filter(counts.field("values"), pc.greater(counts.field("counts"), 1))
        if len(repeated):
            in_tar = _joined("", named, " (byte ", table["offset"], ")")
            groups = pc.fill_null(table["row_group"], 0)
            in_rows = _joined(*("", named, " (row group ", groups, ", row ", table["offset"], ")"))
            marked = pc.if_else(pc.is_null(table["row_group"]), in_tar, in_rows)
            named = pc.if_else(pc.and_(is_part, pc.is_in(named, repeated)), marked, named)
        return pc.if_else(inside, named, uris)

    def locations_of(self, ids: Ids) -> list[str]:
        """Return the entries of `locations` of some images, without making all of them."""
        wanted = self.take(ids)
        alike = self.take(np.flatnonzero(pc.is_in(self.table["name"], wanted.table["name"])))
        shown = dict(zip(alike.places.to_pylist(), alike.locations.to_pylist(), strict=True))
        return [shown[place] for place in wanted.places.to_pylist()]

    def distinct(self) -> "Collection":
        """Return the images without those that lie where another does.

        The first one stays, or the first one without an error.
        """
        n, places = len(self), self.places.combine_chunks()
        later = pc.is_valid(self.table["error"]).to_numpy() * n
        numbers = pa.table(
            {"place": places.dictionary_encode().indices, "id": later + np.arange(n)}
        )
        first = numbers.group_by("place").aggregate([("id", "min")])["id_min"].to_numpy()
        return self if len(first) == n else self.take(np.sort(first % n))

    def containers(self) -> list[str]:
        """Return the tar and Parquet files that hold images, each once."""
        inside = self.table.filter(pc.is_valid(self.table["offset"]))
        uris: list[str] = pc.unique(inside["uri"]).to_pylist()
        return uris

    def _uris(self, form: Callable[[str], str]) -> pa.ChunkedArray:
        """Return the column of URIs in another form, as it is where no URI has one."""
        uris = self.table["uri"]
        others = pc.match_substring_regex(uris, _OTHER_FORMS)
        if not pc.any(others).as_py():
            return uris
        # Images in one file have one URI: a million of them have few.
        places = uris.filter(others).combine_chunks().dictionary_encode()
        formed = pa.array(map(form, places.dictionary.to_pylist()), pa.large_string())
        return _replaced(uris, others, pa.chunked_array([formed.take(places.indices)]))

    def masked(self) -> "Collection":
        """Return the images with the credentials in their URIs hidden, to be stored."""
        place = SCHEMA.get_field_index("uri")
        return Collection(self.table.set_column(place, SCHEMA.field("uri"), self._uris(masked)))

    def unmasked(self, sources: Sequence[str]) -> "Collection":
        """Return stored images with the credentials of the sources they came from."""
        place = SCHEMA.get_field_index("uri")
        uris = self._uris(partial(unmasked, sources=sources))
        return Collection(self.table.set_column(place, SCHEMA.field("uri"), uris))

    def digest(self) -> str:
        """Return a fingerprint of all that is known of the images but credentials."""
        digest, table = hashlib.sha256(str(len(self)).encode()), self.masked().table
        for start in range(0, len(self), 65_536):
            part = table.slice(start, 65_536)
            for name in SCHEMA.names:
                digest.update(list_text(part[name]))
        return digest.hexdigest()


def _canonical(uri: str) -> str:
    """Return the one form of a path or URI: file:// URIs are paths, credentials do not count."""
    path = local_path(uri) if is_uri(uri) else None
    return masked(uri) if path is None else uri_of(path)


def _joined(between: str, *parts: str | pa.ChunkedArray) -> pa.ChunkedArray:
    """Join columns and constants row by row to text; nulls are empty."""
    text = pa.large_string()
    columns = [
        pa.scalar(each, text) if isinstance(each, str) else each.cast(text) for each in parts
    ]
    return pc.binary_join_element_wise(*columns, pa.scalar(between, text), null_handling="replace")


def _replaced(
    column: pa.ChunkedArray, rows: pa.ChunkedArray, others: pa.ChunkedArray
) -> pa.ChunkedArray:
    """Return a column with others in the place of some rows (n,) bool, in their order."""
    column, rows, others = (each.combine_chunks() for each in (column, rows, others))
    return pa.chunked_array([pc.replace_with_mask(column, rows, others)])


def image_of(row: Mapping[str, Any]) -> ImageFile:
    """Return the image that a row of a collection's table describes."""
    box = row["box"]
    return ImageFile(**{**row, "box": None if box is None else tuple(box)})


def read_exclusions(file: str) -> set[str]:
    """Read the names in a text file, see `read_names`; InputError if it cannot be read."""
    try:
        names = read_names(read_bytes(file))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"--exclude {file}: {error}; name a text file of image names, one a line"
        ) from error
    return {normalized(name) for name in names}


def named_images(
    images: Collection, names: AbstractSet[str]
) -> tuple[NDArray[np.bool_], frozenset[str]]:
    """Flag the images (n,) that names mean, and return those of the names that mean an image.

    A name is an image's path, file name or stem, and may mean several images.
    """
    names = {normalized(name) for name in names}
    flags, fitting = np.zeros(len(images), bool), set[str]()
    places = likely(images.table["name"], names)
    listed = images.table["name"].take(pa.array(places)).to_pylist()
    for place, name in zip(places, listed, strict=True):
        found = names.intersection(chain.from_iterable(forms(name)))
        flags[place] = bool(found)
        fitting |= found
    return flags, frozenset(fitting)


def sample(images: Collection, count: int, seed: int) -> Collection:
    """Draw images at random among those without an error, and keep their order; all if fewer."""
    usable = np.flatnonzero(pc.is_null(images.table["error"]).to_numpy(zero_copy_only=False))
    count = min(count, len(usable))
    return images.take(np.sort(np.random.default_rng(seed).choice(usable, count, replace=False)))
