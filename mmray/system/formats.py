"""JSON and .npy files in a folder."""

import io
import json
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mmray.system.folder import Folder


def write_json(folder: Folder, name: str, value: Any) -> None:
    folder.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(folder: Folder, name: str) -> Any:
    return json.loads(folder.read(name))


def write_array(folder: Folder, name: str, array: NDArray[Any]) -> None:
    with folder.writing(name) as sink:
        np.lib.format.write_array(sink, np.ascontiguousarray(array), allow_pickle=False)


def read_array(folder: Folder, name: str) -> NDArray[Any]:
    """Read an .npy file: memory-mapped where it is local, else loaded into memory."""
    if folder.local is not None:
        array: NDArray[Any] = np.load(folder.local / name, mmap_mode="r", allow_pickle=False)
        return array
    return np.asarray(np.load(io.BytesIO(folder.read(name)), allow_pickle=False))


def write_header(sink: IO[bytes], shape: tuple[int, int]) -> None:
    """Write the header of a float32 .npy file, after which the caller writes the rows."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, header)
