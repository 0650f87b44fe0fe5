import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image

from mmray.images.demo import demo_set, photos
from mmray.images.demo.demo_set import render_collection
from mmray.images.demo.photos import Model, View, path_view, take_photo

SIZE = {"objects": 4, "photos": 8, "distractors": 3, "longest_side": 96}


def render(seed: int = 0, **size: int) -> tuple[dict[str, bytes], dict[str, int]]:
    files: dict[str, bytes] = {}

    def write(name: str, data: bytes) -> None:
        assert name not in files, f"{name} is written twice"
        files[name] = data

    return files, render_collection(write, seed=seed, **(SIZE | size))


@pytest.fixture(scope="module")
def collection() -> tuple[dict[str, bytes], dict[str, int]]:
    return render()


@pytest.fixture(scope="module")
def files(collection) -> dict[str, bytes]:
    return collection[0]


def labels_of(files: dict[str, bytes]) -> dict[str, str]:
    header, *rows = files["train_labels.csv"].decode().splitlines()
    assert header == "name,object"
    return dict(row.split(",") for row in rows)


def ground_truth(files: dict[str, bytes], label: str) -> dict[str, list[str]]:
    """Lines of the files of one label, by OBJECT_i."""
    end = f"_{label}.txt"
    return {
        name.removeprefix("test/gt/").removesuffix(end): data.decode().splitlines()
        for name, data in files.items()
        if name.endswith(end)
    }


