"""A network as an ONNX file: ONNX Runtime computes what torch does, on images of any shape."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "jobs"))

import export

from mmray import __version__
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import Preprocessing
from mmray.descriptors.weights import with_head
from mmray.serving import onnx_export
from mmray.serving.encoder import ImageEncoder, WhitenedNet
from mmray.serving.onnx_export import TOLERANCE, export_onnx
from mmray.system.errors import InputError
from tests.descriptors.test_network import random_images, random_net
from tests.made.exported import SIDE, model_folder, onnx_file

SIZES = [(1, 32, 32), (2, 64, 96), (1, 97, 64), (3, 113, 75), (1, 33, 160), (1, 224, 224)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, float]:
    return onnx_file(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> WhitenedNet:
    return ImageEncoder.load(model_folder(tmp_path_factory.getbasetemp())).net


def opened(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options)


def distance(
    session: onnxruntime.InferenceSession, net: WhitenedNet, images: torch.Tensor
) -> float:
    """The largest between two values of descriptors."""
    with torch.inference_mode():
        expected = net(images).numpy()
    (rows,) = session.run(["descriptors"], {"images": images.numpy()})
    assert rows.dtype == np.float32
    assert rows.shape == expected.shape
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5
    return float(np.abs(rows - expected).max())


def test_onnx_runtime_agrees_with_torch_on_images_of_other_shapes(exported, net):
    session = opened(exported[0])
    differences = [distance(session, net, random_images(*size)) for size in SIZES]
    assert max(differences) < TOLERANCE
    assert 0 < exported[1] < TOLERANCE


def test_the_file_is_one_that_says_what_it_takes(exported, net):
    file, _ = exported
    assert sorted(path.name for path in file.parent.iterdir()) == ["difference", "model", file.name]
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    session = opened(file)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type) == ("images", "tensor(uint8)")
    assert taken.shape == ["batch", 3, "height", "width"]
    assert (given.name, given.shape) == ("descriptors", ["batch", net.dim])
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "mmray_version": __version__,
        "network": "efficientnet_lite0",
        "pooling": "mac",
        "head": "false",
        "whitened": "true",
        "dimensions": "1280",
        "longest_side": str(SIDE),
        "crop": "",
        "resize_size": "",
        "smallest_side": "32",
        "pixels": "RGB, 0-255, uint8",
    }
    assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()


def test_rmac_is_refused_with_the_poolings_that_can(tmp_path):
    net = WhitenedNet(EmbeddingNet("efficientnet_lite0", "rmac"))
    with pytest.raises(InputError, match=r"network with rmac has no ONNX file.* mac, gem, avg"):
        export_onnx(net, tmp_path / "m.onnx", Preprocessing())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("absent", ["onnx", "onnxscript", "onnxruntime"])
def test_what_is_not_installed_is_said_before_anything_is_computed(
    net, tmp_path, monkeypatch, absent
):
    monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.delattr(onnx_export, "_program")
    wanted = rf"{absent} is not installed: python -m pip install onnx onnxscript onnxruntime \("
    with pytest.raises(InputError, match=wanted):
        export_onnx(net, tmp_path / "model.onnx", Preprocessing())
    assert not (tmp_path / "model.onnx").exists()


def test_a_uri_is_no_file_here(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"s3://bucket/m\.onnx: the file is written on this machine"
    ):
        export_onnx(net, "s3://bucket/m.onnx", Preprocessing())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("difference", [2 * TOLERANCE, float("nan")])
def test_a_program_that_differs_from_torch_is_not_written(net, tmp_path, monkeypatch, difference):
    monkeypatch.setattr(onnx_export, "_program", lambda net: b"")
    monkeypatch.setattr(onnx_export, "_difference", lambda net, program: difference)
    with pytest.raises(InputError, match=f"m.onnx: not written: .* {difference:.1e} away"):
        export_onnx(net, tmp_path / "m.onnx", Preprocessing())
    assert not any(tmp_path.iterdir())


def test_the_difference_is_seen(exported, net):
    other = ImageEncoder(WhitenedNet(random_net("efficientnet_lite0")), Preprocessing()).net
    assert onnx_export._difference(other, exported[0].read_bytes()) > 10 * TOLERANCE


def test_a_file_that_cannot_be_written_is_named(net, tmp_path, exported, monkeypatch):
    monkeypatch.setattr(onnx_export, "_program", lambda net: exported[0].read_bytes())
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder: cannot be written \(Is a directory\)"):
        export_onnx(net, tmp_path / "folder", Preprocessing())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_the_job_says_in_one_line_what_it_wrote(
    tmp_path, tmp_path_factory, exported, monkeypatch, capfd
):
    folder = model_folder(tmp_path_factory.getbasetemp())
    monkeypatch.setattr(onnx_export, "_program", lambda net: exported[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export.py", "--model", str(folder), "--output", "a/m.onnx"])
    assert export.main() == 0
    assert (tmp_path / "a" / "m.onnx").stat().st_size == exported[0].stat().st_size
    said = f"a/m.onnx: 20.0 MB, 1280 dimensions, at most {exported[1]:.1e} away from torch\n"
    assert capfd.readouterr() == (said, "")


def test_the_job_refuses_other_folders_with_status_2(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["export.py", "--model", str(tmp_path / "absent")])
    assert export.main() == 2
    said, complained = capfd.readouterr()
    assert said == ""
    assert complained.startswith(f"error: {tmp_path}/absent: not a model's folder")


# Not resnet101, which is resnet50 with more blocks: random weights in a hundred layers bring
# torch's own float32 1.2e-4 away from float64.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "pooling", "head"),
    [
        ("vgg16", "mac", False),
        ("googlenet", "gem", False),
        ("googlenet", "avg", True),
        ("resnet50", "mac", True),
        ("efficientnet_lite0", "gem", False),
        ("efficientnet_lite0", "avg", True),
    ],
)
def test_every_network_is_exported_for_images_of_any_shape(network, pooling, head, tmp_path, capfd):
    model = random_net(network, pooling)
    if head:
        weight = np.random.default_rng(0).standard_normal((64, model.channels)) / 30
        model = with_head(model, weight.astype(np.float32), np.zeros(64, np.float32))
    net = WhitenedNet(model, dims=16 if head else None)
    assert export_onnx(net, tmp_path / "m.onnx", Preprocessing()) < TOLERANCE
    assert capfd.readouterr() == ("", "")
    session = opened(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    for height in range(32, 65):  # every remainder by the stride
        images = random_images(1, height, int(rng.integers(32, 120)))
        assert distance(session, net, images) < TOLERANCE
