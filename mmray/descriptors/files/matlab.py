"""Reading the variable V of a MATLAB file, version 5 or 7.3: features in columns.

n items, d dimensions. Only the numbers of this one variable are read. The elements of version 5
("MAT-File Format", level 5) are parsed here, for `matlab_plain` too, and not by scipy.io.loadmat,
which a file with one wrong byte sends to a random address.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from mmray.system.errors import InputError, first_names, quoted
from mmray.system.foreign import most_unpacked

Element: TypeAlias = tuple[int, memoryview]  # its type and bytes
MATRIX, _COMPRESSED = 14, 15  # types of elements
_COMPLEX = 0x0800
_CLASSES = (
    *("nothing", "cell", "struct", "object", "char", "sparse", "double", "single", "int8", "uint8"),
    *("int16", "uint16", "int32", "uint32", "int64", "uint64", "function", "opaque", "object"),
)
_NUMBERS = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@contextmanager
def opened_matrix(path: Path, location: str) -> Iterator[Any]:
    """Open the variable V of a file for as long as the block runs.

    Parameters
    ----------
    path : the file
    location : the file's name in messages

    Yields
    ------
    Array or HDF5 dataset, (n, d) if V is a matrix (d, n): floating-point numbers.

    Raises
    ------
    InputError
        The file is of another version, or has no V of real floating-point numbers. A damaged file
        may raise any other error that `mmray.system.foreign.reported` handles.
    """
    with path.open("rb") as file:
        head = file.read(512 + len(_HDF5_SIGNATURE))
    starts = head.startswith((b"MATLAB 7.3 MAT-file", _HDF5_SIGNATURE))
    if starts or head[512:] == _HDF5_SIGNATURE:
        with h5py.File(path, "r") as variables:
            yield _dataset(variables, location)
    elif order := byte_order(head):
        yield _array(path, order, location)
    else:
        raise InputError(
            f"{location}: not a MATLAB file of version 5 or 7.3; save V again by save(..., '-v7.3')"
        )


def _without_v(names: list[str], location: str) -> InputError:
    return InputError(
        f"{location}: no variable V among {first_names(quoted(names))}; "
        "name the matrix of features V, one column an item"
    )


def _not_real(kind: str, location: str) -> InputError:
    return InputError(
        f"{location}: V is {kind}, not a full matrix of real floating-point numbers; "
        "save single(full(V))"
    )


# -- version 7.3 ----------------------------------------------------------------------------------


def _dataset(file: h5py.File, location: str) -> h5py.Dataset:
    link = file.get("V", getlink=True)
    if link is None:
        raise _without_v([name for name in file if not name.startswith("#")], location)
    if not isinstance(link, h5py.HardLink):
        raise _not_real("a link to another place", location)
    V = file["V"]
    if not isinstance(V, h5py.Dataset):
        raise _not_real("sparse or a struct", location)
    if V.shape is None or np.any(V.attrs.get("MATLAB_empty", 0)):
        raise InputError(f"{location}: V is empty; save a matrix with one column an item")
    if V.dtype.kind != "f":
        raise _not_real(str(V.dtype), location)
    layout = V.id.get_create_plist()
    if V.is_virtual or layout.get_external_count():
        raise _not_real("stored in other files", location)
    filters = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
    if not filters <= _FILTERS:
        raise _not_real(
            f"packed by filters that MATLAB does not use ({filters - _FILTERS})", location
        )
    # What the file does not hold would be filled with zeros; chunks may be larger than V.
    claimed = max(V.nbytes, math.prod(V.chunks or ()) * V.dtype.itemsize)
    if claimed > most_unpacked(V.id.get_storage_size()):
        raise ValueError(f"V claims {claimed} bytes out of {V.id.get_storage_size()}")
    return V


# -- version 5 ------------------------------------------------------------------------------------


def byte_order(head: bytes) -> str | None:
    """Return the byte order of a file of version 5, "<" or ">", or None for another file.

    Parameters
    ----------
    head : at least the first 128 bytes of the file
    """
    return {b"IM": "<", b"MI": ">"}.get(head[126:128])


def _array(path: Path, order: str, location: str) -> NDArray[Any]:
    """Read V of a file of version 5 in the byte order "<" or ">"."""
    others = []
    with path.open("rb") as file:
        for content in variables(file, order):
            parts = list(islice(elements(content, order), 4))
            name = bytes(parts[2][1]).decode("latin1")
            if name == "V":
                return _matrix(parts, order, location)
            others.append(name)
    raise _without_v(others, location)


def variables(file: IO[bytes], order: str, *, largest: int | None = None) -> Iterator[memoryview]:
    """Yield the content of each variable: the elements flags, dimensions, name and value.

    Raises
    ------
    EOFError, ValueError, struct.error, zlib.error
        The file is damaged, or a compressed variable has more than `largest` bytes, or more than
        `most_unpacked` of its own.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(128)
    while tag := file.read(8):
        kind, size = integers(tag, order, 2)
        # Before they are read: a damaged size asks for 4 GiB of memory.
        if size > end - file.tell():
            raise EOFError(f"a variable has {end - file.tell()} of its {size} bytes")
        content = file.read(size)
        if kind == _COMPRESSED:
            ((kind, body),) = islice(elements(_unpacked(content, largest), order), 1)
        else:
            body = memoryview(content)
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind}, not a variable")
        yield body


