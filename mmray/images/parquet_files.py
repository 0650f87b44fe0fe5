"""Images in Parquet files: a column of their bytes, in rows of row groups.

The column is binary, or a struct with a binary field `bytes` as Hugging Face datasets write it.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.images.collection import ImageFile
from mmray.system.errors import InputError, first_names, quoted
from mmray.system.locations import as_text, size_error
from mmray.system.retrying_file import UNREADABLE, RetryingFile, os_error

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "data", "content")
NAME_COLUMNS = (
    "name",
    "file_name",
    "filename",
    "path",
    "file",
    "key",
    "__key__",
    "id",
    "uri",
    "url",
)

_BUFFER = 1 << 24  # bytes of the column to fetch at a time, instead of a whole row group
_BATCH = 1 << 23  # bytes of images to decode at a time; a page of the file may hold more
_BATCH_ROWS = 256  # at most: the file counts the bytes of a repeated image once
_CHANGED = "the file has no such row; it was changed, list it again"


@dataclass(frozen=True)
class _Columns:
    """The columns of the images and of their names, and the paths of the leaves to read."""

    image: str
    image_path: str
    name: str | None
    name_path: str | None


# -- which columns --------------------------------------------------------------------------------


def has_images(uri: str, column: str | None) -> bool:
    """Tell whether a file has a column of image bytes: `column` if it is given, else any.

    Raises
    ------
    OSError, ValueError, LookupError, OverflowError, pyarrow.ArrowException
        The file cannot be read, or is not a Parquet file.
    """
    with _opened(uri) as file:
        candidates = [field.name for field in file.schema_arrow if _holds_bytes(field.type)]
    return bool(candidates) if column is None else column in candidates


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is one of strings."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _image_field(schema: pa.Schema, column: str | None) -> pa.Field:
    """Return the column asked for, or the only plausible one; InputError if there is none."""
    fields = {field.name: field for field in schema}
    candidates = [name for name, field in fields.items() if _holds_bytes(field.type)]
    if column is not None:
        if column in candidates:
            return fields[column]
        if column in fields:
            raise InputError(
                f"the column {column!r} is of type {fields[column].type}, not of image bytes; name "
                f"one of {first_names(quoted(candidates))} with --image-column"
            )
        raise InputError(
            f"no column {column!r} among {first_names(quoted(fields))}; name another with "
            "--image-column"
        )
    if not candidates:
        raise InputError(
            f"no column of image bytes among {first_names(quoted(fields))}; it must be binary, or "
            "a struct with a binary field 'bytes'"
        )
    preferred = [name for name in IMAGE_COLUMNS if name in candidates]
    if len(candidates) > 1 and not preferred:
        raise InputError(
            f"images may be in any of the columns {first_names(quoted(candidates))}; name one with "
            "--image-column"
        )
    return fields[(preferred or candidates)[0]]


def _columns(schema: pa.Schema, column: str | None) -> _Columns:
    field = _image_field(schema, column)
    if pa.types.is_struct(field.type):
        image_path = f"{field.name}.bytes"
        place = field.type.get_field_index("path")
        if place >= 0 and is_text(field.type.field(place).type):
            return _Columns(field.name, image_path, field.name, f"{field.name}.path")
    else:
        image_path = field.name
    texts = {field.name for field in schema if is_text(field.type)}
    name = next((name for name in NAME_COLUMNS if name in texts), None)
    return _Columns(field.name, image_path, name, name)


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    with RetryingFile(uri) as source:
        yield _parquet(source)


def _parquet(source: RetryingFile) -> pq.ParquetFile:
    return pq.ParquetFile(
        source, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
    )


def _leaf(array: pa.Array | pa.ChunkedArray, name: str) -> pa.Array | pa.ChunkedArray:
    return pc.struct_field(array, name) if pa.types.is_struct(array.type) else array


def _chunk(file: pq.ParquetFile, group: int, path: str) -> pq.ColumnChunkMetaData:
    """Return the footer's metadata of a column within a row group."""
    metadata = file.metadata.row_group(group)
    for chunk in map(metadata.column, range(metadata.num_columns)):
        if chunk.path_in_schema == path:
            return chunk
    raise InputError(f"row group {group} is without the column {path!r}; the file is damaged")


# -- listing --------------------------------------------------------------------------------------


