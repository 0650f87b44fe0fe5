"""Networks of timm and torchvision, named by --network: descriptors, weights, refusals.

timm's own small test networks stand for their families; the full ones are slow tests.
"""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from mmray.config.choices import network_and_weights
from mmray.descriptors import torchvision_networks, weights
from mmray.descriptors.inference import fused
from mmray.descriptors.library_networks import library_preprocessing
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import build, load, save, save_published
from mmray.serving.encoder import ImageEncoder
from mmray.serving.onnx_export import export_onnx
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.training.losses import contrastive_loss

SMALL = [("test_resnet", "gem"), ("test_convnext", "mac"), ("test_vit", "cls"), ("test_vit", "avg")]
LARGE = [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (
        ("resnet50", "gem"),
        ("convnext_tiny", "mac"),
        ("vit_small_patch16_224", "cls"),
        ("vit_base_patch16_siglip_224", "cls"),  # which pools its tokens by attention
    )
]


@pytest.fixture
def photo(tmp_path):
    """A photo of no even size."""
    coarse = np.random.default_rng(0).integers(0, 255, (40, 55, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(coarse).resize((231, 187), Image.Resampling.BICUBIC).save(path)
    return path


def theirs(name):
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False).eval()


def ours(name, pooling, model, tmp_path):
    path = tmp_path / f"{name}.safetensors"
    save_file(model.state_dict(), path)
    return build(f"timm:{name}", pooling=pooling, weights=path).eval()


def pixels(height, width, count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def pooled_by_timm(model, inputs, pooling):
    with torch.no_grad():
        features = model.forward_features(inputs)
        if pooling == "cls":
            return F.normalize(model.forward_head(features, pre_logits=True))
        if features.ndim == 3:
            features = features[:, model.num_prefix_tokens :].transpose(1, 2)[..., None]
        means = {
            "mac": lambda: features.amax((2, 3)),
            "avg": lambda: features.mean((2, 3)),
            "gem": lambda: features.clamp(min=0).pow(3).mean((2, 3)).pow(1 / 3),
        }
        return F.normalize(means[pooling]())


@pytest.mark.parametrize(("name", "pooling"), [*SMALL, *LARGE])
def test_descriptors_are_those_of_timms_own_preprocessing_and_pooling(
    name, pooling, photo, tmp_path
):
    model = theirs(name)
    transform = create_transform(**resolve_data_config({}, model=model))
    expected = pooled_by_timm(model, transform(Image.open(photo))[None], pooling)
    network = ours(name, pooling, model, tmp_path)
    folder = Folder(str(tmp_path / "model"))
    save(network, folder, preprocessing=library_preprocessing(f"timm:{name}"))
    found = ImageEncoder.load(folder).encode([photo])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "pooling"), LARGE)
def test_onnx_equals_torch_at_any_size(name, pooling, tmp_path):
    network = ours(name, pooling, theirs(name), tmp_path)
    save(network, Folder(str(tmp_path / "model")))
    net = ImageEncoder.load(tmp_path / "model").net
    assert export_onnx(net, tmp_path / "x.onnx", library_preprocessing(f"timm:{name}")) < 1e-5


