"""Extraction by Ray gives what the core gives, from any source, and says why images are bad."""

import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from pyarrow import fs

from mmray.descriptors import shards
from mmray.descriptors.embedding import as_batch, embed, region_rows
from mmray.descriptors.moments import Moments
from mmray.descriptors.regions import Rmac
from mmray.descriptors.settings import DescriptorSettings, Preprocessing
from mmray.descriptors.weights import build
from mmray.images.collection import Collection, ImageFile, image_of
from mmray.images.containers import index
from mmray.images.cropping import center_crop
from mmray.images.decoding import BatchLimit, load_image
from mmray.images.sources import find
from mmray.pipeline.distributed import decoding, describing, extraction, image_units
from mmray.pipeline.distributed.decoding import Decoder, ImageGroup, units_of
from mmray.pipeline.distributed.describing import ExtractionWorker
from mmray.pipeline.distributed.extraction import extract, sum_up_regions
from mmray.pipeline.distributed.image_units import stream_image_units
from mmray.pipeline.distributed.listing import index_containers
from mmray.pipeline.distributed.units import PARQUET, ActorPool
from mmray.pipeline.stage import StageFolder
from mmray.system.arrays import read_only
from mmray.system.folder import Folder
from tests.made import synthetic
from tests.made.bad_images import bad_files, odd_files

POOLINGS = ("rmac", "mac")
SETTINGS = DescriptorSettings(
    preprocessing=Preprocessing(64), poolings=POOLINGS, batch_size=2, shard_size=7
)
CPU = torch.device("cpu")
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
    wanted = embed(model, images, POOLINGS, batch_size=1, device=CPU)
    for place, pooling in enumerate(POOLINGS):
        np.testing.assert_allclose(rows(whole, pooling), wanted[:, place], atol=1e-5)
        np.testing.assert_array_equal(rows(whole, pooling), rows(one, pooling))
    table = whole.folder.read_table("images.parquet")
    assert table["uri"].to_pylist() == [photo.uri for photo in good]
    assert table["item"].to_pylist() == [i for i in range(14) if i not in (2, 8)]


def test_a_stream_through_actors_on_devices_gives_the_same_files(
    whole, photos, model, tmp_path, monkeypatch
):
    """Tasks decode and actors take groups of any units, as with GPUs."""
    monkeypatch.setattr(extraction, "run_image_units", stream_image_units)
    stream = described(photos, model, tmp_path, report=(figures := []).append)
    for name in (whole.folder / "features").names():
        assert (whole.folder / "features").read(name) == (stream.folder / "features").read(name)
    assert (figures[-1]["done"], figures[-1]["bad"]) == (14, 2)
    assert figures[-1]["bytes"] == sum(photos.table["size"].to_pylist())
    (stream.folder / "features").delete("part-000001.parquet")
    described(photos, model, tmp_path)  # the missing one again
    assert (stream.folder / "features").names() == (whole.folder / "features").names()


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
@pytest.mark.parametrize("run", [image_units.run_image_units, stream_image_units])
def test_the_moments_of_regions_equal_the_core_s(photos, model, tmp_path, monkeypatch, run):
    monkeypatch.setattr(extraction, "run_image_units", run)
    moments = sum_up_regions(
        photos,
        model,
        settings=SETTINGS,
        output=Folder(str(tmp_path)),
        pool=ActorPool(maximum=2),
        label="regions",
    )
    good = [photo for place, photo in enumerate(photos) if place not in (2, 8)]
    batches = [as_batch([load_image(photo, longest_side=64).pixels], CPU) for photo in good]
    vectors = [region_rows(model, batch, Rmac(), scales=(1.0,))[0].numpy() for batch in batches]
    wanted = Moments.of(np.concatenate(vectors))
    assert moments.count == wanted.count > 12 * 6
    np.testing.assert_allclose(moments.mean, wanted.mean, atol=1e-5)
    np.testing.assert_allclose(moments.scatter, wanted.scatter, atol=1e-3)


