"""Reading features from Parquet files, and the errors for files of features that are unusable.

n items, d dimensions; m rows of a piece of a file.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError, first_names, quoted
from mmray.system.folder import Folder
from mmray.system.foreign import WHOLE, reported

NOT_FINITE = "holds an entry that is NaN, infinite or too large for float32"
_BATCH_ROWS = 1024  # read at a time
_BUFFER = 1 << 24  # bytes of a column to fetch at a time, instead of a whole row group
_MISCOUNTED = "its metadata count {} rows, its pages {}"


# -- files that cannot be used --------------------------------------------------------------------


def refuse(
    bad: NDArray[np.bool_] | pa.Array,
    location: str,
    problem: str,
    remedy: str = "mend or remove such items",
    first: int = 0,
) -> None:
    """Raise InputError at the first marked row, if any: bad is (m,) or (m, d) from row `first`."""
    rows = np.unique(np.nonzero(bad)[0]) + first
    if len(rows):
        raise InputError(
            f"{location}: row {rows[0]} {problem} ({len(rows)} such in rows "
            f"{first}..{first + len(bad) - 1}); {remedy}"
        )


# -- Parquet --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class _Shard:
    """A file before its embeddings are read."""

    folder: Folder
    name: str
    rows: int
    ids: Ids | None  # (rows,) image ids, if there are any

    @property
    def location(self) -> str:
        return self.folder.location(self.name)


def read_embeddings(folder: Folder, names: list[str]) -> Features:
    """Read the column `embedding` of .parquet files.

    Parameters
    ----------
    folder : where the files are
    names : one or more; rows are ordered by their image ids, or without them as they come.

    Returns
    -------
    (n, d) float32, C order, all finite, otherwise as in the files.

    Raises
    ------
    InputError
        A file is damaged, a column is missing or of another type, rows are null, ragged or not
        finite in float32, or image ids are missing or repeated.
    """
    shards = [_inspected(folder, name) for name in names]
    n = sum(shard.rows for shard in shards)
    if n == 0:
        raise InputError(f"{shards[0].location}: no rows; give at least one item")
    places = _places(shards, n)
    features, done = np.empty((0, 0), np.float32), 0
    for rows in _matrices(shards):
        if done == 0:
            features = np.empty((n, rows.shape[1]), np.float32)
        features[places[done : done + len(rows)]] = rows
        done += len(rows)
    return features


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    with (
        reported(folder.location(name), WHOLE.format(".parquet file")),
        folder.reading(name) as source,
        pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False) as file,
    ):
        yield file


def _inspected(folder: Folder, name: str) -> _Shard:
    """Check the columns of a file, and read its image ids."""
    location, ids = folder.location(name), None
    with _opened(folder, name) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        _check_columns(schema, location)
        table = file.read(columns=[c for c in ("image_id", "error") if c in schema.names])
        if len(table) != rows:
            raise ValueError(_MISCOUNTED.format(rows, len(table)))
        if "error" in table.column_names and pa.types.is_string(schema.field("error").type):
            # Shards of an extraction that is not finished have rows of zeros for such images.
            problem = "is of an image that could not be read (column error)"
            remedy = "finish the extraction, or leave these rows out"
            refuse(pc.is_valid(table["error"]), location, problem, remedy)
        if "image_id" in table.column_names:
            remedy = "number all items, or drop the column"
            refuse(pc.is_null(table["image_id"]), location, "has no image_id", remedy)
            ids = table["image_id"].cast(pa.int64()).to_numpy()
    return _Shard(folder=folder, name=name, rows=rows, ids=ids)


def _check_columns(schema: pa.Schema, location: str) -> None:
    if "embedding" not in schema.names:
        raise InputError(
            f"{location}: no column embedding among {first_names(quoted(schema.names))}; "
            "rename the column of features"
        )
    kind = schema.field("embedding").type
    tensor = isinstance(kind, pa.FixedShapeTensorType) and len(kind.shape) == 1
    rows = kind.storage_type if tensor else kind
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_list(rows) for is_list in lists) or not pa.types.is_floating(rows.value_type):
        raise InputError(
            f"{location}: the column embedding is of type {kind}, not of lists or one-dimensional "
            "tensors of floats; cast it to list<float>"
        )
    if "image_id" in schema.names and not pa.types.is_integer(schema.field("image_id").type):
        raise InputError(
            f"{location}: the column image_id is of type {schema.field('image_id').type}; "
            "cast it to int64"
        )


def _places(shards: list[_Shard], n: int) -> Ids:
    """Return the place (n,) int64 of each row in the result: its image id, or its position."""
    numbered = [shard.location for shard in shards if shard.ids is not None]
    bare = [shard.location for shard in shards if shard.ids is None]
    if not numbered:
        return np.arange(n)
    if bare:
        raise InputError(
            f"{bare[0]}: no column image_id, but {numbered[0]} has one; "
            "give it to all files or to none"
        )
    ids = np.concatenate([shard.ids for shard in shards if shard.ids is not None])
    outside = np.flatnonzero((ids < 0) | (ids >= n))
    if len(outside):
        raise InputError(
            f"{_row_at(shards, outside[0])} has image_id {ids[outside[0]]}, as have {len(outside)} "
            f"rows an id outside 0..{n - 1}; number the {n} items from 0, each once"
        )
    times = np.bincount(ids, minlength=n)
    missing, repeated = np.flatnonzero(times == 0), np.flatnonzero(times > 1)
    if len(missing):
        first, second = np.flatnonzero(ids == repeated[0])[:2]
        raise InputError(
            f"{_row_at(shards, second)} has image_id {repeated[0]} like {_row_at(shards, first)}, "
            f"and {len(missing)} ids are missing, the first of them {missing[0]}; "
            f"number the {n} items from 0, each once"
        )
    return ids


def _row_at(shards: list[_Shard], position: int) -> str:
    """Describe a position among all rows by its file and the row there."""
    for shard in shards:
        if position < shard.rows:
            break
        position -= shard.rows
    return f"{shard.location}: row {position}"


def _matrices(shards: list[_Shard]) -> Iterator[Features]:
    """Yield the embeddings of all files in turn, (m, d) at a time, all finite."""
    d, model = 0, ""
    for shard in shards:
        for row, column in _embeddings(shard):
            rows = column.storage if isinstance(column, pa.ExtensionArray) else column
            refuse(pc.is_null(rows), shard.location, "is null", first=row)
            lengths: Ids = pc.list_value_length(rows).to_numpy()
            if not model:
                d, model = int(lengths[0]), f"{shard.location}: row {row}"
            if d == 0:
                raise InputError(f"{model} has no dimensions; give at least one")
            problem = f"has another number of dimensions than the {d} of {model}"
            refuse(lengths != d, shard.location, problem, "give all items the same", first=row)
            values = rows.flatten()
            gaps = np.asarray(pc.is_null(values)).reshape(-1, d)
            refuse(gaps, shard.location, "holds an entry that is null", first=row)
            with np.errstate(over="ignore", invalid="ignore"):
                matrix = values.to_numpy().astype(np.float32, copy=False).reshape(-1, d)
            refuse(~np.isfinite(matrix), shard.location, NOT_FINITE, first=row)
            yield matrix


def _embeddings(shard: _Shard) -> Iterator[tuple[int, pa.Array]]:
    """Yield the pieces of a file's column, each with the number of its first row."""
    row = 0
    with _opened(shard.folder, shard.name) as file:
        try:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=["embedding"]):
                row += len(batch)
                yield row - len(batch), batch.column(0)
        except pa.ArrowInvalid as error:
            # pyarrow cannot read a null among rows of a fixed size.
            null = re.search(r"index (\d+) had size=0", str(error))
            if null is None:
                raise
            refuse(np.ones(1, bool), shard.location, "is null", first=row + int(null[1]) - 1)
        if row != shard.rows:
            raise ValueError(_MISCOUNTED.format(shard.rows, row))
