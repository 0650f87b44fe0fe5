"""Decoding images; the box rule; batches of one shape."""

import errno
import io
import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pi_heif import HeifImageFile
from PIL import ExifTags, Image, ImageOps
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile

from mmray.images.collection import SUFFIXES, ImageFile
from mmray.images.decoding import MAX_PIXELS, byte_limit, decode, load_image, same_shape_batches
from tests import oracles
from tests.made.bad_images import (
    BMP,
    HEIC,
    JPEG,
    PICTURE,
    PNG,
    bad_files,
    encoded,
    odd_files,
    scene,
)

ODD = odd_files()
BAD = bad_files()


def assert_near(pixels: np.ndarray | None, expected: np.ndarray, tolerance: float) -> None:
    """Same shape, and no pixel further apart."""
    assert pixels is not None
    assert pixels.shape == expected.shape
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


# Decoding good data


@pytest.mark.parametrize("name", ODD)
def test_images_of_every_kind_become_upright_rgb(name):
    decoded = decode(ODD[name].data, longest_side=60)
    assert decoded.error is None
    assert (decoded.width, decoded.height) == ODD[name].size
    assert_near(decoded.pixels, ODD[name].expected, ODD[name].tolerance)


def test_the_files_are_the_same_each_time_small_and_named_as_images():
    assert bad_files() == BAD
    assert {name: file.data for name, file in odd_files().items()} == {
        name: file.data for name, file in ODD.items()
    }
    assert sum(len(data) for data, _ in BAD.values()) < 1_000_000
    assert sum(len(file.data) for file in ODD.values()) < 1_000_000
    assert all(name.endswith(SUFFIXES) for name in [*BAD, *ODD])
    assert len(BAD) >= 28
    assert len(ODD) >= 20


def test_pixels_may_be_written_to():
    decoded = decode(PNG, longest_side=60)
    assert decoded.pixels is not None
    assert decoded.pixels.flags.writeable
    assert decoded.pixels.flags.c_contiguous


TURNS = {  # EXIF orientation: how the stored picture arises from the upright one
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_the_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = np.ascontiguousarray(TURNS[orientation](PICTURE))
    options = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}, "AVIF": {"quality": 98}}
    decoded = decode(encoded(stored, kind, exif=exif, **options.get(kind, {})), longest_side=60)
    assert (decoded.width, decoded.height) == (60, 40)
    assert_near(decoded.pixels, PICTURE, 12)


# Sizes and boxes


