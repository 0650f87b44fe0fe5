"""Images in Parquet files: a column of their bytes or paths, in rows of row groups."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.images.collection import ImageFile
from mmray.images.lists import listed
from mmray.images.parquet_columns import Columns, Leaf, columns_of, holds_images
from mmray.system.errors import InputError
from mmray.system.locations import as_text, size_error
from mmray.system.retrying_file import UNREADABLE, RetryingFile, os_error

_BUFFER = 1 << 24  # bytes of the column to fetch at a time, instead of a whole row group
_BATCH = 1 << 23  # bytes of images to decode at a time; a page of the file may hold more
_BATCH_ROWS = 256  # at most: the file counts the bytes of a repeated image once
_CHANGED = "the file has no such row; it was changed, list it again"


def has_images(uri: str, column: str | None) -> bool:
    """Tell whether a file has a column of image bytes: `column` if it is given, else any.

    Raises
    ------
    OSError, ValueError, LookupError, OverflowError, pyarrow.ArrowException
        The file cannot be read, or is not a Parquet file.
    """
    with _opened(uri) as file:
        return holds_images(file.schema_arrow, column)


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    with RetryingFile(uri) as source:
        yield _parquet(source)


def _parquet(source: RetryingFile) -> pq.ParquetFile:
    return pq.ParquetFile(
        source, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
    )


def _values(array: pa.Array | pa.ChunkedArray, leaf: Leaf) -> pa.Array | pa.ChunkedArray:
    return array if leaf.field is None else pc.struct_field(array, leaf.field)


def _chunk(file: pq.ParquetFile, group: int, leaf: Leaf) -> pq.ColumnChunkMetaData:
    """Return the footer's metadata of a column within a row group."""
    metadata = file.metadata.row_group(group)
    for chunk in map(metadata.column, range(metadata.num_columns)):
        if chunk.path_in_schema == leaf.path:
            return chunk
    raise InputError(f"row group {group} is without the column {leaf.path!r}; the file is damaged")


