"""The text that Python shows for the values of a column, without a Python object for each.

n rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_NULL = ", None"
_QUOTE, _BACKSLASH, _FIRST, _LAST = map(ord, "'\\ ~")


def list_text(column: pa.ChunkedArray) -> bytes:
    """Return `repr(column.to_pylist())`, encoded.

    Whole numbers, and strings of printable ASCII without quotes and backslashes, are written by
    Arrow, in half the time. What else there is becomes Python objects.

    Parameters
    ----------
    column : (n,) of any type
    """
    if not len(column):
        return b"[]"
    if column.null_count == len(column):
        return b"[" + (_NULL * len(column)).encode()[2:] + b"]"
    if pa.types.is_integer(column.type):
        return _written(column.cast(pa.large_string()), quote="")
    if pa.types.is_large_string(column.type) and _is_plain(column):
        return _written(column, quote="'")
    return repr(column.to_pylist()).encode()


def _written(column: pa.ChunkedArray, quote: str) -> bytes:
    """Return the text of a list of strings (n,), each in quotes."""
    before, after, quotes = (pa.scalar(part, column.type) for part in (", ", "", quote))
    entries = pc.binary_join_element_wise(before, column, after, quotes)
    return b"[" + b"".join(map(_content, pc.fill_null(entries, _NULL).chunks))[2:] + b"]"


def _content(strings: pa.Array) -> memoryview:
    """Return the strings (n,) one after the other, as they lie in memory."""
    _, offsets, content = strings.buffers()
    kind = np.int64 if pa.types.is_large_string(strings.type) else np.int32
    bounds = np.frombuffer(offsets, kind)[strings.offset : strings.offset + len(strings) + 1]
    return memoryview(content or b"")[bounds[0] : bounds[-1]]


def _is_plain(column: pa.ChunkedArray) -> bool:
    """Tell whether all characters are shown as they are between single quotes."""
    for chunk in column.chunks:
        held = np.frombuffer(_content(chunk), np.uint8)
        if len(held) and (
            held.min() < _FIRST
            or held.max() > _LAST
            or (held == _QUOTE).any()
            or (held == _BACKSLASH).any()
        ):
            return False
    return True
