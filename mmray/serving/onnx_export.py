"""Export of a network with its whitening to ONNX, which runs without PyTorch and without mmray.

b images of one shape, h x w pixels, d dimensions. Decoding and resizing stay with the caller.
"""

import contextlib
import copy
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name that every torch program uses)
from torch import Tensor, nn

from mmray import __version__
from mmray.config.choices import Pooling
from mmray.descriptors.backbones import SameConv2d
from mmray.descriptors.settings import Preprocessing
from mmray.serving.encoder import WhitenedNet
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import is_uri

TOLERANCE = 1e-4  # largest difference between torch's and ONNX Runtime's values of a descriptor
EXPORTED: tuple[Pooling, ...] = ("mac", "gem", "avg", "cls")
_OPSET = 18

# (b, h, w) of the images for the comparison, h and w in strides of the network: a map of 1 x 1,
# square, portrait and landscape images, with even and odd sizes of maps on the way.
_COMPARED = ((1, 1.0, 1.0), (1, 3.0, 3.0), (2, 2.3, 4.1), (1, 4.57, 2.75), (2, 3.53, 3.53))


def export_onnx(
    net: WhitenedNet, path: str | os.PathLike[str], preprocessing: Preprocessing
) -> float:
    """Convert a network to an ONNX file, after comparing the two on random images.

    The input "images" is uint8 RGB (batch, 3, height, width), the output "descriptors" float32
    (batch, d), as for `WhitenedNet.forward`. Batch, height and width are free, but height and width
    are at least the network's stride, 16 or 32 pixels: smaller images, which `EmbeddingNet.maps`
    pads, are not padded here. The metadata of the file describe the preprocessing.

    Parameters
    ----------
    net : on the CPU
    path : of the file, which includes the weights; an existing file is replaced
    preprocessing : of the images, for the metadata

    Returns
    -------
    The largest absolute difference between the values of torch and of ONNX Runtime.

    Raises
    ------
    InputError
        The path is a URI, the pooling is R-MAC, there are several scales, the file cannot be
        written, or the difference is above `TOLERANCE`. Nothing is written then.
    """
    model, target = net.net, Path(path).absolute()
    if is_uri(str(path)):
        raise InputError(f"{path}: the file is written on this machine; name a path, and upload it")
    if model.pooling not in EXPORTED:
        raise InputError(
            f"{path}: a network with {model.pooling} has no ONNX file, as its regions depend on "
            f"the shape of each image; networks with {', '.join(EXPORTED)} have one"
        )
    if net.scales != (1.0,):
        raise InputError(
            f"{path}: a model that sums the scales {' '.join(map(str, net.scales))} has no ONNX "
            "file, which takes one: train with --evaluation.scales 1"
        )
    program = _program(net)
    difference = _difference(net, program)
    if not difference <= TOLERANCE:  # NaN is refused too
        raise InputError(
            f"{path}: not written: ONNX Runtime's descriptors are {difference:.1e} away from "
            f"torch's, more than {TOLERANCE:.0e}; use the network with torch, and report this"
        )
    try:
        with Folder(str(target.parent)).writing(target.name) as sink:
            sink.write(_described(program, _properties(net, preprocessing)))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); name another file"
        ) from error
    return difference


def _properties(net: WhitenedNet, preprocessing: Preprocessing) -> dict[str, str]:
    """Return the metadata that a user of the file needs; "" stands for none."""
    return {
        "mmray_version": __version__,
        "network": net.net.network,
        "pooling": net.net.pooling,
        "head": str(net.net.head is not None).lower(),
        "whitened": str(net.projection is not None).lower(),
        "dimensions": str(net.dim),
        "longest_side": str(preprocessing.longest_side or ""),
        "crop": str(preprocessing.crop or ""),
        "resize_size": str(preprocessing.resize_size or preprocessing.crop or ""),
        "smallest_side": str(net.net.stride),
        "pixels": "RGB, 0-255, uint8",
    }


