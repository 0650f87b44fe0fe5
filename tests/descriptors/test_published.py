"""Published networks: files of cirtorch and dirtorch against what those libraries compute."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from mmray.descriptors.embedding import embed
from mmray.descriptors.inference import fused
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.torch_pickle import _LONG
from mmray.descriptors.variant import Variant
from mmray.descriptors.weight_files import read_checkpoint
from mmray.descriptors.weights import build, load, load_published, save, state_digest, with_head
from mmray.images.decoding import decode
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from tests.made.published import lw, photo, save_cirtorch, save_dirtorch

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "clutter1000"
WITHIN = 1e-4


def jpegs():
    """Photos where there are any, otherwise pictures."""
    found = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))[:2]]
    return [photo(64, 96, 11), photo(70, 64, 12), *found]


def ours(network, jpeg, descriptor="embedding", **options):
    pixels = decode(jpeg, longest_side=1024).pixels
    device = torch.device("cpu")
    return embed(network, [pixels], (descriptor,), batch_size=1, device=device, **options)[0, 0]


def assert_equal(network, theirs, descriptor="embedding"):
    found = [(ours(network, jpeg, descriptor), theirs(jpeg)) for jpeg in jpegs()]
    for mine, wanted in found:
        np.testing.assert_allclose(mine, wanted, atol=WITHIN, rtol=0)
    # Else a constant would do.
    assert np.abs(found[0][1] - found[1][1]).max() > 10 * WITHIN


@pytest.mark.parametrize("zipped", [True, False])
def test_descriptors_with_a_whitening_layer_are_those_of_cirtorch(tmp_path, zipped):
    theirs = save_cirtorch(tmp_path / "w.pth", zipped=zipped)
    network, found = load_published(tmp_path / "w.pth")
    assert (network.network, network.pooling, network.dim) == ("resnet50", "gem", 2048)
    assert network.variant.p == pytest.approx(2.6)
    assert found.whitening is found.whitening_of_scales is None
    assert_equal(network, theirs)
    assert_equal(fused(network), theirs)


@pytest.mark.parametrize("pooling", ["gem", "mac", "spoc"])
def test_descriptors_without_that_layer_are_those_of_cirtorch(tmp_path, pooling):
    options = {"whitening": False, "std": [0.2, 0.25, 0.3]}
    theirs = save_cirtorch(tmp_path / "w.pth", "vgg16", pooling, **options)
    network, _ = load_published(tmp_path / "w.pth")
    assert network.head is None
    assert_equal(network, theirs)
    assert_equal(network, theirs, network.pooling)


def test_resnet101_of_cirtorch_is_read(tmp_path):
    theirs = save_cirtorch(tmp_path / "w.pth", "resnet101", p=2.9)
    assert_equal(load_published(tmp_path / "w.pth")[0], theirs)


def test_the_learned_whitening_of_cirtorch_is_applied_as_there(tmp_path):
    theirs = save_cirtorch(tmp_path / "w.pth", "vgg16", whitening=False, learned=True)
    network, found = load_published(tmp_path / "w.pth")
    jpeg = photo(64, 96, 11)
    descriptor = theirs(jpeg)
    # `whitenapply` of retrieval-SfM-120k, for one scale and for several.
    for seed, whitening in ((2, found.whitening), (3, found.whitening_of_scales)):
        learned = lw(512, seed)
        wanted = learned["P"] @ (descriptor[:, None] - learned["m"])
        wanted = wanted[:, 0] / (np.linalg.norm(wanted) + 1e-6)
        applied = whitening.apply(ours(network, jpeg)[None])[0]
        np.testing.assert_allclose(applied, wanted, atol=WITHIN)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_features": True},
        {"without_fc": True},
        {"pooling": "max"},
        {"arch": "resnet101_rmac", "dropout_p": 0.5},
    ],
)
def test_descriptors_are_those_of_dirtorch(tmp_path, options):
    theirs = save_dirtorch(tmp_path / "w.pt", **options)
    network, _ = load_published(tmp_path / "w.pt")
    assert network.dim == (2048 if "without_fc" in options else 256)
    assert_equal(network, theirs)


@pytest.mark.parametrize("module", ["sklearn.decomposition._pca", "sklearn.decomposition.pca"])
def test_the_pca_of_dirtorch_is_read_as_arrays_and_applied_as_there(tmp_path, module, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((300, 256)).astype(np.float32)
    pca = PCA(whiten=True, svd_solver="full").fit(rows * np.linspace(1, 3, 256, dtype="f4"))
    # Files of 2019 name the module as scikit-learn did then.
    monkeypatch.setitem(__import__("sys").modules, module, __import__("sklearn").decomposition._pca)
    monkeypatch.setattr(PCA, "__module__", module)
    theirs = save_dirtorch(tmp_path / "w.pt", pca=pca)
    network, found = load_published(tmp_path / "w.pt")
    jpeg = photo(64, 96, 11)
    wanted = (theirs(jpeg) - pca.mean_) @ pca.components_.T / pca.explained_variance_**0.25
    wanted /= np.linalg.norm(wanted)
    applied = found.whitening.apply(ours(network, jpeg)[None])[0]
    np.testing.assert_allclose(applied, wanted, atol=WITHIN)
    assert found.whitening_of_scales is found.whitening


def test_a_published_network_is_saved_with_what_it_differs_in(tmp_path):
    save_dirtorch(tmp_path / "w.pt")
    network, _ = load_published(tmp_path / "w.pt")
    folder, jpeg = Folder(str(tmp_path / "model")), photo(64, 96, 11)
    save(network, folder)
    loaded = load(folder)
    assert loaded.variant == network.variant
    assert state_digest(loaded) == state_digest(network)
    np.testing.assert_array_equal(ours(loaded, jpeg), ours(network, jpeg))
    config = json.loads(folder.read("config.json"))
    folder.write("config.json", json.dumps(config | {"variant": {"p": 0}}).encode())
    with pytest.raises(InputError, match=r"config\.json: its variant is damaged .*p is at least 1"):
        load(folder)
    folder.write("config.json", json.dumps(config | {"pooling": "rmac"}).encode())
    with pytest.raises(InputError, match=r"config\.json: its variant is damaged .*rmac sums up"):
        load(folder)


def test_the_fingerprint_knows_the_exponent():
    torch.manual_seed(0)
    model = EmbeddingNet("efficientnet_lite0", "gem")
    digests = []
    for variant in (None, Variant(p=2.9), Variant()):
        other = EmbeddingNet("efficientnet_lite0", "gem", variant=variant)
        other.load_state_dict(model.state_dict())
        digests.append(state_digest(other))
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    "variant",
    [
        *({"p": 0.5}, {"p": "3"}, {"p": float("nan")}, {"floor": -1}, {"std": [1, 1, 0]}),
        *({"mean": [1, 2]}, {"normalized": 1}, {"unknown": 1}, 3),
    ],
)
def test_a_damaged_variant_is_refused(variant):
    with pytest.raises((ValueError, TypeError)):
        Variant.read(variant)


def test_a_start_has_the_exponent_and_not_the_whitening_layer(tmp_path, capsys):
    path = tmp_path / "w.pth"
    theirs = save_cirtorch(path)
    network = build("resnet50", pooling="gem", weights=path)
    assert f"weights: the whitening layer in {path} is left out" in capsys.readouterr().err
    assert (network.head, network.variant.p) == (None, pytest.approx(2.6))
    bare = save_cirtorch(tmp_path / "bare.pth", whitening=False)
    assert_equal(network, bare)
    network.train()(torch.full((1, 3, 64, 64), 99, dtype=torch.uint8)).sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in network.parameters())
    headed = with_head(network, np.eye(4, 2048, dtype="f4"), np.zeros(4, "f4"))
    assert headed.variant == network.variant
    assert np.abs(theirs(photo(64, 64, 5)) - bare(photo(64, 64, 5))).max() > WITHIN


@pytest.mark.parametrize(
    ("network", "pooling"), [("vgg16", "gem"), ("resnet50", "mac"), ("vgg16", "mac")]
)
def test_flags_that_contradict_the_file_are_named(tmp_path, network, pooling):
    save_cirtorch(tmp_path / "w.pth")
    words = (
        rf"w\.pth is a resnet50 with gem, not a {network} with {pooling}: give --network resnet50 "
        r"--training\.pooling gem, or to `evaluate` --model NAME="
    )
    with pytest.raises(InputError, match=words):
        build(network, pooling=pooling, weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"architecture": "alexnet"}, "is 'alexnet', mmray reads vgg16, resnet50, resnet101"),
        ({"pooling": "rmac"}, "the pooling is 'rmac', mmray reads gem, mac, spoc"),
        ({"regional": True}, "regional is set, which mmray lacks"),
        ({"local_whitening": True}, "local_whitening is set"),
        ({"mean": [0.5, 0.5]}, "not a network as cirtorch or dirtorch save it"),
        ({"std": [1, 1, 0]}, "not a network as cirtorch .* std above 0"),
        ({"Lw": {"x": {"ss": {"m": 1, "P": 2}}}}, "not a network as cirtorch"),
        ({"Lw": {"x": {"ss": lw(3, 0) | {"m": np.zeros((2, 1))}}}}, r"2 dimensions by \(3, 3\)"),
        ({"Lw": {"x": {"ss": {"m": np.zeros(3, int), "P": 0}}}}, "an array of 'i8', not of real"),
        ({"whitening": True}, "not a network as cirtorch .*whiten.weight"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(tmp_path, meta, words):
    path = tmp_path / "w.pth"
    told = {"architecture": "vgg16", "pooling": "gem", "mean": [0.5] * 3, "std": [0.2] * 3} | meta
    torch.save({"meta": told, "state_dict": {"pool.p": torch.ones(1) * 3}}, path)
    with pytest.raises(InputError, match=rf"w\.pth.*{words}") as caught:
        load_published(path)
    assert "\n" not in str(caught.value)


def test_other_networks_and_options_of_dirtorch_are_refused(tmp_path):
    save_dirtorch(tmp_path / "w.pt", center_bias=0.5)
    with pytest.raises(InputError, match="'center_bias' is set, which mmray lacks"):
        load_published(tmp_path / "w.pt")
    content = {"model_options": {"arch": "resnet101_fpn_rmac"}, "state_dict": {}}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="the arch is 'resnet101_fpn_rmac', mmray reads resnet50_"):
        load_published(tmp_path / "w.pt")


@pytest.mark.parametrize("p", [torch.ones(2048) * 3, torch.zeros(1), torch.ones(1) * torch.nan])
def test_exponents_that_gem_has_not_are_refused(tmp_path, p):
    told = {"architecture": "vgg16", "pooling": "gem", "mean": [0.5] * 3, "std": [0.2] * 3}
    torch.save({"meta": told, "state_dict": {"pool.p": p}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: not a network as"):
        load_published(tmp_path / "w.pth")


def test_a_layer_that_repeats_few_numbers_takes_no_memory(tmp_path):
    told = {"architecture": "vgg16", "pooling": "mac", "mean": [0.5] * 3, "std": [0.2] * 3}
    one = torch.ones(1)
    state = {"whiten.weight": one.expand(2**40, 512), "whiten.bias": one.expand(2**40)}
    content = {"meta": told | {"whitening": True}, "state_dict": state}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"whiten\.weight is not a matrix"):
        load_published(tmp_path / "w.pth")


def test_a_state_dict_alone_does_not_tell_its_network(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"a state dict alone.*: write NETWORK:"):
        load_published(tmp_path / "w.pth")


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Setting:
    """Has a state, and would create a file when it is set."""

    def __setstate__(self, state):
        state["path"].touch()


@pytest.mark.parametrize("place", ["meta", "pca", "Lw", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_beside_the_state_dict_is_refused_and_not_run(tmp_path, place, zipped):
    path, trap = tmp_path / "w.pth", tmp_path / "trap"
    setting = Setting()
    setting.path = trap
    for bad in (Trap(trap), setting, np.random.default_rng(0), {1, 2}, np.array([Trap(trap)])):
        content = {"meta": {"architecture": "vgg16", "Lw": {}}, "state_dict": {}, "pca": {}}
        content["meta" if place == "Lw" else place][place] = bad
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=r"w\.pth: "):
            load_published(path)
        assert not trap.exists()


def test_frames_of_many_operations_and_lines_without_end_are_refused(tmp_path):
    frame = b"\x80\x04\x95" + (_LONG).to_bytes(8, "little") + b"(" * _LONG + b"."
    before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    start = b"".join(pickle.dumps(each, 2) for each in before)
    for crafted in (frame, b"I" + b"1" * (1 << 22) + b"\n."):
        (tmp_path / "w.pth").write_bytes(start + crafted)
        with pytest.raises(InputError, match=r"w\.pth: "):
            read_checkpoint(tmp_path / "w.pth")
