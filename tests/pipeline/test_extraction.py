"""The stages around the extraction: what is refused, and whitening block by block."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from mmray.config.presets import DEMO
from mmray.descriptors import known, moments, shards
from mmray.descriptors.moments import Moments
from mmray.descriptors.settings import DescriptorSettings, Preprocessing
from mmray.descriptors.weights import build
from mmray.descriptors.whitening import pca_whitening
from mmray.images.collection import Collection, ImageFile
from mmray.images.sources import list_images
from mmray.pipeline import distributed
from mmray.pipeline.session import Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.extraction import extract_descriptors, extract_stage, features_stage
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.rows import Rows
from tests.made import synthetic


class Descriptors:
    """Takes the place of images that are described."""

    poolings = ("rmac",)

    def __init__(self, features, folder):
        self.rows, self.stage = features, StageFolder.of(folder, "extract", "x")
        self.fingerprint = self.stage.fingerprint
        self.items = Collection.of([ImageFile(uri="", name=str(i)) for i in range(len(features))])

    def rows_of(self, pooling):
        assert pooling == "rmac"
        return Rows(lambda: self.rows)


def session(tmp_path, **extraction):
    config = dataclasses.replace(
        DEMO, extraction=dataclasses.replace(DEMO.extraction, **extraction)
    )
    return Session(config, Folder(str(tmp_path / "runs")), synthetic.SilentRun(), ("extract",))


@pytest.mark.parametrize("block", [3, 1000])
def test_features_are_whitened_block_by_block_as_by_the_core(tmp_path, monkeypatch, block):
    monkeypatch.setattr(moments, "_BLOCK", block)
    rows = synthetic.clouds(1, 50, 6)
    described = Descriptors(rows, Folder(str(tmp_path)))
    source = features_stage(session(tmp_path, pca=4), described)
    np.testing.assert_allclose(source.rows.read(), pca_whitening(rows).apply(rows, 4), atol=1e-6)
    assert source.count == 50
    plain = features_stage(session(tmp_path), described)
    np.testing.assert_array_equal(plain.rows.read(), rows)
    assert len({source.fingerprint, plain.fingerprint}) == 2


def test_regions_that_cannot_be_learned_from_are_an_error(tmp_path, monkeypatch):
    synthetic.save_noise(tmp_path, 12, [(8, 8)])
    monkeypatch.setattr(distributed, "with_gpus", lambda pool: pool)
    monkeypatch.setattr(
        distributed, "sum_up_regions", lambda images, model, **options: Moments.none(3)
    )
    model = build("efficientnet_lite0", pooling="mac")
    images = Collection.of(list_images(str(tmp_path)))
    with pytest.raises(InputError, match=r"region-whitening: none of the 12 images .*00\.png"):
        extract_stage(session(tmp_path, region_whitening=True), model, images)


WAY = DescriptorSettings(preprocessing=Preprocessing(64), poolings=("rmac", "mac"), shard_size=4)


@pytest.fixture
def describe(tmp_path, ray_cluster, monkeypatch):
    """Returns a function that describes the photos of a folder, and how many of them anew.

    Decoding says what is described: only a content that is not known is decoded.
    """
    model = build("efficientnet_lite0", pooling="mac")

    def described(folder, storage="runs", *, deduplicate=False, way=WAY, network=model):
        given = session(tmp_path)
        given.storage = Folder(str(tmp_path / storage))
        found = extract_descriptors(
            given,
            Collection.of(list_images(str(folder))),
            network,
            settings=way,
            stage_flag="extract",
            max_bad_fraction=0.5,
            deduplicate=deduplicate,
        )
        images = found.stage.folder.read_table("images.parquet")
        names = [uri.rpartition("/")[2] for uri in images["uri"].to_pylist()]
        rows = dict(zip(names, found.features("mac"), strict=True))
        return rows, len(names) - found.stage.counts["described_before"], found

    return described


def same(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


def test_images_that_were_described_before_are_not_described_again(tmp_path, describe, capfd):
    """Whatever became of a collection, the descriptors are those of describing it anew."""
    photos = tmp_path / "photos"
    photos.mkdir()
    synthetic.save_noise(photos, 11, [(48, 64), (64, 48), (80, 64)])
    (photos / "05.png").write_bytes(b"no image")
    first, anew, found = describe(photos)
    assert (len(first), anew) == (10, 10)
    shards = found.stage.folder / "features"
    before = {name: shards.read(name) for name in shards.names()}

    (photos / "00.png").rename(photos / "zz.png")  # renamed: all others move to other shards
    (photos / "03.png").unlink()
    for number in range(5):
        (photos / f"copy{number}.png").write_bytes((photos / "07.png").read_bytes())
    extra = tmp_path / "extra"
    extra.mkdir()
    synthetic.save_noise(extra, 13, [(48, 64), (64, 48), (80, 64)])
    (extra / "12.png").rename(photos / "02a.png")  # added
    capfd.readouterr()
    changed, anew, _ = describe(photos)
    assert (len(changed), anew) == (15, 1)
    assert "extract: 14 of 15 images had been described before" in capfd.readouterr().err
    assert same(changed, describe(photos, "others")[0])
    # Duplicates are left out by selection.
    distinct, anew, found = describe(photos, deduplicate=True)
    assert (len(distinct), anew) == (10, 0)
    assert same(distinct, {name: row for name, row in changed.items() if "copy" not in name})
    assert len(found.stage.folder.read_table("duplicates.parquet")) == 5
    assert {name: shards.read(name) for name in shards.names()} == before


def test_another_way_of_describing_describes_anew(tmp_path, describe):
    photos = tmp_path / "photos"
    photos.mkdir()
    synthetic.save_noise(photos, 4, [(48, 64)])
    assert describe(photos)[1] == 4
    smaller = dataclasses.replace(WAY, preprocessing=Preprocessing(48))
    for way in (
        smaller,
        dataclasses.replace(WAY, poolings=("mac", "rmac")),
        dataclasses.replace(smaller, precision="bfloat16"),
    ):
        assert describe(photos, way=way)[1] == 4
    assert describe(photos, network=build("efficientnet_lite0", pooling="gem"))[1] == 4
    assert describe(photos, way=dataclasses.replace(WAY, shard_size=3))[1] == 0


@pytest.mark.parametrize("lost", ["images.parquet", "features/part-000000.parquet", ""])
def test_what_an_earlier_extraction_lost_is_described_again(tmp_path, describe, lost):
    photos = tmp_path / "photos"
    photos.mkdir()
    synthetic.save_noise(photos, 8, [(48, 64)])
    wanted, _, found = describe(photos)
    synthetic.save_noise(photos, 9, [(48, 64)])
    folder = found.stage.folder
    if lost:
        folder.write(lost, folder.read(lost)[:-9])
    else:
        folder.remove()
    again, _, found = describe(photos)
    assert len(again) == 9
    assert same({name: again[name] for name in wanted}, wanted)


def test_a_shard_that_is_made_again_takes_no_descriptors_of_others(tmp_path, describe):
    """While a shard is missing, those after it stand in its place among the files."""
    photos = tmp_path / "photos"
    photos.mkdir()
    synthetic.save_noise(photos, 12, [(48, 64), (64, 48), (80, 64)])
    wanted, _, found = describe(photos)
    folder = found.stage.folder
    for lost in ("features/part-000000.parquet", "features-mac.npy"):
        folder.write(lost, folder.read(lost)[:-9])
    again, _, _ = describe(photos)
    assert same(again, wanted)
    (folder / "features").delete("part-000001.parquet")
    synthetic.save_noise(photos, 13, [(48, 64), (64, 48), (80, 64)])
    more, _, _ = describe(photos)
    assert same({name: more[name] for name in wanted}, wanted)


def test_images_are_known_by_all_of_their_digest(tmp_path):
    """Also where the first half of it is that of another; tables of earlier versions have none."""
    folder = Folder(str(tmp_path))
    shard = synthetic.feature_shard(
        np.arange(24.0).reshape(4, 2, 3), WAY.poolings, digests=[bytes([i]) * 32 for i in range(4)]
    )
    (folder / "new/features").write_table("part-000000.parquet", shard)
    shards.finish_features(folder / "new", WAY.poolings, total=4, max_bad_fraction=0)
    (folder / "old").write_table("images.parquet", pa.table({"item": [0]}))
    found = known.KnownDescriptors.of(
        [folder / "old", folder / "gone", folder / "new"], WAY.poolings
    )
    assert len(found) == 4
    image = found.find(bytes([2]) * 32)
    assert image.descriptors.tolist() == [[12.0, 13.0, 14.0], [15.0, 16.0, 17.0]]
    assert (image.width, image.height) == (20, 7)
    for other in (bytes([9]) * 32, bytes([2]) * 8 + bytes(24), bytes([2]) * 15 + bytes(17)):
        assert found.find(other) is None
    assert len(known.KnownDescriptors.of([], WAY.poolings)) == 0
    assert known.KnownDescriptors.of([], WAY.poolings).find(bytes(32)) is None