def list_parquet(uri: str, column: str | None) -> Iterator[ImageFile]:
    """Yield the images of a file, listed from its footer and names; image bytes are not read.

    Raises
    ------
    InputError
        It is not clear which column holds the images, or the footer contradicts itself.
    OSError, ValueError, LookupError, OverflowError, pyarrow.ArrowException
        The file cannot be read, or is not a Parquet file.
    """
    number = 0
    with _opened(uri) as file:
        columns = _columns(file.schema_arrow, column)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            values = _chunk(file, group, columns.image_path).num_values
            if rows != values:  # before a damaged number is believed, and listed
                raise InputError(
                    f"row group {group} is of {rows} rows, its column {columns.image!r} of "
                    f"{values}; the file is damaged, fetch it again"
                )
            for row, name in enumerate(_names(file, group, rows, columns)):
                name = name or f"row {number}"
                yield ImageFile(
                    uri=uri, name=name, offset=row, row_group=group, column=columns.image
                )
                number += 1


def _names(file: pq.ParquetFile, group: int, rows: int, columns: _Columns) -> Iterable[str | None]:
    if columns.name is None:
        return (None for _ in range(rows))
    table = file.read_row_group(group, columns=[columns.name_path], use_threads=False)
    texts = _leaf(table[columns.name], "path").cast(pa.large_binary()).to_pylist()
    if len(texts) != rows:
        raise InputError(
            f"row group {group} is of {rows} rows, its column {columns.name!r} of {len(texts)}; "
            "the file is damaged, fetch it again"
        )
    return map(_text, texts)


def _text(name: bytes | None) -> str | None:
    """Decode a name so that it fits a table: not all writers check that names are UTF-8."""
    return None if name is None else as_text(name.decode("utf-8", "surrogateescape"))


# -- reading --------------------------------------------------------------------------------------


def read_parquet(uri: str, images: Iterable[ImageFile], *, limit: int) -> Iterator[bytes | OSError]:
    """Yield the content of images of one file, in the order given, or the error for each.

    A row group is read once if its rows are asked for in ascending order, and only up to the last
    one; every step back reads it again from its start.
    """
    with RetryingFile(uri) as source:
        reader = _Reader(source)
        for image in images:
            outcome: bytes | OSError
            try:
                outcome = reader.read(image, limit)
            except OSError as error:
                outcome = error
            yield outcome


class _Reader:
    """The image column of a file, read forward in batches."""

    def __init__(self, source: RetryingFile) -> None:
        self._source = source
        self._file: pq.ParquetFile | None = None
        self._start(None, None)

    def _start(self, column: str | None, group: int | None) -> None:
        self._column, self._group = column, group
        self._first, self._cells = 0, pa.array([], pa.binary())
        self._batches: Iterator[pa.Array] | None = None
        self._failure: OSError | None = None

    def read(self, image: ImageFile, limit: int) -> bytes:
        if image.error is not None:
            raise OSError(image.error)
        assert image.offset is not None, image
        assert image.row_group is not None, image
        here = (self._column, self._group)
        if here != (image.column, image.row_group) or image.offset < self._first:
            self._start(image.column, image.row_group)
        self._advance_to(image.row_group, image.offset)
        cell = self._cells[image.offset - self._first].as_buffer()
        if cell is None:
            raise OSError(errno.ENODATA, "the row has no image bytes")
        if cell.size > limit:
            raise size_error(cell.size, limit)
        content: bytes = cell.to_pybytes()
        return content

    def _advance_to(self, group: int, row: int) -> None:
        while row >= self._first + len(self._cells):
            # A read that failed after its retries is not tried again for each row behind it.
            if self._failure is not None:
                raise OSError(*self._failure.args)
            try:
                self._batches = self._batches or self._read_group(group)
                cells = next(self._batches)
            except StopIteration:
                self._failure = OSError(errno.EIO, _CHANGED)
            except UNREADABLE as error:
                self._failure = os_error(error)
            else:
                self._first, self._cells = self._first + len(self._cells), cells

    def _read_group(self, group: int) -> Iterator[pa.Array]:
        if self._file is None:
            self._file = _parquet(self._source)
        columns = _columns(self._file.schema_arrow, self._column)
        if group >= self._file.num_row_groups:
            return
        chunk = _chunk(self._file, group, columns.image_path)
        mean = chunk.total_uncompressed_size // max(1, chunk.num_values)
        for batch in self._file.iter_batches(
            batch_size=min(_BATCH_ROWS, max(1, _BATCH // max(1, mean))),
            row_groups=[group],
            columns=[columns.image_path],
            use_threads=False,
        ):
            yield _leaf(batch.column(columns.image), "bytes")
