"""Files as cirtorch and dirtorch save their networks, and what these compute, read literally.

The formulas are those of `ImageRetrievalNet.forward` and `extract_ss` of cirtorch and of
`ResNet_RMAC.forward` of dirtorch; the layouts those of their training scripts and `load_model`.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

Describe = Callable[[bytes], np.ndarray]  # a JPEG to its descriptor
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def photo(height: int, width: int, seed: int) -> bytes:
    """A JPEG of coarse random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    sink = io.BytesIO()
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    picture.save(sink, "JPEG")
    return sink.getvalue()


def classifier(name: str, seed: int) -> nn.Module:
    """Random weights, with statistics of images in BatchNorm: descriptors differ."""
    torch.manual_seed(seed)
    net: nn.Module = getattr(torchvision.models, name)(weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        trunk = net.features if name == "vgg16" else nn.Sequential(*list(net.children())[:-2])
        trunk.train()(torch.cat([inputs(photo(64, 64, i), MEAN, STD) for i in range(4)]))
    return net.eval()


def inputs(jpeg: bytes, mean: list[float], std: list[float]) -> Tensor:
    """`pil_loader` and the transform of both test scripts, at the photo's own size."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(mean, std)]
    )
    return transform(image)[None]


def gem(x: Tensor, p: float) -> Tensor:
    return x.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)


def l2n(x: Tensor) -> Tensor:
    return x / (x.norm(p=2, dim=1, keepdim=True) + 1e-6)


def save_cirtorch(
    path: Path,
    architecture: str = "resnet50",
    pooling: str = "gem",
    *,
    p: float = 2.6,
    whitening: bool = True,
    learned: bool = False,
    zipped: bool = False,
    std: list[float] = STD,
    **meta: Any,
) -> Describe:
    """A file of `train.py`, or a published one; `learned`: with whitenings in `meta["Lw"]`."""
    net = classifier(architecture, seed=1)
    layers = net.features.children() if architecture == "vgg16" else net.children()
    features = nn.Sequential(*list(layers)[: -1 if architecture == "vgg16" else -2]).eval()
    dim = 512 if architecture == "vgg16" else 2048
    whiten = nn.Linear(dim, dim)
    with torch.no_grad():
        whiten.weight.mul_(20)
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    if pooling == "gem":
        state["pool.p"] = torch.ones(1) * p
    if whitening:
        state |= {f"whiten.{name}": tensor for name, tensor in whiten.state_dict().items()}
    meta = {
        **{"architecture": architecture, "local_whitening": False, "pooling": pooling},
        **{"regional": False, "whitening": whitening, "mean": MEAN, "std": std, "outputdim": dim},
    } | meta
    if learned:
        meta["Lw"] = {
            name: {scales: lw(dim, seed + i) for i, scales in enumerate(("ss", "ms"))}
            for seed, name in ((0, "retrieval-SfM-30k"), (2, "retrieval-SfM-120k"))
        }
    content = {"epoch": 3, "meta": meta, "state_dict": state, "min_loss": np.float64(0.5)}
    content["optimizer"] = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-6}]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    def describe(jpeg: bytes) -> np.ndarray:
        with torch.no_grad():
            o = features(inputs(jpeg, MEAN, std))
            pools = {"gem": gem(o, p), "mac": o.amax((2, 3)), "spoc": o.mean((2, 3))}
            o = l2n(pools[pooling])
            if whitening:
                o = l2n(whiten(o))
            return o[0].numpy()

    return describe


def lw(dim: int, seed: int) -> dict[str, np.ndarray]:
    """A whitening as `whitenlearn` returns it."""
    rng = np.random.default_rng(seed)
    return {"m": rng.random((dim, 1)) / dim, "P": rng.standard_normal((dim, dim))}


def save_dirtorch(
    path: Path,
    arch: str = "resnet50_rmac",
    *,
    p: float = 3.3,
    pca: Any = None,
    without_fc: bool = False,
    norm_features: bool = False,
    pooling: str = "gem",
    **options: Any,
) -> Describe:
    """A file as `load_model` reads it; `pca`: of scikit-learn, learned on Landmarks_clean."""
    net, fc = classifier(arch.removesuffix("_rmac"), seed=2), nn.Linear(2048, 256)
    with torch.no_grad():
        fc.bias.mul_(5)  # beside that of an unnormalised vector it counts for less
    state = {name: tensor for name, tensor in net.state_dict().items() if name[:3] != "fc."}
    state |= {f"fc.{name}": tensor for name, tensor in fc.state_dict().items()}
    state |= {"adpool.p": torch.ones(1) * p} if pooling == "gem" else {}
    content: dict[str, Any] = {
        "current_iter": 296,
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "model_options": {"arch": arch, "out_dim": 256, "pooling": pooling, "gemp": 3}
        | {"without_fc": without_fc, "norm_features": norm_features, **options},
        "preprocess": {"mean": MEAN, "std": STD, "input_size": 224},
    }
    if pca is not None:
        content["pca"] = {"Landmarks_clean": pca}
    torch.save(content, path, _use_new_zipfile_serialization=False)

    def describe(jpeg: bytes) -> np.ndarray:
        with torch.no_grad():
            x = nn.Sequential(*list(net.children())[:-2])(inputs(jpeg, MEAN, STD))
            x = gem(x, p) if pooling == "gem" else x.amax((2, 3))
            if norm_features:
                x = nn.functional.normalize(x, p=2, dim=1)
            if not without_fc:
                x = fc(x)
            return nn.functional.normalize(x, p=2, dim=-1)[0].numpy()

    return describe
