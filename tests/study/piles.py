"""Piles of photos to learn from, with labelled photos of other things to measure on."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmray.images.collection import ImageFile
from mmray.images.decoding import load_image
from mmray.images.demo.demo_set import render_collection

SIDE = 128  # longest side of all photos
BIRDS, CLUTTER = "cub50/CUB_200_2011/images", "clutter1000"


@dataclass(frozen=True)
class Pile:
    """Photos to learn from and to test on; labels only measure, "" is clutter."""

    photos: list[np.ndarray]
    labels: np.ndarray
    test: list[np.ndarray]
    test_labels: np.ndarray


def pile(name: str, data: Path) -> Pile:
    """Make the pile of a name: rendered, rendered-1 (a seed), birds, flowers, or objects."""
    if name.startswith("rendered"):
        return _rendered(int(name.partition("-")[2] or 0))
    if name == "birds":
        return _halves(data / BIRDS, every=2, test_every=4)
    if name == "flowers":
        return _halves(data / "flowers17", every=1, test_every=2)
    if name == "objects":
        found = _halves(data / "coil20", every=1, test_every=1)
        clutter = [_read(file) for file in sorted((data / CLUTTER).iterdir())]
        labels = np.append(found.labels, [""] * len(clutter))
        return Pile(found.photos + clutter, labels, found.test, found.test_labels)
    raise SystemExit(f"no pile {name!r}: choose rendered[-SEED], birds, flowers or objects")


def _halves(folder: Path, *, every: int, test_every: int) -> Pile:
    """Split a folder of classes: the first half of them is learned from, the other tests."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    parts = []
    for chosen, step in (
        (classes[: len(classes) // 2], every),
        (classes[len(classes) // 2 :], test_every),
    ):
        files = [file for each in chosen for file in sorted(each.iterdir())[::step]]
        parts += [[_read(file) for file in files], np.array([file.parent.name for file in files])]
    return Pile(*parts)


def _read(file: Path) -> np.ndarray:
    decoded = load_image(ImageFile(uri=str(file), name=file.name), longest_side=SIDE)
    assert decoded.pixels is not None, f"{file}: {decoded.error}"
    return decoded.pixels


def _rendered(seed: int) -> Pile:
    files: dict[str, bytes] = {}
    sizes = {"objects": 24, "photos": 13, "distractors": 40, "longest_side": 256}
    render_collection(files.__setitem__, seed=seed, **sizes)
    parts = []
    for folder, table in (("train/", "train_labels.csv"), ("test/jpg/", "test_labels.csv")):
        rows = dict(line.split(",") for line in files[table].decode().splitlines()[1:])
        names = sorted(name for name in files if name.startswith(folder))
        photos = []
        for name in names:
            image = Image.open(io.BytesIO(files[name])).convert("RGB")
            image.thumbnail((SIDE, SIDE))
            photos.append(np.asarray(image))
        parts += [photos, np.array([rows[Path(name).stem] for name in names])]
    return Pile(*parts)