@pytest.mark.parametrize(
    ("size", "longest_side", "expected"),
    [
        ((60, 40), 30, (30, 20)),
        ((40, 60), 30, (20, 30)),
        ((60, 40), 61, (60, 40)),  # not enlarged
        ((60, 40), 7, (7, 5)),
        ((500, 2), 100, (100, 1)),
        ((2, 500), 1, (1, 1)),
        ((3000, 4), 30, (30, 1)),
        ((4, 3000), 30, (1, 30)),
        ((1, 1), 362, (1, 1)),
        ((61, 40), None, (61, 40)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_longest_side_is_reduced(kind, size, longest_side, expected):
    decoded = decode(encoded(scene(*size), kind), longest_side=longest_side)
    assert decoded.pixels is not None
    assert decoded.pixels.shape == (expected[1], expected[0], 3)
    assert (decoded.width, decoded.height) == size


@pytest.mark.parametrize(
    ("size", "expected"), [((60, 40), (90, 60)), ((40, 60), (60, 90)), ((180, 20), (90, 10))]
)
def test_smaller_images_are_enlarged_where_asked(size, expected):
    decoded = decode(encoded(scene(*size), "PNG"), longest_side=90, enlarge=True)
    assert decoded.pixels is not None
    assert decoded.pixels.shape == (expected[1], expected[0], 3)
    part = decode(
        encoded(scene(*size), "PNG"), longest_side=90, enlarge=True, box=(0, 0, size[0] / 2, 10)
    )
    assert part.pixels is not None
    scale = 90 / max(size)
    assert part.pixels.shape[:2] == (round(10 * scale), round(size[0] / 2 * scale))


def test_reducing_keeps_the_picture():
    decoded = decode(encoded(scene(600, 400), "PNG"), longest_side=60)
    assert_near(decoded.pixels, scene(60, 40), 3)


@lru_cache
def noisy(width: int, height: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 3))
    return (scene(width, height) + noise).clip(0, 255).astype(np.uint8)


def test_the_original_size_gives_every_pixel_of_a_large_image():
    picture = noisy(1601, 1067)
    decoded = decode(encoded(picture, "BMP"), longest_side=None)
    assert_near(decoded.pixels, picture, 0)
    wide = noisy(20_000, 57)  # rows of another length
    assert_near(decode(encoded(wide, "BMP"), longest_side=None).pixels, wide, 0)


def test_the_original_size_of_a_jpeg_is_not_decoded_smaller():
    data = encoded(noisy(1600, 1067), "JPEG")
    expected = np.array(Image.open(io.BytesIO(data)))
    assert_near(decode(data, longest_side=None).pixels, expected, 0)
    box = (100, 200, 1500, 1000)
    assert_near(decode(data, longest_side=None, box=box).pixels, expected[200:1000, 100:1500], 0)


@pytest.mark.parametrize("longest_side", [100, 150, 250])
def test_a_strong_reduction_is_close_to_lanczos_on_all_pixels(longest_side):
    picture = noisy(1600, 1067)
    size = (longest_side, round(longest_side * 1067 / 1600))
    exact = np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    pixels = decode(encoded(picture, "BMP"), longest_side=longest_side).pixels
    assert_near(pixels, exact, 4)
    assert pixels is not None
    assert np.abs(pixels.astype(int) - exact).mean() < 0.4


@pytest.mark.parametrize("size", [(1600, 1067), (1067, 1601), (1999, 31)])
@pytest.mark.parametrize("longest_side", [100, 362, 777])
def test_the_quick_decoding_of_large_jpegs_changes_neither_size_nor_picture(size, longest_side):
    data = encoded(noisy(*size), "JPEG", quality=90)
    slow = decode(encoded(Image.open(io.BytesIO(data)), "BMP"), longest_side=longest_side)
    quick = decode(data, longest_side=longest_side)
    assert slow.pixels is not None
    assert (quick.width, quick.height) == size
    assert_near(quick.pixels, slow.pixels, 8)
    assert quick.pixels is not None
    assert np.abs(quick.pixels.astype(int) - slow.pixels).mean() < 1
    if max(size) >= 4 * longest_side:
        assert (quick.pixels != slow.pixels).any()  # it was indeed decoded at a smaller size


def test_a_box_is_cut_from_a_large_jpeg_at_full_resolution():
    data = encoded(scene(1601, 1067), "JPEG")
    slow = encoded(Image.open(io.BytesIO(data)), "BMP")
    box = (101, 203, 707, 809)
    expected = decode(slow, longest_side=100, box=box).pixels
    assert expected is not None
    assert_near(decode(data, longest_side=100, box=box).pixels, expected, 0)


def test_the_box_rule_by_hand():
    # 60 x 40 at longest side 30: scale 1/2. Columns 10..40, rows 4..24: 30 x 20, then 15 x 10.
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[4:24, 10:40] = 250
    decoded = decode(encoded(picture, "PNG"), longest_side=30, box=(10.2, 3.6, 39.9, 24.4))
    assert_near(decoded.pixels, np.full((10, 15, 3), 250), 0)
    assert (decoded.width, decoded.height) == (60, 40)


def test_a_box_is_not_reduced_when_the_whole_image_is_small_enough():
    decoded = decode(PNG, longest_side=60, box=(5, 6, 25, 16))
    assert_near(decoded.pixels, PICTURE[6:16, 5:25], 0)


def test_a_box_is_clipped_to_the_image():
    decoded = decode(PNG, longest_side=60, box=(-100, 30.4, 20, 1e9))
    assert_near(decoded.pixels, PICTURE[30:, :20], 0)


def test_a_box_is_of_the_upright_image():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(np.ascontiguousarray(np.rot90(PICTURE)), "PNG", exif=exif)
    decoded = decode(data, longest_side=60, box=(5, 6, 25, 16))
    assert_near(decoded.pixels, PICTURE[6:16, 5:25], 0)


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    longest_side=st.integers(1, 80),
    box=st.none() | st.tuples(*[st.floats(-20, 80)] * 4),
)
@settings(max_examples=150)
def test_sizes_follow_the_box_rule(width, height, longest_side, box):
    data = encoded(np.zeros((height, width, 3), np.uint8), "BMP")
    decoded = decode(data, longest_side=longest_side, box=box)
    if decoded.pixels is None:
        assert box is not None
        left, top, right, bottom = map(round, box)
        assert max(left, 0) >= min(right, width) or max(top, 0) >= min(bottom, height)
    else:
        expected = oracles.resized(width, height, longest_side, box)
        assert decoded.pixels.shape[:2] == expected[::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_published_box_is_of_the_image_as_it_is_stored(orientation):
    """The same as a program cuts that knows nothing of EXIF, turned upright afterwards."""
    picture, exif = Image.fromarray(scene(60, 40)), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    sink = io.BytesIO()
    picture.save(sink, "PNG", exif=exif)
    part = picture.crop((5, 6, 45, 26))
    part.getexif()[ExifTags.Base.Orientation] = orientation
    expected = np.asarray(ImageOps.exif_transpose(part))
    decoded = decode(sink.getvalue(), longest_side=None, box=(5, 6, 45, 26), stored_box=True)
    np.testing.assert_array_equal(decoded.pixels, expected)


@pytest.mark.parametrize(
    "box", [(70, 0, 90, 10), (10, 10, 10, 20), (30, 20, 10, 30), (-9, -9, 0, 0)]
)
def test_a_box_without_pixels_is_an_error(box):
    decoded = decode(PNG, longest_side=60, box=box)
    assert decoded.pixels is None
    assert decoded.error == f"the box {box} holds no pixel of the 60 x 40 image"


# Decoding bad data


@pytest.mark.parametrize("name", BAD)
def test_bad_data_gives_its_reason(name):
    data, reason = BAD[name]
    first, second = decode(data, longest_side=60), decode(data, longest_side=None)
    assert (first.pixels, first.width, first.height) == (None, 0, 0)
    assert first.error
    assert reason in first.error
    assert first.error.isprintable()
    assert first == second  # no address of an object in the text


SMALL = sorted(name for name in ODD if not name.startswith("no"))


@given(st.sampled_from(SMALL), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_no_damage_makes_decoding_raise(name, random):
    data = bytearray(ODD[name].data)
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] = random.randrange(256)
    damaged = bytes(data[: random.randint(1, len(data))])
    decoded = decode(damaged, longest_side=30, max_pixels=100_000)
    assert (decoded.pixels is None) == (decoded.error is not None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("<object at 0x7f12ab>\n is\tbad\0"), "BMP: RuntimeError: <object> is bad?"),
        (SyntaxError("no header"), "BMP: not understood: no header"),
        (MemoryError(), "BMP: MemoryError"),
        (OSError(errno.EIO, "broken", "name"), "BMP: OSError: broken"),
        (ValueError("y" * 999), f"BMP: ValueError: {'y' * 265}..."),
    ],
)
def test_the_reason_is_one_short_line_whatever_pil_says(monkeypatch, error, expected):
    def fail(image):
        raise error

    monkeypatch.setattr(BmpImageFile, "_open", fail)
    assert decode(BMP, longest_side=60).error == expected
    assert len(expected) <= 300


