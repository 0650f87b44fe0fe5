"""Networks of torchvision up to their last map: those that apply their children in order."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmray.descriptors.backbones import Frame

# Modules of torchvision whose networks are sequences of their children up to a global pooling.
_FAMILIES = {"alexnet", "convnext", "densenet", "efficientnet", "mnasnet", "mobilenetv2"}
_FAMILIES |= {"mobilenetv3", "regnet", "resnet", "shufflenetv2", "squeezenet", "swin_transformer"}
_FAMILIES |= {"vgg"}
_HEADS = {"avgpool", "flatten", "dropout", "fc", "classifier", "head"}


def create(name: str) -> nn.Sequential:
    """Create a network with random weights; LookupError holds names like one that is not known."""
    models = _models()
    architecture, _, tag = name.partition(".")
    known = [
        each
        for each in models.list_models(module=models)
        if models.get_model_builder(each).__module__.rpartition(".")[2] in _FAMILIES
    ]
    if architecture not in known:
        raise LookupError(known)
    tags = [each.name for each in models.get_model_weights(architecture)]
    if tag and tag not in tags:
        raise LookupError([f"{architecture}.{each}" for each in tags])
    children = models.get_model(architecture, weights=None).named_children()
    layers = OrderedDict((part, child) for part, child in children if part not in _HEADS)
    if architecture.startswith("densenet"):
        layers["relu"] = nn.ReLU()  # which its `forward` applies
    return nn.Sequential(layers)


def published(name: str) -> Frame:
    """Return the images that a network was published for, by the transforms of its weights."""
    transform = _weights(name).transforms()
    return Frame.of_unit(
        transform.mean,
        transform.std,
        side=transform.crop_size[0],
        resize_size=transform.resize_size[0],
        interpolation=transform.interpolation.value,
    )


def state(name: str) -> Mapping[str, Tensor]:
    """Return the published weights of a network, from torch's hub cache or by a download."""
    found: Mapping[str, Tensor] = _weights(name).get_state_dict(
        progress=False, check_hash=True, weights_only=True
    )
    return found


def _weights(name: str) -> Any:
    architecture, _, tag = name.partition(".")
    return _models().get_model_weights(architecture)[tag or "DEFAULT"]


def _models() -> Any:
    import torchvision  # with torch's compiler, longer than all other imports of an actor

    return torchvision.models