@pytest.mark.parametrize(
    ("assigned", "shown", "device"),
    [([], True, "cpu"), (["0"], True, "cuda"), (["0"], False, "cpu"), ([], False, "cpu")],
)
def test_a_worker_takes_the_gpu_that_ray_gave_it_and_no_other(
    monkeypatch, model, assigned, shown, device
):
    """With --num-gpus 0 nothing touches a GPU, whatever CUDA shows."""
    monkeypatch.setattr(describing, "assigned_gpus", lambda: assigned)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: shown)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    settings = replace(SETTINGS, regions=mock.Mock())
    assert ExtractionWorker([model], settings, torch.get_num_threads()).device.type == device


def test_a_process_without_a_gpu_is_told_so(ray_cluster):
    assert ray.get(ray.remote(describing.assigned_gpus).remote()) == []


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


LIMIT = BatchLimit(3, 10**6)


@pytest.fixture(scope="module")
def units(photos):
    return units_of(photos, shard_size=7, longest_side=64).to_pylist()


def items_of(groups):
    return [group.about["item"].to_pylist() for group in groups]


def test_groups_have_one_shape_and_go_on_as_soon_as_they_are_full(units):
    groups = list(Decoder(Preprocessing(64), 10**6).groups(units, LIMIT))
    # Shapes by turns; 2 and 8 are no images, and go at the end of their unit. The rest goes last.
    assert items_of(groups) == [[0, 3, 6], [2], [1, 4, 7], [8], [5, 11], [9, 12], [10, 13]]
    assert [group.pixels is None for group in groups] == [i in (1, 3) for i in range(7)]
    for group in groups:
        if group.pixels is not None:
            assert group.pixels.shape[0] == len(group.about)
    about = pa.concat_tables(group.about for group in groups).sort_by("item")
    assert about["unit"].to_pylist() == [0] * 7 + [1] * 7
    # The first decoded image of each unit.
    assert np.flatnonzero(about["sample"].to_numpy()).tolist() == [0, 7]
    assert about["error"].null_count == 12
    digests = about["digest"].to_pylist()
    assert len(set(digests)) == 14
    # A unit alone gives what is of it in any company.
    alone = pa.concat_tables(
        g.about for g in Decoder(Preprocessing(64), 10**6).groups(units[1:], LIMIT)
    )
    assert alone.sort_by("item").equals(about.slice(7))


def test_the_largest_group_goes_first_where_pixels_wait_for_too_long(units, monkeypatch):
    monkeypatch.setattr(decoding, "PIXEL_BUDGET", 4 * 48 * 64 * 3)
    groups = list(Decoder(Preprocessing(64), 10**6).groups(units, BatchLimit(100, 10**9)))
    sizes = [len(items) for items in items_of(groups)]
    assert sum(sizes) == 14
    assert len(sizes) > 5  # three shapes, and one group of each unit without pixels
    assert sorted(item for items in items_of(groups) for item in items) == list(range(14))


def test_a_group_travels_as_a_row_of_a_table(units):
    for group in Decoder(Preprocessing(64), 10**6).groups(units, LIMIT):
        again = ImageGroup.of_row(group.to_row())
        assert again.about.equals(group.about)
        assert (again.pixels is None) == (group.pixels is None)
        if group.pixels is not None:
            np.testing.assert_array_equal(again.pixels, group.pixels)
    known = np.arange(14, dtype=np.float32).reshape(7, 1, 2)
    about = group.about.slice(0, 1).take([0] * 7)
    again = ImageGroup.of_row(ImageGroup(about, known=known).to_row())
    assert again.pixels is None
    np.testing.assert_array_equal(again.known, known)


def test_a_decoder_that_was_restarted_decodes_in_a_process_of_its_own(units):
    isolated = Decoder(Preprocessing(64), 10**6)
    again = list(isolated.groups([unit | {"restarted": True} for unit in units], LIMIT))
    for one, other in zip(
        again, Decoder(Preprocessing(64), 10**6).groups(units, LIMIT), strict=True
    ):
        assert one.about.equals(other.about)
        assert one.pixels is None or np.array_equal(one.pixels, other.pixels)
    assert isolated.isolated._process is not None
    isolated.isolated.close()


def test_an_image_with_more_pixels_than_allowed_is_bad(units):
    seen = [image for unit in units for image in Decoder(Preprocessing(64), 3071).images(unit)]
    assert all(image.pixels is None for image in seen)
    assert "pixels" in seen[0].error


