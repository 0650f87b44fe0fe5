"""The variable V of a MATLAB file, version 5 or 7.3: features in columns.

n items, d dimensions. Of a file only the numbers of this one variable are read.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from mmray.errors import InputError
from mmray.feature_tables import listed

_Element: TypeAlias = tuple[int, memoryview]  # its type and bytes
_COMPRESSED = 15
_COMPLEX = 0x0800
_CLASSES = (
    *("nothing", "cell", "struct", "object", "char", "sparse", "double", "single", "int8", "uint8"),
    *("int16", "uint16", "int32", "uint32", "int64", "uint64", "function", "opaque", "object"),
)
_NUMBERS = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@contextmanager
def opened_matrix(path: Path, location: str) -> Iterator[Any]:
    """V of a file for as long as the block runs.

    Parameters
    ----------
    path : the file
    location : its name in messages

    Yields
    ------
    Array or HDF5 dataset, (n, d) if V is a matrix (d, n): floating-point numbers.

    Raises
    ------
    InputError
        The file is of another version, or has no V of real floating-point numbers. On damaged
        files all else may be raised that `mmray.feature_tables.reported` knows.
    """
    with path.open("rb") as file:
        head = file.read(512 + len(_HDF5_SIGNATURE))
    starts = head.startswith((b"MATLAB 7.3 MAT-file", _HDF5_SIGNATURE))
    if starts or head[512:] == _HDF5_SIGNATURE:
        with h5py.File(path, "r") as variables:
            yield _dataset(variables, location)
    elif head[126:128] in (b"IM", b"MI"):
        yield _array(path, "<" if head[126:128] == b"IM" else ">", location)
    else:
        raise InputError(
            f"{location}: not a MATLAB file of version 5 or 7.3; save V again by save(..., '-v7.3')"
        )


def _without_v(names: list[str], location: str) -> InputError:
    return InputError(
        f"{location}: no variable V among {listed(names)}; "
        "name the matrix of features V, one column an item"
    )


def _not_real(kind: str, location: str) -> InputError:
    return InputError(
        f"{location}: V is {kind}, not a full matrix of real floating-point numbers; "
        "save single(full(V))"
    )


# -- version 7.3 ----------------------------------------------------------------------------------


def _dataset(file: h5py.File, location: str) -> h5py.Dataset:
    if "V" not in file:
        raise _without_v([name for name in file if not name.startswith("#")], location)
    V = file["V"]
    if not isinstance(V, h5py.Dataset):
        raise _not_real("sparse or a struct", location)
    if V.shape is None or V.attrs.get("MATLAB_empty", 0):
        raise InputError(f"{location}: V is empty; save a matrix with one column an item")
    if V.dtype.kind != "f":
        raise _not_real(str(V.dtype), location)
    return V


# -- version 5 ("MAT-File Format", level 5) -------------------------------------------------------


def _array(path: Path, order: str, location: str) -> NDArray[Any]:
    """V of a file in the byte order "<" or ">".

    Not by scipy.io.loadmat, which a file with one wrong byte sends to a random address.
    """
    others = []
    with path.open("rb") as file:
        file.seek(128)
        for elements in _variables(file, order):
            name = bytes(elements[2][1]).decode("latin1")
            if name == "V":
                return _matrix(elements, order, location)
            others.append(name)
    raise _without_v(others, location)


def _variables(file: IO[bytes], order: str) -> Iterator[list[_Element]]:
    """Elements of each variable: flags, dimensions, name, real part."""
    while tag := file.read(8):
        kind, size = _integers(tag, order, 2)
        content = file.read(size)
        if len(content) < size:
            raise EOFError(f"a variable has {len(content)} of its {size} bytes")
        packed = kind == _COMPRESSED
        body = memoryview(zlib.decompress(content))[8:] if packed else memoryview(content)
        yield list(islice(_elements(body, order), 4))


def _elements(content: memoryview, order: str) -> Iterator[_Element]:
    while content:
        kind, size = _integers(content, order, 2)
        start = 8
        if kind >> 16:  # up to four bytes, in place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, 4
        yield kind, content[start : start + size]
        content = content[start + size + -(start + size) % 8 :]


def _integers(content: bytes | memoryview, order: str, count: int) -> list[int]:
    """The first unsigned 32-bit integers."""
    numbers: list[int] = np.frombuffer(content, f"{order}u4", count).tolist()
    return numbers


def _matrix(elements: list[_Element], order: str, location: str) -> NDArray[Any]:
    (flags,) = _integers(elements[0][1], order, 1)
    kind = "complex" if flags & _COMPLEX else _CLASSES[flags & 0xFF]
    if kind not in ("single", "double"):
        raise _not_real(kind, location)
    shape = np.frombuffer(elements[1][1], f"{order}i4").tolist()
    stored, content = elements[3]
    values = np.frombuffer(content, f"{order}{_NUMBERS[stored]}")
    if len(values) != math.prod(shape):
        raise ValueError(f"V has {len(values)} entries, not {' x '.join(map(str, shape))}")
    if values.dtype.kind != "f":  # whole numbers, stored in fewer bytes
        values = values.astype(np.float32)
    return values.reshape(shape[::-1])