@pytest.mark.parametrize(("name", "pooling"), [*SMALL, ("test_vit4", "mac"), *LARGE])
def test_a_step_of_training_reaches_every_weight_that_is_to_learn(name, pooling):
    network = EmbeddingNet(f"timm:{name}", pooling).train()
    frozen = {k for k, parameter in network.named_parameters() if not parameter.requires_grad}
    before = {k: parameter.detach().clone() for k, parameter in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    rows = network(pixels(64, 96, 3))
    contrastive_loss(rows[:1], rows[1:2], rows[2:], margin=2.0).sum().backward()
    # DDP waits for the gradient of each that requires one.
    missing = {k for k, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert missing == set()
    optimizer.step()
    moved = {k for k, p in network.named_parameters() if not torch.equal(p, before[k])}
    assert moved
    assert moved.isdisjoint(frozen)


def test_training_is_deterministic_without_dropped_paths():
    network = EmbeddingNet("timm:test_convnext", "gem").train()
    assert torch.equal(network(pixels(64, 64)), network(pixels(64, 64)))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_images_of_any_size_have_a_map_of_their_shape(name):
    network = EmbeddingNet(f"timm:{name}", "gem").eval()
    side = network.stride
    with torch.no_grad():
        tall, wide = (
            network.maps(pixels(*size, 1)) for size in ((5 * side, 2 * side), (side, 3 * side + 1))
        )
        tiny = network(pixels(3, 5, 1))
    assert tall.shape == (1, network.channels, 5, 2)
    assert wide.shape[2] == 1
    assert wide.shape[3] in (3, 4)  # convolutions may drop the last pixel, patches never do
    assert torch.isfinite(tiny).all()


class Nothing(torch.nn.Module):
    """Attention of no effect."""

    def forward(self, tokens, **_):
        return torch.zeros_like(tokens)


def test_patch_tokens_are_laid_out_as_the_image(tmp_path):
    """Each patch of a network without attention between patches depends on its own pixels."""
    network = EmbeddingNet("timm:test_vit", "avg").eval()
    for block in network.backbone.model.blocks:
        block.attn = Nothing()
    image = pixels(64, 96, 1)
    changed = image.clone()
    changed[..., 16:32, 64:80] = 255 - changed[..., 16:32, 64:80]  # row 1, column 4 of 4 x 6
    with torch.no_grad():
        differs = (network.maps(image) != network.maps(changed)).any(1)[0]
    assert differs.nonzero().tolist() == [[1, 4]]


@pytest.mark.parametrize("name", ["timm:test_convnext", "timm:test_vit", "torchvision:resnet18"])
def test_a_saved_network_is_loaded_as_it_was(name, tmp_path):
    network = EmbeddingNet(name, "mac").eval()
    save(network, Folder(str(tmp_path)))
    loaded = load(str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(pixels(64, 80)), network(pixels(64, 80)))
        assert torch.equal(fused(loaded)(pixels(64, 80)), network(pixels(64, 80)))
    # The layers behind the last map are neither stored nor asked for.
    assert not [k for k in weights._parts(network) if k.startswith(("head", "fc", "classifier"))]
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["network"] == name
    assert values["variant"]["mean"] == pytest.approx(network.mean.flatten().tolist())


def test_halved_precision_embeds_nearly_the_same():
    network = EmbeddingNet("timm:test_vit", "cls").eval()
    with torch.no_grad():
        exact, half = network(pixels(64, 64)), fused(network, precision="bfloat16")(pixels(64, 64))
    assert half.dtype == torch.float32
    np.testing.assert_allclose((exact * half).sum(1), 1, atol=1e-3)


FAMILIES = {
    "resnet18": "avgpool",
    "mobilenet_v3_small": "avgpool",
    "densenet121": "features",
    "regnet_y_400mf": "avgpool",
    "convnext_tiny": "avgpool",
    "swin_t": "avgpool",
    "efficientnet_b0": "avgpool",
    "shufflenet_v2_x0_5": "conv5",
    "mnasnet0_5": "layers",
    "alexnet": "avgpool",
    "squeezenet1_1": "features",
    "mobilenet_v2": "features",
}


QUICK = ("resnet18", "densenet121", "swin_t", "shufflenet_v2_x0_5", "mobilenet_v2")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_torchvisions_networks_end_with_their_last_map(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    seen = []
    module = getattr(model, FAMILIES[name])
    if FAMILIES[name] == "avgpool":
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    else:
        module.register_forward_hook(lambda _, given, found: seen.append(found.clone()))
    layers = torchvision_networks.create(name).eval()
    layers.load_state_dict(model.state_dict(), strict=False)
    inputs = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        model(inputs)
        found = layers(inputs)
    expected = F.relu(seen[0]) if name.startswith("densenet") else seen[0]
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected)


def test_the_preprocessing_is_that_of_the_weights():
    frame = library_preprocessing("torchvision:resnet50.IMAGENET1K_V2")
    assert (frame.crop, frame.resize_size, frame.interpolation) == (224, 232, "bilinear")
    frame = library_preprocessing("timm:vit_small_patch16_224.augreg_in21k_ft_in1k")
    assert (frame.longest_side, frame.crop, frame.resize_size) == (None, 224, 248)
    assert frame.interpolation == "bicubic"


def test_a_network_as_published_is_pooled_by_its_class_token(tmp_path, monkeypatch):
    states = {f"timm:{name}": theirs(name).state_dict() for name in ("test_vit", "test_resnet")}
    monkeypatch.setattr(weights, "library_state", states.__getitem__)
    poolings = []
    for name in states:
        folder = Folder(str(tmp_path / name.replace(":", "-")))
        save_published(name, folder)
        poolings.append(load(folder.uri).pooling)
    assert poolings == ["cls", "gem"]


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("timm:resnet51", "did you mean resnet51q or resnet50"),
        ("timm:resnet50.a9_in1k", "did you mean resnet50[.]"),
        ("timm:inception_v3", "no map for images of 38 x 38 pixels"),
        ("timm:mvitv2_tiny", "images here have any size"),
        ("torchvision:vit_b_16", "no network for this"),
        ("torchvision:resnet50.V3", "did you mean resnet50.IMAGENET1K_V"),
        ("timm:../resnet50", "no name of a network"),
        ("timm:hf-hub:somebody/code", "no name of a network"),
        ("timm:", "no name of a network"),
    ],
)
def test_what_is_no_network_for_this_is_refused(network, said):
    with pytest.raises(InputError, match=said):
        EmbeddingNet(network, "gem")


def test_a_model_folder_cannot_name_an_address(tmp_path):
    folder = Folder(str(tmp_path))
    save(EmbeddingNet("timm:test_resnet", "mac"), folder)
    values = json.loads(folder.read("config.json"))
    for name in ("timm:hf-hub:somebody/code", "timm:local-dir:/tmp", "os:system", 7, None):
        folder.write("config.json", json.dumps({**values, "network": name}).encode())
        with pytest.raises(InputError, match=r"no name of a network|known are"):
            load(folder)


def test_cls_is_refused_where_there_is_no_class_token():
    with pytest.raises(InputError, match="resnet has no class token; choose gem"):
        EmbeddingNet("timm:test_resnet", "cls")
    network = EmbeddingNet("timm:test_resnet", "mac")
    with pytest.raises(InputError, match="no class token"):
        network.check_dims("--evaluation.dims", 4, ("gem", "cls"))


def test_weights_that_cannot_be_had_name_the_remedy(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Name or service not known\nand a page of it")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", unreachable)
    with pytest.raises(InputError, match=r"could not be had \(Name or .* known\): give a file"):
        build("timm:test_vit.r160_in1k", pooling="cls")
    with pytest.raises(InputError, match="no weights of it are published"):
        build("timm:test_vit4", pooling="mac")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vgg16", ("vgg16", "")),
        ("vgg16:a:b.pth", ("vgg16", "a:b.pth")),
        ("timm:x.y", ("timm:x.y", "")),
        ("timm:x:/w/f.pth", ("timm:x", "/w/f.pth")),
        ("torchvision:resnet18", ("torchvision:resnet18", "")),
        ("runs/model", None),
        ("C:weights", None),
    ],
)
def test_networks_are_told_from_folders(text, expected):
    assert network_and_weights(text) == expected
