"""The report on a graph counts what plain loops count, and says what to worry about."""

import dataclasses
import json
import tracemalloc
from collections import Counter
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from mmray.mining import graph_statistics
from mmray.mining.graph_statistics import graph_report, percent, summarize
from tests import oracles
from tests.made.synthetic import clouds, graph_of, permuted, random_graph

VALUES = np.array([0.0, -0.0, 1.0, -1.0, np.nan], np.float32)


def rows_of_few_values(seed, n, d):
    """Features (n, d) of which many are equal, some only up to the sign of a 0."""
    rng = np.random.default_rng(seed)
    return rng.choice(VALUES, (n, d), p=[0.5, 0.2, 0.1, 0.1, 0.1])


def counted(graph, features):
    """The report by plain loops over a dense matrix and the bytes of rows."""
    A = graph.toarray()
    n = len(A)
    degrees = [sum(A[i, j] != 0 for j in range(n)) for i in range(n)]
    sizes = sorted((len(part) for part in oracles.components(A)), reverse=True)
    copies = Counter(row.tobytes() for row in features)
    groups = [count for count in copies.values() if count > 1]
    return {
        "items": n,
        "edges": sum(A[i, j] != 0 for i in range(n) for j in range(i)),
        "isolated": degrees.count(0),
        "components": len(sizes),
        "largest_components": tuple(sizes[:5]),
        "degree_min": min(degrees),
        "degree_median": median(degrees),
        "degree_max": max(degrees),
        "degree_mean": pytest.approx(sum(degrees) / n),
        "duplicates": n - len(copies),
        "duplicate_groups": len(groups),
        "largest_duplicate_group": max(groups, default=0),
        "zero_vectors": sum(all(value == 0 for value in row) for row in features),
        "degree_histogram": tuple(degrees.count(i) for i in range(max(degrees) + 1)),
        "component_histogram": tuple(sorted(Counter(sizes).items())),
    }


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), d=st.integers(1, 4))
def test_the_report_counts_what_plain_loops_count(seed, n, d):
    graph, features = random_graph(seed, n, 1.5 / n), rows_of_few_values(seed, n, d)
    assert dataclasses.asdict(graph_report(graph, features)) == counted(graph, features)


def test_the_report_of_a_graph_counted_by_hand():
    features = clouds(0, 7)
    features[5] = features[6] = features[2]
    report = graph_report(graph_of([(0, 1, 0.5), (1, 2, 0.2), (4, 5, 0.1)], 7), features)
    assert (report.items, report.edges, report.isolated) == (7, 3, 2)
    assert (report.components, report.largest_components) == (4, (3, 2, 1, 1))
    assert (report.degree_min, report.degree_median, report.degree_max) == (0, 1.0, 2)
    assert (report.degree_histogram, report.degree_mean) == ((2, 4, 1), 6 / 7)
    assert report.component_histogram == ((1, 2), (2, 1), (3, 1))
    assert (report.duplicates, report.duplicate_groups) == (2, 1)
    assert (report.largest_duplicate_group, report.zero_vectors) == (3, 0)