def _batches(file: pq.ParquetFile, group: int, leaf: Leaf) -> Iterator[pa.Array]:
    """Yield the cells of a row group, few at a time where they are large."""
    chunk = _chunk(file, group, leaf)
    mean = chunk.total_uncompressed_size // max(1, chunk.num_values)
    for batch in file.iter_batches(
        batch_size=min(_BATCH_ROWS, max(1, _BATCH // max(1, mean))),
        row_groups=[group],
        columns=[leaf.path],
        use_threads=False,
    ):
        yield _values(batch.column(leaf.column), leaf)


# -- listing --------------------------------------------------------------------------------------


def list_parquet(uri: str, column: str | None) -> Iterator[ImageFile]:
    """Yield the images of a file, listed from its footer and names; image bytes are not read.

    A row without bytes that has a path is an image file of its own. Where such rows are mixed with
    others, or the footer does not count them, the column of the bytes is read to find them.

    Raises
    ------
    InputError
        It is not clear which column holds the images, or the footer contradicts itself.
    OSError, ValueError, LookupError, OverflowError, pyarrow.ArrowException
        The file cannot be read, or is not a Parquet file.
    """
    number = 0
    with _opened(uri) as file:
        columns = columns_of(file.schema_arrow, column)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            values = _chunk(file, group, columns.image).num_values
            if rows != values:  # before a damaged number is believed, and listed
                raise InputError(
                    f"row group {group} is of {rows} rows, its column {columns.image.column!r} of "
                    f"{values}; the file is damaged, fetch it again"
                )
            paths = _paths(file, group, rows, columns)
            names = _names(file, group, rows, columns.names)
            for row, (name, path) in enumerate(zip(names, paths, strict=True)):
                name = name or f"row {number}"
                if path:
                    for image in listed(uri, [path]):
                        yield replace(image, name=name)
                else:
                    yield ImageFile(
                        uri=uri, name=name, offset=row, row_group=group, column=columns.image.column
                    )
                number += 1


def _names(file: pq.ParquetFile, group: int, rows: int, leaves: Sequence[Leaf]) -> list[str | None]:
    """Return the name of each row: of the first leaf that has one there."""
    names: list[str | None] = [None] * rows
    for leaf in leaves:
        if all(names):
            break
        texts = _texts(file, group, rows, leaf)
        names = [name or text for name, text in zip(names, texts, strict=True)]
    return names


def _paths(file: pq.ParquetFile, group: int, rows: int, columns: Columns) -> Sequence[str | None]:
    """Return the path of each row whose image is a file of its own, None for the others."""
    nothing: list[str | None] = [None] * rows
    if columns.path is None:
        return nothing
    statistics = _chunk(file, group, columns.image).statistics
    counted = statistics is not None and statistics.has_null_count
    if counted and statistics.null_count == 0:
        return nothing
    texts = _texts(file, group, rows, columns.path)
    if counted and statistics.null_count == rows:
        return texts
    # The footer does not tell which rows are without bytes: the column itself has to be read.
    valid: list[bool] = []
    for cells in _batches(file, group, columns.image):
        valid += pc.is_valid(cells).to_pylist()
    return [None if there else text for text, there in zip(texts, valid, strict=True)]


def _texts(file: pq.ParquetFile, group: int, rows: int, leaf: Leaf) -> list[str | None]:
    table = file.read_row_group(group, columns=[leaf.path], use_threads=False)
    column = _values(table[leaf.column], leaf)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    texts = column.cast(pa.large_binary()).to_pylist()
    if len(texts) != rows:
        raise InputError(
            f"row group {group} is of {rows} rows, its column {leaf.column!r} of {len(texts)}; "
            "the file is damaged, fetch it again"
        )
    return [_text(text) for text in texts]


def _text(name: bytes | None) -> str | None:
    """Decode a name so that it fits a table: not all writers check that names are UTF-8."""
    if name is None or not name.strip():
        return None
    return as_text(name.decode("utf-8", "surrogateescape"))


# -- reading --------------------------------------------------------------------------------------


class ParquetReader:
    """The images of a file, read forward in batches.

    A row group is read once if its rows are asked for in ascending order, and only up to the last
    one; every step back reads it again from its start.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._source = RetryingFile(uri)
        self._file: pq.ParquetFile | None = None
        self._start(None, None)

    def close(self) -> None:
        self._source.close()

    def read(self, image: ImageFile, limit: int) -> bytes | OSError:
        """Return the content of an image of at most `limit` bytes, or the error for it."""
        try:
            return self._content(image, limit)
        except OSError as error:
            return error

    def _start(self, column: str | None, group: int | None) -> None:
        self._column, self._group = column, group
        self._first, self._cells = 0, pa.array([], pa.binary())
        self._batches: Iterator[pa.Array] | None = None
        self._failure: OSError | None = None

    def _content(self, image: ImageFile, limit: int) -> bytes:
        if image.error is not None:
            raise OSError(image.error)
        assert image.offset is not None, image
        assert image.row_group is not None, image
        here = (self._column, self._group)
        if here != (image.column, image.row_group) or image.offset < self._first:
            self._start(image.column, image.row_group)
        self._advance_to(image.row_group, image.offset)
        cell = self._cells[image.offset - self._first]
        while isinstance(cell, pa.DictionaryScalar | pa.ExtensionScalar):
            cell = cell.value
        if cell is None or not cell.is_valid:
            raise OSError(errno.ENODATA, "the row has no image bytes")
        buffer = cell.as_buffer()
        if buffer.size > limit:
            raise size_error(buffer.size, limit)
        content: bytes = buffer.to_pybytes()
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
        columns = columns_of(self._file.schema_arrow, self._column)
        if group < self._file.num_row_groups:
            yield from _batches(self._file, group, columns.image)
