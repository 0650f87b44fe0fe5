"""Extraction by Ray gives what the core gives, from any source, and says why images are bad."""

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from pyarrow import fs

from mmray.descriptors import shards
from mmray.descriptors.embedding import embed, region_moments
from mmray.descriptors.pooling import Rmac
from mmray.descriptors.settings import DescriptorSettings, Preprocessing
from mmray.descriptors.weights import build
from mmray.images.collection import Collection, ImageFile, image_of
from mmray.images.containers import index
from mmray.images.cropping import center_crop
from mmray.images.decoding import load_image
from mmray.images.sources import find
from mmray.pipeline.distributed import extraction
from mmray.pipeline.distributed.decoding import Decoder, units_of, unpacked
from mmray.pipeline.distributed.extraction import extract, sum_up_regions
from mmray.pipeline.distributed.listing import index_containers
from mmray.pipeline.distributed.units import ActorPool
from mmray.pipeline.stage import StageFolder
from mmray.system.folder import Folder
from tests.made import synthetic
from tests.made.bad_images import bad_files, odd_files

POOLINGS = ("rmac", "mac")
SETTINGS = DescriptorSettings(
    preprocessing=Preprocessing(64), poolings=POOLINGS, batch_size=2, shard_size=7
)
needs_ray = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def model():
    return build("efficientnet_lite0", pooling="mac")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Fourteen photos of three shapes; the third and the ninth are not images."""
    folder = tmp_path_factory.mktemp("photos")
    synthetic.save_noise(folder, 14, [(48, 64), (64, 48), (80, 64)])
    (folder / "02.png").write_bytes(b"")
    (folder / "08.png").write_bytes((folder / "08.png").read_bytes()[:400])
    return find(str(folder)).images


def described(images, model, folder, *, settings=SETTINGS, bad=2, shard_size=7, **options):
    stage = StageFolder.of(Folder(str(folder)), "extract", "x")
    extract(
        images,
        model,
        settings=replace(settings, shard_size=shard_size),
        output=stage.folder / "features",
        pool=ActorPool(maximum=options.pop("maximum", 2)),
        label="extract",
        **options,
    )
    counts = shards.finish_features(
        stage.folder, settings.poolings, total=len(images), max_bad_fraction=0.8
    )
    assert (counts["images"], counts["quarantined"]) == (len(images) - bad, bad)
    return stage


@pytest.fixture(scope="module")
def whole(photos, model, tmp_path_factory, ray_cluster):
    """The stage that describes the photos by two actors."""
    return described(photos, model, tmp_path_factory.mktemp("whole"))


def rows(stage, pooling="rmac"):
    return shards.read_features(stage.folder, POOLINGS, pooling)


def test_extraction_equals_the_core_for_any_number_of_actors(whole, photos, model, tmp_path):
    one = described(photos, model, tmp_path, maximum=1)
    good = [photo for place, photo in enumerate(photos) if place not in (2, 8)]
    images = [load_image(photo, longest_side=64).pixels for photo in good]
    wanted = embed(model, images, POOLINGS, batch_size=1, device=torch.device("cpu"))
    for place, pooling in enumerate(POOLINGS):
        np.testing.assert_allclose(rows(whole, pooling), wanted[:, place], atol=1e-5)
        np.testing.assert_array_equal(rows(whole, pooling), rows(one, pooling))
    table = whole.folder.read_table("images.parquet")
    assert table["uri"].to_pylist() == [photo.uri for photo in good]
    assert table["item"].to_pylist() == [i for i in range(14) if i not in (2, 8)]


def test_decoding_ahead_of_the_actors_gives_the_same_files(
    whole, photos, model, tmp_path, monkeypatch
):
    """As with GPUs, through the object store."""
    run_units = extraction.run_units

    def run_ahead(*arguments, **options):
        return run_units(*arguments, **options | {"ahead_bytes": 1 << 20})

    monkeypatch.setattr(extraction, "run_units", run_ahead)
    prefetch = described(photos, model, tmp_path)
    for name in (whole.folder / "features").names():
        assert (whole.folder / "features").read(name) == (prefetch.folder / "features").read(name)


def test_bad_images_are_listed_with_their_reason(whole, photos):
    quarantine = whole.folder.read_table("quarantine.parquet").to_pylist()
    assert [row["uri"] for row in quarantine] == [photos[2].uri, photos[8].uri]
    assert quarantine[0]["error"] == "empty file (0 bytes)"
    assert "truncated" in quarantine[1]["error"]


@needs_ray
def test_every_kind_of_bad_file_is_quarantined_and_every_odd_one_described(model, tmp_path):
    """Among good ones, in a folder and in a tar file; nothing crashes, none is lost."""
    bad, odd = bad_files(), odd_files()
    folder = tmp_path / "photos"
    folder.mkdir()
    synthetic.save_noise(folder, 3, [(48, 64)])
    contents = {name: data for name, (data, _) in bad.items()}
    contents |= {name: file.data for name, file in odd.items()}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "gone.jpg").write_bytes(b"x")
    (folder / "a folder.jpg").mkdir()
    listed = find(str(folder)).images
    (folder / "gone.jpg").unlink()
    assert len(bad) >= 25
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(folder, "photos")
    both = Collection.joined([listed, index(str(tmp_path / "photos.tar"))[0]])
    stage = described(both, model, tmp_path, bad=2 * len(bad) + 1, shard_size=32)
    quarantine = stage.folder.read_table("quarantine.parquet").to_pylist()
    kept = [Path(uri).name for uri in stage.folder.read_table("images.parquet")["uri"].to_pylist()]
    assert kept == 2 * sorted([*odd, "00.png", "01.png", "02.png"])
    gone = [row["error"] for row in quarantine if row["uri"].endswith("gone.jpg")]
    assert gone == ["FileNotFoundError: No such file or directory"]
    reasons = [(Path(row["uri"]).name, row["error"]) for row in quarantine]
    reasons = [(name, error) for name, error in reasons if name != "gone.jpg"]
    assert [name for name, _ in reasons] == 2 * sorted(bad)
    assert all(bad[name][1] in error for name, error in reasons)
    np.testing.assert_allclose(np.linalg.norm(rows(stage), axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(*np.split(rows(stage), 2))


def test_folder_tar_parquet_and_s3_give_equal_features(whole, photos, model, tmp_path, s3):
    files = [(photo.name, Path(photo.uri).read_bytes()) for photo in photos]
    bucket, path = fs.FileSystem.from_uri(f"s3://photos/all{s3}&allow_bucket_creation=true")
    bucket.create_dir(path)
    for name, data in files:
        with bucket.open_output_stream(f"{path}/{name}") as sink:
            sink.write(data)
    synthetic.save_tar(tmp_path / "a.tar", [*files[:9], ("a.mov", b""), ("b.MOV", b"")])
    with bucket.open_output_stream(f"{path}/a.tar") as sink:
        sink.write((tmp_path / "a.tar").read_bytes())
    table = pa.table({"image": [{"bytes": data, "path": name} for name, data in files[9:]]})
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=3)
    uris = [str(tmp_path / "a.tar"), str(tmp_path / "b.parquet")]

    remote = find(f"s3://photos/all{s3}")
    containers = [*uris, *remote.containers]
    indexed = index_containers(
        containers, column=None, output=Folder(str(tmp_path / "list")), pool=ActorPool()
    )
    assert [left_out for _, left_out in indexed] == [{".mov": 2}, {}, {".mov": 2}]
    images = Collection.joined([*(part for part, _ in indexed), remote.images[9:]])
    assert images.table["name"].to_pylist() == 2 * [photo.name for photo in photos]
    stage = described(images, model, tmp_path, bad=4)
    for pooling in POOLINGS:
        for half in np.split(rows(stage, pooling), 2):
            np.testing.assert_array_equal(half, rows(whole, pooling))
    bad = stage.folder.read_table("quarantine.parquet")["uri"].to_pylist()
    assert bad == [
        f"{uri}#{name}.png" for uri in (containers[0], containers[2]) for name in ("02", "08")
    ]


def test_bfloat16_stays_near_and_says_how_near(whole, photos, model, tmp_path):
    settings = replace(SETTINGS, batch_size=32, precision="bfloat16")
    stage = described(photos, model, tmp_path, settings=settings)
    cosines = (rows(whole) * rows(stage)).sum(axis=1)
    assert 0.98 < cosines.min() < 0.99999
    counts = shards.finish_features(stage.folder, POOLINGS, total=14, max_bad_fraction=0.8)
    # Measured on the first image of both units, by the worse of its descriptors.
    assert counts["deviation_max"] >= 1 - cosines[[0, 6]].min() - 1e-6
    assert 0 < counts["deviation"] <= counts["deviation_max"] < 0.02


@needs_ray
def test_the_moments_of_regions_equal_the_core_s(photos, model, tmp_path):
    moments = sum_up_regions(
        photos,
        model,
        settings=SETTINGS,
        output=Folder(str(tmp_path)),
        pool=ActorPool(maximum=2),
        label="regions",
    )
    good = [photo for place, photo in enumerate(photos) if place not in (2, 8)]
    wanted = region_moments(
        model,
        [load_image(photo, longest_side=64).pixels for photo in good],
        Rmac(),
        scales=(1.0,),
        batch_size=1,
        device=torch.device("cpu"),
    )
    assert moments.count == wanted.count > 12 * 6
    np.testing.assert_allclose(moments.mean, wanted.mean, atol=1e-5)
    np.testing.assert_allclose(moments.scatter, wanted.scatter, atol=1e-3)


@pytest.mark.parametrize(
    ("assigned", "shown", "device"),
    [([], True, "cpu"), (["0"], True, "cuda"), (["0"], False, "cpu"), ([], False, "cpu")],
)
def test_a_worker_takes_the_gpu_that_ray_gave_it_and_no_other(monkeypatch, assigned, shown, device):
    """With --num-gpus 0 nothing touches a GPU, whatever CUDA shows."""
    monkeypatch.setattr(extraction, "assigned_gpus", lambda: assigned)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: shown)
    assert extraction._prepared_device(torch.get_num_threads()).type == device


def test_a_process_without_a_gpu_is_told_so(ray_cluster):
    assert ray.get(ray.remote(extraction.assigned_gpus).remote()) == []


# Units of work


def test_a_unit_s_pixels_are_bounded_whatever_the_size_of_images():
    items = Collection.of(ImageFile(uri=f"{i}.jpg", name="") for i in range(1000))
    assert units_of(items, shard_size=256, longest_side=362)["items"].to_pylist()[0] == 256
    units = units_of(items, shard_size=256, longest_side=1024)
    assert max(units["items"].to_pylist()) * 3 * 1024**2 <= 256 << 20
    assert sum(units["items"].to_pylist()) == 1000
    assert units["first"].to_pylist()[1] == units["items"].to_pylist()[0]


def test_units_of_images_of_any_size_go_by_their_bytes():
    sizes = [1 << 20] * 40 + [-1] * 10 + [1 << 30] + [10] * 300
    items = Collection.of(ImageFile(uri="", name=str(i), size=s) for i, s in enumerate(sizes))
    units = units_of(items, shard_size=256, longest_side=None).to_pylist()
    # 21 of 12 MB fit 256 MB; photos of unknown size count 36 MB; a huge one is a unit of its own.
    assert [unit["items"] for unit in units] == [21, 19, 7, 3, 1, 256, 44]
    names = [image["name"] for unit in units for image in unit["images"]]
    assert names == [str(i) for i in range(len(sizes))]


def test_a_unit_holds_all_that_is_known_of_its_images():
    items = Collection.of(
        [
            ImageFile(uri="a.jpg", name="a", size=9, box=(1.0, 2.0, 3.5, 4.0)),
            ImageFile(uri="b.tar", name="b", offset=512, size=7),
            ImageFile(uri="c.jpg", name="c", error="gone"),
        ]
    )
    (images,) = units_of(items, shard_size=4, longest_side=64)["images"].to_pylist()
    assert [image_of(image) for image in images] == list(items)


def test_a_decoder_counts_bytes_and_bad_images_and_knows_equal_contents(photos):
    unit = {"unit": 0, "items": 14, "first": 0, "images": photos.table.to_pylist()}
    decoded = Decoder(64, 10**6)(unit)
    assert decoded["bad"] == 2
    assert decoded["bytes"] == sum(photos.table["size"].to_pylist())
    assert len(set(decoded["digest"])) == 14
    again = Decoder(64, 10**6)({**unit, "items": 2, "images": unit["images"][:1] * 2})
    assert len(set(again["digest"])) == 1
    # An actor that died once decodes in a process of its own: the same.
    isolated = Decoder(64, 10**6)
    assert isolated({**unit, "restarted": True}) == decoded
    assert isolated.isolated._process is not None
    isolated.isolated.close()
    # 48 x 64 pixels are too many for this limit.
    small = Decoder(64, 3071)(unit)
    assert small["bad"] == 14
    assert "pixels" in small["error"][0]


def test_a_decoder_cuts_the_centre_where_that_is_described(photos):
    unit = {"unit": 0, "items": 14, "first": 0, "images": photos.table.to_pylist()}
    whole, cut = (Decoder(64, 10**6, crop)(unit) for crop in (None, 32))
    images = unpacked(whole["pixels"], whole["shape"])
    middles = unpacked(cut["pixels"], cut["shape"])
    assert len(middles) == 12
    for image, middle in zip(images, middles, strict=True):
        assert middle.shape == (32, 32, 3)
        assert np.array_equal(middle, center_crop(image, 32))
    assert (cut["bad"], cut["width"], cut["height"]) == (2, whole["width"], whole["height"])
