"""Descriptions of tensors and arrays in a file of torch.save, of which nothing is made yet."""

from collections.abc import Callable
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import Any

import numpy as np
import torch

from mmray.system.arrays import Features

UNTOLD = "of a type that is not read"


@dataclass(frozen=True)
class Storage:
    """The bytes that tensors are cut out of: their type, key in the file, and number."""

    dtype: torch.dtype
    key: str
    count: int
    first: int = 0  # item that a view of it begins with


@dataclass(frozen=True)
class Dense:
    """A tensor in a storage, as the pickle describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Odd:
    """A tensor that is not read, and why."""

    kind: str


@dataclass
class Described:
    """An object of numpy or scikit-learn, as the pickle describes it: nothing was made of it.

    Attributes
    ----------
    name : of its class, or of the function that would make it
    arguments : of that function
    state : what the object would be given then; None: nothing
    """

    name: str
    arguments: tuple[Any, ...]
    state: Any = None

    def array(self) -> Features:
        """Return the numbers of an array, as float32; TypeError or ValueError if it has others."""
        if self.name != "_reconstruct":
            raise TypeError(f"{self.name}, not an array")
        _, shape, dtype, fortran, data = self.state
        code, order = dtype.arguments[0], dtype.state[1]
        if code not in ("f4", "f8") or order not in ("<", ">"):
            raise TypeError(f"an array of {shorten(code)}, not of real numbers")
        content = data.encode("latin1") if isinstance(data, str) else data
        numbers = np.frombuffer(content, order + code).astype(np.float32)
        return numbers.reshape(tuple(map(natural, shape)), order="F" if fortran else "C")


@dataclass(frozen=True)
class Describing:
    """A stand-in for a class or function: called, it describes what the original would make."""

    name: str

    def __call__(self, *arguments: Any) -> Described:
        return Described(self.name, arguments)


def unencoded(text: Any, *_: Any) -> Any:
    """Return bytes as the text that old pickles hold in their place: see `Described.array`."""
    return text


def natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{shorten(value)} where there should be a size")
    return value


def _dense(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> "Dense | Odd":
    """Describe a tensor, from the arguments of torch._utils._rebuild_tensor_v2."""
    if isinstance(storage, Odd):
        return storage
    _, _, *more = rest if len(rest) > 1 else (None, None)
    return _typed(storage, offset, shape, strides, storage.dtype, *more)


def _typed(
    storage: "Storage",
    offset: Any,
    shape: Any,
    strides: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> "Dense | Odd":
    if metadata:
        return Odd("conjugated or negated by a mark")
    shape, strides = tuple(map(natural, shape)), tuple(map(natural, strides))
    return Dense(storage, natural(offset), shape, strides, dtype)


def _dense_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *more: Any
) -> "Dense | Odd":
    """Describe a tensor, from the arguments of torch._utils._rebuild_tensor_v3."""
    return _typed(storage, offset, shape, strides, dtype, *more)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def untold(*_: Any) -> Odd:
    return Odd(UNTOLD)


def _odd(kind: str) -> Callable[..., Odd]:
    return lambda *_: Odd(kind)


REBUILT = {
    "_rebuild_tensor": _dense,
    "_rebuild_tensor_v2": _dense,
    "_rebuild_tensor_v3": _dense_v3,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_sparse_tensor": _odd("sparse"),
    "_rebuild_qtensor": _odd("quantised"),
    "_rebuild_meta_tensor_no_storage": _odd("on the meta device, without values"),
    "_rebuild_nested_tensor": _odd("nested"),
    "_rebuild_wrapper_subclass": _odd("of a class of its own"),
    "_rebuild_device_tensor_from_numpy": _odd("of another device"),
    "_rebuild_device_tensor_from_cpu_tensor": _odd("of another device"),
}
