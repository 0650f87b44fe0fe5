"""Weights in Caffe's files (.caffemodel): the tensors of a message of protocol buffers.

Of Caffe's schema (caffe.proto) only the fields of weights are known here, in both forms that its
versions wrote; what else a file holds is skipped, and nothing in it is executed.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from torch import Tensor

# Message -> field -> (number, type, repeated).
_SCHEMA: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Shape": {"dim": (1, "int64", True)},
    "Blob": {
        "num": (1, "int32", False),
        "channels": (2, "int32", False),
        "height": (3, "int32", False),
        "width": (4, "int32", False),
        "data": (5, "float", True),
        "shape": (7, "Shape", False),
    },
    "OldLayer": {"name": (4, "string", False), "blobs": (6, "Blob", True)},
    "Layer": {"name": (1, "string", False), "blobs": (7, "Blob", True)},
    "Net": {"layers": (2, "OldLayer", True), "layer": (100, "Layer", True)},
}
_NAMES = ("weight", "bias")  # of a layer's blobs
FIRST = "conv1.7x7_s2.weight"  # of the layer that takes pixels, BGR


def parse_caffe(data: bytes) -> dict[str, Tensor]:
    """Parse the content of a .caffemodel.

    Returns
    -------
    Tensors by the names of their layers, with points for slashes, and `.weight` or `.bias`. The
    first convolution takes RGB where Caffe's takes BGR.

    Raises
    ------
    ValueError
        The content is damaged, or a tensor has not as many numbers as its shape says.
    """
    net = _message("Net")()
    try:
        net.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    found = {}
    for layer in (*net.layers, *net.layer):
        for name, blob in zip(_NAMES, layer.blobs, strict=False):
            found[f"{layer.name.replace('/', '.')}.{name}"] = _tensor(blob, name)
    if FIRST in found:
        found[FIRST] = found[FIRST].flip(1)
    return found


def _tensor(blob: Any, name: str) -> Tensor:
    shape = list(blob.shape.dim) or [blob.num, blob.channels, blob.height, blob.width]
    numbers = np.array(blob.data, np.float32)
    if name == "bias":  # older files have (1, 1, 1, c)
        shape = [len(numbers)]
    if int(np.prod(shape)) != len(numbers):
        raise ValueError(f"{len(numbers)} numbers are not of the shape {shape}")
    return torch.from_numpy(numbers.reshape(shape))


@cache
def _message(name: str) -> Any:
    """Return the class of a message of the schema."""
    file = descriptor_pb2.FileDescriptorProto(
        name="mmray_caffe.proto", package="mmray", syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _SCHEMA.items():
        described = file.message_type.add(name=message)
        for field, (number, kind, repeated) in fields.items():
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            added = described.field.add(name=field, number=number, label=label)
            if kind in _SCHEMA:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".mmray.{kind}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"mmray.{name}"))
