"""Safe reading of foreign pickles: only plain data is built, and nothing is executed.

Time and memory are bounded by the size of the file: a few crafted bytes could otherwise nest
without end, copy one list a million times, or take years to be hashed or walked through.
"""

import io
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from reprlib import repr as shorten
from typing import Any, ClassVar, Literal

import numpy as np

from mmray.system.errors import InputError
from mmray.system.folder import DAMAGE

_FAULTS: tuple[type[Exception], ...] = (pickle.UnpicklingError, *DAMAGE)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_DEEPEST = 100  # marks within one another, and containers; ground truths have fewer than ten
_MOST_AXES = 8  # of an array: each is one more list around every entry
_LARGEST_KEY = 2**63  # larger numbers can share one hash, which makes a dict of them quadratic
_COPIES = 8  # entries of arrays, sets and shared containers for each byte of the file
_FEWEST = 1 << 16  # entries that any file may have
_LONGEST_REASON = 150  # letters of either end of an error, which may repeat the file


def load_plain(data: bytes, source: str) -> Any:
    """Read a pickle of plain data; numpy arrays become lists, numpy scalars numbers.

    Parameters
    ----------
    data : content of the file; of several pickles in a row the first is read
    source : its path, for messages

    Raises
    ------
    InputError
        It is damaged, asks for anything but plain containers, text, numbers and numpy arrays, or is
        nested or repeats parts of itself far more than data does.
    """
    try:
        content = _PlainUnpickler(data).load()
        _check_size(content, most=_most_entries(data))
        return content
    except _FAULTS as error:
        reason = str(error)
        if len(reason) > 2 * _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]} ... {reason[-_LONGEST_REASON:]}"
        raise InputError(
            f"{source}: not a pickle of plain containers, text, numbers and numpy arrays: {reason}"
        ) from error


class _PlainUnpickler(pickle._Unpickler):
    """Unpickler of containers, text and numbers; numpy arrays become lists, scalars numbers.

    It is based on the unpickler in Python: the one in C allocates 16 bytes times the largest number
    that a pickle gives to an object, 64 GiB for one damaged byte.
    """

    def __init__(self, data: bytes) -> None:
        # Python 2 wrote the bytes of arrays as text.
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.allowed = _stand_ins(_most_entries(data))

    def find_class(self, module: str, name: str) -> Any:
        # numpy 1 and 2, and Python 2 and 3, name the same module differently.
        current = module.replace("numpy.core.", "numpy._core.").replace("__builtin__", "builtins")
        if (current, name) not in self.allowed:
            raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}"[:200])
        return self.allowed[current, name]

    def load_bytearray8(self: Any) -> None:
        """Read the bytes that exist; the original first allocates as many as are announced."""
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_mark(self: Any) -> None:
        if len(self.metastack) == _DEEPEST:
            raise pickle.UnpicklingError(f"refused: more than {_DEEPEST} marks within one another")
        super().load_mark()  # type: ignore[misc] # not in the stubs

    def load_long4(self: Any) -> None:
        """Refuse numbers that are too long to be shown; a file has no use for them."""
        raise pickle.UnpicklingError("refused: a number of 256 bytes or more")

    def load_put(self: Any) -> None:
        """Read a place in the memo, which this old instruction has as any number of digits."""
        place = self.readline()[:-1]
        if len(place) > 10:
            raise pickle.UnpicklingError("refused: a place in the memo of more than 10 digits")
        self.memo[int(place)] = self.stack[-1]

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.LONG4[0]: load_long4,
        pickle.MARK[0]: load_mark,
        pickle.PUT[0]: load_put,
    }


def _with_checked_keys(opcode: bytes, keys: Callable[[list[Any]], Sequence[Any]]) -> Any:
    """Return the instruction that hashes the keys among what lies on the stack, with a check."""
    original = pickle._Unpickler.dispatch[opcode[0]]

    def load(unpickler: Any) -> None:
        _check_keys(keys(unpickler.stack))
        original(unpickler)

    return load


