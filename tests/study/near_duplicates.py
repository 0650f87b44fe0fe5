"""Choose how alike near-duplicates are, by copies of real photos and by other photos.

    python -m tests.study.near_duplicates --data FOLDER --output near.npz

Photos are copied as the web copies them. A pair of copies should be found, a pair of other photos
not; the neighbouring views of the turntable (coil20) are the hardest of these. The descriptors are
kept in a file and not computed again. Printed: recall of each kind of copy, and false pairs.
"""

import argparse
import io
import os
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

SOURCES = {  # folder -> every so many of its photos
    "paris250": 1,
    "clutter1000": 3,
    "flowers17": 5,
    "cub50": 10,
    "coil20": 1,
}
POOLINGS = ("mac", "rmac")
DISTANCES, COSINES = (4, 7, 8, 10, 11), (0.8, 0.85, 0.9, 0.95)


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


def table(found: dict[str, np.ndarray], pooling: str) -> str:
    hashes, rows, sources = found["hashes"], found[pooling], found["sources"]
    distances = np.bitwise_count(hashes[:, :1] ^ hashes[:, 1:])
    cosines = np.einsum("ijk,ik->ij", rows[:, 1:], rows[:, 0])
    others = other_pairs(hashes, rows, max(DISTANCES))
    same = sources[others["pairs"][:, 0]] == sources[others["pairs"][:, 1]]
    views = same & (sources[others["pairs"][:, 0]] == "coil20")
    head = ["Hamming", "cosine", *COPIES, "false: turntable", "false: others", "photos in these"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for distance in DISTANCES:
        for cosine in (-1.0, *COSINES):
            recall = ((distances <= distance) & (cosines >= cosine)).mean(0)
            wrong = (others["hamming"] <= distance) & (others["cosine"] >= cosine)
            false = [int((wrong & views).sum()), int((wrong & ~views).sum())]
            photos = len(np.unique(others["pairs"][wrong & ~views]))
            shown = "any" if cosine < 0 else f"{cosine:.2f}"
            cells = [f"≤ {distance}", f"≥ {shown}" if cosine > 0 else shown]
            cells += [f"{100 * each:.1f}" for each in recall]
            lines.append([*cells, *(f"{each:,}" for each in false), f"{photos}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--side", type=int, default=192, help="longest side, pixels")
    parser.add_argument("--output", type=Path, default=Path("near.npz"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.output.exists():
        np.savez(options.output, **described(options.data, options.side))
    with np.load(options.output) as file:
        found = dict(file)
    names, counts = np.unique(found["sources"], return_counts=True)
    print(", ".join(f"{count} of {name}" for name, count in zip(names, counts, strict=True)))
    for pooling in POOLINGS:
        print(f"\n{pooling}, percent of copies found, and false pairs of photos and copies:\n")
        print(table(found, pooling))


if __name__ == "__main__":
    main()
