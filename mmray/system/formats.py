"""JSON and .npy files in a folder."""

import json
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mmray.system.folder import Folder


def write_json(folder: Folder, name: str, value: Any) -> None:
    folder.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(folder: Folder, name: str) -> Any:
    """Read a JSON file that `write_json` wrote; raises as `Folder.parsed`."""
    return folder.parsed(name, lambda source: json.loads(source.read()))


def write_array(folder: Folder, name: str, array: NDArray[Any]) -> None:
    with folder.writing(name) as sink:
        np.lib.format.write_array(sink, np.ascontiguousarray(array), allow_pickle=False)


def read_array(folder: Folder, name: str) -> NDArray[Any]:
    """Read an .npy file, memory-mapped where it is local; raises as `Folder.parsed`."""

    def parse(source: Any) -> NDArray[Any]:
        if folder.local is None:
            return np.asarray(np.load(source, allow_pickle=False))
        array: NDArray[Any] = np.load(folder.local / name, mmap_mode="r", allow_pickle=False)
        return array

    return folder.parsed(name, parse)


def write_header(sink: IO[bytes], shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
    """Write the header of an .npy file, after which the caller writes the rows."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, header)
