"""Networks made ready for inference embed as the originals."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from mmray.descriptors.backbones import BACKBONES, SameConv2d
from mmray.descriptors.inference import DTYPES, fused
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.pooling import POOLINGS
from mmray.descriptors.regions import Rmac
from mmray.descriptors.weights import build, state_digest
from tests.descriptors.test_network import random_images

BATCHES = [random_images(2, 64, 97), random_images(1, 70, 64), random_images(1, 9, 33)]


@functools.cache
def unsettled_net(network: str) -> EmbeddingNet:
    """Random weights; every BatchNorm moves and stretches, with the statistics of some images."""
    torch.manual_seed(1)
    model = EmbeddingNet(network, "mac")
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            # As in trained networks, residuals are small: else rounding grows from block to block.
            size = 0.3 if name.endswith((".bn3", "._bn2")) else 1.0
            nn.init.uniform_(module.weight, 0.5 * size, 1.5 * size)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0
            module.train()
    with torch.inference_mode():
        model.maps(random_images(4, 64, 64, seed=9))
    return model.eval()


@pytest.fixture(scope="module")
def lite0() -> EmbeddingNet:
    return build("efficientnet_lite0", pooling="mac").eval()


@pytest.mark.parametrize("network", BACKBONES)
def test_a_fused_network_embeds_as_the_plain_one_without_any_batchnorm(network):
    model = unsettled_net(network)
    before = state_digest(model)
    faster = fused(model)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in faster.modules())
    with torch.inference_mode():
        expected = model.descriptors(BATCHES, tuple(POOLINGS))
        rows = faster.descriptors(BATCHES, tuple(POOLINGS))
    assert expected.std(0).max() > 1e-3  # images differ
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    assert state_digest(model) == before


@pytest.mark.parametrize("network", ["resnet50", "googlenet", "efficientnet_lite0"])
def test_fusing_is_exact_but_for_rounding(network):
    # Of the maps, which are not normalised, and in double precision, where rounding is small.
    model = copy.deepcopy(unsettled_net(network)).double()
    with torch.inference_mode():
        for images in BATCHES:
            maps = model.maps(images)
            torch.testing.assert_close(fused(model).maps(images), maps, atol=1e-11, rtol=1e-11)


def test_the_fused_packaged_weights_embed_as_they_did(lite0):
    with torch.inference_mode():
        torch.testing.assert_close(fused(lite0)(BATCHES), lite0(BATCHES), atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("network", ["vgg16", "resnet50", "googlenet", "efficientnet_lite0"])
def test_a_network_in_half_precision_embeds_nearly_as_the_plain_one(network, precision, lite0):
    model = lite0 if network == "efficientnet_lite0" else unsettled_net(network)
    faster = fused(model, precision=precision)
    assert {weight.dtype for weight in faster.parameters()} == {DTYPES[precision]}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        rows, expected = faster(BATCHES), model(BATCHES)
        maps = faster.maps(BATCHES[0])
    assert rows.dtype == maps.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    assert (rows * expected).sum(1).min() > 0.99
    assert not torch.allclose(rows, expected, atol=1e-5)  # it did compute in another precision


def test_images_enter_the_preprocessing_in_float32_also_with_bfloat16(lite0):
    # In bfloat16, neighbouring pixel values above 128 would become one before the mean is taken.
    faster = fused(lite0, precision="bfloat16")
    seen = []
    faster.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.arange(128, 256, dtype=torch.uint8).reshape(1, 1, 8, 16).expand(1, 3, 8, 16)
    faster.maps(images)
    assert seen[0].dtype == torch.float32
    assert len(seen[0][0, 0, :8, :16].unique()) == 128


def test_the_original_keeps_its_mode_and_its_gradients():
    model = copy.deepcopy(unsettled_net("efficientnet_lite0")).train()
    faster = fused(model)
    assert model.training
    assert not faster.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert not any(weight.requires_grad for weight in faster.parameters())
    model(BATCHES[0]).sum().backward()  # nothing was overwritten in place
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_convolutions_keep_their_class_and_layout(lite0, precision):
    faster = fused(lite0, precision=precision)
    convolutions = [m for m in faster.modules() if isinstance(m, nn.Conv2d)]
    assert all(isinstance(conv, SameConv2d) for conv in convolutions)
    assert len(convolutions) == sum(isinstance(m, nn.Conv2d) for m in lite0.modules())
    assert all(conv.bias is not None for conv in convolutions)
    assert all(
        conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convolutions
    )


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_a_fused_network_survives_pickling_and_moving(lite0, precision):
    faster = fused(lite0, precision=precision)
    copied = pickle.loads(pickle.dumps(faster)).to(torch.device("cpu"))
    options = {"scales": (1.0, 0.5), "regions": Rmac(levels=2, whole=False)}
    with torch.inference_mode():
        rows = faster.descriptors(BATCHES, ("mac", "rmac"), **options)
        assert torch.equal(copied.descriptors(BATCHES, ("mac", "rmac"), **options), rows)
    moved = copied.to("meta")
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}


def test_fusing_twice_changes_nothing(lite0):
    once = fused(lite0)
    with torch.inference_mode():
        assert torch.equal(fused(once)(BATCHES), once(BATCHES))


def test_a_batchnorm_without_its_convolution_is_not_left_behind_silently(lite0):
    model = copy.deepcopy(lite0)
    model.backbone = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))
    with pytest.raises(AssertionError, match=r"\['1'\] follow no convolution directly"):
        fused(model)
