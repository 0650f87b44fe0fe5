"""Holidays, INSTRE and classes are read in their layouts, and damage is named."""

import io
import random

import numpy as np
import pytest
from scipy.io import savemat

from mmray.evaluation.benchmarks.layouts import class_benchmark, read_holidays, read_instre
from mmray.system.errors import InputError
from tests.made.benchmark_samples import cells, structs


def truths(queries):
    """Query -> (positives, junk, row of itself)."""
    return {q.name: (q.positives.tolist(), q.junk.tolist(), q.itself) for q in queries}


# Holidays


def test_the_first_of_each_group_of_holidays_searches_for_the_others():
    images = ["jpg/100001.jpg", "b/100000.JPG", "jpg/100202.jpg", "100200.png", "jpg/100201.jpg"]
    benchmark = read_holidays(images, source="data/holidays/")
    assert benchmark.name == "holidays"
    assert benchmark.images == (
        *("b/100000.JPG", "jpg/100001.jpg", "100200.png", "jpg/100201.jpg", "jpg/100202.jpg"),
    )
    assert truths(benchmark.queries) == {
        "b/100000.JPG": ([1], [0], 0),
        "100200.png": ([3, 4], [2], 2),
    }
    assert [query.image for query in benchmark.queries] == ["b/100000.JPG", "100200.png"]
    assert {query.box for query in benchmark.queries} == {None}
    assert benchmark.labels is None


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            ["100000.jpg", "x/10001.jpg", "1000010.jpg"],
            r"2 of 3 images are not .* six digits: x/10001.jpg, 1000010.jpg; give the folder of",
        ),
        (["100000.jpg", "10000\N{ARABIC-INDIC DIGIT TWO}.jpg"], "1 of 2 images are not named"),
        ([f"a{i}.jpg" for i in range(23)], r"23 of 23 .*a0.jpg, .*a19.jpg and 3 more; give"),
        (
            ["100001.jpg", "100002.jpg", "100100.jpg", "100101.jpg"],
            "1 groups have no query, whose number ends in 00: those of 100001.jpg; add the missing",
        ),
        (
            ["100000.jpg", "100100.jpg", "100101.jpg"],
            "1 queries have no other image in their group: 100000.jpg; add the missing images",
        ),
        (["100000.jpg", "a/100001.jpg", "b/100001.jpg"], "100001 may be a/1.* or b/1.*: keep one"),
        ([], "no images in this folder"),
    ],
)
def test_damaged_holidays_are_refused_by_image(images, message):
    with pytest.raises(InputError, match=f"^holidays: {message}"):
        read_holidays(images, source="holidays")


# Classes


def test_every_image_searches_for_the_others_of_its_class():
    images = ["c.jpg", "a/x.jpg", "a/y.jpg", "w.jpg", "x.jpg", "y.jpg"]
    labels = ["alone", "a", "b", "a", "b", "b"]
    benchmark = class_benchmark(images, labels, name="birds")
    assert (benchmark.name, benchmark.images) == ("birds", tuple(images))
    assert benchmark.labels == tuple(labels)
    assert truths(benchmark.queries) == {
        "c.jpg": ([], [0], 0),
        "a/x.jpg": ([3], [1], 1),
        "a/y.jpg": ([4, 5], [2], 2),
        "w.jpg": ([1], [3], 3),
        "x.jpg": ([2, 5], [4], 4),
        "y.jpg": ([2, 4], [5], 5),
    }
    assert [query.image for query in benchmark.queries] == images
    assert {query.box for query in benchmark.queries} == {None}


# INSTRE

IMAGES = ["INSTRE-S1/01a/001.jpg", "INSTRE-S1/02a/001.jpg", "INSTRE-M/01/001.jpg"]
QUERIES = ["INSTRE-S1/01a/002.jpg", "INSTRE-S1/02a/002.jpg"]
GND = [
    {"ok": np.array([[3.0, 1.0]]), "bbx": np.array([[1.5, 2, 30, 40]])},
    {"ok": np.array([[2.0]]), "bbx": np.array([[0, 0, 9.0, 9]])},
]


def mat(*, remove=None, do_compression=True, **changes):
    content = {"imlist": cells(*IMAGES), "qimlist": cells(*QUERIES), "gnd": structs(*GND)}
    content |= changes
    content.pop(remove, None)
    with io.BytesIO() as file:
        savemat(file, content, do_compression=do_compression)
        return file.getvalue()


def instre(data, images=(*IMAGES, *QUERIES)):
    return read_instre(data, images, source="data/instre/gnd_instre.mat")


