"""Reading .npy, .npz and JSON files that may be damaged or made elsewhere.

Nothing in a file is executed, no more memory is taken than its bytes account for, and every fault
becomes an InputError that names the file and the fault without repeating the content.
"""

import json
import math
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import DAMAGE, Folder

WHOLE = "check that it is a whole {}, and that you may read it"

_LONGEST_REASON = 300  # letters of a library's message, which may repeat the file
_LARGEST_JSON = 1 << 24  # bytes
_RATIO, _SLACK = 100, 1 << 26  # bytes that a packed byte may stand for, and bytes beside that
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    # It differs in the names of fields alone, and arrays of fields are refused.
    (3, 0): np.lib.format.read_array_header_2_0,
}

Default = TypeVar("Default")


@contextmanager
def reported(location: str, remedy: str, what: str = "cannot be read") -> Iterator[None]:
    """Turn the errors of libraries that read a bad file into an InputError of one sentence."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, DamagedFileError):
            raise InputError(f"{location}: {what} ({error.reason}); {remedy}") from error
        if isinstance(error, InputError) and not isinstance(error, OSError):
            raise
        # The text of a UnicodeDecodeError is short, its repr holds all bytes.
        reason = " ".join(str(error)[:_LONGEST_REASON].split())
        raise InputError(
            f"{location}: {what} ({type(error).__name__}: {reason}); {remedy}"
        ) from error


def most_unpacked(packed: int) -> int:
    """Return how many bytes compressed data may stand for before they count as damage or a trap.

    Descriptors and weights hardly compress, and deflate packs a thousand zeros into a byte.
    """
    return _RATIO * packed + _SLACK


# -- arrays ---------------------------------------------------------------------------------------


def read_npy(source: IO[bytes], size: int) -> NDArray[Any]:
    """Read an array from a stream in the .npy format.

    Parameters
    ----------
    source : at the start of the format
    size : bytes that the stream has from there, at most

    Returns
    -------
    A read-only array of plain items: numbers, text, bytes or dates.

    Raises
    ------
    What `reported` handles: the data is damaged, shorter than its header claims, or of objects or
    fields.
    """
    version = np.lib.format.read_magic(source)
    if version not in _HEADERS:
        raise ValueError(f"a format of version {version}, which is not known")
    shape, by_columns, dtype = _HEADERS[version](source)
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
        raise ValueError(f"an array of objects or fields ({shorten(str(dtype))}), not plain items")
    if min(shape, default=0) < 0:
        raise ValueError(f"a header with the negative shape {shorten(shape)}")
    claimed = math.prod(shape) * dtype.itemsize
    # Before anything of this size is allocated.
    if claimed > size:
        raise ValueError(
            f"the header claims an array {shorten(shape)} of {shorten(str(dtype))}, "
            f"{claimed} bytes, the file has {size}"
        )
    data = source.read(claimed)
    if len(data) < claimed:
        raise EOFError(f"{len(data)} of the {claimed} bytes of an array {shorten(shape)}")
    return np.ndarray(shape, dtype, data, order="F" if by_columns else "C")


def read_npz(source: IO[bytes], names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read some arrays of an .npz file; raises what `reported` handles, as `read_npy` does."""
    arrays = {}
    with zipfile.ZipFile(source) as archive:
        members = {member.filename: member for member in archive.infolist()}
        for name in names:
            member = members.get(f"{name}.npy")
            if member is None:
                raise KeyError(f"no array {name}")
            if member.file_size > most_unpacked(member.compress_size):
                raise ValueError(
                    f"the array {name} has {member.file_size} bytes out of {member.compress_size}"
                )
            with archive.open(member) as stream:
                arrays[name] = read_npy(stream, member.file_size)
                stream.read(1)  # at its end the checksum is compared
    return arrays


# -- JSON -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class JsonObject:
    """The object in a JSON file, whose values are checked as they are asked for.

    Attributes
    ----------
    values : by key
    location : of the file, for messages
    what : what the file is not where it cannot be used, for messages
    remedy : what to do then, for messages
    """

    values: Mapping[str, Any]
    location: str
    what: str
    remedy: str

    @classmethod
    def read(cls, folder: Folder, name: str, what: str, remedy: str) -> "JsonObject":
        """Read a file of a folder; `what` and `remedy` are as the attributes.

        Raises
        ------
        InputError
            It is missing or no JSON object, holds NaN or Infinity, a key twice, or is nested too
            deep.
        """
        location = folder.location(name)
        with reported(location, remedy, what):
            data = folder.read(name)
            if len(data) > _LARGEST_JSON:
                raise ValueError(f"{len(data)} bytes, at most {_LARGEST_JSON} are read")
            values = json.loads(
                data.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_once
            )
            if not isinstance(values, dict):
                raise TypeError(f"a {type(values).__name__}, not an object of keys and values")
        return cls(values, location, what, remedy)

    def value(
        self,
        key: str,
        accepts: Callable[[Any], bool],
        expected: str,
        *default: Default,
    ) -> Any | Default:
        """Return a value that a test accepts; InputError names the key and what is expected.

        Parameters
        ----------
        key : of the value
        accepts : the test
        expected : what it accepts, for messages
        default : where the key is missing; none: it must be there
        """
        if key not in self.values:
            if default:
                return default[0]
            raise InputError(
                f"{self.location}: {self.what} ({key} is missing: {expected}); {self.remedy}"
            )
        value = self.values[key]
        if not accepts(value):
            raise InputError(
                f"{self.location}: {key} is {shorten(value)}: {expected}; {self.remedy}"
            )
        return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shorten(key)} is there twice")
        found[key] = value
    return found
