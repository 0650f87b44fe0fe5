"""Slow, literal, float64 readings of the poolings, the losses and the box rule; plain loops.

b images or tuples, c channels, h x w positions, d dimensions.
"""

import math
from fractions import Fraction

import numpy as np


def normalized(vector: np.ndarray) -> np.ndarray:
    norm = math.sqrt(sum(float(x) ** 2 for x in vector))
    return vector / norm if norm > 0 else np.zeros_like(vector)


def max_of(region: np.ndarray) -> np.ndarray:
    """(c, h, w) -> (c,), not normalised."""
    return np.array([max(float(x) for x in channel.ravel()) for channel in region])


def mac(maps: np.ndarray) -> np.ndarray:
    return np.array([normalized(max_of(image)) for image in maps])


def gem(maps: np.ndarray, p: float) -> np.ndarray:
    return np.array(
        [
            normalized(
                np.array(
                    [
                        (sum(max(float(x), 0.0) ** p for x in channel.ravel()) / channel.size)
                        ** (1 / p)
                        for channel in image
                    ]
                )
            )
            for image in maps
        ]
    )


def rmac(maps: np.ndarray, levels: int) -> np.ndarray:
    rows = []
    for image in maps:
        total = normalized(max_of(image))
        for top, left, side in rmac_regions(image.shape[1], image.shape[2], levels):
            total = total + normalized(max_of(image[:, top : top + side, left : left + side]))
        rows.append(normalized(total))
    return np.array(rows)


def rmac_regions(H: int, W: int, L: int) -> list[tuple[int, int, int]]:
    """The grid as the published code writes it, step by step, in rational numbers."""
    ovr = Fraction(4, 10)
    steps = [2, 3, 4, 5, 6, 7]
    w = min(W, H)
    b = [Fraction(max(H, W) - w, step - 1) for step in steps]
    gaps = [abs((w**2 - w * bi) / Fraction(w**2) - ovr) for bi in b]
    idx = gaps.index(min(gaps))
    Wd = Hd = 0
    if H < W:
        Wd = idx + 1
    elif H > W:
        Hd = idx + 1
    regions = []
    for level in range(1, L + 1):
        wl = math.floor(Fraction(2 * w, level + 1))
        wl2 = math.floor(Fraction(wl, 2) - 1)
        bw = Fraction(0) if level + Wd == 1 else Fraction(W - wl, level + Wd - 1)
        cenW = [math.floor(wl2 + i * bw) - wl2 for i in range(level - 1 + Wd + 1)]
        bh = Fraction(0) if level + Hd == 1 else Fraction(H - wl, level + Hd - 1)
        cenH = [math.floor(wl2 + i * bh) - wl2 for i in range(level - 1 + Hd + 1)]
        for i_ in cenH:
            for j_ in cenW:
                if wl == 0:
                    continue
                regions.append((i_, j_, wl))
    return regions


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)))


def contrastive_loss(anchor: np.ndarray, positive: np.ndarray, negative: np.ndarray, m: float):
    """Eq. (7)."""
    return np.array(
        [
            distance(r, p) ** 2 + max(0.0, m - distance(r, n)) ** 2
            for r, p, n in zip(anchor, positive, negative, strict=True)
        ]
    )


def triplet_loss(anchor: np.ndarray, positive: np.ndarray, negative: np.ndarray, m: float):
    """Eq. (8)."""
    return np.array(
        [
            max(0.0, m + distance(r, p) ** 2 - distance(r, n) ** 2)
            for r, p, n in zip(anchor, positive, negative, strict=True)
        ]
    )


def normalisation(network: str, pixels: np.ndarray) -> np.ndarray:
    """Preprocessing as the sources of the weights write it: (b, 3, h, w) of 0..255 -> the input."""
    x = pixels.astype(np.float64)

    def by_channel(values: tuple[float, float, float]) -> np.ndarray:
        return np.array(values).reshape(1, 3, 1, 1)

    if network == "vgg16":  # torchvision, VGG16_Weights.IMAGENET1K_FEATURES
        return (x / 255 - by_channel((0.48235, 0.45882, 0.40784))) / (1 / 255)
    if network == "efficientnet_lite0":  # TensorFlow, efficientnet/lite
        return (x - 127) / 128
    mean, std = by_channel((0.485, 0.456, 0.406)), by_channel((0.229, 0.224, 0.225))
    x = (x / 255 - mean) / std
    if network == "googlenet":  # torchvision, GoogLeNet._transform_input
        return x * (std / 0.5) + (mean - 0.5) / 0.5
    return x


def resized(width: int, height: int, longest_side: int, box: tuple | None) -> tuple[int, int]:
    """(width, height) after cropping to the box and reducing by the scale of the whole image."""
    scale = min(Fraction(1), Fraction(longest_side, max(width, height)))
    if box is not None:
        left, top = max(0, round(box[0])), max(0, round(box[1]))
        right, bottom = min(width, round(box[2])), min(height, round(box[3]))
        width, height = right - left, bottom - top
    return max(1, round(width * scale)), max(1, round(height * scale))