@pytest.mark.parametrize("do_compression", [False, True])
def test_instre_names_its_database_its_queries_and_their_boxes(do_compression):
    there = [f"images/{name}" for name in (*IMAGES, *QUERIES)]
    benchmark = instre(mat(do_compression=do_compression), there)
    assert benchmark.name == "instre"
    assert benchmark.images == tuple(there[:3])
    one, two = benchmark.queries
    assert (one.name, one.image, one.box) == (QUERIES[0], there[3], (1.5, 2, 30, 40))
    assert (two.name, two.image, two.box) == (QUERIES[1], there[4], (0, 0, 9, 9))
    assert [q.positives.tolist() for q in (one, two)] == [[0, 2], [1]]
    assert [(q.junk.tolist(), q.itself) for q in (one, two)] == [([], None)] * 2
    assert one.positives.dtype == one.junk.dtype == np.int64


def test_one_query_small_integers_and_columns_are_read_too():
    gnd = structs({"ok": np.array([[3], [1]], np.uint16), "bbx": np.array([0, 0, 9, 9], np.uint8)})
    data = mat(imlist=cells(*IMAGES).T, qimlist=cells(QUERIES[0]), gnd=gnd)
    (query,) = instre(data).queries
    assert (query.positives.tolist(), query.box) == ([0, 2], (0, 0, 9, 9))


def gnd(**changes):
    return structs(GND[0], {**GND[1], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remove": "gnd"}, "no variable gnd among 'imlist', 'qimlist'"),
        ({"imlist": cells()}, "imlist: expected a list that is not empty"),
        ({"imlist": "text"}, "imlist: expected a list that is not empty"),
        ({"imlist": cells("a", 1.0)}, r"imlist\[2\] is .*: expected a str"),
        ({"gnd": cells(1.0, 2.0)}, r"gnd\[1\] is .*: expected a dict"),
        ({"gnd": 1.0}, "gnd: expected a list that is not empty"),
        ({"gnd": structs(GND[0])}, "2 queries in qimlist, 1 in gnd"),
        ({"gnd": gnd(ok=np.array([[0.0]]))}, r"gnd\[2\] \(INS.*: ok holds 0: .* imlist, 1\.\.3"),
        ({"gnd": gnd(ok=np.array([[4.0]]))}, r"ok holds 4: expected rows of imlist, 1\.\.3"),
        ({"gnd": gnd(ok=np.array([[1.5]]))}, "ok holds 1.5: expected rows of imlist"),
        ({"gnd": gnd(ok=np.array([[np.nan]]))}, "ok holds nan: expected rows of imlist"),
        ({"gnd": gnd(ok="text")}, "ok is 'text': expected rows of imlist"),
        ({"gnd": structs({"good": 1.0}, {"good": 2.0})}, "expected ok and bbx, found good"),
        ({"gnd": structs({"ok": 1.0}, {"ok": 2.0})}, "box None: expected four numbers"),
        ({"gnd": gnd(bbx=np.empty((0, 0)))}, r"box \[\]: expected four numbers"),
        ({"gnd": gnd(bbx=np.array([[9.0, 0, 0, 9]]))}, "box .*: expected x1 < x2 and y1 < y2"),
        ({"imlist": cells(*IMAGES[:2], "INSTRE-M/01/9.jpg")}, r"1 of 5 .*'INS.*' \(imlist\[3\]\)"),
        ({"qimlist": cells(QUERIES[0], "x/002.jpg")}, r"1 of 5 .*'x/002.jpg' \(qimlist\[2\]\)"),
    ],
)
def test_a_damaged_ground_truth_of_instre_is_refused_by_item(changes, message):
    with pytest.raises(InputError, match=rf"^data/instre/gnd_instre\.mat: .*{message}"):
        instre(mat(**changes))


def test_an_image_of_instre_that_is_there_twice_is_refused():
    with pytest.raises(InputError, match=rf"imlist\[1\]: {IMAGES[0]} may be .* or x/.*: keep one"):
        instre(mat(), [*IMAGES, *QUERIES, f"x/{IMAGES[0]}"])


@pytest.mark.parametrize("do_compression", [False, True])
def test_damaged_bytes_of_instre_end_in_a_benchmark_or_in_a_sentence(do_compression):
    data = mat(do_compression=do_compression)
    rng, refused = random.Random(0), 0
    for _ in range(500):
        changed = bytearray(data)
        changed[rng.randrange(128, len(data))] = rng.randrange(256)
        try:
            instre(bytes(changed))
        except InputError:
            refused += 1
    assert refused > 100


def test_ground_truths_that_are_no_mat_files_are_refused():
    for data in (b"", b"not a .mat file" * 20, mat()[:200]):
        with pytest.raises(InputError, match=r"^data/instre/gnd_instre\.mat: "):
            instre(data)
