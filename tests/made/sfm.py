"""A miniature of retrieval-SfM in the layout it is published in, made by the tests."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def cid(number: int) -> str:
    """The id of an image: 32 digits of hex, as published."""
    return f"{(number + 1) * 0x1F3D5B79A2C4E680_1357_9BDF_0246_8ACE % 2**128:032x}"


def part(clusters: list[int], pairs: list[tuple[int, int]], first: int = 0) -> dict[str, Any]:
    """A part of the pickle: images of these clusters, and pairs of rows."""
    return {
        "cids": [cid(first + row) for row in range(len(clusters))],
        "cluster": clusters,
        "qidxs": [query for query, _ in pairs],
        "pidxs": [positive for _, positive in pairs],
        "bbxs": [[0, 0, 9, 9] for _ in clusters],
    }


def save(folder: Path, content: object) -> str:
    file = folder / "retrieval-SfM-tiny.pkl"
    file.write_bytes(pickle.dumps(content))
    return str(file)


def place(ims: Path, name: str) -> Path:
    """The file of an image below the folder `ims`, whose folders are made."""
    file = ims / name[-2:] / name[-4:-2] / name[-6:-4] / name
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def save_miniature(folder: Path, *, clusters: int = 6, images: int = 4, side: int = 64) -> str:
    """Noise in the colour of its cluster below ims/, and the file of tuples; its path."""
    rng = np.random.default_rng(0)
    of_images = [cluster for cluster in range(clusters) for _ in range(images)]
    pairs = [
        (images * cluster + i, images * cluster + j)
        for cluster in range(clusters)
        for i in range(2)
        for j in range(images)
        if i != j
    ]
    colors = rng.integers(0, 190, (clusters, 3))
    for row, cluster in enumerate(of_images):
        noise = rng.integers(0, 60, (side * 3 // 4, side, 3)) + colors[cluster]
        Image.fromarray(noise.astype(np.uint8)).save(place(folder / "ims", cid(row)), "JPEG")
    return save(folder, {"train": part(of_images, pairs), "val": part([0, 1], [(0, 1)], 900)})
