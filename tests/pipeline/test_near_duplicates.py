"""Near-duplicates of a collection: found, left out where that is asked for, and shown."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mmray.config.presets import DEMO
from mmray.descriptors.shards import HASH
from mmray.descriptors.weights import build
from mmray.images.collection import Collection
from mmray.images.sources import list_images
from mmray.pipeline.recipes.pictures import near_duplicates
from mmray.pipeline.reports.thumbnails import Thumbnails
from mmray.pipeline.session import Session
from mmray.pipeline.stages.extraction import extract_stage, features_stage
from mmray.pipeline.stages.near_duplicates import near_duplicates_stage
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from tests.made import synthetic

CONFIG = dataclasses.replace(
    DEMO,
    extraction=dataclasses.replace(DEMO.extraction, longest_side=64, shard_size=4),
    mining=dataclasses.replace(DEMO.mining, graph_k=3, positive_k=3),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six photos, two of them with copies, of which one is larger, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(6):
        small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        photo = Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC)
        photo.save(folder / f"{seed}.png")
        if seed == 1:
            photo.resize((96, 72)).save(folder / "1-small.jpg", quality=60)
            photo.save(folder / "1-again.jpg", quality=70)
        if seed == 4:
            photo.resize((256, 192)).save(folder / "4-large.jpg", quality=80)
    (folder / "3-bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def find(photos, tmp_path_factory, ray_cluster):
    """Returns a function that finds the near-duplicates of the photos, by changed settings."""
    model = build("efficientnet_lite0", pooling="mac")
    shared = tmp_path_factory.mktemp("storage") / "runs"

    def found(storage=shared, chosen=("extract",), **changes):
        config = dataclasses.replace(CONFIG, **changes)
        session = Session(config, Folder(str(storage)), synthetic.SilentRun(), chosen)
        described = extract_stage(session, model, Collection.of(list_images(str(photos))))
        return session, described, *near_duplicates_stage(session, described)

    return found


def names(items):
    return [item.name for item in items]


def test_the_file_has_each_near_duplicate_and_the_one_with_the_most_pixels(find, capfd):
    _, described, kept, near = find()
    assert kept is described
    assert near.stage.counts == {
        **{"images": 9, "near_duplicates": 3, "groups": 2, "unhashed": 0, "incomplete": 0}
    }
    rows = near.table().to_pylist()
    # 1-again.jpg and 1.png are of one size: the first of them represents the group.
    assert [(row["uri"].rpartition("/")[2], row["of"].rpartition("/")[2]) for row in rows] == [
        *(("1-small.jpg", "1-again.jpg"), ("1.png", "1-again.jpg"), ("4.png", "4-large.jpg"))
    ]
    for row in rows:
        assert described.items[row["image_id"]].location == row["uri"]
        assert described.items[row["of_id"]].location == row["of"]
        assert 0 <= row["hamming"] <= 6
        assert 0.7 < row["cosine"] <= 1
    said = "extract: 3 near-duplicates in 2 groups; see near_duplicates.parquet; "
    assert f"{said}--near-duplicates one leaves them out" in capfd.readouterr().err


def test_one_of_each_group_goes_on(find, capfd):
    session, described, _, _ = find()
    capfd.readouterr()
    _, _, kept, near = find(near_duplicates="one")
    assert "2 groups; see near_duplicates.parquet; left out" in capfd.readouterr().err
    assert names(kept.items) == ["0.png", "1-again.jpg", "2.png", "3.png", "4-large.jpg", "5.png"]
    every = described.features("mac")
    np.testing.assert_array_equal(kept.features("mac"), every[kept.rows])
    assert len(near.items) == 9
    listed = list_images(str(next(iter(described.items)).location.rpartition("/")[0]))
    assert [listed[place].name for place in kept.places] == names(kept.items)
    # Later stages are others, and those of `keep` are what they would be without this stage.
    sources = [features_stage(session, each) for each in (described, kept)]
    assert sources[0].fingerprint == described.stage.fingerprint
    assert sources[1].fingerprint != sources[0].fingerprint
    assert [len(source.rows.read()) for source in sources] == [9, 6]


def test_too_few_images_may_be_left(find):
    mining = dataclasses.replace(CONFIG.mining, graph_k=6)
    find(mining=mining)
    with pytest.raises(InputError, match=r"6 images, near-duplicates left out, are too few for"):
        find(mining=mining, near_duplicates="one")


def as_of_an_earlier_version(folder):
    """Remove the hashes from the files of an extraction."""
    parts = [f"features/{name}" for name in (folder / "features").names()]
    for name in ("images.parquet", *parts):
        folder.write_table(name, folder.read_table(name).drop_columns([HASH]))


@pytest.mark.parametrize("chosen", [("extract",), ("graph",)])
def test_an_earlier_extraction_has_no_hashes_and_goes_on(
    find, tmp_path, monkeypatch, capfd, chosen
):
    storage = tmp_path / "runs"
    _, described, _, near = find(storage)
    near.stage.folder.remove()
    as_of_an_earlier_version(described.stage.folder)
    monkeypatch.setattr("mmray.pipeline.stage.damaged_files", lambda folder, files: [])
    capfd.readouterr()
    _, again, kept, near = find(storage, chosen)
    assert kept is again
    told = capfd.readouterr().err
    if chosen == ("graph",):
        assert near is None, "a stage that is not chosen is not made"
        return
    assert near.stage.counts["unhashed"] == 9
    assert "not looked for among 9 of 9 images, which an earlier version" in told
    assert len(near.table()) == 0
    assert near_duplicates(near, Thumbnails(16)) is None
    # A new way of listing describes none anew, but finds the hashes.
    config = dataclasses.replace(CONFIG.extraction, shard_size=3)
    _, _, _, near = find(storage, extraction=config)
    assert near.stage.counts["near_duplicates"] == 3
    assert "9 of 9 images had been described before" in capfd.readouterr().err
    # What is made anew has hashes, and is searched again.
    again.stage.folder.remove()
    _, _, _, near = find(storage)
    assert near.stage.counts["near_duplicates"] == 3
    assert "made again, as the images have perceptual hashes now" in capfd.readouterr().err


def test_a_page_shows_groups_and_single_pairs(find, monkeypatch):
    monkeypatch.setattr("mmray.pipeline.recipes.pictures.GROUPS", 1)
    monkeypatch.setattr("mmray.pipeline.recipes.pictures.COPIES", 1)
    shown = near_duplicates(find()[3], Thumbnails(16))
    assert shown.text.startswith("3 near-duplicates in 2 groups: ")
    assert "They were kept; --near-duplicates one" in shown.text
    (first, (largest,)), (second, (pair,)) = shown.groups
    assert (first, second) == ("Largest groups", "Least alike of the others")
    assert largest.representative.name == "1-again.jpg"
    assert [copy.picture.name for copy in largest.copies] == ["1-small.jpg"]
    assert (largest.caption, largest.more) == ("and 2 like it", 1)
    assert pair.representative.name == "4-large.jpg"
    assert pair.copies[0].picture.uri.startswith("data:image/jpeg")
    left_out = near_duplicates(find(near_duplicates="one")[3], Thumbnails(16))
    assert "were left out" in left_out.text
    assert near_duplicates(None, Thumbnails(16)) is None