LAYOUTS = {
    "columns": np.asfortranarray,
    "columns of float64": lambda rows: np.asfortranarray(rows.astype(np.float64)),
    "every other column": lambda rows: rows[:, ::2],
    "every other column of float64": lambda rows: rows.astype(np.float64)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_of_any_layout_are_compared(layout):
    features = LAYOUTS[layout](rows_of_few_values(1, 60, 4))
    features.flags.writeable = False  # as those of a memory-mapped file
    graph = random_graph(0, 60, 0.02)
    expected = counted(graph, features)
    assert 5 < expected["duplicates"] < 55
    assert dataclasses.asdict(graph_report(graph, features)) == expected


@pytest.mark.parametrize("rows", [1, 3, 7, 200])
def test_the_size_of_a_block_changes_nothing(monkeypatch, rows):
    graph, features = random_graph(2, 90, 0.02), rows_of_few_values(2, 90, 3)
    monkeypatch.setattr(graph_statistics, "_BLOCK_BYTES", rows * features[0].nbytes)
    assert dataclasses.asdict(graph_report(graph, features)) == counted(graph, features)


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_rows_of_equal_hashes_are_told_apart_by_their_bits(monkeypatch, distinct):
    scan = graph_statistics._scan

    def weak(features):
        hashes, zero_vectors = scan(features)
        return hashes % np.uint64(distinct), zero_vectors

    monkeypatch.setattr(graph_statistics, "_scan", weak)
    graph, features = random_graph(3, 80, 0.02), rows_of_few_values(3, 80, 3)
    expected = counted(graph, features)
    assert expected["duplicate_groups"] > 5
    assert dataclasses.asdict(graph_report(graph, features)) == expected


def test_hashes_of_rows_that_differ_do_not_collide():
    """Each differs from the first in one bit, the hardest to see: that of a sign or the last."""
    bits = np.zeros((1 + 2 * 64, 64), np.uint32)
    bits[1:65] += np.diag(np.full(64, 1 << 31, np.uint32))
    bits[65:] += np.diag(np.full(64, 1, np.uint32))
    hashes, _ = graph_statistics._scan(bits.view(np.float32))
    assert np.all(hashes[65:] % 2 == 1)  # these are the multipliers
    assert len(set(hashes.tolist())) == len(bits)


def test_zeros_of_either_sign_are_zero_vectors_but_no_duplicates():
    features = np.array([[0.0, 0.0], [0.0, -0.0], [0.0, 0.0], [0.0, 1.0]], np.float32)
    report = graph_report(graph_of([(0, 1, 0.5)], 4), features)
    assert (report.zero_vectors, report.duplicates) == (3, 1)
    assert (report.duplicate_groups, report.largest_duplicate_group) == (1, 2)


def test_permuting_the_items_leaves_the_report_as_it_was():
    graph, features = random_graph(4, 70, 0.02), rows_of_few_values(4, 70, 3)
    order = np.random.default_rng(5).permutation(70)
    report = graph_report(graph, features)
    assert graph_report(permuted(graph, order), features[order]) == report
    assert report.duplicates > 5


def test_the_report_survives_json():
    report = graph_report(random_graph(6, 50, 0.03), clouds(6, 50))
    stored = json.loads(json.dumps(dataclasses.asdict(report)))
    assert stored["degree_histogram"] == list(report.degree_histogram)
    assert stored["component_histogram"] == [list(pair) for pair in report.component_histogram]
    assert stored["degree_mean"] == report.degree_mean


def test_the_inputs_are_left_as_they_were():
    graph, features = random_graph(7, 40, 0.1), rows_of_few_values(7, 40, 3)
    kept = graph.toarray(), features.tobytes()
    graph_report(graph, features)
    np.testing.assert_array_equal(graph.toarray(), kept[0])
    assert features.tobytes() == kept[1]


@pytest.mark.parametrize("copied", [False, True])
def test_counting_duplicates_holds_no_second_copy_of_the_features(copied):
    n = 100_000
    features = np.broadcast_to(clouds(8, 1, 64), (n, 64)).copy() if copied else clouds(8, n, 64)
    graph = csr_array((n, n), dtype=np.float32)
    tracemalloc.start()
    report = graph_report(graph, features)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.duplicates == (n - 1 if copied else 0)
    assert peak < features.nbytes / 2


@pytest.mark.parametrize(
    ("graph", "features", "shapes"),
    [
        ((0, 0), (0, 4), r"\(0, 0\) and \(0, 4\)"),
        ((3, 3), (2, 4), r"\(3, 3\) and \(2, 4\)"),
        ((3, 2), (3, 4), r"\(3, 2\) and \(3, 4\)"),
        ((3, 3), (3,), r"\(3, 3\) and \(3,\)"),
    ],
)
def test_a_graph_and_features_that_do_not_fit_are_refused(graph, features, shapes):
    with pytest.raises(ValueError, match=rf"of the same n >= 1 items, got {shapes}"):
        graph_report(csr_array(graph, dtype=np.float32), np.zeros(features, np.float32))


def test_a_sound_graph_gives_no_worries():
    report = graph_report(graph_of([(0, 1, 0.5), (1, 2, 0.2), (0, 2, 0.1)], 3), clouds(0, 3))
    assert summarize(report, only_largest=True) == (
        "The graph has 3 items and 3 edges: 2 to 2 an item, 2 in the median. "
        "All items are connected, and no two have equal features."
    )


def test_every_worry_is_named_with_its_number_and_remedy():
    features = clouds(0, 8)
    features[5] = features[6] = features[2]
    features[7] = 0
    report = graph_report(graph_of([(0, 1, 0.5), (1, 2, 0.2), (4, 5, 0.1)], 8), features)
    assert summarize(report, only_largest=True) == (
        "The graph has 8 items and 3 edges: 0 to 2 an item, 1 in the median. "
        "The largest of 5 components holds 37.5% of the items: only these will be "
        "mined (--mining.component all: every one). "
        "3 isolated items (37.5%) will be neither anchor nor positive. "
        "2 exact duplicates in 1 group, the largest of 3 items: remove them before mining. "
        "1 item with all features 0, similar to nothing: look at the images."
    )


def test_a_graph_without_edges_is_said_to_be_useless():
    report = graph_report(graph_of([], 2), clouds(0, 2))
    assert summarize(report, only_largest=True) == (
        "The graph has 2 items and 0 edges: 0 to 0 an item, 0 in the median. "
        "Without an edge nothing can be mined."
    )


def test_two_parts_without_isolated_items_are_a_worry():
    report = graph_report(graph_of([(0, 1, 0.5), (2, 3, 0.2)], 4), clouds(0, 4))
    assert "The largest of 2 components holds 50.0% of the items." in summarize(
        report, only_largest=False
    )
    assert "isolated" not in summarize(report, only_largest=False)


def test_a_single_isolated_item_is_named():
    text = summarize(graph_report(graph_of([(0, 1, 0.5)], 3), clouds(0, 3)), only_largest=False)
    assert "The largest of 2 components holds 66.7% of the items. 1 isolated" in text
    assert "1 isolated item (33.3%) will be neither anchor nor positive." in text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 7, "0.0%"),
        (7, 7, "100.0%"),
        (1, 8, "12.5%"),
        (1, 1000, "0.1%"),
        (1, 1001, "less than 0.1%"),
        (999, 1000, "99.9%"),
        (1000, 1001, "more than 99.9%"),
    ],
)
def test_no_share_is_rounded_to_none_or_all(part, whole, text):
    assert percent(part, whole) == text
