"""The demonstration set: rendered photos of invented objects, in place of a landmark collection.

Every object is seen along a smooth path of viewpoint, distance and light, so that its far views are
linked through intermediate ones: the manifold that the method mines. Objects come in families of
two that share palette and layout and differ in detail, so that the Euclidean neighbours
of a photo are often of another object.

Files and ground truth have the form of Oxford5k. The pictures come from `artworks`, the photos
from `photos`.
"""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias

from joblib import cpu_count
from numpy.random import default_rng

from mmray.images.demo.artworks import ARTISTS
from mmray.images.demo.photos import Model, make_model, path_view, take_photo

FAMILY = 2  # objects that share palette and layout
QUERIES = 3  # per test object
GOOD, OK = 0.65, 0.25  # visible fractions from which a photo is "good" and "ok"
QUALITY = 88  # of JPEG
# Purposes of random generators, each a part of the seed beside the seed of the collection.
LAYOUT, DETAIL, PATH, PHOTO, NAMES, KINDS = range(6)

Write: TypeAlias = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Subject:
    """An object of the collection; photos of it follow the path of views that `path_seed` draws."""

    name: str
    model: Model
    path_seed: tuple[int, ...]


@dataclass(frozen=True)
class Labelled:
    """A photo's name and data, with its object ("" for none) and its ground truth."""

    name: str
    data: bytes
    subject: str
    visible: float
    box: tuple[float, float, float, float]


def render_collection(
    write: Write,
    *,
    objects: int,
    photos: int,
    distractors: int,
    longest_side: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Render an unlabelled training part and a test part of other objects with ground truth.

    Files: `train/NAME.jpg`; `train_labels.csv` (name, object; only to measure how pure mined pools
    are); `test/jpg/NAME.jpg` and `test/gt/OBJECT_i_{query,good,ok,junk}.txt` as in Oxford5k;
    `test_labels.csv`, for measures of classes.
    Names do not reveal the object. A photo depends only on the seed, its index and the sizes.

    Parameters
    ----------
    write : stores a file under a relative path; called in a fixed order from this thread
    objects : number of objects in each part, at least 1
    photos : number of photos of each object, at least 1
    distractors : number of photos of none of the objects in each part
    longest_side : longest side of every photo in pixels, at least 64
    seed : of all random choices, not negative
    progress : called with the number of photos that were just stored

    Returns
    -------
    Counts: train_photos, test_photos, objects, queries, good, ok, junk (labels of test photos).

    Raises
    ------
    ValueError
        A size is too small, or the seed is negative.
    """
    least = {"objects": 1, "photos": 1, "distractors": 0, "longest_side": 64, "seed": 0}
    given = (objects, photos, distractors, longest_side, seed)
    for (name, bound), value in zip(least.items(), given, strict=True):
        if value < bound:
            raise ValueError(f"render_collection: {name} = {value}, it must be at least {bound}")

    tables: list[list[Labelled]] = []
    for part, folder in enumerate(("train", "test/jpg")):
        subjects = _subjects(seed, part, objects)
        table = []
        for photo in _render_part(seed, part, subjects, photos, distractors, longest_side):
            write(f"{folder}/{photo.name}.jpg", photo.data)
            table.append(replace(photo, data=b""))
            if progress is not None:
                progress(1)
        tables.append(table)
    train, test = tables
    for name, photos_of in (("train", train), ("test", test)):
        rows = sorted(f"{photo.name},{photo.subject}\n" for photo in photos_of)
        write(f"{name}_labels.csv", "".join(["name,object\n", *rows]).encode())
    counts = {"train_photos": len(train), "test_photos": len(test), "objects": 2 * objects}
    return counts | _write_ground_truth(write, test)


def _subjects(seed: int, part: int, count: int) -> list[Subject]:
    """Create the objects of a part, in families of FAMILY; both parts have the same kinds."""
    kinds = default_rng([seed, KINDS]).permutation(list(ARTISTS))
    subjects = []
    for index in range(count):
        family = index // FAMILY
        kind = str(kinds[family % len(kinds)])
        layout = default_rng([seed, part, LAYOUT, family])
        model = make_model(kind, layout, default_rng([seed, part, DETAIL, index]))
        name = f"{kind}{part * count + index:03d}"
        subjects.append(Subject(name, model, (seed, part, PATH, index)))
    return subjects


def _render_part(
    seed: int, part: int, subjects: list[Subject], photos: int, distractors: int, longest_side: int
) -> Iterator[Labelled]:
    """Render the photos of a part, object by object, then the distractors, on every core."""
    total = len(subjects) * photos + distractors
    names = default_rng([seed, part, NAMES]).permutation(total) + part * total

    def render(index: int) -> Labelled:
        rng = default_rng([seed, part, PHOTO, index])
        which, step = divmod(index, photos)
        subject = subjects[which] if which < len(subjects) else None
        posed = None
        if subject is not None:
            path = default_rng(subject.path_seed)
            posed = subject.model, path_view(path, rng, (step + rng.random()) / photos)
        photo = take_photo(rng, longest_side, posed, int(rng.integers(0, 2)))
        data = io.BytesIO()
        photo.image.save(data, "JPEG", quality=QUALITY)
        name = subject.name if subject is not None else ""
        return Labelled(f"{names[index]:06d}", data.getvalue(), name, photo.visible, photo.box)

    pool = ThreadPoolExecutor(cpu_count())
    try:
        yield from pool.map(render, range(total))
    finally:
        pool.shutdown(cancel_futures=True)


def _spread(photos: list[Labelled], count: int) -> list[Labelled]:
    """Choose at most `count` photos, evenly along the path of views, so that queries differ."""
    total = len(photos)
    picks = sorted({(2 * i + 1) * total // (2 * count) for i in range(count)}) if total else []
    return [photos[i] for i in picks]


def _write_ground_truth(write: Write, test: list[Labelled]) -> dict[str, int]:
    """Write the lists of each query; return the numbers of queries, good, ok and junk photos."""
    counts = {"queries": 0, "good": 0, "ok": 0, "junk": 0}
    for subject in sorted({photo.subject for photo in test} - {""}):
        of_subject = [photo for photo in test if photo.subject == subject]
        lists = {
            "good": [photo for photo in of_subject if photo.visible >= GOOD],
            "ok": [photo for photo in of_subject if OK < photo.visible < GOOD],
            "junk": [photo for photo in of_subject if photo.visible <= OK],
        }
        queries = _spread(lists["good"] or lists["ok"], QUERIES)
        for i, query in enumerate(queries, start=1):
            box = " ".join(f"{edge:.1f}" for edge in query.box)
            write(f"test/gt/{subject}_{i}_query.txt", f"{query.name} {box}\n".encode())
            for label, photos in lists.items():
                lines = "".join(f"{photo.name}\n" for photo in photos)
                write(f"test/gt/{subject}_{i}_{label}.txt", lines.encode())
        counts["queries"] += len(queries)
        for label, photos in lists.items():
            counts[label] += len(photos)
    return counts
