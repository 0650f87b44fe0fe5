"""Safe reading of foreign pickles: only plain data is built, and nothing is executed."""

import io
import pickle
import re
import struct
from reprlib import repr as shorten
from typing import Any, ClassVar, Literal

import numpy as np

from mmray.system.errors import InputError

# Exceptions that a damaged pickle causes; numpy raises SystemError for text beyond Unicode.
_STUMBLES = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    SystemError,
    TypeError,
    ValueError,
)


def load_plain(data: bytes, source: str) -> Any:
    """Read a pickle of plain data; numpy arrays become lists, numpy scalars numbers.

    Parameters
    ----------
    data : content of the file; of several pickles in a row the first is read
    source : its path, for messages

    Raises
    ------
    InputError
        It is damaged, or asks for anything but plain containers, text, numbers and numpy arrays.
    """
    try:
        return _PlainUnpickler(data).load()
    except _STUMBLES as error:
        raise InputError(
            f"{source}: not a pickle of plain containers, text, numbers and numpy arrays: {error}"
        ) from error


class _PlainUnpickler(pickle._Unpickler):
    """Unpickler of containers, text and numbers; numpy arrays become lists, scalars numbers.

    It is based on the unpickler in Python: the one in C allocates 16 bytes times the largest number
    that a pickle gives to an object, 64 GiB for one damaged byte.
    """

    def __init__(self, data: bytes) -> None:
        # Python 2 wrote the bytes of arrays as text.
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.allowed = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        # numpy 1 and 2, and Python 2 and 3, name the same module differently.
        current = module.replace("numpy.core.", "numpy._core.").replace("__builtin__", "builtins")
        if (current, name) not in self.allowed:
            raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}"[:200])
        return self.allowed[current, name]

    def load_bytearray8(self: Any) -> None:
        """Read the bytes that exist; the original first allocates as many as are announced."""
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def _stand_ins() -> dict[tuple[str, str], Any]:
    """Return the harmless stand-ins for the globals that a pickle may ask for.

    No object of numpy is handed out: a crafted state can make numpy's own dtypes and arrays read or
    write outside their memory, or change dtypes that the whole process shares. And
    `_codecs.encode` would import any codec that it is told to. The stand-ins are made anew for each
    pickle, because a pickle can set attributes of whatever it gets.
    """

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
        def __setstate__(self, state: tuple[Any, ...]) -> None:
            _, shape, dtype, fortran, values = state
            self[:] = array(values, dtype, shape, "F" if fortran else "C")

    def array(
        values: Any, dtype: DType, shape: tuple[int, ...], order: Literal["C", "F"]
    ) -> list[Any]:
        if dtype.code.endswith(("O", "O8")):
            if not isinstance(values, list) or tuple(shape) != (len(values),):
                raise pickle.UnpicklingError(f"refused: objects in shape {shorten(shape)}")
            return values
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
        return text.encode("latin1")

    return {
        ("numpy", "dtype"): DType,
        ("numpy", "ndarray"): Array,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "scalar"): scalar,
        ("numpy._core.numeric", "_frombuffer"): array,
        ("_codecs", "encode"): encode,
        ("builtins", "bytes"): lambda: b"",  # old protocols write empty bytes this way
        ("builtins", "set"): set,
        ("builtins", "frozenset"): frozenset,
    }
