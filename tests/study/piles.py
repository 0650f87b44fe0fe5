"""Piles of photos to learn from, with labelled photos of other things to measure on."""

import io
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from mmray.descriptors.embedding import embed
from mmray.descriptors.inference import fused
from mmray.descriptors.weights import build
from mmray.images.collection import ImageFile
from mmray.images.decoding import load_image
from mmray.images.demo.demo_set import render_collection
from mmray.images.perceptual_hash import perceptual_hash
from mmray.mining.near_duplicates.groups import near_duplicate_groups, representatives

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
    """Make the pile of a name; `PILES` has the names.

    After one of them, `+copies` adds near-duplicates, and `+copies-one` leaves them out again.
    """
    base, plus, copied = name.partition("+")
    if plus and copied in ("copies", "copies-one"):
        given = _with_copies(pile(base, data))
        return given if copied == "copies" else _one_of_each(given)
    if made := re.fullmatch(r"rendered(\d*)(?:x(\d+))?(?:-(\d+))?", name):
        photos, objects, seed = made.groups()
        of_each = int(photos or 13)
        return _rendered(int(seed or 0), of_each, int(objects or max(8, 312 // of_each)))
    if name not in PILES:
        also = "rendered[PHOTOS][xOBJECTS][-SEED], any of them +copies, +copies-one"
        raise SystemExit(f"no pile {name!r}: choose {', '.join(PILES)} or {also}")
    return PILES[name](data)


def _birds(data: Path) -> Pile:
    return _halves(data / BIRDS, every=2, test_every=4)


def _flowers(data: Path) -> Pile:
    return _halves(data / "flowers17", every=1, test_every=2)


def _objects(data: Path) -> Pile:
    """Objects on a turntable among clutter, which is four fifths of the pile."""
    return _with_clutter(_halves(data / "coil20", every=1, test_every=1), data, 1000)


def _scenes(data: Path) -> Pile:
    """Objects before real scenes, each before another one, turned and of several sizes."""
    given, rng = _halves(data / "coil20", every=1, test_every=1), np.random.default_rng(0)
    scenes = iter(sorted((data / CLUTTER).iterdir()))
    photos, test = (
        [_composed(photo, _read(next(scenes)), rng) for photo in part]
        for part in (given.photos, given.test)
    )
    return _with_clutter(replace(given, photos=photos, test=test), data, 100)


def _composed(photo: np.ndarray, scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put what is not black in a photo before a scene; it takes a half to all of the height."""
    image, scene = Image.fromarray(photo), Image.fromarray(scene).resize((SIDE, SIDE))
    side, angle = int(SIDE * rng.uniform(0.5, 0.9)), rng.uniform(-20, 20)
    image = image.rotate(angle, Image.Resampling.BILINEAR).resize((side, side))
    shown = Image.fromarray((np.asarray(image).max(2) > 24).astype(np.uint8) * 255)
    left, top = (int(place) for place in rng.uniform(0, SIDE - side, 2))
    lit = Image.fromarray(
        np.clip(np.asarray(image) * rng.uniform(0.7, 1.3), 0, 255).astype("uint8")
    )
    scene.paste(lit, (left, top), shown)
    return np.asarray(scene)


def _landmarks(data: Path) -> Pile:
    """Three landmarks among clutter; two others test."""
    files = sorted((data / "paris250/jpg").iterdir())
    names = np.array([file.stem.split("_")[1] for file in files])
    tests = np.isin(names, np.unique(names)[3:])
    photos = [_read(file) for file in files]
    learned, test = ([photos[i] for i in np.flatnonzero(chosen)] for chosen in (~tests, tests))
    found = Pile(learned, names[~tests], test, names[tests])
    return _with_clutter(found, data, 400)


def _mixed(data: Path) -> Pile:
    """Objects, flowers and clutter in one pile."""
    one = _halves(data / "coil20", every=1, test_every=2)
    two = _halves(data / "flowers17", every=3, test_every=4)
    joined = Pile(
        one.photos + two.photos,
        np.append(one.labels, two.labels),
        one.test + two.test,
        np.append(one.test_labels, two.test_labels),
    )
    return _with_clutter(joined, data, 300)


def _copies(data: Path) -> Pile:
    """The rendered pile with a copy of every second photo: cut, made smaller and encoded anew."""
    given, rng, copies = _rendered(0, 13, 24), np.random.default_rng(0), []
    for pixels in given.photos[::2]:
        height, width = pixels.shape[:2]
        left, top = rng.uniform(0, 0.15, 2) * (width, height)
        image = Image.fromarray(pixels).crop((int(left), int(top), width, height))
        image = image.resize([int(side * 0.7) for side in image.size])
        image.save(encoded := io.BytesIO(), "JPEG", quality=int(rng.integers(40, 90)))
        copies.append(np.asarray(Image.open(encoded)))
    labels = np.concatenate([given.labels, given.labels[::2]])
    return replace(given, photos=given.photos + copies, labels=labels)


def _with_copies(given: Pile) -> Pile:
    """Add one to three copies of every second photo, as the web copies photos."""
    rng, places, copies = np.random.default_rng(0), list[int](), []
    for place in range(0, len(given.photos), 2):
        for _ in range(rng.integers(1, 4)):
            image = Image.fromarray(given.photos[place])
            if rng.random() < 0.3:
                x, y = 0.01 * image.width, 0.01 * image.height
                image = image.crop((round(x), round(y), round(99 * x), round(99 * y)))
            scale = rng.choice([1, 1, 0.75, 0.5])
            image = image.resize([round(scale * side) for side in image.size])
            if rng.random() < 0.3:
                image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))
            image.save(encoded := io.BytesIO(), "JPEG", quality=int(rng.choice([50, 70, 90])))
            copies.append(np.asarray(Image.open(encoded)))
            places.append(place)
    labels = np.concatenate([given.labels, given.labels[places]])
    return replace(given, photos=given.photos + copies, labels=labels)


def _one_of_each(given: Pile) -> Pile:
    """Leave near-duplicates out as `--near-duplicates one` does."""
    network = fused(build("efficientnet_lite0", pooling="mac"))
    cpu = torch.device("cpu")
    rows = embed(network, given.photos, ["rmac"], batch_size=32, device=cpu)[:, 0]
    hashes = np.array([perceptual_hash(photo) for photo in given.photos], np.uint64)
    groups, _ = near_duplicate_groups(rows, hashes)
    pixels = np.array([photo.shape[0] * photo.shape[1] for photo in given.photos])
    kept = np.flatnonzero(representatives(groups, pixels) == np.arange(len(groups)))
    photos = [given.photos[place] for place in kept]
    return replace(given, photos=photos, labels=given.labels[kept])


PILES = {
    "birds": _birds,
    "flowers": _flowers,
    "objects": _objects,
    "scenes": _scenes,
    "landmarks": _landmarks,
    "mixed": _mixed,
    "copies": _copies,
}


def _with_clutter(given: Pile, data: Path, count: int) -> Pile:
    files = sorted((data / CLUTTER).iterdir())[:: 1000 // count][:count]
    photos = given.photos + [_read(file) for file in files]
    return replace(given, photos=photos, labels=np.append(given.labels, [""] * len(files)))


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


def _rendered(seed: int, photos_of_each: int, objects: int) -> Pile:
    files: dict[str, bytes] = {}
    sizes = {"objects": objects, "photos": photos_of_each, "distractors": 40, "longest_side": 256}
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
