"""Networks fused for inference: the same embeddings in less time."""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmray.config.choices import Precision
from mmray.descriptors.backbones import BACKBONES
from mmray.descriptors.network import EmbeddingNet

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class InPrecision(nn.Module):
    """A wrapper of layers that computes in another precision."""

    def __init__(self, layers: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers, self.dtype = layers.to(dtype), dtype

    def forward(self, inputs: Tensor) -> Any:
        return self.layers(inputs.to(self.dtype))  # `EmbeddingNet` pools in float32


def fused(model: EmbeddingNet, *, precision: Precision = "float32") -> EmbeddingNet:
    """Return a copy of a network for inference, whose convolutions have absorbed the BatchNorms.

    The copy is on the same device; in float32 it embeds as the original does, to rounding. It is
    neither for training nor for `weights.save`: its weights are not those of the network's state
    dicts, and `weights.load` refuses them.

    Parameters
    ----------
    model : left unchanged
    precision : of the backbone; preprocessing, folding, pooling and the descriptors are always in
        float32. For "tf32", which is a way to compute in float32, see `embedding.allow_tf32`.
    """
    dtype = DTYPES[precision]
    faster = copy.deepcopy(model).eval().requires_grad_(False)
    if model.network in BACKBONES:  # the order of a library's layers is not known
        layers = faster.backbone
        for module in layers.modules():
            _fold(module)
            if isinstance(module, nn.ReLU | nn.ReLU6):
                module.inplace = True  # no gradient needs what it overwrites
        left = [name for name, m in layers.named_modules() if isinstance(m, nn.BatchNorm2d)]
        assert not left, f"{model.network}: {left} follow no convolution directly"
    if dtype != torch.float32:
        faster.backbone = InPrecision(faster.backbone, dtype)
    return faster


def _fold(parent: nn.Module) -> None:
    """Fold each BatchNorm among the children into the convolution right before it.

    The networks of `backbones` list their layers in the order in which these are applied.
    """
    children = list(parent.named_children())
    for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(parent, norm_name, nn.Identity())
