"""Networks of two libraries, timm and torchvision, by the names that these give them.

    timm:NAME            any network of timm with a last map or patch tokens, NAME[.TAG]
    torchvision:NAME     convolutional networks and Swin of torchvision, NAME[.WEIGHTS]

Nothing of them is written down here: a pass over tensors without data (torch's device "meta")
tells the shape of the last map, whether images of any size are taken, and which weights it uses.

b images, h x w pixels, c channels of a map.
"""

import contextlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from types import ModuleType

import torch
from torch import Tensor, nn

from mmray.config.choices import Network
from mmray.descriptors import timm_networks, torchvision_networks
from mmray.descriptors.backbones import Backbone
from mmray.descriptors.settings import Preprocessing
from mmray.descriptors.timm_networks import TimmBackbone
from mmray.system.errors import InputError, did_you_mean

_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # no path and no address, which timm would open


def library_backbone(network: Network) -> tuple[nn.Module, Backbone]:
    """Create a library's network up to its last map, with random weights.

    Parameters
    ----------
    network : timm:NAME or torchvision:NAME

    Returns
    -------
    Layers that map (b, 3, h, w) to maps (b, c, h', w'), those of timm as a `TimmBackbone`; and
    their properties.

    Raises
    ------
    InputError
        The library is not installed or has no such network, or the network has no last map for
        images of any size.
    """
    library, name = _library(network)
    probed = _probed(network)
    layers: nn.Module = library.create(name)
    if isinstance(layers, TimmBackbone):
        layers.multiple, layers.uses = probed.multiple, probed.uses
        _remove_unused(layers.model, {key.removeprefix("model.") for key in chain(*probed.uses)})
    frame = library.published(name)
    return layers, Backbone(probed.dim, probed.stride, frame.mean, frame.std)


def library_preprocessing(network: Network) -> Preprocessing:
    """Return the preprocessing that a network was published with; see `library_backbone`."""
    library, name = _library(network)
    frame = library.published(name)
    return Preprocessing(
        longest_side=None,
        crop=frame.side,
        resize_size=frame.resize_size,
        interpolation=frame.interpolation,
    )


def library_state(network: Network) -> Mapping[str, Tensor]:
    """Return the published weights of a network, from the library's cache or by a download.

    Raises
    ------
    InputError
        They could not be had, or the network has none.
    """
    library, name = _library(network)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # libraries announce downloads there
            state: Mapping[str, Tensor] | None = library.state(name)
    except Exception as error:  # each library's client has a family of its own
        raise InputError(
            f"the pre-trained weights of {network} could not be had ({_first_line(error)}): give a "
            "file of them with --weights FILE"
        ) from error
    if state is None:
        raise InputError(f"{network}: no weights of it are published: give --weights FILE")
    return state


def _library(network: Network) -> tuple[ModuleType, str]:
    library, _, name = network.partition(":")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--network {network}: {name!r} is no name of a network of {library}; a file goes to "
            "--weights"
        )
    return timm_networks if library == "timm" else torchvision_networks, name


@dataclass(frozen=True, kw_only=True)
class _Probed:
    """Properties of a network as found without data.

    Attributes
    ----------
    dim, stride : as of `Backbone`
    multiple, uses : as of `TimmBackbone`
    """

    dim: int
    stride: int
    multiple: int
    uses: tuple[frozenset[str], ...]


@cache
def _probed(network: Network) -> _Probed:
    """Probe a network on torch's device "meta", once in a process."""
    library, name = _library(network)
    try:
        with torch.device("meta"):
            bare: nn.Module = library.create(name).eval()
    except LookupError as error:
        known: Sequence[str] = error.args[0]
        meant = did_you_mean(name, known, most=4, cutoff=0.5) or f"it has {len(known)} others"
        raise InputError(f"--network {network}: no network for this; {meant}") from None
    side = library.published(name).side
    dim, stride = _measured(bare, network, side)
    if not isinstance(bare, TimmBackbone):
        return _Probed(dim=dim, stride=stride, multiple=1, uses=())
    places = (0, 1) if bare.has_token else (0,)
    uses = tuple(_used(bare, side, place) for place in places)
    return _Probed(dim=dim, stride=stride, multiple=bare.multiple, uses=uses)


def _used(bare: nn.Module, side: int, place: int) -> frozenset[str]:
    """Return the names of the parameters that maps (place 0) or tokens (1) depend on."""
    bare.zero_grad()
    with torch.enable_grad():
        bare(torch.zeros(1, 3, side, side, device="meta"))[place].sum().backward()
    parameters = bare.named_parameters()
    return frozenset(name for name, parameter in parameters if parameter.grad is not None)


def _measured(bare: nn.Module, network: Network, side: int) -> tuple[int, int]:
    """Return channels and stride of the last map of a network without data.

    A `TimmBackbone` that takes only some sizes is made to pad to multiples of the stride.
    """
    first = _map_shape(bare, side, side, network)
    channels, stride = first[1], math.ceil(side / min(first[2:]))
    sizes = ((stride, stride), (3 * stride + 1, 4 * stride - 1))
    try:
        shapes = [_map_shape(bare, *size, network) for size in sizes]
    except InputError:
        if not isinstance(bare, TimmBackbone):
            raise
        bare.multiple = stride
        shapes = [_map_shape(bare, *size, network) for size in sizes]
    assert all(shape[1] == channels for shape in shapes), shapes
    return channels, stride


def _map_shape(bare: nn.Module, height: int, width: int, network: Network) -> Sequence[int]:
    """Return the shape of the map of an image without data."""
    try:
        with torch.no_grad():
            found = bare(torch.zeros(1, 3, height, width, device="meta"))
    except Exception as error:  # of any kind: the library's are for other sizes
        raise InputError(
            f"--network {network}: it gives no map for images of {height} x {width} pixels "
            f"({_first_line(error)}), and images here have any size; choose another network"
        ) from error
    maps: Tensor = found[0] if isinstance(found, tuple) else found
    if maps.ndim != 4 or maps.shape[2] > height or maps.shape[3] > width:
        shape = tuple(maps.shape)
        raise InputError(
            f"--network {network}: its features are no map ({shape}); choose another network"
        )
    return maps.shape


def _remove_unused(model: nn.Module, used: set[str]) -> None:
    """Remove the layers behind the last map, so that they are neither stored nor asked for."""
    for name, child in list(model.named_children()):
        parameters = [f"{name}.{each}" for each, _ in child.named_parameters()]
        if parameters and used.isdisjoint(parameters):
            setattr(model, name, nn.Identity())


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
