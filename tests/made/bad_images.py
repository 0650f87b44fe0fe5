"""Files that must be refused, and odd ones that must be read: all that collections have in them.

Every file is made here, the same each time, so that no data need to be kept; except HEIC, which
pi-heif reads and does not write: `heif/*.heic` are `PICTURE` as pillow-heif 1.4.0 (x265) writes it
with quality 80.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

UNKNOWN = "not an image of a known format (JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF, HEIF)"


class Odd(NamedTuple):
    """A file that must be read.

    Attributes
    ----------
    size : width and height, upright
    expected : (height, width, 3) uint8
    tolerance : how far any value of a pixel may be away
    """

    data: bytes
    size: tuple[int, int]
    expected: np.ndarray
    tolerance: float


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


PICTURE = scene(60, 40)
RED = PICTURE[:, :, 0]
GRAY = RED[:, :, None].repeat(3, axis=2)


def _png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *chunks, interlaced=0):
    """A PNG from its rows with their filter bytes, further chunks before them."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in body)


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def _png_of(values: np.ndarray, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of (h, w, channels) values of 8 or 16 bits."""
    rows = values.astype(">u2" if depth == 16 else np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return _png((values.shape[1], values.shape[0]), depth, colour, lines, *chunks)


def _interlaced_png() -> bytes:
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2)]
    parts = [PICTURE[y::dy, x::dx] for y, dy, x, dx in [*passes, (1, 2, 0, 1)]]
    lines = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    return _png((60, 40), 8, 2, lines, interlaced=1)


def _tiff(
    data: bytes,
    photometric: int,
    bits: Sequence[int],
    *,
    size: tuple[int, int] = (60, 40),
    order: str = "<",
    **tags: int | Sequence[int],
) -> bytes:
    """An uncompressed TIFF of one strip; further tags by number, as t338=2."""
    entries: dict[int, Sequence[int]] = {
        256: size[:1], 257: size[1:], 258: bits, 259: [1], 262: [photometric], 273: [0],
        277: [len(bits)], 278: size[1:], 279: [len(data)],
    }  # fmt: skip
    for name, values in tags.items():
        entries[int(name[1:])] = [values] if isinstance(values, int) else values
    end = 8 + 2 + 12 * len(entries) + 4
    table, beyond = struct.pack(f"{order}H", len(entries)), b""
    for tag in sorted(entries):
        values = entries[tag]
        if tag == 273:
            values = [end + sum(2 * len(v) for v in entries.values() if len(v) > 2)]
        letter = "I" if tag in (256, 257, 273, 278, 279) else "H"
        content = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(content) > 4:
            offset = struct.pack(f"{order}I", end + len(beyond))
            beyond, content = beyond + content, offset
        kind = 4 if letter == "I" else 3
        table += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    head = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    return head + table + bytes(4) + beyond + data


def _packed_12_bits(values: np.ndarray) -> bytes:
    first, second = values.reshape(-1, 2).astype(int).T
    bytes_ = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    return np.stack(bytes_, axis=1).astype(np.uint8).tobytes()


def _bmp_with_runs() -> tuple[bytes, np.ndarray]:
    """A BMP in RLE8, and its picture."""
    indices = (np.arange(60 * 40).reshape(40, 60) // 7 % 5).astype(np.uint8)
    palette = np.array([[9, 99, 199], [250, 3, 5], [0, 255, 0], [77, 66, 55], [255, 255, 255]])
    body = b""
    for row in indices[::-1]:
        runs = np.split(row, np.flatnonzero(np.diff(row)) + 1)
        body += b"".join(bytes([len(run), run[0]]) for run in runs) + b"\0\0"
    body += b"\0\1"
    colours = b"".join(bytes([*colour[::-1], 0]) for colour in palette)
    start = 14 + 40 + len(colours)
    info = struct.pack("<IiiHHIIiiII", 40, 60, 40, 1, 8, 1, len(body), 0, 0, 5, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start)
    return head + info + colours + body, palette[indices].astype(np.uint8)


def _ycck_jpeg() -> bytes:
    """As Photoshop saves CMYK: Adobe's marker with transform 2, all values inverted."""
    cyan, magenta, yellow, black = Image.fromarray(PICTURE).convert("CMYK").split()
    colours = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr")
    bands = [band.point(lambda value: 255 - value) for band in colours.split()]
    data = encoded(Image.merge("CMYK", (*bands, black)), "JPEG", quality=98)
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    return data[:transform] + b"\2" + data[transform + 1 :]


def _with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content
    return jpeg[:2] + segment + jpeg[2:]


def _transparent(mode: str) -> Image.Image:
    """The picture, its right half fully transparent."""
    image = Image.fromarray(PICTURE).convert("L" if mode == "LA" else "RGB")
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, 30:] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def _on_white(picture: np.ndarray, clear: np.ndarray | None = None) -> np.ndarray:
    result = picture.copy()
    result[np.indices((40, 60))[1] >= 30 if clear is None else clear] = 255
    return result


