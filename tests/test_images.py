"""Decoding images; the box rule; batches of one shape."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from mmray.images import decode, load_image, same_shape_batches
from tests import oracles


def scene(width: int, height: int) -> np.ndarray:
    """A smooth picture that no flip or turn leaves as it is: (height, width, 3) uint8."""
    y, x = (np.mgrid[0:height, 0:width] + 0.5) / max(width, height)
    channels = [200 * x + 20, 150 * y + 40, 100 + 80 * np.sin(5 * x + 2 * y)]
    return np.stack(channels, axis=2).round().astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_near(pixels: np.ndarray | None, expected: np.ndarray, tolerance: float) -> None:
    """Same shape, and no pixel further apart."""
    assert pixels is not None
    assert pixels.shape == expected.shape
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


# Decoding good data

PICTURE = scene(60, 40)
GRAY = np.repeat(PICTURE[:, :, :1], 3, axis=2)


def transparent(mode: str) -> Image.Image:
    """The picture, its right half fully transparent."""
    image = Image.fromarray(PICTURE).convert(mode.rstrip("A") if mode == "LA" else "RGB")
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, 30:] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def on_white(picture: np.ndarray) -> np.ndarray:
    result = picture.copy()
    result[:, 30:] = 255
    return result


LUMA = np.array(Image.fromarray(PICTURE).convert("L"))[:, :, None].repeat(3, axis=2)
PALETTE = Image.fromarray(PICTURE).quantize(64)
BITS = Image.fromarray(PICTURE[:, :, 0] > 120)
GOOD = {
    "jpeg": (encoded(PICTURE, "JPEG", quality=98), PICTURE, 12),
    "progressive jpeg": (encoded(PICTURE, "JPEG", quality=98, progressive=True), PICTURE, 12),
    "gray jpeg": (encoded(PICTURE[:, :, 0], "JPEG", quality=98), GRAY, 6),
    "cmyk jpeg": (
        encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=98),
        PICTURE,
        12,
    ),
    "png": (encoded(PICTURE, "PNG"), PICTURE, 0),
    "png with alpha": (encoded(transparent("RGBA"), "PNG"), on_white(PICTURE), 0),
    "gray png with alpha": (encoded(transparent("LA"), "PNG"), on_white(LUMA), 0),
    "png with a palette": (encoded(PALETTE, "PNG"), np.array(PALETTE.convert("RGB")), 0),
    "16-bit png": (encoded(PICTURE[:, :, 0].astype(np.uint16) * 257, "PNG"), GRAY, 0),
    "16-bit tiff": (encoded(PICTURE[:, :, 0].astype(np.uint16) * 257, "TIFF"), GRAY, 0),
    "1-bit png": (encoded(BITS, "PNG"), np.array(BITS.convert("RGB")), 0),
    "webp": (encoded(PICTURE, "WEBP", lossless=True), PICTURE, 0),
    "bmp": (encoded(PICTURE, "BMP"), PICTURE, 0),
    "tiff": (encoded(PICTURE, "TIFF"), PICTURE, 0),
    "cmyk tiff": (encoded(Image.fromarray(PICTURE).convert("CMYK"), "TIFF"), PICTURE, 1),
    "gif": (encoded(PALETTE, "GIF"), np.array(PALETTE.convert("RGB")), 0),
    "animated gif": (
        encoded(PALETTE, "GIF", save_all=True, append_images=[BITS.convert("P")]),
        np.array(PALETTE.convert("RGB")),
        0,
    ),
}


@pytest.mark.parametrize("kind", GOOD)
def test_images_of_every_kind_become_rgb(kind):
    data, expected, tolerance = GOOD[kind]
    decoded = decode(data, longest_side=60)
    assert decoded.error is None
    assert (decoded.width, decoded.height) == (60, 40)
    assert_near(decoded.pixels, expected, tolerance)


def test_a_transparent_colour_of_a_palette_becomes_white():
    decoded = decode(encoded(PALETTE, "PNG", transparency=7), longest_side=60)
    clear = np.array(PALETTE) == 7
    assert clear.any()
    assert decoded.pixels is not None
    assert (decoded.pixels[clear] == 255).all()
    assert_near(decoded.pixels[~clear][None], np.array(PALETTE.convert("RGB"))[~clear][None], 0)


def test_pixels_may_be_written_to():
    decoded = decode(GOOD["png"][0], longest_side=60)
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_the_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = np.ascontiguousarray(TURNS[orientation](PICTURE))
    options = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}}.get(kind, {})
    decoded = decode(encoded(stored, kind, exif=exif, **options), longest_side=60)
    assert (decoded.width, decoded.height) == (60, 40)
    assert_near(decoded.pixels, PICTURE, 12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0no such thing", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"]
)
def test_broken_exif_leaves_the_image_as_it_is(exif):
    decoded = decode(encoded(PICTURE, "JPEG", quality=98, exif=exif), longest_side=60)
    assert_near(decoded.pixels, PICTURE, 12)


# Sizes and boxes


@pytest.mark.parametrize(
    ("size", "longest_side", "expected"),
    [
        ((60, 40), 30, (30, 20)),
        ((40, 60), 30, (20, 30)),
        ((60, 40), 61, (60, 40)),  # never enlarged
        ((60, 40), 7, (7, 5)),
        ((500, 2), 100, (100, 1)),
        ((2, 500), 1, (1, 1)),
        ((1, 1), 362, (1, 1)),
    ],
)
def test_the_longest_side_is_reduced(size, longest_side, expected):
    decoded = decode(encoded(scene(*size), "PNG"), longest_side=longest_side)
    assert decoded.pixels is not None
    assert decoded.pixels.shape == (expected[1], expected[0], 3)
    assert (decoded.width, decoded.height) == size


def test_reducing_keeps_the_picture():
    decoded = decode(encoded(scene(600, 400), "PNG"), longest_side=60)
    assert_near(decoded.pixels, scene(60, 40), 3)


@pytest.mark.parametrize("size", [(1600, 1067), (1067, 1601), (1999, 31)])
@pytest.mark.parametrize("longest_side", [100, 362, 777])
def test_the_quick_decoding_of_large_jpegs_changes_neither_size_nor_picture(size, longest_side):
    rng = np.random.default_rng(0)
    picture = scene(*size).astype(int) + rng.integers(-20, 21, (size[1], size[0], 3))
    data = encoded(picture.clip(0, 255).astype(np.uint8), "JPEG", quality=90)
    slow = decode(encoded(Image.open(io.BytesIO(data)), "BMP"), longest_side=longest_side)
    quick = decode(data, longest_side=longest_side)
    assert slow.pixels is not None
    assert (quick.width, quick.height) == size
    assert_near(quick.pixels, slow.pixels, 8)
    assert quick.pixels is not None
    assert np.abs(quick.pixels.astype(int) - slow.pixels).mean() < 1


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
    decoded = decode(GOOD["png"][0], longest_side=60, box=(5, 6, 25, 16))
    assert_near(decoded.pixels, PICTURE[6:16, 5:25], 0)


def test_a_box_is_clipped_to_the_image():
    decoded = decode(GOOD["png"][0], longest_side=60, box=(-100, 30.4, 20, 1e9))
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
@settings(max_examples=150, deadline=None)
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


@pytest.mark.parametrize(
    "box", [(70, 0, 90, 10), (10, 10, 10, 20), (30, 20, 10, 30), (-9, -9, 0, 0)]
)
def test_a_box_without_pixels_is_an_error(box):
    decoded = decode(GOOD["png"][0], longest_side=60, box=box)
    assert decoded.pixels is None
    assert decoded.error == f"the box {box} holds no pixel of the 60 x 40 image"


# Decoding bad data


def bomb() -> bytes:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


UNKNOWN = "not an image of a known format (JPEG, PNG, WEBP, BMP, TIFF, GIF)"
BAD = {
    "empty": (b"", "empty file (0 bytes)"),
    "text": (b"<html>404 not found</html>", UNKNOWN),
    "noise": (bytes(range(256)) * 8, UNKNOWN),
    "format not read": (encoded(PICTURE, "PPM"), UNKNOWN),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN),
    "header only": (GOOD["jpeg"][0][:20], UNKNOWN),
    "truncated jpeg": (GOOD["jpeg"][0][:-300], "OSError: image file is truncated"),
    "truncated png": (GOOD["png"][0][:-300], "OSError: "),
    "truncated webp": (GOOD["webp"][0][:-300], ""),
    "truncated gif": (GOOD["gif"][0][:-300], "OSError: image file is truncated"),
    "truncated tiff": (GOOD["tiff"][0][:-300], ""),
    "damaged png": (GOOD["png"][0][:60] + b"\xff" * 40 + GOOD["png"][0][100:], ""),
    "bomb": (bomb(), "DecompressionBombError: Image size (900000000 pixels) exceeds limit"),
    "32-bit gray": (
        encoded(Image.new("F", (6, 4)), "TIFF"),
        "ValueError: 32-bit gray (mode F): the value of white is not known",
    ),
}


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", BAD)
def test_bad_data_gives_its_reason(kind):
    data, reason = BAD[kind]
    first, second = decode(data, longest_side=60), decode(data, longest_side=60)
    assert first.pixels is None
    assert first.error
    assert first.error.startswith(reason)
    assert "\n" not in first.error
    assert first == second  # no address of an object in the text


@given(st.sampled_from(sorted(GOOD)), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_no_damage_makes_decoding_raise(kind, random):
    data = bytearray(GOOD[kind][0])
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] = random.randrange(256)
    decoded = decode(bytes(data[: random.randint(1, len(data))]), longest_side=30)
    assert (decoded.pixels is None) == (decoded.error is not None)


def test_a_side_below_one_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="longest_side is 0, it must be at least 1"):
        decode(GOOD["png"][0], longest_side=0)


def test_a_file_that_vanished_is_an_error_of_its_image(tmp_path):
    (tmp_path / "a.png").write_bytes(GOOD["png"][0])
    loaded = load_image(str(tmp_path / "a.png"), longest_side=60, box=(0, 0, 9, 9))
    assert_near(loaded.pixels, PICTURE[:9, :9], 0)
    gone = load_image(str(tmp_path / "gone.png"), longest_side=60)
    assert gone.pixels is None
    assert gone.error == "FileNotFoundError: No such file or directory"


# Batches


def test_batches_by_hand():
    shapes = [(2, 3), (4, 4), (2, 3), (2, 3), (4, 4), (3, 2)]
    assert same_shape_batches(shapes, 2) == [[0, 2], [3], [1, 4], [5]]
    assert same_shape_batches([], 2) == []


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
