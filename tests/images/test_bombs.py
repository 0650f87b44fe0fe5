"""Images made to take time or memory end soon as an error; large photos are decoded."""

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from mmray.images.decoding import Decoded, decode
from tests.made.bad_images import encoded


def timed(data: bytes) -> tuple[Decoded, float]:
    start = time.thread_time()
    return decode(data, longest_side=362), time.thread_time() - start


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of zeros, with further chunks before its pixels."""
    deflated = zlib.compressobj(9)
    pixels = b"".join(deflated.compress(bytes((1 + width * 3) * 100)) for _ in range(height // 100))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = [(b"IHDR", header), *chunks, (b"IDAT", pixels + deflated.flush()), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in body
    )


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG of 64 x 64 pixels, with further segments."""
    plain = encoded(Image.new("RGB", (64, 64)), "JPEG")
    return plain[:2] + b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
        for marker, content in segments
    ) + plain[2:]  # fmt: skip


def progressive(more_scans: int, side: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:2] + between + data[2:-2] + data[last:-2] * more_scans + data[-2:]


INFLATES = zlib.compress(bytes(900_000), 9)
LATIN = zlib.compress(b"\xff" * 900_000, 9)
BOMBS = {
    "zeros": (lambda: png(13_000, 13_000), "507000000 bytes of pixels in a file of"),
    "tiff": (
        lambda: encoded(Image.new("RGB", (12_000, 12_000)), "TIFF", compression="tiff_deflate"),
        "a decompression bomb",
    ),
    "profiles": (lambda: png(100, 100, *[(b"iCCP", b"a\0\0" + INFLATES)] * 20_000), "CPU time"),
    "texts": (lambda: png(100, 100, *[(b"zTXt", b"a\0\0" + INFLATES)] * 20_000), "Too much memory"),
    "no texts": (
        lambda: png(100, 100, *[(b"iTXt", b"a\0\1\0\0\0" + LATIN)] * 20_000),
        "CPU time",
    ),
    "chunks": (lambda: png(100, 100, *[(b"abCd", b"")] * 2_000_000), "CPU time"),
    "scans": (lambda: progressive(1_000, 8_000), "a JPEG of 1006 scans, more than 50"),
    "exif": (lambda: jpeg(*[(0xE1, b"Exif\0\0" + bytes(65_000))] * 800), "CPU time"),
    "segments": (lambda: jpeg(*[(0xE9, b"")] * 2_000_000), "CPU time"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_made_to_take_time_is_an_error_within_two_seconds(name):
    make, message = BOMBS[name]
    decoded, seconds = timed(make())
    assert message in (decoded.error or "")
    assert decoded.pixels is None
    assert seconds < 2


def test_a_large_photo_is_decoded():
    small = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    photo = Image.fromarray(small).resize((12_000, 9_000), Image.Resampling.BILINEAR)
    decoded, _ = timed(encoded(photo, "JPEG"))
    assert decoded.error is None
    assert (decoded.width, decoded.height) == (12_000, 9_000)


@pytest.mark.parametrize(
    "data",
    [
        png(6_000, 6_000),  # a blank page
        encoded(Image.new("1", (13_000, 13_000)), "TIFF", compression="group4"),  # a blank drawing
        progressive(30, 64),
        # A thumbnail, and the film of a moving photo: neither are scans of this image.
        progressive(0, 64, b"\xff\xe1" + struct.pack(">H", 60_002) + b"\xff\xda\0\0" * 15_000),
        progressive(0, 64) + b"\xff\xda\xff\xda" * 1_000,
    ],
)
def test_what_only_looks_like_a_bomb_is_decoded(data):
    assert timed(data)[0].error is None
