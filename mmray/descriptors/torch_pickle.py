"""The pickle in a file of torch.save: descriptions of tensors, read without running anything."""

import os
import pickle
from collections.abc import Iterable
from dataclasses import replace
from typing import IO, Any, ClassVar

import torch

from mmray.descriptors.torch_described import (
    REBUILT,
    UNTOLD,
    Described,
    Describing,
    Odd,
    Storage,
    natural,
    unencoded,
    untold,
)

_STORAGES = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16},
    **{"BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16},
    **{"Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool, "Untyped": torch.uint8},
    **{"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
    # Of quantised tensors, which are not read: what lies behind such a storage is.
    **{"QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32},
    **{"QUInt4x2": torch.uint8, "QUInt2x4": torch.uint8},
}
_LARGEST = 1 << 21  # bytes of operations: some ten thousand tensors, or seconds of crafted ones
_LONG = 1 << 17  # from so many bytes on a text is the content of an array; frames have fewer
_OF_ODD = (  # what describes tensors that are not read
    *("Size", "device", "_get_layout", "per_tensor_affine", "per_channel_affine", "strided"),
    *("per_channel_affine_float_qparams", "sparse_coo"),
)
_OF_OBJECTS = {  # what lies beside the tensors of published networks, and is only described
    *(("numpy", "ndarray"), ("numpy", "dtype")),
    *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")),
    *(("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")),
    *((f"sklearn.decomposition{module}", "PCA") for module in ("", ".pca", "._pca")),
}
_REFUSED = [  # operations that no state dict needs
    operation[0]
    for operation in (
        *(pickle.EMPTY_SET, pickle.FROZENSET, pickle.ADDITEMS, pickle.INST, pickle.OBJ),
        *(pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    )
]


class _Rationed:
    """A stream that a pickle is read from: any text that is there, but not many operations."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.left = stream, _LARGEST
        start = stream.tell()
        self.end = stream.seek(0, os.SEEK_END)
        stream.seek(start)

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise EOFError

    def read(self, count: int) -> bytes:
        # A stream may take as much memory as it is asked for, whatever is there.
        found = self.stream.read(min(count, self.end - self.stream.tell()))
        self._spend(len(found) if len(found) < _LONG else 0)
        return found

    def readline(self) -> bytes:
        found = self.stream.readline()
        self._spend(len(found))
        return found


def unpickled(stream: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Read a pickle: its content and its storages by key; the stream is left at its end.

    Raises
    ------
    pickle.UnpicklingError
        It is damaged, or asks for anything but what describes tensors.
    EOFError
        It is cut short or too long.
    """
    unpickler = _StateUnpickler(_Rationed(stream))
    try:
        content = unpickler.load()
    except LookupError as error:  # of an unknown operation, or with nothing to operate on
        raise pickle.UnpicklingError("the pickle is damaged") from error
    except EOFError as error:
        raise EOFError(
            f"its pickle is cut short, or has more than {_LARGEST} bytes of operations"
        ) from error
    return content, unpickler.storages


class _StateUnpickler(pickle._Unpickler):
    """Unpickler of numbers, text, containers and descriptions of the rest, which runs nothing.

    It is based on the unpickler in Python, whose operations can be taken away: the one in C
    allocates what a damaged byte asks for.
    """

    def __init__(self, stream: _Rationed) -> None:
        super().__init__(stream, encoding="latin1")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        found: Any = None
        if (module, name) == ("collections", "OrderedDict"):
            found = _ordered
        elif module == "torch._utils" and name.startswith("_rebuild_"):
            found = REBUILT.get(name)
        elif module in ("torch", "torch.storage") and name.endswith("Storage"):
            found = _STORAGES.get(name.removesuffix("Storage"), untold)
        elif module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        elif module in ("torch", "torch.serialization") and name in _OF_ODD:
            found = untold
        elif (module, name) in _OF_OBJECTS:
            found = Describing(name)
        elif (module, name) == ("_codecs", "encode"):
            found = unencoded
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:200])
        return found

    def persistent_load(self, pid: Any) -> "Storage | Odd":
        kind, dtype, key, _, count, *view = pid
        if dtype is untold:
            return Odd(UNTOLD)
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a reference to what is no storage")
        storage = self.storages.setdefault(key, Storage(dtype, key, natural(count)))
        if view and view[0] is not None:
            _, first, _ = view[0]
            return replace(storage, first=natural(first))
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

    def load_newobj(self: Any) -> None:
        """Describe an object instead of making it."""
        arguments, maker = self.stack.pop(), self.stack.pop()
        if not isinstance(maker, Describing):
            self.load_refused()
        self.append(maker(*arguments))

    def load_build(self: Any) -> None:
        """Keep the state of what is described; other attributes, as of modules, are dropped."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Described):
            self.stack[-1].state = state

    def load_frame(self: Any) -> None:
        """Read a frame of operations, whose number is rationed by its length."""
        length = int.from_bytes(self.read(8), "little")
        if length >= _LONG:
            raise pickle.UnpicklingError(f"a frame of {length} bytes")
        self._unframer.load_frame(length)

    def load_refused(self) -> None:
        """Refuse operations that no state dict needs."""
        raise pickle.UnpicklingError("the pickle makes sets, objects or buffers")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.SETITEMS[0]: load_setitems,
        pickle.SETITEM[0]: load_setitem,
        pickle.DICT[0]: load_dict,
        pickle.BUILD[0]: load_build,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.FRAME[0]: load_frame,
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
