"""Networks in the files of two libraries: which network, pooling and layer here compute the same.

cirtorch (github.com/filipradenovic/cnnimageretrieval-pytorch; Radenovic, Tolias, Chum, PAMI 2018)
saves `meta` beside its `state_dict`, dirtorch (github.com/naver/deep-image-retrieval; Revaud et
al., ICCV 2019: AP-GeM) `model_options`, `preprocess` and `pca`. What of it is read, and in which of
their files it is defined: docs/evaluation.md. c channels, d dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from mmray.config.choices import Network, Pooling
from mmray.descriptors.pooling import EPS
from mmray.descriptors.torch_described import Odd
from mmray.descriptors.torch_files import CIRTORCH, DIRTORCH, Checkpoint
from mmray.descriptors.variant import Variant
from mmray.descriptors.weight_files import State
from mmray.descriptors.whitening import Whitening
from mmray.system.arrays import Features
from mmray.system.errors import InputError, first_names, quoted
from mmray.system.foreign import reported

HEAD = "head."  # before the names of the head's tensors; no backbone has such names
_NETWORKS: dict[str, Network] = {"vgg16": "vgg16", "resnet50": "resnet50", "resnet101": "resnet101"}
_ARCHS: dict[str, Network] = {"resnet50_rmac": "resnet50", "resnet101_rmac": "resnet101"}
# cirtorch's "rmac" is not read: it places regions in float32, and some a cell off ours.
_POOLS: dict[str, Pooling] = {"gem": "gem", "mac": "mac", "spoc": "avg"}
_POOLINGS: dict[str, Pooling] = {"gem": "gem", "max": "mac", "avg": "avg"}
_OPTIONS = {"arch", "out_dim", "pooling", "gemp", "norm_features", "without_fc"}
_OPTIONS |= {"dropout_p", "scales"}  # without effect on descriptors
# The modules of a ResNet in their order, by which cirtorch numbers them.
_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_PREFERRED = "retrieval-SfM-120k"  # of several sets that cirtorch learned a whitening from
_POWER = 0.25  # of the variances in dirtorch's whitening: the default of its `test_dir.py`

Here = TypeVar("Here")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published network in the terms of `EmbeddingNet`.

    Attributes
    ----------
    network, pooling, variant : as of `EmbeddingNet`
    state : the tensors by their names in `EmbeddingNet`, those of the head behind `HEAD`
    whitening : of descriptors at one scale; None: the file has none
    whitening_of_scales : of sums over several scales; None: the file has none
    """

    network: Network
    pooling: Pooling
    variant: Variant
    state: State
    whitening: Whitening | None = None
    whitening_of_scales: Whitening | None = None


def read_published(checkpoint: Checkpoint, path: Path) -> Published:
    """Read what the file of a published network tells.

    Parameters
    ----------
    checkpoint : with something told beside the state dict
    path : of the file, for messages

    Raises
    ------
    InputError
        The network, its pooling or an option has no counterpart here, or the file is not as those
        libraries save it.
    """
    about, remedy = checkpoint.about, "take the file as it was published"
    what = "not a network as cirtorch or dirtorch save it"
    with reported(str(path), remedy, what), np.errstate(all="ignore"):
        if CIRTORCH in about:
            return _of_cirtorch(about[CIRTORCH], checkpoint.state, path)
        return _of_dirtorch(about, checkpoint.state, path)


def _of_cirtorch(meta: Mapping[str, Any], state: State, path: Path) -> Published:
    network = _counterpart(_NETWORKS, meta["architecture"], f"{path}: the architecture")
    pooling = _counterpart(_POOLS, meta["pooling"], f"{path}: the pooling")
    for option in ("local_whitening", "regional"):
        if meta.get(option):
            raise InputError(f"{path}: {option} is set, which mmray lacks; take a network without")
    named = {_name_here(name, network): tensor for name, tensor in state.items()}
    if meta.get("whitening"):
        named |= _head(state, "whiten.")
    whitenings: list[Whitening | None] = [None, None]
    if meta.get("Lw"):
        by_scales = meta["Lw"].get(_PREFERRED) or meta["Lw"][min(meta["Lw"])]
        for place, scales in enumerate(("ss", "ms")):
            if scales in by_scales:
                arrays = (by_scales[scales][name] for name in ("m", "P"))
                whitenings[place] = _whitening(*(array.array() for array in arrays))
    return Published(
        network=network,
        pooling=pooling,
        variant=_variant(pooling, state, "pool.p", meta),
        state=named,
        whitening=whitenings[0],
        whitening_of_scales=whitenings[1],
    )


