"""EfficientNet-Lite0 cut to its first block, where steps are compared: they need no more."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from mmray.descriptors import backbones, weights
from mmray.descriptors.backbones import SameConv2d, convolutional_layers

KEPT = ("_conv_stem", "_bn0", "stem_activation")


def shallow(name: str) -> nn.Sequential:
    """Return the first block of EfficientNet-Lite0, and its last map right after."""
    assert name == "efficientnet_lite0"
    whole = dict(convolutional_layers("efficientnet_lite0").named_children())
    first = whole["_blocks"][0]
    last = SameConv2d(16, 1280, (3, 3), 16, groups=1, bias=False)
    kept = [(part, whole[part]) for part in KEPT]
    ends = [(part, whole[part]) for part in ("_bn1", "head_activation")]
    return nn.Sequential(
        OrderedDict([*kept, ("_blocks", nn.Sequential(first)), ("_conv_head", last), *ends])
    )


@pytest.fixture(scope="session")
def shallow_weights() -> dict[str, torch.Tensor]:
    """Packaged weights, and random ones of the last map."""
    packaged = weights._pretrained_state("efficientnet_lite0")
    head = torch.randn((1280, 16, 3, 3), generator=torch.Generator().manual_seed(0)) / 12
    return {**packaged, "_conv_head.weight": head}


@pytest.fixture
def shallow_networks(
    shallow_weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "convolutional_layers", shallow)
    monkeypatch.setattr(weights, "_pretrained_state", lambda name: dict(shallow_weights))
