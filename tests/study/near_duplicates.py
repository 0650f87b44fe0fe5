"""Choose how alike near-duplicates are, by copies of real photos and by other photos.

    python -m tests.study.near_duplicates --data FOLDER --output near.npz

Photos are copied as the web copies them. A pair of copies should be found, a pair of other photos
not; the neighbouring views of the turntable (coil20) are the hardest of these. The descriptors are
kept in a file and not computed again. Printed: recall of each kind of copy, and false pairs.

    python -m tests.study.near_duplicates --speed 100000 1000000

Printed: milliseconds of a hash, and CPU seconds to find the groups among random items.
"""

import argparse
import io
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image, ImageEnhance

from mmray.descriptors.embedding import embed
from mmray.descriptors.inference import fused
from mmray.descriptors.weights import build
from mmray.images.decoding import decode
from mmray.images.perceptual_hash import perceptual_hash
from mmray.mining.near_duplicates.groups import HAMMING, near_duplicate_groups

SOURCES = {  # folder -> every so many of its photos
    "paris250": 1,
    "clutter1000": 3,
    "flowers17": 5,
    "cub50": 10,
    "coil20": 1,
}
POOLINGS = ("mac", "rmac")
DISTANCES, COSINES = (4, 6, 8, 10), (-1.0, 0.5, 0.6, 0.7, 0.8, 0.9)


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    image.save(sink := io.BytesIO(), "JPEG", quality=quality)
    return sink.getvalue()


