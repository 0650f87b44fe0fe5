"""Backbones cut after their last convolutional map, with random weights, and their input scales.

b images, h x w pixels, c channels of a map.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F  # noqa: N812 (the name that every torch program uses)
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from mmray.config.choices import Interpolation, Network
from mmray.descriptors.bvlc_googlenet import bvlc_googlenet


@dataclass(frozen=True)
class Backbone:
    """Size of a network's last map, and normalisation of its input.

    Pixels x in 0..255 enter the network as (x - mean) / std, per RGB channel.
    """

    dim: int  # channels of the last map
    stride: int  # pixels per cell of that map
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Frame:
    """Images that a network was published for: normalisation of pixels in 0..255, and sizes.

    Attributes
    ----------
    mean, std : per RGB channel
    side, resize_size, interpolation : `crop`, `resize_size`, `interpolation` of a `Preprocessing`
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    side: int
    resize_size: int
    interpolation: Interpolation

    @classmethod
    def of_unit(
        cls,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        side: int,
        resize_size: int,
        interpolation: str,
    ) -> "Frame":
        """Convert a normalisation of pixels in 0..1, as libraries have it, to one of 0..255."""
        (red, green, blue), (r, g, b) = ([255 * x for x in numbers] for numbers in (mean, std))
        kind: Interpolation = "bilinear" if interpolation == "bilinear" else "bicubic"
        return cls((red, green, blue), (r, g, b), side, resize_size, kind)


_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet: torchvision's x 255
BACKBONES: dict[Network, Backbone] = {
    # The original Oxford network: mean subtracted, no division.
    "vgg16": Backbone(512, 16, (122.99925, 116.9991, 103.9992), (1.0, 1.0, 1.0)),
    # torchvision normalises for ImageNet and then undoes it inside the network (`transform_input`).
    "googlenet": Backbone(1024, 32, (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "bvlc_googlenet": Backbone(1024, 32, (123.0, 117.0, 104.0), (1.0, 1.0, 1.0)),
    "resnet50": Backbone(2048, 32, _MEAN, _STD),
    "resnet101": Backbone(2048, 32, _MEAN, _STD),
    # As in TensorFlow, where these weights come from: top-1 on 334 ImageNet photos is 77%; 65% with
    # the mean and deviation of ImageNet.
    "efficientnet_lite0": Backbone(1280, 32, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME, the odd pixel on the right and below.

    Equal to the package's Conv2dDynamicSamePadding, but without a copy of the map where the padding
    is symmetric, which is nearly everywhere: the network is 1.2 times as fast.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve maps: (b, c, h, w) -> (b, c', ceil(h / stride), ceil(w / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        rows, columns = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in input.shape[2:]
        )
        padding = (rows // 2, columns // 2)
        if rows % 2 or columns % 2:
            input = F.pad(input, (padding[1], columns - padding[1], padding[0], rows - padding[0]))
            padding = (0, 0)
        return F.conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


def backbone(network: Network) -> tuple[nn.Module, Backbone]:
    """Create the layers of a network up to its last map, with random weights, and describe them.

    Raises
    ------
    InputError
        `library_networks.library_backbone` raises it.
    """
    if network in BACKBONES:
        return convolutional_layers(network), BACKBONES[network]
    from mmray.descriptors.library_networks import library_backbone  # which needs what is above

    return library_backbone(network)


def convolutional_layers(network: Network) -> nn.Sequential:
    """Create the layers up to the last convolutional map, named as in the published state dicts."""
    if network == "efficientnet_lite0":
        return _efficientnet_lite0()
    if network == "bvlc_googlenet":
        return bvlc_googlenet()
    # Importing torchvision, with torch's compiler, takes longer than all other imports of an actor.
    import torchvision

    if network == "vgg16":
        vgg = torchvision.models.vgg
        features = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[:30]  # the 31st is pool5
        return nn.Sequential(OrderedDict(features=features))
    if network == "googlenet":
        classifier = torchvision.models.GoogLeNet(aux_logits=False, init_weights=False)
    else:
        classifier = torchvision.models.get_model(network, weights=None)
    layers = OrderedDict(classifier.named_children())
    for head in ("avgpool", "dropout", "fc"):
        layers.pop(head, None)
    return nn.Sequential(layers)


def _efficientnet_lite0() -> nn.Sequential:
    net = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # None: any size of image
    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, nn.Conv2d):
                same = SameConv2d(
                    conv.in_channels,
                    conv.out_channels,
                    conv.kernel_size,  # type: ignore[arg-type] # a pair, typed as tuple[int, ...]
                    conv.stride[0],
                    groups=conv.groups,
                    bias=False,
                )
                setattr(parent, name, same)
    return nn.Sequential(
        OrderedDict(
            _conv_stem=net._conv_stem,
            _bn0=net._bn0,
            stem_activation=nn.ReLU6(),
            _blocks=nn.Sequential(*net._blocks),
            _conv_head=net._conv_head,
            _bn1=net._bn1,
            head_activation=nn.ReLU6(),
        )
    )


class Features(NamedTuple):
    """Output of a backbone: maps (b, c, h', w') and, if it has them, tokens (b, c), as float32."""

    maps: Tensor
    token: Tensor | None

    @classmethod
    def of(cls, found: Tensor | tuple[Tensor, Tensor | None]) -> "Features":
        """Convert what a backbone returns, under autocast perhaps half as precise."""
        maps, token = found if isinstance(found, tuple) else (found, None)
        return cls(maps.float(), None if token is None else token.float())


def resized(inputs: Tensor, scale: float, *, smallest: int) -> Tensor:
    """Resize (b, 3, h, w) by a scale, and pad sides that are shorter than the smallest with 0."""
    if scale != 1:
        size = [max(1, round(side * scale)) for side in inputs.shape[2:]]
        inputs = F.interpolate(inputs, size, mode="bilinear", align_corners=False, antialias=True)
    below, right = (max(0, smallest - side) for side in inputs.shape[2:])
    return F.pad(inputs, (0, right, 0, below)) if below or right else inputs
