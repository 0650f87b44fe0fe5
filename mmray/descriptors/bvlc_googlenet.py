"""GoogLeNet as Caffe's authors trained it, without BatchNorm: the network of the paper's birds.

b images, h x w pixels. Source: Szegedy et al., CVPR 2015, in the layers and names of
`bvlc_googlenet` of Caffe's model zoo. torchvision's GoogLeNet is another network: with BatchNorm,
3 x 3 convolutions in place of 5 x 5, and weights of its own.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

# Of an inception module: 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj.
_WIDTHS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.ModuleDict):
    """Four branches of convolutions side by side, whose maps are concatenated."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        one, reduce3, three, reduce5, five, projected = widths
        super().__init__(
            {
                "1x1": nn.Conv2d(channels, one, 1),
                "3x3_reduce": nn.Conv2d(channels, reduce3, 1),
                "3x3": nn.Conv2d(reduce3, three, 3, padding=1),
                "5x5_reduce": nn.Conv2d(channels, reduce5, 1),
                "5x5": nn.Conv2d(reduce5, five, 5, padding=2),
                "pool_proj": nn.Conv2d(channels, projected, 1),
            }
        )
        self.pool = nn.MaxPool2d(3, 1, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute maps (b, c', h, w) of maps (b, c, h, w)."""
        branches = [
            self["1x1"](maps),
            self["3x3"](self["3x3_reduce"](maps).relu()),
            self["5x5"](self["5x5_reduce"](maps).relu()),
            self["pool_proj"](self.pool(maps)),
        ]
        return torch.cat(branches, 1).relu()


def bvlc_googlenet() -> nn.Sequential:
    """Create the layers up to the last map, (b, 1024, h / 32, w / 32), with random weights.

    Names are Caffe's, with points for slashes: `inception_3a.5x5_reduce`.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = _named("7x7_s2", nn.Conv2d(3, 64, 7, stride=2, padding=3))
    layers["pool1"], layers["norm1"] = _halved(), _normalised()
    layers["conv2"] = nn.Sequential(
        OrderedDict(
            {
                "3x3_reduce": nn.Conv2d(64, 64, 1),
                "relu_reduce": nn.ReLU(),
                "3x3": nn.Conv2d(64, 192, 3, padding=1),
                "relu": nn.ReLU(),
            }
        )
    )
    layers["norm2"], layers["pool2"] = _normalised(), _halved()
    channels = 192
    for name, widths in _WIDTHS.items():
        if name in ("4a", "5a"):
            layers[f"pool{int(name[0]) - 1}"] = _halved()
        layers[f"inception_{name}"] = Inception(channels, widths)
        channels = widths[0] + widths[2] + widths[4] + widths[5]
    return nn.Sequential(layers)


def _named(name: str, convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(OrderedDict([(name, convolution), ("relu", nn.ReLU())]))


def _halved() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _normalised() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