def photo(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_the_same_seed_gives_the_same_bytes(files):
    assert render()[0] == files


def test_the_number_of_threads_changes_nothing(files, monkeypatch):
    monkeypatch.setattr(demo_set, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    assert render()[0] == files


def test_another_seed_gives_other_photos(files):
    other, _ = render(seed=1)
    photos = {data for name, data in files.items() if name.endswith(".jpg")}
    assert photos.isdisjoint(other.values())


def test_no_photo_comes_twice(files):
    photos = [data for name, data in files.items() if name.endswith(".jpg")]
    assert len(set(photos)) == len(photos)


def test_counts_are_those_of_the_files(collection):
    files, counts = collection
    folders = Counter(name.rpartition("/")[0] for name in files)
    in_part = SIZE["objects"] * SIZE["photos"] + SIZE["distractors"]
    assert folders["train"] == folders["test/jpg"] == in_part
    assert counts["train_photos"] == counts["test_photos"] == in_part
    assert counts["objects"] == 2 * SIZE["objects"]
    assert counts["queries"] == len(ground_truth(files, "query"))
    assert counts["good"] + counts["ok"] + counts["junk"] == SIZE["objects"] * SIZE["photos"]
    for label in ("good", "ok", "junk"):
        names = {n for lines in ground_truth(files, label).values() for n in lines}
        assert counts[label] == len(names)


def test_photos_have_mixed_shapes_and_one_longest_side(files):
    sizes = {photo(data).size for name, data in files.items() if name.endswith(".jpg")}
    assert {max(size) for size in sizes} == {SIZE["longest_side"]}
    assert len(sizes) > 3


def test_labels_name_every_training_photo(files):
    labels = labels_of(files)
    assert {f"train/{name}.jpg" for name in labels} == {n for n in files if n.startswith("train/")}
    counts = Counter(labels.values())
    assert counts.pop("") == SIZE["distractors"]
    assert list(counts.values()) == [SIZE["photos"]] * SIZE["objects"]


def test_names_do_not_tell_the_object(files):
    labels = labels_of(files)
    in_order = [labels[name] for name in sorted(labels)]
    same = sum(a == b for a, b in pairwise(in_order))
    assert same < len(in_order) / 2


def test_no_object_is_in_both_parts(files):
    test_objects = {name.rpartition("_")[0] for name in ground_truth(files, "query")}
    assert len(test_objects) == SIZE["objects"]
    assert test_objects.isdisjoint(labels_of(files).values())
    assert {n[:-4] for n in files if n.startswith("train/")}.isdisjoint(
        "train/" + n[9:-4] for n in files if n.startswith("test/jpg/")
    )


def test_objects_of_a_family_share_the_palette_and_differ_in_detail():
    subjects = demo_set._subjects(seed=0, part=0, count=2 * demo_set.FAMILY)
    pictures = [s.model.faces[0][0] for s in subjects]
    family, other = pictures[: demo_set.FAMILY], pictures[demo_set.FAMILY]
    assert len({p.size for p in family}) == 1
    assert len({p.tobytes() for p in family}) == demo_set.FAMILY

    def colours(picture: Image.Image) -> set[tuple[int, ...]]:
        found = picture.convert("RGB").getcolors(100_000)
        return {colour for count, colour in found if count > 100}

    assert len(colours(family[0]) & colours(family[1])) > len(colours(family[0]) & colours(other))


def test_ground_truth_names_photos_of_the_test_part_and_its_lists_are_disjoint(files):
    names = {n[9:-4] for n in files if n.startswith("test/jpg/")}
    lists = [ground_truth(files, label) for label in ("good", "ok", "junk")]
    assert lists[0].keys() == lists[1].keys() == lists[2].keys()
    owner: dict[str, str] = {}
    for query in lists[0]:
        listed = [name for of_label in lists for name in of_label[query]]
        assert len(set(listed)) == len(listed) == SIZE["photos"]
        assert names.issuperset(listed)
        for name in listed:
            assert owner.setdefault(name, query.rpartition("_")[0]) == query.rpartition("_")[0]


def test_every_query_is_a_positive_of_itself_and_has_others(files):
    good, ok = ground_truth(files, "good"), ground_truth(files, "ok")
    queries = ground_truth(files, "query")
    assert len(queries) == demo_set.QUERIES * SIZE["objects"]
    for query, (line,) in queries.items():
        positives = good[query] + ok[query]
        assert line.split()[0] in positives
        assert len(positives) > 1


def test_query_boxes_lie_within_the_photo_and_are_not_empty(files):
    for (line,) in ground_truth(files, "query").values():
        name, *numbers = line.split()
        x1, y1, x2, y2 = map(float, numbers)
        width, height = photo(files[f"test/jpg/{name}.jpg"]).size
        assert 0 <= x1 < x1 + 8 < x2 <= width
        assert 0 <= y1 < y1 + 8 < y2 <= height


def test_photos_that_barely_show_their_object_are_junk():
    _, counts = render(seed=3, objects=6, photos=12)
    assert counts["junk"] > 0
    assert counts["good"] > counts["ok"] + counts["junk"]


def head_on(x: float = 0.5) -> View:
    return View(yaw=0, pitch=0, roll=0, scale=0.5, at=(x, 0.5), dusk=0)


SQUARE = np.array([[-1.0, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]])


def test_a_model_seen_head_on_has_the_size_that_its_scale_says():
    quad = photos._project(SQUARE, head_on(), (200, 100))
    np.testing.assert_allclose(quad, [[75, 25], [125, 25], [125, 75], [75, 75]])
    assert photos._signed_area(quad) == pytest.approx(2500)


def test_a_face_turned_away_has_negative_area():
    back = View(yaw=np.pi, pitch=0, roll=0, scale=0.5, at=(0.5, 0.5), dusk=0)
    assert photos._signed_area(photos._project(SQUARE, back, (200, 100))) < 0


def test_the_homography_maps_each_corner_to_its_own():
    rng = default_rng(0)
    source = np.array([[0.0, 0], [10, 0], [10, 8], [0, 8]])
    target = source * 5 + rng.uniform(-4, 4, (4, 2))
    a, b, c, d, e, f, g, h = photos._homography(source, target)
    x, y = target.T
    w = g * x + h * y + 1
    np.testing.assert_allclose(
        np.stack([a * x + b * y + c, d * x + e * y + f], 1) / w[:, None], source, atol=1e-9
    )


@pytest.mark.parametrize(("x", "expected"), [(0.5, 1.0), (0.0, 0.5), (-0.5, 0.0)])
def test_the_mask_and_area_give_the_fraction_within_the_photo(x, expected):
    picture = Image.new("RGBA", (100, 100), (200, 0, 0, 255))
    canvas = Image.new("RGB", (160, 120))
    mask, area = photos._place(canvas, Model(((picture, SQUARE),)), head_on(x))
    assert np.sum(np.asarray(mask) > 127) / area == pytest.approx(expected, abs=0.02)


def test_views_change_smoothly_along_the_path():
    def view(t: float) -> View:
        return path_view(default_rng(5), default_rng(6), t)

    near, same, far = view(0.5), view(0.51), view(0.95)
    for name in ("yaw", "pitch", "roll", "scale", "dusk"):
        assert abs(getattr(near, name) - getattr(same, name)) < 0.08
    assert abs(near.yaw - far.yaw) > 0.5


def test_the_photos_of_an_object_follow_one_path(monkeypatch):
    views: list[View] = []

    def recorded(path, jitter, t):
        views.append(path_view(path, jitter, t))
        return views[-1]

    monkeypatch.setattr(demo_set, "path_view", recorded)
    monkeypatch.setattr(demo_set, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    render(distractors=0)
    yaws = np.array([view.yaw for view in views]).reshape(2 * SIZE["objects"], SIZE["photos"])
    for yaw in yaws:
        assert abs(np.corrcoef(yaw, np.arange(SIZE["photos"]))[0, 1]) > 0.9


def test_a_photo_without_a_subject_shows_none():
    shown = take_photo(default_rng(0), 96, None, 1)
    assert shown.visible == 0
    assert max(shown.image.size) == 96


def test_progress_counts_every_photo():
    steps: list[int] = []
    render_collection(lambda name, data: None, seed=0, progress=steps.append, **SIZE)
    assert sum(steps) == 2 * (SIZE["objects"] * SIZE["photos"] + SIZE["distractors"])


def test_a_failure_to_write_ends_the_rendering():
    def full(name: str, data: bytes) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        render_collection(full, seed=0, **SIZE)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("objects", 0, 1), ("photos", 0, 1), ("distractors", -1, 0), ("longest_side", 63, 64)],
)
def test_a_size_that_is_too_small_is_named(name, value, least):
    with pytest.raises(ValueError, match=f"{name} = {value}, it must be at least {least}"):
        render(**{name: value})


def test_a_negative_seed_is_named():
    with pytest.raises(ValueError, match="seed = -1, it must be at least 0"):
        render(seed=-1)
