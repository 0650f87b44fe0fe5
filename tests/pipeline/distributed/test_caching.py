"""A cached image is the original decoded and reduced, bit for bit, wherever either of them lies."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from mmray.descriptors.settings import Preprocessing
from mmray.images.collection import Collection
from mmray.images.containers import index
from mmray.images.decoding import load_image
from mmray.images.sources import find
from mmray.pipeline.distributed.caching import CachingWorker, cache_images, cached
from mmray.pipeline.distributed.decoding import Decoder
from mmray.pipeline.distributed.units import ActorPool
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import Folder
from tests.made import synthetic
from tests.made.bad_images import scene

SIDE = 64
SIZES = {"longest_side": SIDE, "shard_size": 5}
needs_ray = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten: noise of three shapes, two too large; a large JPEG on its side, gray, one pixel."""
    folder = tmp_path_factory.mktemp("photos")
    synthetic.save_noise(folder, 7, [(48, 37), (130, 99), (99, 130)])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(scene(301, 200)).save(folder / "aside.jpg", exif=exif)
    Image.fromarray(scene(70, 50)[:, :, 0]).save(folder / "gray.png")
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.png")
    return find(str(folder)).images


@pytest.fixture(scope="module")
def images(photos, tmp_path_factory):
    """The photos from the folder, from a tar file, and parts of two of them."""
    file = tmp_path_factory.mktemp("tar") / "photos.tar"
    synthetic.save_tar(file, [(photo.name, Path(photo.uri).read_bytes()) for photo in photos])
    wide, aside = photos[2], photos[7]
    parts = [
        dataclasses.replace(wide, box=(10.4, 20.6, 90.0, 70.0)),
        dataclasses.replace(wide, box=(-5.0, 0.0, 500.0, 500.0)),
        dataclasses.replace(aside, box=(100.0, 1.0, 300.0, 180.0)),
    ]
    return Collection.joined([photos, index(str(file))[0], Collection.of(parts)])


def cache(images, folder, *, maximum=2):
    """What is in the cache once it is written."""
    cache_images(
        images,
        max_pixels=10**6,
        output=folder,
        pool=ActorPool(maximum=maximum),
        label="cache",
        **SIZES,
    )
    return cached(images, folder, **SIZES)


def files(folder):
    return {name: folder.read(name) for name in folder.names()}


def pixels(images):
    decoded = [load_image(image, longest_side=SIDE) for image in images]
    assert [each.error for each in decoded] == [None] * len(images)
    return [each.pixels for each in decoded]


def assert_equal(left, right):
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory, ray_cluster):
    """The folder of a cache written by two actors."""
    folder = Folder(str(tmp_path_factory.mktemp("whole") / "100% #1 ü?"))
    cache(images, folder)
    return folder


def test_cached_images_equal_those_decoded_from_folder_and_tar_with_and_without_a_box(
    whole, images
):
    stored, wanted = cached(images, whole, **SIZES), pixels(images)
    assert len(stored) == len(images) == 23
    assert_equal(stored, wanted)
    # Of these shapes: reduced as they should be, none enlarged, parts by the scale of the whole.
    shapes = [image.shape[:2] for image in wanted]
    assert shapes[:3] == [(48, 37), (64, 49), (49, 64)]
    assert shapes[7:10] == [(64, 43), (46, 64), (1, 1)]
    assert shapes[20:] == [(24, 39), (49, 64), (43, 38)]


def test_they_are_read_in_any_order_and_by_threads(whole, images):
    stored, wanted = cached(images, whole, **SIZES), pixels(images)
    order = np.random.default_rng(0).permutation(len(images))
    with ThreadPoolExecutor(4) as pool:
        assert_equal(pool.map(stored.__getitem__, order), [wanted[i] for i in order])
    assert_equal(stored[1::4], wanted[1::4])


def test_any_number_of_actors_gives_equal_files(whole, images, tmp_path):
    one = Folder(str(tmp_path))
    cache(images, one, maximum=1)
    assert files(one) == files(whole)