JPEG = encoded(PICTURE, "JPEG", quality=98)
PNG = encoded(PICTURE, "PNG")
WEBP = encoded(PICTURE, "WEBP", lossless=True)
BMP = encoded(PICTURE, "BMP")
TIFF = encoded(PICTURE, "TIFF")
PALETTE = Image.fromarray(PICTURE).quantize(64)
GIF = encoded(PALETTE, "GIF")
COLOURS = np.array(PALETTE.convert("RGB"))
BITS = Image.fromarray(RED > 120)
HEIC = {path.stem: path.read_bytes() for path in (Path(__file__).parent / "heif").iterdir()}
SIXTEEN = RED.astype(np.uint16) * 256 + 77  # a low byte that must make no difference
DEEP = PICTURE.astype(np.uint16) * 256 + 77


def _odd_jpegs() -> dict[str, tuple[bytes, np.ndarray, float]]:
    cmyk = Image.fromarray(PICTURE).convert("CMYK")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    stored = np.ascontiguousarray(np.rot90(PICTURE))
    other = Image.fromarray(255 - PICTURE)
    mpo = encoded(Image.fromarray(PICTURE), "MPO", save_all=True, append_images=[other], quality=98)
    files = {
        "plain.jpg": JPEG,
        "progressive.jpg": encoded(PICTURE, "JPEG", quality=98, progressive=True),
        "restarts.jpg": encoded(PICTURE, "JPEG", quality=98, restart_marker_rows=1),
        "rgb-inside.jpg": encoded(PICTURE, "JPEG", quality=98, keep_rgb=True),
        "cmyk.jpg": encoded(cmyk, "JPEG", quality=98),
        "ycck.jpg": _ycck_jpeg(),
        "two-pictures.jpg": mpo,
        "two-pictures-badly.jpg": _with_segment(JPEG, 0xE2, b"MPF\0II*\0\xff\xff\xff\x7f"),
        "garbage-after.jpg": JPEG + b"\0" * 99 + b"garbage",
        "broken-exif.jpg": _with_segment(JPEG, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"),
        "no-exif-at-all.jpg": _with_segment(JPEG, 0xE1, b"Exif\0\0no such thing"),
        "broken-icc.jpg": _with_segment(JPEG, 0xE2, b"ICC_PROFILE\0\1\1not a profile"),
        "half-an-icc.jpg": _with_segment(JPEG, 0xE2, b"ICC_PROFILE\0\1\2half"),
        "broken-photoshop.jpg": _with_segment(JPEG, 0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0"),
        "turned.jpg": encoded(stored, "JPEG", quality=98, exif=turned),
        "no-suffix-of-its-own.png": JPEG,
    }
    gray = encoded(RED, "JPEG", quality=98)
    return {name: (data, PICTURE, 12) for name, data in files.items()} | {
        "gray.jpg": (gray, GRAY, 6)
    }


def _odd_pngs() -> dict[str, tuple[bytes, np.ndarray, float]]:
    luma = np.array(Image.fromarray(PICTURE).convert("L"))[:, :, None].repeat(3, axis=2)
    alpha = np.full((40, 60, 1), 0xFFFF)
    alpha[:, 30:] = 0
    indices = np.array(PALETTE)
    opacities = bytes(0 if index % 2 else 255 for index in range(64))
    return {
        "plain.png": (PNG, PICTURE, 0),
        "interlaced.png": (_interlaced_png(), PICTURE, 0),
        "alpha.png": (encoded(_transparent("RGBA"), "PNG"), _on_white(PICTURE), 0),
        "gray-alpha.png": (encoded(_transparent("LA"), "PNG"), _on_white(luma), 0),
        "palette.png": (encoded(PALETTE, "PNG"), COLOURS, 0),
        "palette-clear-colour.png": (
            encoded(PALETTE, "PNG", transparency=7),
            _on_white(COLOURS, indices == 7),
            0,
        ),
        "palette-alpha.png": (
            encoded(PALETTE, "PNG", transparency=opacities),
            _on_white(COLOURS, indices % 2 == 1),
            0,
        ),
        "one-bit.png": (encoded(BITS, "PNG"), np.array(BITS.convert("RGB")), 0),
        "gray-16-bit.png": (_png_of(SIXTEEN, 16, 0), GRAY, 0),
        "gray-16-bit-clear-value.png": (
            _png_of(SIXTEEN, 16, 0, (b"tRNS", struct.pack(">H", SIXTEEN[7, 9]))),
            _on_white(GRAY, np.equal(RED, RED[7, 9])),
            0,
        ),
        "gray-alpha-16-bit.png": (
            _png_of(np.concatenate([SIXTEEN[:, :, None], alpha], axis=2), 16, 4),
            _on_white(GRAY),
            0,
        ),
        "rgb-16-bit.png": (_png_of(DEEP, 16, 2), PICTURE, 0),
        "rgba-16-bit.png": (
            _png_of(np.concatenate([DEEP, alpha], axis=2), 16, 6),
            _on_white(PICTURE),
            0,
        ),
        "animated.png": (
            encoded(PICTURE, "PNG", save_all=True, append_images=[Image.new("RGB", (60, 40))]),
            PICTURE,
            0,
        ),
        "badly-animated.png": (
            _png_of(PICTURE, 8, 2, (b"acTL", struct.pack(">II", 0, 0))),
            PICTURE,
            0,
        ),
        "broken-exif.png": (_png_of(PICTURE, 8, 2, (b"eXIf", b"MM\0*\0\0\0\x08")), PICTURE, 0),
        "broken-exif-text.png": (
            _png_of(PICTURE, 8, 2, (b"tEXt", b"Raw profile type exif\0\nexif\n 9\nzz")),
            PICTURE,
            0,
        ),
        "garbage-after.png": (PNG + b"garbage", PICTURE, 0),
    }


def _odd_tiffs() -> dict[str, tuple[bytes, np.ndarray, float]]:
    picture = Image.fromarray(PICTURE)
    lab = picture.convert("LAB")
    del lab.info["icc_profile"]  # it holds the time
    ramp = (np.arange(256) * 257).tolist()
    alpha = np.array(_transparent("RGBA"))[:, :, 3:]
    with_alpha = np.concatenate([RED[:, :, None], alpha], axis=2).tobytes()
    multiplied = np.concatenate([RED[:, :, None] * (alpha > 0), alpha], axis=2).tobytes()
    little, big = DEEP.astype("<u2").tobytes(), DEEP.astype(">u2").tobytes()
    return {
        "plain.tif": (TIFF, PICTURE, 0),
        "lzw.tif": (encoded(PICTURE, "TIFF", compression="tiff_lzw"), PICTURE, 0),
        "jpeg-inside.tif": (encoded(PICTURE, "TIFF", compression="jpeg", quality=98), PICTURE, 12),
        "fax.tif": (
            encoded(BITS, "TIFF", compression="group4"),
            np.array(BITS.convert("RGB")),
            0,
        ),
        "cmyk.tif": (encoded(picture.convert("CMYK"), "TIFF"), PICTURE, 1),
        "lab.tif": (encoded(lab, "TIFF"), PICTURE, 16),
        "ycbcr.tif": (encoded(picture.convert("YCbCr"), "TIFF"), PICTURE, 4),
        "palette-alpha.tif": (_tiff(with_alpha, 3, [8, 8], t338=2, t320=ramp * 3), None, 0),
        "gray-alpha.tif": (_tiff(with_alpha, 1, [8, 8], t338=2), None, 0),
        "gray-alpha-multiplied.tif": (_tiff(multiplied, 1, [8, 8], t338=1), None, 0),
        "gray-12-bit.tif": (_tiff(_packed_12_bits(SIXTEEN >> 4), 1, [12]), GRAY, 0),
        "gray-16-bit.tif": (_tiff(SIXTEEN.astype("<u2").tobytes(), 1, [16]), GRAY, 0),
        "gray-16-bit-big-endian.tif": (
            _tiff(SIXTEEN.astype(">u2").tobytes(), 1, [16], order=">"),
            GRAY,
            0,
        ),
        "gray-16-bit-lzw.tif": (encoded(SIXTEEN, "TIFF", compression="tiff_lzw"), GRAY, 0),
        "white-is-zero.tif": (_tiff((255 - RED).tobytes(), 0, [8]), GRAY, 0),
        "white-is-zero-16-bit.tif": (
            _tiff((65535 - SIXTEEN).astype("<u2").tobytes(), 0, [16]),
            GRAY,
            0,
        ),
        "rgb-16-bit.tif": (_tiff(little, 2, [16] * 3), PICTURE, 0),
        "rgb-16-bit-big-endian.tif": (_tiff(big, 2, [16] * 3, order=">"), PICTURE, 0),
        "pages.tif": (
            encoded(PICTURE, "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]),
            PICTURE,
            0,
        ),
        "turned.tif": (
            _tiff(np.rot90(PICTURE).tobytes(), 2, [8] * 3, size=(40, 60), t274=6),
            PICTURE,
            0,
        ),
    }


# XMP that asks for a turn, as editors leave it that turned the pixels and forgot it.
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>
</rdf:RDF></x:xmpmeta>"""


@cache  # an animation holds the time
def _odd_avifs_and_heics() -> dict[str, tuple[bytes, np.ndarray, float]]:
    still, moving = Image.fromarray(PICTURE), [Image.new("RGB", (60, 40))]
    plain = encoded(still, "AVIF", quality=95)
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    with_exif = encoded(still, "AVIF", quality=95, exif=exif)
    return {
        "plain.avif": (plain, PICTURE, 12),
        "of-a-general-brand.avif": (_patched(plain, 8, b"mif1"), PICTURE, 12),
        "gray.avif": (encoded(RED, "AVIF", quality=95), GRAY, 6),
        "alpha.avif": (encoded(_transparent("RGBA"), "AVIF", quality=95), _on_white(PICTURE), 12),
        "animated.avif": (
            encoded(still, "AVIF", quality=95, save_all=True, append_images=moving),
            PICTURE,
            12,
        ),
        "turned-by-xmp.avif": (encoded(still, "AVIF", quality=95, xmp=XMP), PICTURE, 12),
        "broken-exif.avif": (
            _patched(with_exif, with_exif.index(b"MM\0*") + 4, b"\0\xff\xff\xff"),
            PICTURE,
            12,
        ),
        "plain.heic": (HEIC["plain"], PICTURE, 12),
        "of-a-general-brand.heif": (_patched(HEIC["plain"], 8, b"mif1"), PICTURE, 12),
        "turned.heic": (HEIC["turned"], PICTURE, 12),  # by a box, and EXIF says so too
        "alpha.heic": (HEIC["alpha"], _on_white(PICTURE), 12),
        "gray-10-bit.heic": (HEIC["gray-10-bit"], GRAY, 6),
        "rgb-10-bit.heic": (HEIC["rgb-10-bit"], PICTURE, 12),
        "second-is-primary.heic": (HEIC["second-is-primary"], PICTURE, 12),
    }


def odd_files() -> dict[str, Odd]:
    """Files of every kind, under names with a picture's suffix."""
    bmp, runs = _bmp_with_runs()
    still, moving = Image.fromarray(PICTURE), [Image.new("RGB", (60, 40))]
    files = _odd_jpegs() | _odd_pngs() | _odd_tiffs() | _odd_avifs_and_heics()
    files |= {
        "plain.webp": (WEBP, PICTURE, 0),
        "lossy-alpha.webp": (
            encoded(_transparent("RGBA"), "WEBP", quality=98),
            _on_white(PICTURE),
            25,
        ),
        "animated.webp": (
            encoded(still, "WEBP", save_all=True, append_images=moving, lossless=True),
            PICTURE,
            0,
        ),
        "plain.bmp": (BMP, PICTURE, 0),
        "runs.bmp": (bmp, runs, 0),
        "one-bit.bmp": (encoded(BITS, "BMP"), np.array(BITS.convert("RGB")), 0),
        "plain.gif": (GIF, COLOURS, 0),
        "gray.gif": (encoded(RED, "GIF"), GRAY, 0),
        "frame-beyond-its-screen.gif": (_patched(GIF, 6, b"\x09\0\x09\0"), COLOURS, 0),
        "interlaced.gif": (encoded(PALETTE, "GIF", interlace=True), COLOURS, 0),
        "clear-colour.gif": (
            encoded(PALETTE, "GIF", transparency=7),
            _on_white(COLOURS, np.array(PALETTE) == 7),
            0,
        ),
        "animated.gif": (
            encoded(PALETTE, "GIF", save_all=True, append_images=[BITS.convert("P")]),
            COLOURS,
            0,
        ),
    }
    halves = _on_white(GRAY)
    return {
        name: Odd(data, (60, 40), halves if expected is None else expected, tolerance)
        for name, (data, expected, tolerance) in files.items()
    }


def _patched(data: bytes, place: int, content: bytes) -> bytes:
    return data[:place] + content + data[place + len(content) :]


def _bad_jpegs() -> dict[str, tuple[bytes, str]]:
    frame = JPEG.index(b"\xff\xc0")
    scan = JPEG.index(b"\xff\xda")
    middle = (scan + len(JPEG)) // 2
    huge = struct.pack(">HH", 65_500, 65_500)
    progressive = encoded(PICTURE, "JPEG", progressive=True)
    return {
        "header-only.jpg": (JPEG[:20], "JPEG: "),
        "nothing-inside.jpg": (b"\xff\xd8\xff\xd9", "JPEG: "),
        "without-a-scan.jpg": (JPEG[:scan] + b"\xff\xd9", "JPEG: "),
        "truncated-jpeg.jpg": (JPEG[:-300], "JPEG: OSError: image file is truncated"),
        "last-byte-missing.jpg": (JPEG[:-2], "JPEG: OSError: image file is truncated"),
        "truncated-progressive.jpg": (progressive[:-300], "JPEG: OSError: image file is trunc"),
        "zeros-from-the-middle.jpg": (
            JPEG[:middle] + bytes(len(JPEG) - middle),
            "JPEG: OSError: image file is truncated",
        ),
        "twelve-bit.jpg": (_patched(JPEG, frame + 4, b"\x0c"), "cannot handle 12-bit layers"),
        "two-layers.jpg": (_patched(JPEG, frame + 9, b"\x02"), "cannot handle 2-layer images"),
        "no-height.jpg": (_patched(JPEG, frame + 5, b"\0\0"), "JPEG: "),
        "huge-claim.jpg": (
            _patched(JPEG, frame + 5, huge),
            "65500 x 65500 pixels, more than --extraction.max-pixels 178956970",
        ),
        "lossless.jpg": (_patched(JPEG, frame + 1, b"\xc3"), "JPEG: "),
    }


def _bad_pngs() -> dict[str, tuple[bytes, str]]:
    broken = _png_of(PICTURE, 8, 2, (b"gAMA", bytes(4)))
    gamma = broken.index(b"gAMA")
    header, rows = PNG[:33], zlib.compress(PICTURE.tobytes())
    return {
        "truncated-png.png": (PNG[:-300], "PNG: OSError: "),
        "damaged.png": (_patched(PNG, 60, b"\xff" * 40), "PNG: "),
        "huge-claim.png": (
            _png((30_000, 30_000), 8, 2, b"\0"),
            "30000 x 30000 pixels, more than --extraction.max-pixels 178956970",
        ),
        "without-width.png": (_png((0, 40), 8, 2, b"\0"), "PNG: "),
        "without-pixels.png": (header + _chunk(b"IEND", b""), "PNG: "),
        "cut-rows.png": (
            header + _chunk(b"IDAT", rows[: len(rows) // 2]) + _chunk(b"IEND", b""),
            "PNG: OSError: ",
        ),
        "unknown-colours.png": (_png((60, 40), 3, 5, b"\0"), "PNG: "),
        "broken-side-chunk.png": (_patched(broken, gamma + 4, b"\1"), "PNG: "),
    }


def _bad_tiffs() -> dict[str, tuple[bytes, str]]:
    unknown = "the value of white is not known; convert it to 8 or 16 bits"
    return {
        "truncated-tiff.tif": (TIFF[:-300], "TIFF: "),
        "without-a-page.tif": (b"II*\0\0\0\0\0", "TIFF: "),
        "page-beyond-the-end.tif": (b"II*\0\xff\xff\xff\x7f", "TIFF: "),
        "floats.tif": (encoded(Image.new("F", (6, 4)), "TIFF"), f"gray (mode F): {unknown}"),
        "32-bit.tif": (encoded(Image.new("I", (6, 4)), "TIFF"), f"gray (mode I): {unknown}"),
        "signed.tif": (_tiff(bytes(48), 1, [16], size=(6, 4), t339=2), f"(mode I): {unknown}"),
        "seven-bands.tif": (_tiff(bytes(168), 1, [8] * 7, size=(6, 4)), "TIFF: "),
        "unknown-compression.tif": (_tiff(bytes(24), 1, [8], size=(6, 4), t259=77), "TIFF: "),
        "huge-claim.tif": (
            _tiff(b"", 1, [8], size=(60_000, 50_000)),
            "60000 x 50000 pixels, more than --extraction.max-pixels 178956970",
        ),
    }


def _of_size(data: bytes, width: int, height: int) -> bytes:
    """An AVIF or HEIC whose box for the size, and not its picture, has another one."""
    return _patched(data, data.index(b"ispe") + 8, struct.pack(">II", width, height))


def _bad_avifs_and_heics() -> dict[str, tuple[bytes, str]]:
    avif, heic = encoded(PICTURE, "AVIF", quality=95), HEIC["plain"]
    too_many = "16000 x 16000 pixels, more than --extraction.max-pixels 178956970"
    return {
        "header-only.heic": (heic[:28] + bytes(99), "HEIF: "),
        "header-only.avif": (avif[:32] + bytes(99), "AVIF: "),
        "truncated-heic.heic": (heic[:-300], "HEIF: "),
        "truncated-avif.avif": (avif[:-200], "AVIF: "),
        "huge-claim.avif": (_of_size(avif, 16_000, 16_000), too_many),
        "beyond-any-limit.heic": (_of_size(heic, 65_000, 65_000), "HEIF: "),
        "beyond-any-limit.avif": (_of_size(avif, 65_000, 65_000), "AVIF: "),
        "claim-of-less.heic": (_of_size(heic, 62, 44), "HEIF: "),
    }


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Files that are no pictures under the names of some, each with a part of the reason."""
    others = {
        "error-page.jpg": b"<html>404 not found</html>",
        "noise.png": bytes(range(256)) * 8,
        "zeros.jpg": bytes(5000),
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>',
        "paper.jpg": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "video.jpg": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99),
        "sound.gif": b"RIFF\x24\0\0\0WAVEfmt " + bytes(24),
        "archive.png": b"PK\x03\x04" + bytes(26),
        "portable-pixels.bmp": encoded(PICTURE, "PPM"),
        "jpeg-2000.jpg": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
    }
    files = {name: (data, UNKNOWN) for name, data in others.items()}
    files |= {"empty.jpg": (b"", "empty file (0 bytes)")}
    files |= _bad_jpegs() | _bad_pngs() | _bad_tiffs() | _bad_avifs_and_heics()
    return files | {
        "truncated-webp.webp": (WEBP[:-300], "WEBP: "),
        "header-only.webp": (WEBP[:16], "WEBP: "),
        "truncated-gif.gif": (GIF[:-300], "GIF: OSError: image file is truncated"),
        "without-a-frame.gif": (GIF[:13] + b";", "GIF: "),
        "cut-frame.gif": (_cut_gif(), "GIF: OSError: "),
        "huge-claim.gif": (
            _patched(GIF, 6, b"\xff\xff\xff\xff"),
            "65535 x 65535 pixels, more than --extraction.max-pixels 178956970",
        ),
        "truncated-bmp.bmp": (BMP[:-300], "BMP: OSError: image file is truncated"),
        "huge-claim.bmp": (
            _patched(BMP, 18, struct.pack("<ii", 50_000, 50_000)),
            "50000 x 50000 pixels, more than --extraction.max-pixels 178956970",
        ),
        "not-a-bmp.bmp": (b"BMW and other cars", "BMP: "),
    }


def _cut_gif() -> bytes:
    """A GIF whose frame ends, as it should, but too early."""
    return GIF[: GIF.index(b",", 13 + 3 * 64) + 11] + b"\x02\x44\x01\0;"