def _program(net: WhitenedNet) -> bytes:
    """Convert the network to an ONNX program."""
    stride = net.net.stride
    # torch would take equal sides, and sides of 1, for a rule: neither the image nor a map has any.
    example = torch.zeros(2, 3, 2 * stride + 5, 3 * stride + 4, dtype=torch.uint8)
    # A smaller minimum would include maps of 1 x 1, for which torch adds rules that the program
    # does not need: `_COMPARED` tests such a map.
    shapes = {
        0: torch.export.Dim("batch", min=1),
        2: torch.export.Dim("height", min=2 * stride),
        3: torch.export.Dim("width", min=2 * stride),
    }
    with _quiet():
        exported = torch.onnx.export(
            _for_the_exporter(net),
            (example,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["descriptors"],
            dynamic_shapes={"images": shapes},
            verbose=False,
        )
    assert exported is not None
    return bytes(exported.model_proto.SerializeToString())


def _described(program: bytes, properties: Mapping[str, str]) -> bytes:
    """Replace the metadata of a program; torch's are stack traces with paths of this machine."""
    import onnx

    model = onnx.load_from_string(program)
    graph = model.graph
    parts: tuple[Any, ...] = (*graph.node, *graph.value_info, *graph.initializer)
    for part in (graph, *graph.input, *graph.output, *parts):
        part.ClearField("metadata_props")
    onnx.helper.set_model_props(model, dict(properties))
    model.producer_name, model.producer_version = "mmray", __version__
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _difference(net: WhitenedNet, program: bytes) -> float:
    """Measure the largest difference of descriptors on random images of shapes `_COMPARED`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The default is one thread per core, bound to it; containers refuse that, with a line for each.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    largest = 0.0
    for count, rows, columns in _COMPARED:
        size = (round(rows * net.net.stride), round(columns * net.net.stride))
        coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 5, 5)).astype(np.float32))
        images = F.interpolate(coarse, size, mode="bilinear").to(torch.uint8)
        with torch.inference_mode():
            expected = net(images).numpy()
        (found,) = session.run(["descriptors"], {"images": images.numpy()})
        assert found.shape == expected.shape, (found.shape, expected.shape)
        largest = float(np.maximum(largest, np.abs(found - expected).max()))
    return largest


class _OnnxSameConv2d(nn.Module):
    """`SameConv2d` with the padding of ONNX, as a graph cannot test whether a side is odd.

    Parameters
    ----------
    conv : the layer, whose parameters are shared
    """

    def __init__(self, conv: SameConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, input: Tensor) -> Tensor:
        conv, (count, _, height, width) = self.conv, input.shape
        (kernel, _), (stride, _) = conv.kernel_size, conv.stride
        if stride == 1 and kernel % 2:
            return F.conv2d(input, conv.weight, conv.bias, 1, kernel // 2, groups=conv.groups)
        return torch.onnx.ops.symbolic(
            "Conv",
            [tensor for tensor in (input, conv.weight, conv.bias) if tensor is not None],
            {"auto_pad": "SAME_UPPER", "strides": [stride, stride], "group": conv.groups},
            dtype=input.dtype,
            shape=(count, conv.out_channels, -(-height // stride), -(-width // stride)),
        )


class _OnnxMaxPool2d(nn.Module):
    """Max pooling with a size rounded up, for which torch's exporter would need a rule for sides.

    The windows are those of torch: without padding and with a stride of at most the kernel's side,
    each one begins inside the image.

    Parameters
    ----------
    pool : the layer, square, without padding or dilation
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride = int(pool.kernel_size), int(pool.stride)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride, (count, channels, *sides) = self.kernel, self.stride, input.shape
        return torch.onnx.ops.symbolic(
            "MaxPool",
            [input],
            {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "ceil_mode": 1},
            dtype=input.dtype,
            shape=(count, channels, *(-(-(side - kernel) // stride) + 1 for side in sides)),
        )


def _for_the_exporter(net: WhitenedNet) -> WhitenedNet:
    """Copy a network with layers of ONNX where torch's do not export; it cannot compute in torch.

    These are the layers whose sizes depend on a remainder of the image's sides.
    """
    copied = copy.deepcopy(net)
    for parent in list(copied.modules()):
        if isinstance(parent, nn.ReLU | nn.ReLU6):
            parent.inplace = False  # which the exporter would undo, in twice the time
        for name, child in list(parent.named_children()):
            if isinstance(child, SameConv2d):
                setattr(parent, name, _OnnxSameConv2d(child))
            elif isinstance(child, nn.MaxPool2d) and child.ceil_mode and child.stride != 1:
                setattr(parent, name, _OnnxMaxPool2d(child))
    return copied


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of torch's exporter, which are for its developers."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
