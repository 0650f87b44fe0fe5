"""Decoders of JPEG beside ours: the time to a reduced image, and how far its pixels are off.

Libraries that are not installed are left out; mmray needs none of them.
"""

import io
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import numpy as np
from PIL import Image

from mmray.images.collection import Collection
from mmray.images.decoding import decode, load_image
from mmray.system.arrays import Pixels

Decode = Callable[[bytes], Pixels]


@dataclass(frozen=True, kw_only=True)
class DecoderSpeed:
    """The speed of a decoder on photos of one size.

    Attributes
    ----------
    megapixels : of the photos
    seconds : for a photo, mean of them, the best of the repeats
    difference : mean absolute difference of gray levels, of 255, to decoding at full size
    """

    decoder: str
    megapixels: float
    seconds: float
    difference: float

    def row(self) -> tuple[str, ...]:
        """Return the row of the printed table."""
        numbers = f"{1e3 * self.seconds:.1f}", f"{self.difference:.2f}"
        return (self.decoder, f"{self.megapixels:g}", *numbers)


def compare_decoders(
    images: Collection, *, megapixels: tuple[float, ...], longest_side: int, repeats: int
) -> list[DecoderSpeed]:
    """Decode photos of some sizes by each library, on one thread.

    Photos of a size are mosaics of the given ones, with the detail of photos of that size.
    """
    given = [load_image(image, longest_side=None).pixels for image in images]
    pixels = [image for image in given if image is not None]
    found = []
    for size in megapixels:
        files = [_mosaic(pixels, size, seed) for seed in range(4)]
        exact = [_reduced(Image.open(io.BytesIO(file)), longest_side) for file in files]
        for name, decoder in _decoders(longest_side):
            rows = [decoder(file) for file in files]
            off = [
                np.abs(row.astype(int) - wanted).mean() if row.shape == wanted.shape else np.nan
                for row, wanted in zip(rows, exact, strict=True)
            ]
            best = np.inf
            for _ in range(repeats):
                start = time.perf_counter()
                for file in files:
                    decoder(file)
                best = min(best, (time.perf_counter() - start) / len(files))
            found.append(
                DecoderSpeed(
                    decoder=name,
                    megapixels=size,
                    seconds=float(best),
                    difference=float(np.mean(off)),
                )
            )
    return found


def _mosaic(pixels: list[Pixels], megapixels: float, seed: int) -> bytes:
    """Return a JPEG file of 4:3, made of photos side by side."""
    width = round(np.sqrt(megapixels * 1e6 * 4 / 3))
    height, rng = width * 3 // 4, np.random.default_rng(seed)
    mosaic = np.zeros((height, width, 3), np.uint8)
    top = 0
    while top < height:
        left, lowest = 0, height
        while left < width:
            part = pixels[rng.integers(len(pixels))][: height - top, : width - left]
            mosaic[top : top + part.shape[0], left : left + part.shape[1]] = part
            left, lowest = left + part.shape[1], min(lowest, part.shape[0])
        top += lowest
    file = io.BytesIO()
    Image.fromarray(mosaic).save(file, "JPEG", quality=90)
    return file.getvalue()


def _target(width: int, height: int, longest_side: int) -> tuple[int, int]:
    scale = min(1.0, longest_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _reduced(image: Image.Image, longest_side: int) -> Pixels:
    size = _target(*image.size, longest_side)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def _decoders(longest_side: int) -> Iterator[tuple[str, Decode]]:
    yield "mmray (Pillow, draft)", partial(_ours, longest_side=longest_side)
    yield "Pillow, full size", lambda data: _reduced(Image.open(io.BytesIO(data)), longest_side)
    with suppress(ImportError):
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        def torchvision(data: bytes) -> Pixels:
            tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            with warnings.catch_warnings(action="ignore"):  # it goes over to torchcodec
                image = decode_jpeg(tensor, ImageReadMode.RGB).permute(1, 2, 0).numpy()
            return _reduced(Image.fromarray(image), longest_side)

        yield "torchvision, full size", torchvision
    with suppress(ImportError):
        simplejpeg = import_module("simplejpeg")

        def simple(data: bytes) -> Pixels:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            least = [2 * side for side in _target(width, height, longest_side)]
            image = simplejpeg.decode_jpeg(data, min_width=least[0], min_height=least[1])
            size = _target(width, height, longest_side)
            return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))

        yield "simplejpeg, reduced", simple
    with suppress(ImportError):
        cv2 = import_module("cv2")

        def opencv(data: bytes) -> Pixels:
            width, height = Image.open(io.BytesIO(data)).size
            size = _target(width, height, longest_side)
            factor = next((f for f in (8, 4, 2) if width // f >= 2 * size[0]), 1)
            modes = {1: cv2.IMREAD_COLOR} | {
                f: getattr(cv2, f"IMREAD_REDUCED_COLOR_{f}") for f in (2, 4, 8)
            }
            image = cv2.imdecode(np.frombuffer(data, np.uint8), modes[factor])[:, :, ::-1]
            small = Image.fromarray(np.ascontiguousarray(image))
            return np.asarray(small.resize(size, Image.Resampling.LANCZOS))

        cv2.setNumThreads(1)
        yield "OpenCV, reduced", opencv
    with suppress(ImportError, OSError):
        pyvips = import_module("pyvips")

        def vips(data: bytes) -> Pixels:
            image = pyvips.Image.thumbnail_buffer(data, longest_side, height=longest_side)
            return np.asarray(image.numpy()[:, :, :3])

        yield "libvips, thumbnail", vips


def _ours(data: bytes, longest_side: int) -> Pixels:
    pixels = decode(data, longest_side=longest_side).pixels
    assert pixels is not None
    return pixels
