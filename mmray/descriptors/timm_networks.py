"""Networks of timm up to their last map of activations or of patch tokens.

b images, h x w pixels, c channels of a map.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F  # noqa: N812 (the name that every torch program uses)
from torch import Tensor, nn

from mmray.descriptors.backbones import Frame
from mmray.system.errors import InputError

# Options by which families of networks take images of any size; others need none.
_ANY_SIZE: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {},
)


class TimmBackbone(nn.Module):
    """A network of timm up to its last map, with its class token if it has one.

    Attributes
    ----------
    model : of timm, without classifier
    has_token : it has a class token, or pools its tokens by attention
    multiple : pixels; sides are padded to multiples of it, on the right and below, with the mean
    uses : names of the parameters that maps depend on, and of those that tokens do if it has some
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.multiple = 1
        self.uses: tuple[frozenset[str], ...] = ()
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        by_attention = getattr(model, "attn_pool", None) is not None
        own_token = self.prefix > 0 and getattr(model, "has_class_token", True)
        self.has_token = by_attention or own_token
        self._pools_token = by_attention or getattr(model, "global_pool", "") == "token"

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute maps (b, c, h', w') and tokens (b, c) of normalised images (b, 3, h, w).

        The token is the network's own descriptor, before its classifier: the class token, or what
        it pools from all tokens by attention (SigLIP); None if it has neither.
        """
        height, width = inputs.shape[2:]
        if self.multiple > 1:
            inputs = F.pad(inputs, (0, -width % self.multiple, 0, -height % self.multiple))
        found: Tensor = self.model.forward_features(inputs)
        if found.ndim == 4:
            channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
            return (found.permute(0, 3, 1, 2) if channels_last else found), None
        token = None
        if self.has_token:
            pooled = self._pools_token
            token = self.model.forward_head(found, pre_logits=True) if pooled else found[:, 0]
        rows, columns = self.model.patch_embed.dynamic_feat_size(inputs.shape[2:])
        patches = found[:, self.prefix :].transpose(1, 2)
        return patches.reshape(found.shape[0], -1, rows, columns), token

    def learn_for(self, pooling: str) -> None:
        """Freeze the weights that a pooling does not use: DDP waits for the gradients of others."""
        used = self.uses[1 if pooling == "cls" else 0]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in used)


def create(name: str) -> TimmBackbone:
    """Create a network with random weights; LookupError holds names like one that is not known."""
    timm = _timm()
    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models():
        raise LookupError(timm.list_models())
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        raise LookupError(timm.list_pretrained(f"{architecture}.*"))
    for options in _ANY_SIZE:
        try:
            return TimmBackbone(timm.create_model(name, num_classes=0, **options))
        except TypeError:  # an option that this family does not have
            continue
    raise AssertionError("without options every network is made")


def published(name: str) -> Frame:
    """Return the images that a network was published for, by the configuration of its weights."""
    _timm()
    from timm.data.config import resolve_data_config

    resolve: Any = resolve_data_config  # which has no types
    found = resolve(pretrained_cfg=_configuration(name))
    side = min(found["input_size"][1:])
    return Frame.of_unit(
        found["mean"],
        found["std"],
        side=side,
        resize_size=math.floor(side / found["crop_pct"]),
        interpolation=found["interpolation"],
    )


def state(name: str) -> Mapping[str, Tensor] | None:
    """Return the published weights of a network, from timm's cache or a download; None: no such."""
    weights = ("url", "file", "hf_hub_id", "source")
    if not any(_configuration(name).get(key) for key in weights):
        return None
    found: Mapping[str, Tensor] = (
        _timm().create_model(name, pretrained=True, num_classes=0).state_dict()
    )
    return found


def _configuration(name: str) -> dict[str, Any]:
    from timm.models import get_pretrained_cfg

    found: Any = get_pretrained_cfg(name)
    return found.to_dict() if found else {}


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"--network timm:...: timm cannot be imported ({error}); pip install timm"
        ) from error
    return timm
