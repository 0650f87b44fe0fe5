"""Files of weights, in .safetensors, from torch.save or Caffe, checked before their use."""

from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as shorten
from typing import TypeAlias

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mmray.descriptors.caffe_files import parse_caffe
from mmray.descriptors.torch_described import Odd
from mmray.descriptors.torch_files import ANEW, Checkpoint, read_torch
from mmray.system.errors import InputError
from mmray.system.foreign import reported

State: TypeAlias = Mapping[str, Tensor | Odd]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a state dict, alone or in the file of a published network.

    Parameters
    ----------
    path : of a file in .safetensors or of Caffe (.caffemodel), if it ends so, or from torch.save

    Returns
    -------
    Tensors by name, or what stands for those that are not dense, and what the file tells beside
    them; nothing in the file is executed.

    Raises
    ------
    InputError
        The file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    with reported(str(path), ANEW, "cannot be read as a state dict"):
        parse = _PARSERS.get(path.suffix.lower())
        return read_torch(path) if parse is None else Checkpoint(dict(parse(path.read_bytes())))


def parse_safetensors(data: bytes) -> dict[str, Tensor | Odd]:
    """Parse the content of a file in .safetensors; ValueError if it is damaged."""
    try:
        return dict(safetensors.torch.load(data))
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


_PARSERS: dict[str, Callable[[bytes], State]] = {
    ".safetensors": parse_safetensors,
    ".caffemodel": parse_caffe,
}


def fill(wanted: Mapping[str, Tensor], state: State, *, source: str, network: str) -> None:
    """Copy a state into the tensors of a network.

    Parameters
    ----------
    wanted : the network's tensors by name
    state : names that `wanted` lacks are ignored
    source, network : names of the file and of the network, for messages

    Raises
    ------
    InputError
        A tensor is missing, of another shape, not dense and real, or not finite; it is named.
    """
    for name, tensor in wanted.items():
        if name not in state:
            if name.endswith("num_batches_tracked"):  # not in old files, nor used
                continue
            raise InputError(f"{source}: no tensor {name}, which {network} needs")
        with reported(f"{source}: {name}", ANEW):  # torch copies no numbers of 4 bits
            fault = _copied(state[name], tensor)
        if fault is not None:
            problem, needed = fault
            raise InputError(f"{source}: {name} {problem}, {network} needs {needed}")


def _copied(found: Tensor | Odd, wanted: Tensor) -> tuple[str, str] | None:
    """Copy a tensor into another; return None, or what is wrong with it and what is needed."""
    if isinstance(found, Odd):
        return f"is {found.kind}", "a dense tensor"
    if found.shape != wanted.shape:
        return f"has the shape {shorten(tuple(found.shape))}", str(tuple(wanted.shape))
    if found.is_floating_point() != wanted.is_floating_point() or found.is_complex():
        kind = "real floating-point" if wanted.is_floating_point() else "whole"
        return f"is of {str(found.dtype).removeprefix('torch.')}", f"{kind} numbers"
    wanted.copy_(found)
    if not bool(torch.isfinite(wanted).all()):
        return "holds NaN, infinity or what is too large for float32", "finite numbers"
    return None
