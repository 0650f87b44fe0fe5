"""Parquet files that hold a digest of themselves, so that no flipped bit goes unnoticed.

The checksums of Parquet are of its pages: damaged types and places, which stand in the footer,
would be believed. The digest is an entry of the footer's metadata, which other readers pass over.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

_KEY, _MARK = b"mmray.xxh3", b"mmray-xxh3:"
_UNKNOWN = b"0" * 16  # the digest while it is computed


def table_file(table: pa.Table, **layout: Any) -> bytearray:
    """Return the content of a Parquet file; the layout is options of `pq.write_table`."""
    sink = pa.BufferOutputStream()
    metadata = (table.schema.metadata or {}) | {_KEY: _MARK + _UNKNOWN}
    pq.write_table(table.replace_schema_metadata(metadata), sink, **layout)
    content = bytearray(sink.getvalue())
    place = content.rindex(_MARK) + len(_MARK)
    content[place : place + len(_UNKNOWN)] = _digest(content, place)
    return content


def read_table_file(
    content: pa.Buffer, columns: list[str] | None = None, optional: pa.Schema | None = None
) -> pa.Table:
    """Read a Parquet file, whose digest is checked if it has one.

    Parameters
    ----------
    content : of the file
    columns : to read; None: all
    optional : further ones, all null where the file lacks them

    Raises
    ------
    ValueError
        The digest differs, or the content is not Parquet.
    LookupError, OSError, pa.ArrowException
        The content is not Parquet, or without one of the columns.
    """
    view = memoryview(content)
    tail = bytes(view[-_longest_footer(view) :])
    place = tail.rfind(_MARK)
    if place >= 0 or _KEY in tail:
        place += len(view) - len(tail) + len(_MARK)
        if view[place : place + len(_UNKNOWN)] != _digest(view, place):
            raise ValueError("its digest differs")
    # Not by `read_table`, which takes four times as long for a small file, and is made for many.
    file = pq.ParquetFile(pa.BufferReader(content))
    present = file.schema_arrow.names
    missing = set(columns or ()).difference(present)
    if missing:
        raise LookupError(f"without the column {min(missing)!r}")
    optional = optional or pa.schema([])
    if columns is not None:
        columns = [*columns, *(name for name in optional.names if name in present)]
    table = file.read(columns=columns, use_threads=file.num_row_groups > 1)
    for field in optional:
        if field.name not in present:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != _KEY}
    return table.replace_schema_metadata(metadata or None)


def _longest_footer(view: memoryview) -> int:
    """Return the length of the footer with what follows it, or of all if that makes no sense."""
    length = int.from_bytes(view[-8:-4], "little") + 8
    return length if length <= len(view) else len(view)


def _digest(content: bytearray | memoryview, place: int) -> bytes:
    """Compute the digest of a file in which the digest itself stands at a place."""
    view, digest = memoryview(content), xxhash.xxh3_64()
    for part in (view[:place], _UNKNOWN, view[place + len(_UNKNOWN) :]):
        digest.update(part)
    return digest.hexdigest().encode()
