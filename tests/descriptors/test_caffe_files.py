"""Files of Caffe, written here byte by byte as protocol buffers encode them, in both old forms."""

import struct

import pytest
import torch

from mmray.descriptors.caffe_files import parse_caffe
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import build
from mmray.system.errors import InputError


def varint(value: int) -> bytes:
    digits = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])


def message(number: int, content: bytes) -> bytes:
    """A field with bytes, text or a message in it."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def floats(tensor: torch.Tensor) -> bytes:
    values = tensor.flatten().tolist()
    return message(5, struct.pack(f"<{len(values)}f", *values))


def new_blob(tensor: torch.Tensor) -> bytes:
    return message(7, message(1, b"".join(map(varint, tensor.shape)))) + floats(tensor)


def old_blob(tensor: torch.Tensor) -> bytes:
    shape = [1] * (4 - tensor.ndim) + list(tensor.shape)
    return b"".join(whole(place, size) for place, size in enumerate(shape, 1)) + floats(tensor)


def new_layer(name: str, tensors: list[torch.Tensor]) -> bytes:
    blobs = b"".join(message(7, new_blob(tensor)) for tensor in tensors)
    return message(100, message(1, name.encode()) + message(2, b"Convolution") + blobs)


def old_layer(name: str, tensors: list[torch.Tensor]) -> bytes:
    blobs = b"".join(message(6, old_blob(tensor)) for tensor in tensors)
    return message(2, message(2, b"data") + message(4, name.encode()) + whole(5, 4) + blobs)


@pytest.mark.parametrize("layer", [new_layer, old_layer])
def test_weights_are_found_by_the_names_of_their_layers(layer):
    weight, bias = torch.randn(4, 2, 3, 3), torch.randn(4)
    data = message(1, b"GoogLeNet") + layer("data", []) + layer("inception_3a/3x3", [weight, bias])
    found = parse_caffe(data)
    assert found.keys() == {"inception_3a.3x3.weight", "inception_3a.3x3.bias"}
    assert torch.equal(found["inception_3a.3x3.weight"], weight)
    assert torch.equal(found["inception_3a.3x3.bias"], bias)


@pytest.mark.parametrize("layer", [new_layer, old_layer])
def test_the_network_is_built_from_caffes_file(tmp_path, layer):
    """It takes RGB where the file's first layer takes BGR; the classifier is left out."""
    model = EmbeddingNet("bvlc_googlenet", "avg")
    state = model.backbone.state_dict()
    names = {name.rpartition(".")[0] for name in state}
    layers = []
    for name in sorted(names):
        tensors = [state[f"{name}.weight"], state[f"{name}.bias"]]
        if name == "conv1.7x7_s2":
            tensors[0] = tensors[0][:, [2, 1, 0]]
        layers.append(layer(name.replace(".", "/"), tensors))
    layers.append(layer("loss3/classifier", [torch.zeros(5, 1024), torch.zeros(5)]))
    path = tmp_path / "bvlc_googlenet.caffemodel"
    path.write_bytes(message(1, b"GoogLeNet") + b"".join(layers))
    built = build("bvlc_googlenet", pooling="avg", weights=path).backbone.state_dict()
    assert built.keys() == state.keys()
    assert all(torch.equal(built[name], state[name]) for name in state)


def test_without_a_file_it_is_said_where_the_weights_are_from():
    with pytest.raises(
        InputError, match=r"bvlc_googlenet: .* --weights bvlc_googlenet\.caffemodel"
    ):
        build("bvlc_googlenet", pooling="avg")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PK\x03\x04 a zip", "cannot be read as a state dict"),
        (new_layer("conv1/7x7_s2", [torch.ones(2)])[:-1], "cannot be read as a state dict"),
        (
            message(100, message(1, b"a") + message(7, message(7, message(1, varint(3))))),
            "0 numbers are not of the shape",
        ),
        (b"", r"no tensor conv1\.7x7_s2\.weight, which bvlc_googlenet needs"),
    ],
)
def test_other_files_are_refused(tmp_path, content, told):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        build("bvlc_googlenet", pooling="avg", weights=path)