def test_a_decoder_cuts_the_centre_where_that_is_described(units):
    whole, cut = (
        Decoder(Preprocessing(64, crop, resize_size=40), 10**6).images(units[0])
        for crop in (None, 32)
    )
    compared = 0
    for image, middle in zip(whole, cut, strict=True):
        assert (image.found.width, image.found.height) == (middle.found.width, middle.found.height)
        if image.pixels is not None:
            assert middle.pixels.shape == (32, 32, 3)
            assert np.array_equal(middle.pixels, center_crop(image.pixels, 32, 40))
            compared += 1
    assert compared == 6


# The worker by itself


def worker_of(monkeypatch, model, settings, kind=ExtractionWorker):
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(describing, "assigned_gpus", list)
    return kind([model], settings, torch.get_num_threads())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_descriptor_depends_on_nothing_beside_it_where_batches_are_fixed(
    monkeypatch, model, units, size
):
    """To the bit: a pass has the same number of images, whatever the number that there are."""
    settings = replace(SETTINGS, batch_size=3, fixed_batches=True)
    worker = worker_of(monkeypatch, model, settings)
    passes = []
    model_descriptors = worker.model.descriptors

    def noted(batch, *arguments, **options):
        passes.append(len(batch))
        return model_descriptors(batch, *arguments, **options)

    monkeypatch.setattr(worker.model, "descriptors", noted)
    wanted = worker(list(Decoder(Preprocessing(64), 10**6).groups(units, LIMIT))).sort_by("item")
    found = worker(list(Decoder(Preprocessing(64), 10**6).groups(units, BatchLimit(size, 10**6))))
    assert set(passes) == {3}
    assert found.sort_by("item").combine_chunks().equals(wanted.combine_chunks())


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_threads_may_share_a_worker_of_any_precision(monkeypatch, model, units, precision):
    worker = worker_of(monkeypatch, model, replace(SETTINGS, precision=precision))
    groups = list(Decoder(Preprocessing(64), 10**6).groups(units, LIMIT))
    wanted = [worker([group]) for group in groups]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for one, other in zip(threads.map(lambda g: worker([g]), groups), wanted, strict=True):
                assert one.equals(other)
    rows = pa.concat_tables(wanted)
    deviations = rows["deviation"].drop_null().to_numpy()
    if precision == "float32":
        assert not len(deviations)
    else:  # on a CPU there is no TF32
        assert len(deviations) == 2
        assert (np.abs(deviations) < 1e-6).all() == (precision == "tf32")
        assert (np.abs(deviations) < {"float16": 1e-3}.get(precision, 2e-2)).all()
    assert not torch.backends.cudnn.allow_tf32


def test_a_thread_computes_on_a_stream_of_its_own(monkeypatch, model, units):
    """The lines for CUDA, with the CPU in its place."""
    streams, used = [], []
    worker = worker_of(monkeypatch, model, SETTINGS)
    wanted = worker(groups := list(Decoder(Preprocessing(64), 10**6).groups(units, LIMIT)))
    worker.device = mock.Mock(type="cuda")
    monkeypatch.setattr(torch.cuda, "Stream", lambda: streams.append(object()) or streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: used.append(stream) or nullcontext())
    monkeypatch.setattr(describing, "as_batch", lambda *a, **o: as_batch(a[0], CPU, **o))
    with ThreadPoolExecutor(1) as thread:
        for _ in range(2):
            assert thread.submit(worker, groups).result().equals(wanted)
    worker(groups)
    assert used == [streams[0], streams[0], streams[1]]


@pytest.mark.parametrize("fill", [0, 2, 5])
def test_a_batch_is_filled_up_with_black(fill):
    images = np.random.default_rng(0).integers(1, 256, (3, 4, 6, 3), dtype=np.uint8)
    for given in (images, list(images), read_only(images)):
        batch = as_batch(given, CPU, fill=fill)
        assert batch.shape == (max(3, fill), 3, 4, 6)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(batch[:3].permute(0, 2, 3, 1), images)
        assert not batch[3:].any()


