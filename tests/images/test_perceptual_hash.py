"""The perceptual hash is that of its definition, and survives what copying does to an image."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dct

from mmray.images.perceptual_hash import BITS, perceptual_hash


def photo(seed: int) -> np.ndarray:
    """Smooth blobs of colour, 240 x 320, unlike those of other seeds."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC))


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


def encoded(pixels, quality):
    Image.fromarray(pixels).save(sink := io.BytesIO(), "JPEG", quality=quality)
    return np.asarray(Image.open(sink))


def resized(pixels, width, height):
    return np.asarray(Image.fromarray(pixels).resize((width, height)))


COPIES = {
    "the same": (lambda pixels: pixels, 0),
    "encoded anew": (lambda pixels: encoded(pixels, 50), 4),
    "half the size": (lambda pixels: resized(pixels, 160, 120), 4),
    "another shape": (lambda pixels: resized(pixels, 300, 300), 4),
    "darker": (lambda pixels: (pixels * 0.7).astype(np.uint8), 4),
    "cut by 2%": (lambda pixels: pixels[2:-3, 3:-3], 10),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_has_nearly_the_same_hash(copy):
    make, most = COPIES[copy]
    for seed in range(10):
        assert distance(photo(seed), make(photo(seed))) <= most


def test_other_images_differ_in_half_of_the_bits():
    distances = [distance(photo(i), photo(j)) for i in range(10) for j in range(i)]
    assert 28 < np.mean(distances) < 36
    assert min(distances) > 10


def test_bits_are_those_of_the_lowest_frequencies_of_a_reduced_image():
    """Read literally: of an image that need not be reduced, and gray, so that nothing rounds."""
    gray = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    low = dct(dct(gray.astype(float), axis=0, norm="ortho"), axis=1, norm="ortho")[:8, :8]
    bits = "".join(str(int(value > np.median(low))) for value in low.ravel())
    assert perceptual_hash(np.repeat(gray[:, :, None], 3, 2)) == int(bits, 2)
    assert bits.count("1") == BITS // 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (64, 64), (7, 200)])
@pytest.mark.parametrize("level", [0, 130, 255])
def test_images_without_detail_of_any_shape_have_the_hash_0(shape, level):
    assert perceptual_hash(np.full((*shape, 3), level, np.uint8)) == 0
