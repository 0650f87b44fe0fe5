"""Purity of pools against plain loops, what an item without a label counts as, and label files."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.evaluation import purity as module
from mmray.evaluation.purity import (
    Purity,
    coverage,
    labels_of,
    labels_of_images,
    percent,
    pool_purity,
    read_labels,
    read_named_labels,
)
from mmray.images.collection import Collection, ImageFile
from mmray.mining.graph import reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.pool_lists import Pools
from mmray.mining.pools import mine_pools
from mmray.system.errors import InputError
from tests.made.synthetic import curves

WITHOUT_LABEL = (-1, "", "-1", b"", None)


def pools_with(anchors, positives, negatives):
    """Pools of given ids; whatever purity does not look at is empty."""
    count = len(anchors)
    nothing = tuple(np.empty(0, np.float32) for _ in range(count))
    no_ids = tuple(np.empty(0, np.int64) for _ in range(count))
    return Pools(
        anchors=np.array(anchors, np.int64),
        positives=tuple(np.array(ids, np.int64) for ids in positives),
        positive_similarity=nothing,
        positive_rank_e=no_ids,
        negatives=tuple(np.array(ids, np.int64) for ids in negatives),
        negative_similarity=nothing,
        negative_rank_m=no_ids,
        manifold_neighbors=no_ids,
        zero_positives=np.zeros(count, np.int64),
        residual=np.zeros(count),
        iterations=np.zeros(count, np.int64),
    )


def counted(pools, labels):
    """The fractions by plain loops: true and all positive pairs, true and all negative pairs."""

    def equal(i, j):
        return labels[i] not in WITHOUT_LABEL and bool(labels[i] == labels[j])

    true = [0, 0]
    pairs = [0, 0]
    for row, anchor in enumerate(pools.anchors):
        for item in pools.positives[row]:
            pairs[0] += 1
            true[0] += equal(anchor, item)
        for item in pools.negatives[row]:
            pairs[1] += 1
            true[1] += not equal(anchor, item)
    rates = [t / p if p else math.nan for t, p in zip(true, pairs, strict=True)]
    return Purity(
        positives=pytest.approx(rates[0], nan_ok=True),
        negatives=pytest.approx(rates[1], nan_ok=True),
        positive_pairs=pairs[0],
        negative_pairs=pairs[1],
        anchors=len(pools.anchors),
    )


def random_pools(seed, n, anchors):
    rng = np.random.default_rng(seed)

    def lists():
        return [rng.permutation(n)[: rng.integers(0, min(n, 6))] for _ in range(anchors)]

    return pools_with(rng.integers(0, n, anchors), lists(), lists())


KINDS = {
    "int64": lambda ids: ids,
    "int8": lambda ids: ids.astype(np.int8),
    "float32": lambda ids: ids.astype(np.float32),
    "unsigned": lambda ids: (ids + 1).astype(np.uint16),
    "bool": lambda ids: ids > 0,
    "strings": lambda ids: np.array(["" if i < 0 else f"bird {i}" for i in ids]),
    "numbers as strings": lambda ids: ids.astype(str),
    "bytes": lambda ids: np.array(["" if i < 0 else f"bird {i}" for i in ids], "S"),
    "objects": lambda ids: np.array([None if i < 0 else f"bird {i}" for i in ids], object),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 20), anchors=st.integers(0, 6))
def test_purity_is_what_plain_loops_count(kind, seed, n, anchors):
    pools = random_pools(seed, n, anchors)
    labels = KINDS[kind](np.random.default_rng(seed).integers(-1, 3, n))
    assert pool_purity(pools, labels) == counted(pools, labels)


def test_purity_counts_pairs_not_anchors():
    """An anchor of many positives weighs more: 1 of 4 pairs, not the mean of 1/1 and 0/3."""
    pools = pools_with([0, 1], [[2], [2, 3, 4]], [[3], [0, 1]])
    purity = pool_purity(pools, np.array([7, 8, 7, 9, 9]))
    assert purity == Purity(
        positives=0.25, negatives=2 / 3, positive_pairs=4, negative_pairs=3, anchors=2
    )


@pytest.mark.parametrize(
    "labels",
    [
        np.array([-1, -1, 5, 5]),
        np.array([-1.0, -1.0, 5, 5]),
        np.array([np.nan, np.nan, 5, 5]),
        np.array(["", "", "a", "a"]),
        np.array(["-1", "-1", "a", "a"]),
        np.array([None, None, "a", "a"], object),
        np.array([-1, -1, "a", "a"], object),
    ],
    ids=str,
)
def test_items_without_a_label_equal_nothing_not_even_each_other(labels):
    pools = pools_with([0, 2, 2], [[1, 2], [0], [3]], [[1, 2], [0], [3]])
    purity = pool_purity(pools, labels)
    assert (purity.positives, purity.positive_pairs) == (0.25, 4)
    assert (purity.negatives, purity.negative_pairs) == (0.75, 4)


def test_no_pairs_give_nan_and_a_count_of_0():
    purity = pool_purity(pools_with([0, 1], [[1], []], [[], []]), np.array([3, 3]))
    assert purity.positives == 1
    assert math.isnan(purity.negatives)
    assert (purity.positive_pairs, purity.negative_pairs, purity.anchors) == (1, 0, 2)
    nothing = pool_purity(pools_with([], [], []), np.array([], np.int64))
    assert math.isnan(nothing.positives)
    assert math.isnan(nothing.negatives)
    assert nothing.anchors == 0


def test_renaming_items_and_labels_leaves_the_purity_as_it_was():
    pools, labels = random_pools(3, 20, 6), np.random.default_rng(3).integers(0, 3, 20)
    order = np.random.default_rng(4).permutation(20)
    moved = np.empty(20, np.int64)
    moved[order] = 10 * labels + 5
    purity = pool_purity(pools, labels)
    assert pool_purity(pools.renamed(order), moved) == purity
    assert 0 < purity.positives < 1


def test_mined_pools_of_noisy_curves_are_purer_than_chance():
    features = np.concatenate([curves(seed, clusters=1, d=6, noise=0.2) for seed in range(4)])
    labels = np.repeat([0, 1, 2, 3], 30)
    found = nearest_neighbors(features, features, 8)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    anchors = np.arange(0, 120, 7)
    pools = mine_pools(features, graph, anchors, positive_k=12, negative_k=30, max_negatives=8)
    purity = pool_purity(pools, labels)
    assert purity == counted(pools, labels)
    assert 0.5 < purity.positives < 0.8
    assert 0.9 < purity.negatives < 1


@pytest.mark.parametrize(
    ("pools", "item"),
    [
        (([4], [[0]], [[1]]), 4),
        (([0], [[0, 3]], [[1]]), 3),
        (([0], [[1]], [[2, 5]]), 5),
        (([3], [[]], [[]]), 3),
    ],
)
def test_fewer_labels_than_an_id_needs_are_refused(pools, item):
    with pytest.raises(ValueError, match=rf"pools name item {item}, but there are 3 labels"):
        pool_purity(pools_with(*pools), np.array([1, 2, 3]))


def test_labels_of_two_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"one-dimensional, got shape \(3, 1\)"):
        pool_purity(pools_with([0], [[1]], [[2]]), np.array([[1], [2], [3]]))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("gull\ntern\n", ["gull", "tern"]),
        ("gull\ntern", ["gull", "tern"]),
        ("\ufeffgull\r\n  tern \r\n", ["gull", "tern"]),
        ("01\n1\n", ["01", "1"]),
        ("\n-1\n", ["", "-1"]),
        ("möwe\n\n", ["möwe", ""]),
        ("a\u2028b\x85c\nmo\u0308we\n", ["a\u2028b\x85c", "m\u00f6we"]),
    ],
)
def test_a_text_file_gives_one_label_a_line(tmp_path, text, labels):
    file = tmp_path / "labels.txt"
    file.write_bytes(text.encode())
    for uri in (str(file), file.as_uri()):
        assert read_labels(uri, 2).tolist() == labels


@pytest.mark.parametrize("labels", [[3, -1, 3], ["a", "", "b"], np.array([1, 2, 2], np.uint8)])
def test_an_array_is_read_as_it_is(tmp_path, labels):
    file = tmp_path / "labels.npy"
    np.save(file, labels)
    for uri in (str(file), file.as_uri()):
        found = read_labels(uri, 3)
        assert found.tolist() == list(labels)
        assert found.dtype == np.asarray(labels).dtype


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("labels.txt", 4, r"labels\.txt: 3 lines, but there are 4 items; give one label for each"),
        ("labels.txt", 2, r"labels\.txt: 3 lines, but there are 2 items"),
        ("labels.npy", 4, r"labels\.npy: 3 labels, but there are 4 items; give one label for each"),
        ("empty.txt", 1, r"empty\.txt: 0 lines, but there are 1 items"),
    ],
)
def test_another_number_of_labels_is_refused(tmp_path, name, count, message):
    (tmp_path / "labels.txt").write_text("a\nb\n\n")
    (tmp_path / "empty.txt").write_text("")
    np.save(tmp_path / "labels.npy", [1, 2, 3])
    with pytest.raises(InputError, match=message):
        read_labels(str(tmp_path / name), count)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.txt", "No such file"),
        ("folder", "Is a directory"),
        ("latin.txt", "line 1 is not UTF-8"),
        ("text.npy", "magic string is not correct"),
        ("archive.npy", "magic string is not correct"),
        ("objects.npy", "an array of objects"),
        ("table.npy", r"an array of shape \(2, 2\) and type int64"),
        ("floats.npy", r"an array of shape \(2,\) and type float64"),
        ("cut.npy", "63 of the 72 bytes"),
    ],
)
def test_a_file_without_labels_is_refused(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.txt").write_bytes("möwe\n".encode("latin-1"))
    (tmp_path / "text.npy").write_text("gull\ntern\n")
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, labels=[1, 2])
    np.save(tmp_path / "objects.npy", np.array(["a", None], object))
    np.save(tmp_path / "table.npy", np.eye(2, dtype=np.int64))
    np.save(tmp_path / "floats.npy", np.array([0.5, 1]))
    np.save(tmp_path / "whole.npy", np.arange(9))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"{name}: cannot be read as labels \(.*{reason}.*\)"):
        read_labels(str(tmp_path / name), 2)


@pytest.mark.parametrize("uri", ["nowhere://bucket/labels.txt", "file:///no/such/labels.npy"])
def test_a_uri_that_leads_nowhere_is_refused(uri):
    with pytest.raises(InputError, match=r"cannot be read as labels \(.*\); give text"):
        read_labels(uri, 2)


def test_a_file_system_that_pyarrow_was_built_without_is_refused(monkeypatch):
    def read_bytes(uri):
        raise pa.ArrowNotImplementedError("built without S3")

    monkeypatch.setattr(module, "read_bytes", read_bytes)
    with pytest.raises(InputError, match=r"s3://a/b\.txt: .*: built without S3\)"):
        read_labels("s3://a/b.txt", 2)


def test_labels_by_name_are_found_with_and_without_folder_and_suffix(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('name,object\na,cat\nb.jpg,dog\n"c,d",\nsub/e.png,owl,more\n')
    named = read_named_labels(str(path))
    names = ["x/a.jpg", "b.jpg", "c,d.png", "sub/e.png", "f.jpg"]
    assert labels_of(names, named).tolist() == ["cat", "dog", "", "owl", ""]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (
            [f"p{i:02}.jpg,c{i % 3}" for i in range(12)],
            {f"p{i:02}.jpg": f"c{i % 3}" for i in range(12)},
        ),
        (["File_Name,breed", "a.jpg,1", "b.jpg,2"], {"a.jpg": "1", "b.jpg": "2"}),
        (["image id;class", "1;x"], {"1": "x"}),
        (["path\tlabel", "a/b.jpg\tx"], {"a/b.jpg": "x"}),
        # The words of a header may also be an image's stem; labels that recur are no header's.
        (["image,cat", "photo,dog", "name,cat"], {"image": "cat", "photo": "dog", "name": "cat"}),
        (["name.jpg,cat", "b.jpg,dog"], {"name.jpg": "cat", "b.jpg": "dog"}),
        (["Bild,Klasse", "a.jpg,cat"], {"Bild": "Klasse", "a.jpg": "cat"}),
        (["cafe\u0301.jpg,cafe\u0301", "b.jpg,"], {"caf\u00e9.jpg": "caf\u00e9", "b.jpg": ""}),
        (["a.jpg,cat", " ./a.jpg , cat"], {"a.jpg": "cat"}),
        ([], {}),
    ],
)
def test_a_first_line_is_a_header_by_what_it_says(tmp_path, rows, named):
    path = tmp_path / "labels.csv"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("\r\n".join(rows).encode(encoding))
        assert read_named_labels(str(path)) == named


def test_a_name_with_two_labels_is_refused(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("name,label\ncaf\u00e9,cat\nb,dog\ncafe\u0301,dog\n")
    with pytest.raises(
        InputError, match=r"labels\.csv: line 4 gives 'café' the label 'dog', line 2 gave it 'cat'"
    ):
        read_named_labels(str(path))


def test_labels_of_images_are_counted_and_must_fit():
    images = Collection.of([ImageFile(uri=f"/p/{i}.jpg", name=f"{i}.jpg") for i in range(3)])
    labels, said = labels_of_images(images, {"2": "b", "0.jpg": "a", "9": "c"}, "--pool-labels f")
    assert labels.tolist() == ["a", "", "b"]
    assert said == "2 of the 3 names of --pool-labels f fit an image; '9' fits none"
    with pytest.raises(
        InputError, match=r"--pool-labels f: none of the 1 names, such as 9, .*0\.j"
    ):
        labels_of_images(images, {"9": "c"}, "--pool-labels f")
    with pytest.raises(InputError, match=r"--pool-labels f: 0\.jpg has the label"):
        labels_of_images(images, {"0": "a", "0.jpg": "c"}, "--pool-labels f")


def test_it_is_said_whether_labels_can_tell_pure_pools():
    pools = pools_with([0, 1], [[2, 3], [2]], [[4], [0]])
    cases = [
        (["a", "", "b", "-1", "", "a"], "2 of their 5 items have a label", True),
        ([np.nan, -1, np.nan, 3.0, np.nan, 3.0], "1 of their 5 items have a label", True),
        ([-1, -1, -1, -1, -1, 3, 3], "none of their items has a label", False),
        (["a.jpg,1", "b.jpg,1", "c.jpg,2", "", ""], "no two items have the same label", False),
    ]
    for labels, words, tells in cases:
        assert coverage(pools, np.array(labels)) == (words, tells)
    assert coverage(pools_with([], [], []), np.array([3, 3]))[1] is False
    assert [percent(rate) for rate in (0.0, 0.5, np.nan)] == ["0.0%", "50.0%", "not measured"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name,object\na,1\nalone\n", "line 3 is not name,label"),
        (b'name,object\na,1\n"b,2\nc,3\n', "line 3: unexpected end of data"),
        (b"name,object\na,1\ncaf\xe9,2\n", "line 3 is not UTF-8"),
        (b"\xff\xfe\xff", "CSV file in UTF-8"),
    ],
)
def test_a_table_of_labels_that_cannot_be_read_is_named(tmp_path, content, words):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"labels\.csv.*{words}"):
        read_named_labels(str(path))
    with pytest.raises(InputError, match=r"none\.csv"):
        read_named_labels(str(tmp_path / "none.csv"))


def labels_header(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        labels_header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}"),
        labels_header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (-2, -2)}"),
        labels_header(b"{'descr': '<i8', 'fortran_order': False, 'shape': " + b"-" * 9000 + b"1}"),
        labels_header(b"{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (2,)}"),
        labels_header(b"{'descr': '<U1', 'fortran_order': False, 'shape': (2,)}") + b"\xff" * 8,
        labels_header(b"\xff" * 50),
        b"\x93NUMPY\x09\x00",
    ],
)
def test_damaged_npy_labels_are_refused_before_memory_is_taken(tmp_path, content):
    (tmp_path / "l.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"l\.npy: cannot be read as labels"):
        read_labels(str(tmp_path / "l.npy"), 2)
