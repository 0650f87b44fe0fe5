"""One small model as its three forms, for the tests of all of them: folder, ONNX file, photos."""

from pathlib import Path

import numpy as np

from mmray.descriptors.settings import Preprocessing
from mmray.descriptors.weights import build, save
from mmray.descriptors.whitening import Whitening
from mmray.serving.encoder import WHITENING, ImageEncoder
from mmray.serving.onnx_export import export_onnx
from mmray.system.folder import Folder
from tests.made.bad_images import encoded, scene

SIDE = 96  # longest side of the images that the model sees
SHAPES = ((120, 90), (90, 120), (97, 97), (64, 150), (33, 45))  # width and height


def model_folder(base: Path) -> Path:
    """A folder as a run leaves it, below a folder of the whole session; made once."""
    folder = base / "exported" / "model"
    if not folder.exists():
        network = build("efficientnet_lite0", pooling="mac")
        save(network, Folder(str(folder)), preprocessing=Preprocessing(SIDE))
        rng = np.random.default_rng(0)
        mean = rng.uniform(0, 0.05, network.dim).astype(np.float32)
        projection = rng.standard_normal((network.dim, network.dim)).astype(np.float32)
        Whitening(mean, projection).save(folder / WHITENING)
    return folder


def onnx_file(base: Path) -> tuple[Path, float]:
    """Its ONNX file and how far that is away from torch; made once, which takes long."""
    file, noted = base / "exported" / "model.onnx", base / "exported" / "difference"
    if not file.exists():
        encoder = ImageEncoder.load(model_folder(base))
        noted.write_text(repr(export_onnx(encoder.net, file, encoder.preprocessing)))
    return file, float(noted.read_text())


def photos() -> list[bytes]:
    """PNG files of the shapes: different pictures, none of which is reduced to a round size."""
    return [encoded(np.roll(scene(*size), 7 * i, 2), "PNG") for i, size in enumerate(SHAPES)]