def test_only_shards_that_are_missing_are_written_again(whole, images, tmp_path, ray_cluster):
    folder = Folder(str(tmp_path))
    contents = files(whole)
    for place, (name, content) in enumerate(contents.items()):
        if place in (0, 3):
            folder.write(name, content)
    kept = {name: (tmp_path / name).stat() for name in folder.names()}
    cache(images, folder)
    assert files(folder) == contents
    for name, before in kept.items():
        after = (tmp_path / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_cache_in_a_bucket_is_the_same_and_copied_once(whole, images, s3, tmp_path):
    folder = Folder(f"s3://caches/run 1/cache{s3}&allow_bucket_creation=true".replace(" ", "%20"))
    stored = cache(images, folder)
    assert files(folder) == files(whole)
    near = stored.copied(tmp_path / "near")
    assert_equal(near, pixels(images))
    before = {path: path.stat().st_ino for path in (tmp_path / "near").iterdir()}
    cut, kept = sorted(before)[:2]
    cut.write_bytes(cut.read_bytes()[:-8])
    assert_equal(stored.copied(tmp_path / "near"), pixels(images))
    assert kept.stat().st_ino == before[kept]
    # What is damaged in a copy is said of the original; the next copy is made anew.
    kept.write_bytes(kept.read_bytes()[:-2000] + bytes(2000))
    with pytest.raises(DamagedFileError) as caught:
        list(stored.copied(tmp_path / "near"))
    assert caught.value.location == folder.location(kept.name)
    assert not kept.exists()


@needs_ray
def test_a_vanished_original_is_named_and_restored_it_goes_on(tmp_path):
    (tmp_path / "photos").mkdir()
    synthetic.save_noise(tmp_path / "photos", 12, [(48, 64)])
    listed = find(str(tmp_path / "photos")).images
    gone = tmp_path / "photos" / "11.png"
    content = gone.read_bytes()
    gone.unlink()
    folder = Folder(str(tmp_path / "cache"))
    with pytest.raises(InputError) as caught:
        cache(listed, folder, maximum=1)
    assert str(caught.value) == (
        f"{gone}: FileNotFoundError: No such file or directory; this image could be read before: "
        "restore it, then run the same command again; what is done is kept"
    )
    kept = {name: (tmp_path / "cache" / name).stat().st_ino for name in folder.names()}
    assert "part-000002.arrow" not in kept
    gone.write_bytes(content)
    assert_equal(cache(listed, folder), pixels(listed))
    assert len(folder.names()) == 3
    assert all((tmp_path / "cache" / name).stat().st_ino == kept[name] for name in kept)


# Without Ray


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.write_bytes(b""), r"empty file \(0 bytes\)"),
        (lambda file: file.write_bytes(file.read_bytes()[:400]), "PNG: .*truncated"),
        (lambda file: Image.new("RGB", (200, 51)).save(file), "200 x 51 pixels, more than"),
    ],
)
def test_what_became_of_an_original_is_said(tmp_path, change, reason):
    synthetic.save_noise(tmp_path, 3, [(48, 64)])
    listed = find(str(tmp_path)).images
    change(tmp_path / "01.png")
    unit = {"unit": 0, "items": 3, "first": 0, "images": listed.table.to_pylist()}
    with pytest.raises(InputError, match=rf"01\.png: {reason}.*; this image could be read before"):
        CachingWorker(Decoder(Preprocessing(SIDE), 10_000))(unit)


def test_missing_shards_are_said_with_the_remedy(photos, tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("part-000000.arrow", b"")
    with pytest.raises(InputError) as caught:
        cached(Collection.joined([photos] * 2), folder, **SIZES)
    assert str(caught.value) == (
        f"{tmp_path}/part-000001.arrow: missing, as 3 of the 4 files of cached images are; "
        f"delete the folder {tmp_path}, then run the same command again"
    )


def test_of_no_images_nothing_is_cached(photos, tmp_path):
    assert len(cached(photos[:0], Folder(str(tmp_path)), **SIZES)) == 0