def _unpacked(content: bytes, largest: int | None) -> memoryview:
    most = most_unpacked(len(content))
    most = most if largest is None else min(most, largest)
    stream = zlib.decompressobj()
    body = stream.decompress(content, most + 1)
    if len(body) > most:
        raise ValueError(f"a variable has more than {most} bytes")
    if not stream.eof:
        raise EOFError("a compressed variable is cut short")
    return memoryview(body)


def elements(content: memoryview, order: str) -> Iterator[Element]:
    """Yield the elements in some bytes, one after the other.

    Raises
    ------
    ValueError, struct.error
        They are damaged.
    """
    while content:
        kind, size = integers(content, order, 2)
        start = 8
        if kind >> 16:  # up to four bytes, in place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, 4
        if size > (4 if start == 4 else len(content) - 8):
            raise ValueError(f"an element of {size} bytes, which are not there")
        yield kind, content[start : start + size]
        content = content[start + size + -(start + size) % 8 :]


def integers(content: bytes | memoryview, order: str, count: int) -> list[int]:
    """Read the first `count` unsigned 32-bit integers; struct.error if there are fewer."""
    return list(struct.unpack_from(f"{order}{count}I", content))


def class_of(flags: memoryview, order: str) -> str:
    """Return the class of a variable by its flags, or "complex"."""
    number = integers(flags, order, 1)[0]
    return "complex" if number & _COMPLEX else _CLASSES[number & 0xFF]


def dimensions(content: memoryview, order: str) -> list[int]:
    """Read the shape of a variable, in MATLAB's order: rows, columns, ..."""
    shape: list[int] = np.frombuffer(content, f"{order}i4").tolist()
    return shape


def numbers_of(element: Element, shape: list[int], order: str, name: str) -> NDArray[Any]:
    """Read the numbers of an element in their stored type, flat, column after column.

    Raises
    ------
    LookupError, ValueError
        The element does not hold numbers, or not as many as the shape requires.
    """
    stored, content = element
    values = np.frombuffer(content, f"{order}{_NUMBERS[stored]}")
    if len(values) != math.prod(shape):
        raise ValueError(f"{name} has {len(values)} entries, not {' x '.join(map(str, shape))}")
    return values


def _matrix(parts: list[Element], order: str, location: str) -> NDArray[Any]:
    kind = class_of(parts[0][1], order)
    if kind not in ("single", "double"):
        raise _not_real(kind, location)
    shape = dimensions(parts[1][1], order)
    values = numbers_of(parts[3], shape, order, "V")
    if values.dtype.kind != "f":  # whole numbers, stored in fewer bytes
        values = values.astype(np.float32)
    return values.reshape(shape[::-1])