def damaged_exif(kind: str) -> bytes:
    return encoded(PICTURE, kind, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")


LOUD = [damaged_exif("JPEG"), damaged_exif("WEBP"), ODD["badly-animated.png"].data]


@pytest.mark.parametrize("action", ["always", "error"])
@pytest.mark.parametrize("data", LOUD)
def test_pil_does_not_warn_of_damaged_files(data, action):
    with warnings.catch_warnings(record=True) as caught:
        for _ in range(2):  # a filter of the user that comes later changes nothing
            warnings.simplefilter(action)
            decoded = decode(data, longest_side=60)
            assert decoded.error is None
    assert caught == []


def test_warnings_of_others_and_of_pil_to_others_still_come(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2399)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(LOUD[0], longest_side=60)
        with pytest.raises(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(JPEG))


def test_pil_does_not_log_errors_of_damaged_files(caplog):
    with caplog.at_level(logging.ERROR):
        decode(BAD["seven-bands.tif"][0], longest_side=60)
    assert caplog.records == []


# The limit of pixels


def test_an_image_of_more_pixels_than_allowed_is_not_decoded():
    assert decode(PNG, longest_side=60, max_pixels=2400).error is None
    refused = decode(PNG[:-300], longest_side=60, max_pixels=2399)  # its end is not even looked at
    assert refused.error == "60 x 40 pixels, more than --extraction.max-pixels 2399"


@pytest.mark.parametrize(
    ("data", "reader"),
    [(encoded(PICTURE, "AVIF"), AvifImageFile), (HEIC["plain"], HeifImageFile)],
    ids=["AVIF", "HEIC"],
)
def test_the_limit_of_pixels_is_checked_before_a_video_frame_is_decoded(data, reader, monkeypatch):
    monkeypatch.setattr(reader, "load", None)  # it would fail if it were called
    refused = decode(data, longest_side=60, max_pixels=2399)
    assert refused.error == "60 x 40 pixels, more than --extraction.max-pixels 2399"


def test_the_default_is_what_pil_refuses_beyond():
    assert Image.MAX_IMAGE_PIXELS is not None  # beyond which it warns, and refuses twice as many
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("limit", [1500, 500, 20])  # PIL would warn, or refuse
def test_the_limit_of_pil_is_not_ours_and_stays_for_others(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for file in ODD.values():
        decoded = decode(file.data, longest_side=None, box=(0, 0, 59, 39))
        assert_near(decoded.pixels, file.expected[:39, :59], file.tolerance)
        assert limit == Image.MAX_IMAGE_PIXELS
    for data, reason in BAD.values():
        assert reason in str(decode(data, longest_side=60).error)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_threads_decode_as_one_does_and_leave_the_limit_of_pil(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    files = [file.data for file in ODD.values()] * 2
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda data: decode(data, longest_side=30), files))
    for data, decoded in zip(files, parallel, strict=True):
        alone = decode(data, longest_side=30)
        assert alone.pixels is not None
        assert_near(decoded.pixels, alone.pixels, 0)
    assert Image.MAX_IMAGE_PIXELS == 500


def test_two_threads_never_lift_the_limit_of_pil_at_once(monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    both = threading.Barrier(2)
    opened = BmpImageFile._open

    def slowly(image):
        with pytest.raises(threading.BrokenBarrierError):
            both.wait(timeout=0.1)  # for the other thread, which must not come
        opened(image)

    monkeypatch.setattr(BmpImageFile, "_open", slowly)
    with ThreadPoolExecutor(2) as pool:
        decoded = list(pool.map(lambda data: decode(data, longest_side=60), [BMP, BMP]))
    assert [each.error for each in decoded] == [None, None]
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_side_below_one_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="longest_side is 0, it must be at least 1"):
        decode(PNG, longest_side=0)


# Listed images


def test_a_listed_image_is_read_and_its_box_cut(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    item = ImageFile(uri=str(tmp_path / "a.png"), name="a.png")
    assert_near(load_image(item, longest_side=60).pixels, PICTURE, 0)
    boxed = ImageFile(uri=item.uri, name="a.png", box=(0, 0, 9, 8))
    assert_near(load_image(boxed, longest_side=60).pixels, PICTURE[:8, :9], 0)
    error = load_image(item, longest_side=60, max_pixels=2399).error
    assert error == "60 x 40 pixels, more than --extraction.max-pixels 2399"


def test_an_image_that_cannot_be_had_is_an_error_of_its_own(tmp_path):
    gone = ImageFile(uri=str(tmp_path / "gone.png"), name="gone.png")
    decoded = load_image(gone, longest_side=60)
    assert decoded.pixels is None
    assert decoded.error == "FileNotFoundError: No such file or directory"
    listed = ImageFile(uri="b.tar", name="a.png", error="the header of a.png is damaged")
    assert load_image(listed, longest_side=60).error == "the header of a.png is damaged"


def test_a_file_longer_than_its_pixels_can_be_is_not_read(tmp_path):
    limit = byte_limit(1000)
    assert limit == 8000 + (16 << 20)
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(limit + 1)
    item = ImageFile(uri=str(tmp_path / "long.png"), name="long.png")
    error = load_image(item, longest_side=60, max_pixels=1000).error
    assert error is not None
    assert f"{limit + 1} bytes, at most {limit} are read" in error


# Batches


def test_batches_by_hand():
    shapes = [(2, 3), (4, 4), (2, 3), (2, 3), (4, 4), (3, 2)]
    assert same_shape_batches(shapes, 2) == [[0, 2], [3], [1, 4], [5]]
    assert same_shape_batches([], 2) == []


def test_a_batch_has_no_more_pixels_than_are_allowed_or_one_image():
    shapes = [(2, 3), (4, 4), (2, 3), (2, 3), (4, 4)]
    assert same_shape_batches(shapes, 3, most_pixels=12) == [[0, 2], [3], [1], [4]]
    assert same_shape_batches(shapes, 2, most_pixels=100) == same_shape_batches(shapes, 2)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=40), st.integers(1, 9))
def test_batches_hold_each_image_once_with_equals_and_as_few_as_can_be(shapes, batch_size):
    batches = same_shape_batches(shapes, batch_size)
    assert sorted(i for batch in batches for i in batch) == list(range(len(shapes)))
    assert all(len({shapes[i] for i in batch}) == 1 for batch in batches)
    assert all(len(batch) <= batch_size and batch == sorted(batch) for batch in batches)
    counts = [shapes.count(shape) for shape in set(shapes)]
    assert len(batches) == sum(-(-count // batch_size) for count in counts)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0, it must be at least 1"):
        same_shape_batches([(1, 1)], 0)