def _of_dirtorch(about: Mapping[str, Any], state: State, path: Path) -> Published:
    options = about[DIRTORCH]
    network = _counterpart(_ARCHS, options["arch"], f"{path}: the arch")
    pooling = _counterpart(_POOLINGS, options.get("pooling", "gem"), f"{path}: the pooling")
    others = [str(name) for name, value in options.items() if value and name not in _OPTIONS]
    if others:
        names = first_names(quoted(others), 5)
        raise InputError(f"{path}: {names} is set, which mmray lacks; take a network without")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    named = state if options.get("without_fc") else {**state, **_head(state, "fc.")}
    whitening = None
    if about.get("pca"):
        pca = about["pca"][min(about["pca"])].state
        mean, axes, variances = (
            pca[f"{name}_"].array() for name in ("mean", "components", "explained_variance")
        )
        deviations = variances[:, None] ** np.float32(_POWER) if pca["whiten"] else np.float32(1)
        whitening = _whitening(mean, axes / deviations)
    plain = not options.get("norm_features", False)
    return Published(
        network=network,
        pooling=pooling,
        variant=_variant(pooling, state, "adpool.p", about.get("preprocess", {}), plain=plain),
        state=named,
        whitening=whitening,
        whitening_of_scales=whitening,
    )


def _counterpart(known: Mapping[str, Here], value: Any, what: str) -> Here:
    """Return what a name of theirs is here; InputError lists the names that are something."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{what} is {shorten(value)}, mmray reads {', '.join(known)}")
    return known[value]


def _name_here(name: str, network: Network) -> str:
    """Return a tensor's name in our backbone: VGG16's are the same, ResNet's modules have names."""
    top, _, rest = name.partition(".")
    number, _, rest_of_module = rest.partition(".")
    if network == "vgg16" or top != "features" or not number.isdecimal():
        return name
    return f"{_RESNET[int(number)]}.{rest_of_module}"


def _head(state: State, prefix: str) -> dict[str, Tensor | Odd]:
    """Return the tensors of a layer by their names here; ValueError if its weight is no matrix."""
    weight = state[f"{prefix}weight"]
    # A matrix that repeats few numbers could ask for any amount of memory.
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_contiguous():
        raise ValueError(f"{prefix}weight is not a matrix")
    return {HEAD + name: state[prefix + name] for name in ("weight", "bias")}


def _variant(
    pooling: Pooling, state: State, name: str, told: Mapping[str, Any], *, plain: bool = False
) -> Variant:
    """Return the exponent in a tensor, and the normalisation of pixels, told for 0..1."""
    values: dict[str, Any] = {"floor": EPS, "normalized": not plain}
    for key, default in _IMAGENET.items():
        values[key] = [255 * number for number in told.get(key, default)]
    if pooling == "gem":
        exponent = state[name]
        if not isinstance(exponent, Tensor) or exponent.numel() != 1:
            raise ValueError(f"{name} is not one number")
        values["p"] = float(exponent)
    return Variant.read(values)


def _whitening(mean: Features, projection: Features) -> Whitening:
    """Check a whitening: mean of d numbers, projection (d, d)."""
    mean = mean.reshape(-1)
    if projection.shape != (len(mean), len(mean)):
        raise ValueError(f"a whitening of {len(mean)} dimensions by {shorten(projection.shape)}")
    if not (np.isfinite(mean).all() and np.isfinite(projection).all()):
        raise ValueError("a whitening that is not finite")
    return Whitening(mean, np.ascontiguousarray(projection))