def resized(image: Image.Image, scale: float) -> Image.Image:
    return image.resize([max(1, round(scale * side)) for side in image.size])


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Cut a share of the width and the height, half of it on each side."""
    x, y = (share / 2 * side for side in image.size)
    return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))


COPIES = {
    "quality 90": lambda image: encoded(image, 90),
    "quality 70": lambda image: encoded(image, 70),
    "quality 50": lambda image: encoded(image, 50),
    "size 0.75": lambda image: encoded(resized(image, 0.75)),
    "size 0.5": lambda image: encoded(resized(image, 0.5)),
    "cut by 2%": lambda image: encoded(cropped(image, 0.02)),
    "cut by 5%": lambda image: encoded(cropped(image, 0.05)),
    "brighter by 20%": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.2)),
    "darker by 20%": lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.8)),
    "size 0.5, quality 70, cut by 2%": lambda image: encoded(
        resized(cropped(image, 0.02), 0.5), 70
    ),
}


def described(data: Path, side: int) -> dict[str, np.ndarray]:
    """Describe the photos and their copies.

    Each array has a row for each photo and in it one for the photo (first) and for each copy:
    hashes (n, c) uint64, descriptors (n, c, d) of each pooling; the source of each photo (n,).
    """
    network = fused(build("efficientnet_lite0", pooling="mac"))
    hashes, sources, names = [], [], []
    rows = {pooling: [] for pooling in POOLINGS}
    for source, every in SOURCES.items():
        files = sorted(file for file in (data / source).rglob("*") if file.suffix in _SUFFIXES)
        for file in files[::every]:
            content = file.read_bytes()
            image = Image.open(io.BytesIO(content)).convert("RGB")
            versions = [content, *(copy(image) for copy in COPIES.values())]
            pixels = [decode(version, longest_side=side).pixels for version in versions]
            hashes.append([perceptual_hash(each) for each in pixels])
            found = embed(network, pixels, POOLINGS, batch_size=32, device=torch.device("cpu"))
            for place, pooling in enumerate(POOLINGS):
                rows[pooling].append(found[:, place])
            sources.append(source)
            names.append(str(file.relative_to(data)))
    return {
        "hashes": np.array(hashes, np.uint64),
        "sources": np.array(sources),
        "names": np.array(names),
        **{pooling: np.stack(each) for pooling, each in rows.items()},
    }


_SUFFIXES = {".jpg", ".png"}


def other_pairs(hashes: np.ndarray, rows: np.ndarray, distance: int) -> dict[str, np.ndarray]:
    """Pairs of versions of different photos within a Hamming distance, with their cosines."""
    n, versions = hashes.shape
    flat, features = hashes.ravel(), rows.reshape(n * versions, -1)
    first, second = [], []
    for start in range(0, len(flat), 256):
        block = flat[start : start + 256]
        near = np.bitwise_count(block[:, None] ^ flat) <= distance
        one, two = np.nonzero(near)
        one += start
        kept = one // versions < two // versions
        first.append(one[kept])
        second.append(two[kept])
    one, two = np.concatenate(first), np.concatenate(second)
    return {
        "pairs": np.stack([one // versions, two // versions], axis=1),
        "hamming": np.bitwise_count(flat[one] ^ flat[two]),
        "cosine": np.einsum("ij,ij->i", features[one], features[two]),
    }


def recall(found: dict[str, np.ndarray], pooling: str, photos: np.ndarray) -> str:
    """Percent of the copies of some photos that are found, by kind of copy and limits."""
    hashes, rows = found["hashes"][photos], found[pooling][photos]
    distances = np.bitwise_count(hashes[:, :1] ^ hashes[:, 1:])
    cosines = np.einsum("ijk,ik->ij", rows[:, 1:], rows[:, 0])
    lines = [["bits", "cosine", *COPIES]]
    for distance in DISTANCES:
        for cosine in COSINES:
            share = ((distances <= distance) & (cosines >= cosine)).mean(0)
            lines.append([*_limits(distance, cosine), *(f"{100 * each:.0f}" for each in share)])
    return _table(lines)


def false_pairs(found: dict[str, np.ndarray], pooling: str) -> str:
    """Pairs of different photos that count as near-duplicates, alone and with their copies."""
    lines = [["bits", "cosine", "turntable", "with copies", "others", "with copies"]]
    turning = found["sources"] == "coil20"
    kinds = []
    for versions in (1, None):
        hashes, rows = found["hashes"][:, :versions], found[pooling][:, :versions]
        kinds.append(other_pairs(hashes, rows, max(DISTANCES)))
    for distance in DISTANCES:
        for cosine in COSINES:
            counts = []
            for views in (True, False):
                for pairs in kinds:
                    near = (pairs["hamming"] <= distance) & (pairs["cosine"] >= cosine)
                    both = np.unique(pairs["pairs"][near], axis=0)
                    counts.append(int((turning[both].all(1) == views).sum()))
            lines.append([*_limits(distance, cosine), *(f"{count:,}" for count in counts)])
    return _table(lines)


def _limits(distance: int, cosine: float) -> tuple[str, str]:
    return f"{distance}", "any" if cosine < 0 else f"{cosine:.1f}"


def _table(lines: list[list[str]]) -> str:
    rule = ["---:"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def speed(counts: list[int], dims: int = 64) -> str:
    """CPU seconds to group random items, a tenth of which are near others: 3 bits and 0.1 away."""
    lines = [["items", "bits", "CPU s", "per doubling", "found of planted"]]
    near_duplicate_groups(*planted(1000, dims))  # compiled
    for bits in (HAMMING, 11):
        before = None
        for n in counts:
            rows, hashes = planted(n, dims)
            started = time.process_time()
            groups, _ = near_duplicate_groups(rows, hashes, hamming=bits)
            seconds = time.process_time() - started
            growth = "" if before is None else f"{_growth(before, (n, seconds)):.1f}"
            share = (groups != np.arange(n)).sum() / (n // 10)
            lines.append([f"{n:,}", f"{bits}", f"{seconds:.2f}", growth, f"{share:.1%}"])
            before = n, seconds
    for title, unlike in (("equal hashes, equal rows", False), ("equal hashes, unlike rows", True)):
        n = counts[0]
        rows, hashes = planted(n, dims)
        if not unlike:
            rows[:] = rows[0]
        started = time.process_time()
        _, complete = near_duplicate_groups(rows, np.zeros_like(hashes))
        seconds = time.process_time() - started
        told = "complete" if complete else "ended when the products were spent"
        lines.append([f"{n:,}, {title}", f"{HAMMING}", f"{seconds:.2f}", "", told])
    return _table(lines)


def hash_speed() -> str:
    """Milliseconds of a hash by the size of the image, the least of 50."""
    lines = [["pixels", "ms"]]
    for height, width in ((144, 192), (272, 362), (768, 1024)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        times = []
        for _ in range(50):
            started = time.perf_counter()
            perceptual_hash(pixels)
            times.append(time.perf_counter() - started)
        lines.append([f"{width} x {height}", f"{1000 * min(times):.2f}"])
    return _table(lines)


def _growth(one: tuple[int, float], two: tuple[int, float]) -> float:
    return float((two[1] / one[1]) ** (1 / np.log2(two[0] / one[0])))


def planted(n: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    rng, copies = np.random.default_rng(0), n // 10
    rows = rng.standard_normal((n, dims), dtype=np.float32)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    of = rng.integers(copies, n, copies)
    rows[:copies] = rows[of] + 0.1 / dims**0.5 * rng.standard_normal((copies, dims))
    rows[:copies] /= np.linalg.norm(rows[:copies], axis=1, keepdims=True)
    hashes[:copies] = hashes[of]
    for _ in range(3):
        hashes[:copies] ^= np.uint64(1) << rng.integers(0, 64, copies).astype(np.uint64)
    return rows, hashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of " + ", ".join(SOURCES))
    parser.add_argument("--side", type=int, default=192, help="longest side, pixels")
    parser.add_argument("--output", type=Path, default=Path("near.npz"))
    parser.add_argument("--speed", type=int, nargs="+", help="numbers of random items instead")
    options = parser.parse_args()
    if options.speed:
        print(f"{hash_speed()}\n\n{speed(options.speed)}")
        return
    torch.set_num_threads(1)
    if not options.output.exists():
        np.savez(options.output, **described(options.data, options.side))
    with np.load(options.output) as file:
        found = dict(file)
    names, counts = np.unique(found["sources"], return_counts=True)
    print(", ".join(f"{count} of {name}" for name, count in zip(names, counts, strict=True)))
    large = found["sources"] == "paris250"
    for pooling in POOLINGS:
        for title, photos in (("paris250", large), ("the others", ~large)):
            print(f"\n{pooling}, percent of the copies of {title} that are found:\n")
            print(recall(found, pooling, photos))
        print(f"\n{pooling}, false pairs of photos:\n")
        print(false_pairs(found, pooling))


if __name__ == "__main__":
    main()
