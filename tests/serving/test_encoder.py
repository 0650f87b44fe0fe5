"""A model's folder as something that describes images, of any shapes and kinds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn

from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import Preprocessing
from mmray.descriptors.weights import CONFIG, load, save, state_digest
from mmray.descriptors.whitening import Whitening, whitening_name
from mmray.images.cropping import center_crop
from mmray.images.decoding import decode
from mmray.serving.encoder import WHITENING, ImageEncoder, WhitenedNet
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from tests.descriptors.test_network import random_images
from tests.made.bad_images import encoded, scene
from tests.made.exported import SHAPES, SIDE, model_folder, photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def encoder(folder) -> ImageEncoder:
    return ImageEncoder.load(folder)


@pytest.fixture(scope="module")
def network(folder) -> EmbeddingNet:
    return load(Folder(str(folder))).eval()


def whitening_of(dims: int) -> Whitening:
    rng = np.random.default_rng(1)
    projection = rng.standard_normal((dims, dims)).astype(np.float32)
    return Whitening(rng.uniform(0, 0.1, dims).astype(np.float32), projection)


def rows_of(network: EmbeddingNet, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(pixels).permute(2, 0, 1)[None]).numpy()


# The network and its whitening


@pytest.mark.parametrize("dims", [None, 1, 64])
def test_the_whitened_network_equals_numpys_whitening(network, dims):
    whitening, images = whitening_of(1280), random_images(3, 70, 90)
    net = WhitenedNet(network, whitening, dims=dims)
    with torch.inference_mode():
        rows, embeddings = net(images).numpy(), network(images).numpy()
    assert rows.dtype == np.float32
    assert rows.shape == (3, net.dim)
    np.testing.assert_allclose(rows, whitening.apply(embeddings, dims), atol=3e-6)


def test_without_a_whitening_it_is_the_network_and_its_first_dimensions(network):
    images = random_images(2, 64, 64)
    with torch.inference_mode():
        embeddings = network(images)
        torch.testing.assert_close(WhitenedNet(network)(images), embeddings, atol=1e-6, rtol=0)
        first = nn.functional.normalize(embeddings[:, :40])
        rows = WhitenedNet(network, dims=40)(images)
    torch.testing.assert_close(rows, first, atol=1e-5, rtol=0)


@pytest.mark.parametrize("whitened", [False, True])
def test_rows_of_zeros_stay_zero(whitened):
    network = EmbeddingNet("efficientnet_lite0", "mac")
    whitening = Whitening(np.zeros(1280, np.float32), np.eye(1280, dtype=np.float32))
    net = WhitenedNet(network, whitening if whitened else None, dims=5)
    net.net.backbone = nn.ReLU()  # of negative inputs: all maps are zero
    net.net.head = nn.Linear(3, 1280, bias=False)
    assert torch.equal(net(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), torch.zeros(1, 5))


def test_the_network_given_is_left_as_it_was(network):
    before = state_digest(network)
    net = WhitenedNet(network, dims=3)
    assert state_digest(network) == before
    assert not net.training
    assert not any(weight.requires_grad for weight in net.parameters())


def test_a_whitening_of_another_network_and_dimensions_that_it_lacks_are_refused(network):
    with pytest.raises(InputError, match=r"whitening is for 512 dimensions, .* have 1280"):
        WhitenedNet(network, whitening_of(512))
    for dims in (0, 1281):
        with pytest.raises(InputError, match=rf"dims is {dims}: choose from 1 to .* 1280"):
            WhitenedNet(network, dims=dims)


# Images


def test_photos_of_five_shapes_are_described_as_each_alone(encoder, network, folder):
    together = encoder.encode([*photos(), *photos()])
    assert together.shape == (2 * len(SHAPES), 1280)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    whitening = Whitening.load(folder / WHITENING)
    for place, photo in enumerate(photos()):
        alone = encoder.encode([photo])
        np.testing.assert_allclose(together[[place, place + 5]], alone[[0, 0]], atol=2e-6)
        pixels = decode(photo, longest_side=SIDE).pixels
        np.testing.assert_allclose(alone, whitening.apply(rows_of(network, pixels)), atol=3e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_more_images_than_are_decoded_at_a_time_keep_their_order(encoder, monkeypatch):
    expected = encoder.encode(photos())
    monkeypatch.setattr("mmray.serving.encoder._CHUNK", 2)
    np.testing.assert_allclose(encoder.encode(photos()), expected, atol=2e-6)


def test_paths_uris_and_bytes_are_the_same_to_it(encoder, tmp_path):
    photo = photos()[0]
    path = tmp_path / "a b.png"
    path.write_bytes(photo)
    rows = encoder.encode([photo, path, str(path), path.as_uri()])
    np.testing.assert_allclose(rows, rows[[0, 0, 0, 0]], atol=2e-6)


def test_a_photo_is_turned_upright_first(encoder):
    upright, exif = scene(60, 40), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = encoded(np.ascontiguousarray(np.rot90(upright)), "PNG", exif=exif)
    rows = encoder.encode([encoded(upright, "PNG"), turned])
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-6)
    untold = encoder.encode([encoded(np.ascontiguousarray(np.rot90(upright)), "PNG")])
    assert np.abs(rows[0] - untold).max() > 1e-2


def test_the_longest_side_is_the_models_own_unless_another_is_asked_for(encoder):
    photo = encoded(scene(200, 150), "PNG")
    rows = [encoder.encode([photo], side) for side in (SIDE, None, 200, 50)]
    np.testing.assert_allclose(encoder.encode([photo]), rows[0], atol=2e-6)
    np.testing.assert_allclose(rows[1], rows[2], atol=2e-6)
    assert min(np.abs(rows[0] - other).max() for other in (rows[1], rows[3])) > 1e-3


def test_a_box_is_cut_from_the_upright_original(encoder):
    picture = scene(90, 60)
    part = encoded(np.ascontiguousarray(picture[10:50, 20:85]), "PNG")
    rows = encoder.encode([encoded(picture, "PNG")], box=(20, 10, 85, 50))
    np.testing.assert_allclose(rows, encoder.encode([part]), atol=2e-6)


_FRAMED = Preprocessing(longest_side=2 * SIDE, enlarge=True, crop=48, resize_size=54)


def test_a_network_trained_on_crops_sees_the_centre(encoder, network):
    cropped = ImageEncoder(WhitenedNet(network), _FRAMED)
    photo = photos()[3]
    pixels = center_crop(decode(photo, longest_side=2 * SIDE, enlarge=True).pixels, 48, 54)
    rows = cropped.encode([photo, photos()[0]])
    np.testing.assert_allclose(rows[0], rows_of(network, pixels)[0], atol=2e-6)


def test_no_images_give_no_rows(encoder):
    assert encoder.encode([]).shape == (0, 1280)


def test_what_cannot_be_read_is_named_in_one_sentence(encoder, tmp_path):
    photo = photos()[0]
    (tmp_path / "half.png").write_bytes(photo[: len(photo) // 2])
    cases = [
        ([photo, tmp_path / "half.png"], f"{tmp_path}/half.png: cannot be read as an image (PNG: "),
        ([photo, photo[:60], photo], "image 2 of 3: cannot be read as an image (PNG: "),
        ([b""], "image 1 of 1: cannot be read as an image (empty file (0 bytes)); "),
        (["/absent/a.jpg"], "/absent/a.jpg: cannot be read as an image (FileNotFoundError: "),
        ([photo, 3], "image 2 of 2: a path or the bytes of an image file is wanted, not int"),
        (photo, "images: one path or content was given; put it into a list"),
        ("a.jpg", "images: one path or content was given; put it into a list"),
    ]
    for images, beginning in cases:
        with pytest.raises(InputError) as caught:
            encoder.encode(images)
        assert str(caught.value).startswith(beginning)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [0, -3, True, 2.5, "64"])
def test_a_longest_side_that_is_none_is_refused(encoder, side):
    with pytest.raises(InputError, match=r"longest_side is .*: choose a whole number"):
        encoder.encode([], side)


# The folder


def test_the_whitening_is_found_under_the_name_that_runs_give_it():
    assert whitening_name("gem", "gem") == WHITENING


def test_a_folder_without_a_whitening_gives_embeddings(network, tmp_path):
    save(network, Folder(str(tmp_path)))
    encoder = ImageEncoder.load(Folder(str(tmp_path)), dims=9)
    assert encoder.preprocessing == Preprocessing(longest_side=1024, crop=None)
    assert encoder.net.projection is None
    assert encoder.encode(photos()[:1]).shape == (1, 9)


def test_the_folder_says_how_images_are_framed(tmp_path):
    for config, preprocessing in (
        ({"longest_side": None, "crop": 224}, Preprocessing(None, 224)),
        ({"crop": None}, Preprocessing(1024, None)),
        (_FRAMED.stored(), _FRAMED),
    ):
        (tmp_path / CONFIG).write_text(json.dumps(config))
        assert Preprocessing.read(Folder(str(tmp_path))) == preprocessing


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "362", [362]])
@pytest.mark.parametrize("name", ["longest_side", "crop", "resize_size"])
def test_a_frame_that_is_no_number_is_refused(tmp_path, name, size):
    (tmp_path / CONFIG).write_text(json.dumps({name: size}))
    with pytest.raises(InputError, match=rf"config\.json: {name} is .*: write a whole number"):
        Preprocessing.read(Folder(str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"crop": 48, "resize_size": 47}, "resize_size is 47: write .* from 48"),
        ({"enlarge": 1}, "enlarge is 1: write true or false"),
    ],
)
def test_a_frame_that_cannot_be_is_refused(tmp_path, config, told):
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"config\.json: {told}"):
        Preprocessing.read(Folder(str(tmp_path)))


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent: not a model's folder .*no config\.json"):
        ImageEncoder.load(tmp_path / "absent")
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: not the description of a saved model"):
        ImageEncoder.load(str(tmp_path))
    with pytest.raises(InputError, match=r"config\.json: not the description of a saved model"):
        Preprocessing.read(Folder(str(tmp_path / "absent")))


def test_a_damaged_whitening_is_refused(network, tmp_path):
    save(network, Folder(str(tmp_path)))
    (tmp_path / WHITENING).write_bytes(b"no arrays")
    with pytest.raises(InputError, match="not a whitening"):
        ImageEncoder.load(tmp_path)
    Whitening(np.zeros(3, "f4"), np.eye(3, dtype="f4")).save(tmp_path / WHITENING)
    message = r"whitening\.npz: .*a whitening for 3 dimensions, the network's embeddings have 1280"
    with pytest.raises(InputError, match=message):
        ImageEncoder.load(tmp_path)
