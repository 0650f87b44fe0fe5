"""Reading cells, structs, text and numbers of MATLAB files of version 5 as plain Python.

For small files, such as ground truths. Nothing is executed, and no more memory is taken than some
tens of times the bytes of a variable: every value that is built has bytes of its own in the file.
"""

import io
import math
from collections.abc import Collection
from itertools import islice
from typing import Any

import numpy as np

from mmray.descriptors.files.matlab import (
    MATRIX,
    Element,
    byte_order,
    class_of,
    dimensions,
    elements,
    integers,
    numbers_of,
    variables,
)
from mmray.system.errors import InputError, first_names, quoted
from mmray.system.foreign import WHOLE, reported

_LARGEST = 1 << 23  # bytes of a variable, once it is decompressed: a million empty cells
_DEEPEST = 16  # cells and structs within one another
_NUMBERS = ("double", "single", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))
_CODECS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


def read_plain(data: bytes, names: Collection[str], location: str) -> dict[str, Any]:
    """Read some variables of a file.

    Parameters
    ----------
    data : content of the file
    names : of the variables
    location : the file's name in messages

    Returns
    -------
    Name -> value. A cell array is a list, in MATLAB's order: columns, one after the other. A struct
    is a dict, an array of them, unless it is 1 x 1, a list of dicts. A line of text is a str, an
    array of several lines a list of them. Numbers are an array of their shape, in the type in which
    they are stored.

    Raises
    ------
    InputError
        The file is of another version or damaged, lacks a variable, or a variable holds something
        else: complex or sparse numbers, objects, functions.
    """
    order = byte_order(data[:128])
    if order is None or data.startswith(b"MATLAB 7.3"):
        raise InputError(
            f"{location}: not a MATLAB file of version 5; save it again by save(..., '-v7')"
        )
    found: dict[str, Any] = {}
    others = []
    with reported(location, WHOLE.format(".mat file")):
        for content in variables(io.BytesIO(data), order, largest=_LARGEST):
            _, named = list(islice(elements(content, order), 3))[2]
            name = bytes(named).decode("latin1")
            if name in names and name not in found:
                found[name] = _value(content, order)
                if len(found) == len(set(names)):
                    return found
            others.append(name)
    missing = next(name for name in names if name not in found)
    raise InputError(
        f"{location}: no variable {missing} among {first_names(quoted(others))}; "
        "give the file as it is published"
    )


def _value(content: memoryview, order: str, depth: int = 0) -> Any:
    """Return the value of a variable, cell or field; raises what `reported` handles if damaged."""
    if not content:
        return np.empty((0, 0))  # a cell or field that was never filled
    if depth > _DEEPEST:
        raise ValueError(f"cells and structs are nested more than {_DEEPEST} deep")
    (_, flags), (_, sizes), _, *parts = elements(content, order)
    kind, shape = class_of(flags, order), dimensions(sizes, order)
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"a variable of shape {shape}")
    if kind == "cell":
        return _values(parts, math.prod(shape), order, depth)
    if kind == "struct":
        return _structs(parts, math.prod(shape), order, depth)
    if kind == "char":
        return _text(parts[0], shape, order)
    if kind in _NUMBERS:
        return numbers_of(parts[0], shape, order, "an array").reshape(shape, order="F")
    raise ValueError(f"a value of the class {kind}, which is not read")


def _values(parts: list[Element], count: int, order: str, depth: int) -> list[Any]:
    if len(parts) != count:
        raise ValueError(f"{len(parts)} values where there should be {count}")
    for kind, _ in parts:
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind} where there should be a value")
    return [_value(content, order, depth + 1) for _, content in parts]


def _structs(parts: list[Element], count: int, order: str, depth: int) -> Any:
    (_, width), (_, text), *parts = parts
    (length,) = integers(width, order, 1)
    starts = range(0, len(text), max(length, 1))
    if not starts and count > 1:
        raise ValueError(f"{count} structs without fields")  # there are no bytes for so many
    values = _values(parts, count * len(starts), order, depth)
    names = [bytes(text[i : i + length]) for i in starts] if count else []
    fields = [name.partition(b"\0")[0].decode("latin1") for name in names]
    structs = [
        dict(zip(fields, values[i * len(fields) : (i + 1) * len(fields)], strict=True))
        for i in range(count)
    ]
    return structs[0] if count == 1 else structs


def _text(element: Element, shape: list[int], order: str) -> str | list[str]:
    stored, content = element
    codec = _CODECS[stored]
    if codec in ("utf-16", "utf-32"):
        codec += "-le" if order == "<" else "-be"
    text = str(content, codec)
    # MATLAB counts a letter that UTF-16 writes in two parts as two.
    if math.prod(shape) not in (len(text), len(text.encode("utf-16-le")) // 2) or len(shape) > 2:
        raise ValueError(f"{len(text)} letters, not {' x '.join(map(str, shape))}")
    lines = shape[0]
    return text if lines == 1 or not text else [text[line::lines] for line in range(lines)]
