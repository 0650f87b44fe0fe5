"""The pickle in a file of torch.save: descriptions of tensors, read without running anything."""

import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from reprlib import repr as shorten
from typing import IO, Any, ClassVar

import torch

_STORAGES = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16},
    **{"BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16},
    **{"Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool, "Untyped": torch.uint8},
    **{"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
    # Of quantised tensors, which are not read: what lies behind such a storage is.
    **{"QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32},
    **{"QUInt4x2": torch.uint8, "QUInt2x4": torch.uint8},
}
_LARGEST = 1 << 21  # bytes of a pickle: some ten thousand tensors, or seconds of crafted operations
_UNTOLD = "of a type that is not read"
_OF_ODD = (  # what describes tensors that are not read
    *("Size", "device", "_get_layout", "per_tensor_affine", "per_channel_affine", "strided"),
    *("per_channel_affine_float_qparams", "sparse_coo"),
)
_REFUSED = [  # operations that no state dict needs
    operation[0]
    for operation in (
        *(pickle.EMPTY_SET, pickle.FROZENSET, pickle.ADDITEMS, pickle.INST, pickle.OBJ),
        *(pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    )
]


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


def unpickled(stream: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Read a pickle: its content and its storages by key; the stream is left at its end.

    Raises
    ------
    pickle.UnpicklingError
        It is damaged, or asks for anything but what describes tensors.
    EOFError
        It is cut short or too long.
    """
    start = stream.tell()
    part = io.BytesIO(stream.read(_LARGEST))
    unpickler = _StateUnpickler(part)
    try:
        content = unpickler.load()
    except LookupError as error:  # of an unknown operation, or with nothing to operate on
        raise pickle.UnpicklingError("the pickle is damaged") from error
    except EOFError as error:
        raise EOFError(f"its pickle is cut short, or has more than {_LARGEST} bytes") from error
    stream.seek(start + part.tell())
    return content, unpickler.storages


class _StateUnpickler(pickle._Unpickler):
    """Unpickler of numbers, text, containers and descriptions of tensors, which runs nothing.

    It is based on the unpickler in Python, whose operations can be taken away: the one in C
    allocates what a damaged byte asks for.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, encoding="latin1")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        found: Any = None
        if (module, name) == ("collections", "OrderedDict"):
            found = _ordered
        elif module == "torch._utils" and name.startswith("_rebuild_"):
            found = _REBUILT.get(name)
        elif module in ("torch", "torch.storage") and name.endswith("Storage"):
            found = _STORAGES.get(name.removesuffix("Storage"), _untold)
        elif module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        elif module in ("torch", "torch.serialization") and name in _OF_ODD:
            found = _untold
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:200])
        return found

    def persistent_load(self, pid: Any) -> "Storage | Odd":
        kind, dtype, key, _, count, *view = pid
        if dtype is _untold:
            return Odd(_UNTOLD)
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a reference to what is no storage")
        storage = self.storages.setdefault(key, Storage(dtype, key, _natural(count)))
        if view and view[0] is not None:
            _, first, _ = view[0]
            return replace(storage, first=_natural(first))
        return storage

    # Keys that are containers would take for ever to hash: a few bytes nest millions of them.
    def load_setitems(self: Any) -> None:
        """Set items of a dict whose keys are text or numbers, as in every state dict."""
        items = self.pop_mark()
        self.stack[-1] |= _ordered(zip(items[::2], items[1::2], strict=True))

    def load_setitem(self: Any) -> None:
        """Set one item, as `load_setitems` does."""
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1] |= _ordered([(key, value)])

    def load_dict(self: Any) -> None:
        """Make a dict, as `load_setitems` does."""
        items = self.pop_mark()
        self.append(_ordered(zip(items[::2], items[1::2], strict=True)))

    def load_build(self: Any) -> None:
        """Drop the attributes of an object: versions of modules, which no tensor needs."""
        self.stack.pop()

    def load_refused(self) -> None:
        """Refuse operations that no state dict needs."""
        raise pickle.UnpicklingError("the pickle makes sets, objects or buffers")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.SETITEMS[0]: load_setitems,
        pickle.SETITEM[0]: load_setitem,
        pickle.DICT[0]: load_dict,
        pickle.BUILD[0]: load_build,
        **dict.fromkeys(_REFUSED, load_refused),
    }


def _ordered(pairs: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    """Make a dict of pairs; TypeError for keys that are neither text nor numbers."""
    found = {}
    for key, value in pairs:
        if not isinstance(key, str | int | float | None):
            raise TypeError(f"a key of type {type(key).__name__}")
        found[key] = value
    return found


def _natural(value: Any) -> int:
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
    shape, strides = tuple(map(_natural, shape)), tuple(map(_natural, strides))
    return Dense(storage, _natural(offset), shape, strides, dtype)


def _dense_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *more: Any
) -> "Dense | Odd":
    """Describe a tensor, from the arguments of torch._utils._rebuild_tensor_v3."""
    return _typed(storage, offset, shape, strides, dtype, *more)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _untold(*_: Any) -> Odd:
    return Odd(_UNTOLD)


def _odd(kind: str) -> Callable[..., Odd]:
    return lambda *_: Odd(kind)


_REBUILT = {
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