_HASHING: dict[bytes, Callable[[list[Any]], Sequence[Any]]] = {
    pickle.SETITEM: lambda stack: stack[-2:-1],
    pickle.SETITEMS: lambda stack: stack[::2],
    pickle.DICT: lambda stack: stack[::2],
    pickle.ADDITEMS: lambda stack: stack,
    pickle.FROZENSET: lambda stack: stack,
}
_PlainUnpickler.dispatch |= {
    opcode[0]: _with_checked_keys(opcode, keys) for opcode, keys in _HASHING.items()
}


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys of dicts and items of sets whose hashes take long or can be made equal."""
    for key in keys:
        if not (key is None or isinstance(key, str | bytes | int | float)) or (
            isinstance(key, int) and abs(key) > _LARGEST_KEY
        ):
            raise pickle.UnpicklingError(f"refused: {shorten(key)} as a key or in a set")


def _most_entries(data: bytes) -> int:
    return max(_FEWEST, _COPIES * len(data))


def _check_size(content: Any, *, most: int) -> None:
    """Refuse containers that are nested too deep, or too large if shared parts count every time.

    Whoever reads them meets a list as often as they refer to it: a hundred bytes can refer to lists
    of lists of a billion entries.
    """
    sizes: dict[int, int] = {}  # entries of a container, those of its containers included

    def size(part: Any, depth: int) -> int:
        if id(part) not in sizes:
            if depth == _DEEPEST:
                raise pickle.UnpicklingError(f"refused: containers nested {_DEEPEST} deep")
            inner = part.values() if isinstance(part, dict) else part
            nested = [size(each, depth + 1) for each in inner if isinstance(each, _CONTAINERS)]
            sizes[id(part)] = len(part) + sum(nested)
            if sizes[id(part)] > most:
                raise pickle.UnpicklingError(f"refused: more than {most} entries, most repeated")
        return sizes[id(part)]

    if isinstance(content, _CONTAINERS):
        size(content, 0)


def _stand_ins(most: int) -> dict[tuple[str, str], Any]:
    """Return the harmless stand-ins for the globals that a pickle may ask for.

    What they copy is at most `most` entries or bytes in total.

    No object of numpy is handed out: a crafted state can make numpy's own dtypes and arrays read or
    write outside their memory, or change dtypes that the whole process shares. And
    `_codecs.encode` would import any codec that it is told to. The stand-ins are made anew for each
    pickle, because a pickle can set attributes of whatever it gets.
    """
    copied = 0

    def count(values: Any) -> None:
        nonlocal copied
        copied += len(values)
        if copied > most:
            raise pickle.UnpicklingError(f"refused: more than {most} entries, most repeated")

    def checked(values: Any) -> Any:
        count(values)
        _check_keys(values)
        return values

    class DType:
        def __init__(self, code: str, *flags: Any) -> None:
            if not re.fullmatch(r"[<>|=]?([biufSU]\d{1,6}|O8?)", code):
                raise pickle.UnpicklingError(f"refused: an array of type {shorten(code)}")
            self.code = code

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            # The byte order; the rest repeats the code, or is for types that are refused.
            if state[1] in ("<", ">"):
                self.code = state[1] + self.code.lstrip("<>|=")

    class Array(list[Any]):
        def __init__(self) -> None:  # it cannot be called as list is
            super().__init__()

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            _, shape, dtype, fortran, values = state
            self[:] = array(values, dtype, shape, "F" if fortran else "C")

    def array(
        values: Any, dtype: DType, shape: tuple[int, ...], order: Literal["C", "F"]
    ) -> list[Any]:
        count(values)
        if dtype.code.endswith(("O", "O8")):
            if not isinstance(values, list) or tuple(shape) != (len(values),):
                raise pickle.UnpicklingError(f"refused: objects in shape {shorten(shape)}")
            return values
        if len(shape) > _MOST_AXES:
            raise pickle.UnpicklingError(f"refused: an array of {len(shape)} axes")
        data = encode(values, "latin1") if isinstance(values, str) else values
        flat = np.frombuffer(data, np.dtype(dtype.code))
        if not flat.size:
            return []  # a shape like (10**9, 0) would still make lists
        texts = flat.astype(str) if flat.dtype.kind == "S" else flat
        rows: list[Any] = np.atleast_1d(texts.reshape(shape, order=order)).tolist()
        return rows

    def reconstruct(subtype: type, shape: tuple[int, ...], dtype: str) -> Array:
        return Array()  # its contents follow as its state

    def scalar(dtype: DType, data: bytes | str) -> Any:
        return array(data, dtype, (1,), "C")[0]

    def encode(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"refused: the codec {shorten(encoding)}")
        count(text)
        return text.encode("latin1")

    return {
        ("numpy", "dtype"): DType,
        ("numpy", "ndarray"): Array,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "scalar"): scalar,
        ("numpy._core.numeric", "_frombuffer"): array,
        ("_codecs", "encode"): encode,
        ("builtins", "bytes"): lambda: b"",  # old protocols write empty bytes this way
        ("builtins", "set"): lambda values=(): set(checked(values)),
        ("builtins", "frozenset"): lambda values=(): frozenset(checked(values)),
    }