def test_groups_are_described_in_blocks_of_enough_pixels(units, monkeypatch):
    groups = list(Decoder(Preprocessing(64), 10**6).groups(units, LIMIT))
    assert list(image_units._blocks(groups)) == [groups]
    monkeypatch.setattr(image_units, "BLOCK", 4 * 48 * 64 * 3)
    blocks = list(image_units._blocks(groups))
    assert [group for block in blocks for group in block] == groups
    sizes = [[0 if g.pixels is None else g.pixels.nbytes for g in block] for block in blocks]
    assert all(sum(each) >= image_units.BLOCK > sum(each[:-1]) for each in sizes[:-1])
    assert len(blocks) > 1
    assert list(image_units._blocks([])) == []


# Streams


class Fragile(Decoder):
    """Ends its process at the tenth image, unless it is told that it was ended before."""

    def images(self, unit):
        for seen in super().images(unit):
            if seen.item == 9 and not unit["restarted"]:
                os._exit(1)
            yield seen


class Means:
    """Worker that takes the mean of the pixels for a descriptor."""

    def __call__(self, groups):
        tables = []
        for group in groups:
            rows = group.about.select(["unit", "item", "error", "bytes"])
            means = [None] * len(rows) if group.pixels is None else group.pixels.mean((1, 2, 3))
            tables.append(rows.append_column("mean", pa.array(means, pa.float64())))
        return pa.concat_tables(tables)

    @staticmethod
    def shard(rows):
        return rows.sort_by("item")


@needs_ray
def test_an_image_that_ends_the_process_which_decodes_it_costs_no_other(photos, tmp_path):
    tables = []
    for kind in (Decoder, Fragile):
        output = Folder(str(tmp_path / kind.__name__))
        stream_image_units(
            units_of(photos, shard_size=7, longest_side=64),
            kind(Preprocessing(64), 10**6),
            Means,
            (),
            limit=LIMIT,
            output=output,
            pool=ActorPool(maximum=1),
            label="x",
        )
        assert output.names() == ["part-000000.parquet", "part-000001.parquet"]
        tables.append(pa.concat_tables(map(output.read_table, output.names())))
    assert tables[0].equals(tables[1])
    assert tables[0]["mean"].null_count == 2


@needs_ray
def test_a_stream_ends_early_when_too_much_is_bad(tmp_path):
    images = Collection.of(ImageFile(uri=str(tmp_path / f"{i}.jpg"), name="") for i in range(60))
    stream_image_units(
        units_of(images, shard_size=1, longest_side=64),
        Decoder(Preprocessing(64), 10**6),
        Means,
        (),
        limit=LIMIT,
        output=Folder(str(tmp_path / "x")),
        pool=ActorPool(maximum=1),
        label="x",
        most_bad=3,
    )
    assert 4 <= len(Folder(str(tmp_path / "x")).names()) < 60


# Shards of rows that arrive in any order


def test_a_shard_is_written_when_its_rows_are_complete_in_whatever_order_they_come(tmp_path):
    output, rng = Folder(str(tmp_path)), np.random.default_rng(0)
    unit, item = np.repeat(np.arange(20), 5), rng.permutation(100)
    order = rng.permutation(99)  # one never comes
    collator = image_units._Collator(dict.fromkeys(range(20), 5), by_item, output, PARQUET)
    for part in np.array_split(order, 17):
        collator.add(pa.table({"unit": unit[part], "item": item[part]}))
    collator.close()
    assert output.names() == [f"part-{i:06d}.parquet" for i in range(19)]
    for i in range(19):
        table = output.read_table(f"part-{i:06d}.parquet")
        assert table["item"].to_pylist() == sorted(item[5 * i : 5 * i + 5].tolist())


def by_item(rows):
    return rows.sort_by("item")


def test_a_shard_that_cannot_be_written_ends_the_stage(tmp_path):
    (tmp_path / "file").write_text("")
    collator = image_units._Collator({0: 1}, by_item, Folder(str(tmp_path / "file")), PARQUET)

    def collate():
        collator.add(pa.table({"unit": [0], "item": [0]}))
        collator.close()

    with pytest.raises(NotADirectoryError):
        collate()
