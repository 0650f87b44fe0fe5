"""Reading of files that torch.save wrote: a pickle of names and shapes, and the bytes of tensors.

They are not read by torch.load: it allocates what a damaged file claims, and for some tensors, such
as nested ones, looks at memory that no one has written. Here tensors are cut out of bytes that are
there, and everything else in the pickle is plain data, described, or refused.
"""

import io
import pickle
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mmray.descriptors.torch_described import Dense, Odd
from mmray.descriptors.torch_pickle import unpickled
from mmray.system.errors import InputError, first_names, quoted
from mmray.system.foreign import most_unpacked, reported

ANEW = "write it anew with torch.save(model.state_dict(), FILE)"
CIRTORCH, DIRTORCH = "meta", "model_options"  # beside the state dict in files of those libraries
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files that are no zip archives

_Content: TypeAlias = tuple[Any, dict[str, bytearray]]  # of the pickle, and of the storages


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights.

    Attributes
    ----------
    state : the state dict
    about : what a published network tells of itself beside it: plain data, and arrays that are
        only described; empty for a state dict alone
    """

    state: dict[str, Tensor | Odd]
    about: dict[str, Any] = field(default_factory=dict)


def read_torch(path: Path) -> Checkpoint:
    """Read a state dict; raises InputError or what `mmray.system.foreign.reported` handles."""
    try:
        content, storages = _of_archive(path) if zipfile.is_zipfile(path) else _of_stream(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not a plain state dict: it is damaged or holds code or objects, which are "
            f"never run here ({error}); {ANEW}"
        ) from error
    about: dict[str, Any] = {}
    if isinstance(content, dict) and {CIRTORCH, DIRTORCH} & content.keys():
        about = {name: value for name, value in content.items() if name != "state_dict"}
        content = content.get("state_dict")
    tensors: dict[str, Tensor | Odd] = {}
    for name, value in _checked(content, path).items():
        with reported(f"{path}: {shorten(name)}", ANEW):
            tensors[name] = value if isinstance(value, Odd) else _built(value, storages)
    return Checkpoint(tensors, about)


def _checked(content: Any, path: Path) -> "dict[str, Dense | Odd]":
    """Check that an unpickled file is a mapping of names to tensors."""
    wanted = "not a state dict: a mapping of names to tensors is wanted"
    if not isinstance(content, dict):
        raise InputError(f"{path}: {wanted}; {ANEW}")
    others = [name for name, value in content.items() if not isinstance(value, Dense | Odd)]
    if others:
        inside = [str(name) for name in others if isinstance(content[name], dict)]
        remedy = f"save one of {first_names(quoted(inside), 5)} alone" if inside else ANEW
        kind = type(content[others[0]]).__name__
        raise InputError(f"{path}: {wanted}, {shorten(others[0])} is of type {kind}; {remedy}")
    return content


def _built(found: Dense, storages: dict[str, bytearray]) -> Tensor:
    """Cut a tensor out of its storage; RuntimeError where it reaches beyond."""
    shape, strides = found.shape, found.strides
    if len(shape) != len(strides):
        raise ValueError(f"a shape {shorten(shape)} with strides {shorten(strides)}")
    if 0 in shape:  # its storage may be empty, which torch.frombuffer refuses
        return torch.empty(0, dtype=found.dtype).as_strided(shape, strides)
    data = storages[found.storage.key]
    whole = torch.frombuffer(data, dtype=found.dtype, count=len(data) // found.dtype.itemsize)
    # Strides of 0 repeat numbers: nothing of the shape's size is made here.
    return whole.as_strided(shape, strides, found.storage.first + found.offset)


def _of_archive(path: Path) -> _Content:
    """Read a zip archive, as torch 1.6 and later write it."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        unpacked = sum(member.file_size for member in members.values())
        if unpacked > most_unpacked(path.stat().st_size):
            raise ValueError(f"{unpacked} bytes out of {path.stat().st_size}")
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip archive, but not one of torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b""
        if order not in (b"", sys.byteorder.encode()):
            raise ValueError("of a machine of another byte order")
        content, described = unpickled(io.BytesIO(archive.read(pickles[0])))
        data = {key: f"{folder}data/{key}" for key in described}
        return content, {key: bytearray(archive.read(name)) for key, name in data.items()}


def _of_stream(path: Path) -> _Content:
    """Read pickles and then storages, as torch before 1.6 writes them."""
    size, storages = path.stat().st_size, {}
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise EOFError("a zip archive that is cut short")
        file.seek(0)
        magic, protocol, machine = (unpickled(file)[0] for _ in range(3))
        if (magic, protocol) != (_MAGIC, _PROTOCOL):
            raise ValueError("not a file of torch.save")
        if machine.get("little_endian") != (sys.byteorder == "little"):
            raise ValueError("of a machine of another byte order")
        (content, described), (keys, _) = unpickled(file), unpickled(file)
        for key in keys:
            length = int.from_bytes(file.read(8), "little") * described[key].dtype.itemsize
            if length > size - file.tell():
                raise EOFError(f"a storage of {length} bytes, which are not there")
            storages[key] = bytearray(file.read(length))
    return content, storages
