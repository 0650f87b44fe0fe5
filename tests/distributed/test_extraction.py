"""Extraction by Ray gives what the core gives, keeps good images and says why others are bad."""

import numpy as np
import pytest
import ray
import torch

from mmray import artifacts
from mmray.artifacts import Stage
from mmray.collection import ImageFile, list_images
from mmray.distributed.extraction import extract, units_of
from mmray.distributed.stage import Pool
from mmray.images import load_image
from mmray.models import build
from mmray.storage import Folder
from mmray.training import embed
from tests import synthetic

pytestmark = pytest.mark.usefixtures("ray_cluster")
POOLINGS = ("rmac", "mac")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Fourteen photos of three shapes; the third and the ninth are not images."""
    folder = tmp_path_factory.mktemp("photos")
    synthetic.save_noise(folder, 14, [(48, 64), (64, 48), (80, 64)])
    (folder / "02.png").write_bytes(b"")
    (folder / "08.png").write_bytes((folder / "08.png").read_bytes()[:400])
    return list_images(str(folder))


def described(photos, tmp_path, name, maximum):
    stage = Stage.of(Folder(str(tmp_path)), "extract", name)
    extract(
        photos,
        build("efficientnet_lite0", pooling="mac"),
        output=stage.folder / "features",
        longest_side=64,
        poolings=POOLINGS,
        shard_size=4,
        batch_size=2,
        pool=Pool(maximum=maximum),
        label="extract",
    )
    counts = artifacts.finish_features(stage, POOLINGS, max_bad_fraction=0.5)
    assert counts == {"images": 12, "quarantined": 2}
    return stage


def test_extraction_equals_the_core_for_any_number_of_actors(photos, tmp_path):
    one = described(photos, tmp_path, "one", 1)
    two = described(photos, tmp_path, "two", 2)
    good = [photo for index, photo in enumerate(photos) if index not in (2, 8)]
    images = [load_image(photo.uri, longest_side=64).pixels for photo in good]
    model = build("efficientnet_lite0", pooling="mac")
    wanted = embed(model, images, POOLINGS, batch_size=1, device=torch.device("cpu"))
    for index, pooling in enumerate(POOLINGS):
        rows = artifacts.read_features(one, POOLINGS, pooling)
        np.testing.assert_allclose(rows, wanted[:, index], atol=1e-5)
        np.testing.assert_array_equal(rows, artifacts.read_features(two, POOLINGS, pooling))
    assert one.folder.read_table("images.parquet")["uri"].to_pylist() == [p.uri for p in good]


def test_bad_images_are_listed_with_their_reason(photos, tmp_path):
    stage = described(photos, tmp_path, "x", 2)
    quarantine = stage.folder.read_table("quarantine.parquet").to_pylist()
    assert [row["uri"] for row in quarantine] == [photos[2].uri, photos[8].uri]
    assert quarantine[0]["error"] == "empty file (0 bytes)"
    assert "truncated" in quarantine[1]["error"]


def test_a_unit_s_pixels_are_bounded_whatever_the_size_of_images():
    items = [ImageFile(f"{i}.jpg", "", 1) for i in range(1000)]
    assert units_of(items, shard_size=256, longest_side=362)["items"].to_pylist()[0] == 256
    units = units_of(items, shard_size=256, longest_side=1024)
    assert max(units["items"].to_pylist()) * 3 * 1024**2 <= 256 << 20
    assert sum(units["items"].to_pylist()) == 1000
    assert units["first"].to_pylist()[1] == units["items"].to_pylist()[0]


def test_boxes_travel_with_their_images(tmp_path):
    assert ray.is_initialized()
    items = [ImageFile("a.jpg", "", 1, box=(1.0, 2.0, 3.5, 4.0)), ImageFile("b.jpg", "", 1)]
    (boxes,) = units_of(items, shard_size=4, longest_side=64)["box"].to_pylist()
    assert boxes == [[1.0, 2.0, 3.5, 4.0], None]
