"""Approximate k-NN: what is found is ordered exactly, and how much is found is as it should be."""

import logging
import math
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.mining.knn import approximate
from mmray.mining.knn.approximate import ApproximateIndex, faiss
from mmray.mining.knn.exact import ExactIndex, nearest_neighbors
from mmray.mining.knn.recall import measured_recall, recall
from mmray.mining.knn.results import Neighbors
from tests import oracles
from tests.made.synthetic import clouds, curves, unit_rows

METHODS = ["ivf", "hnsw"]


def equal(one, other):
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.similarities, other.similarities)


def attempt(index, queries, k, effort):
    """One search of faiss: which queries find k items, and those."""
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    return index._attempt(queries, norms, k, effort, 1)


def lists_of(index):
    """The ids in each inverted list, as faiss holds them."""
    lists = index._index.invlists
    sizes = [lists.list_size(number) for number in range(lists.nlist)]
    return [
        faiss.rev_swig_ptr(lists.get_ids(number), size).tolist() if size else []
        for number, size in enumerate(sizes)
    ]


def nearest_in(database, query, ids, k):
    """Literal: the k most similar among some items."""
    return oracles.order(query, database, ids)[:k]


def tight(seed, n, d, spread):
    """Rows near each other."""
    return unit_rows(clouds(seed, 1, d) + spread * clouds(seed + 1, n, d))


def uneven(seed, n, d):
    """Rows of very different lengths, some of zeros."""
    lengths = np.random.default_rng(seed).uniform(0, 1e6, (n, 1))
    lengths[::50] = 0
    return (lengths * clouds(seed, n, d)).astype(np.float32)


# What a row holds


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    method=st.sampled_from(METHODS),
    n=st.integers(1, 300),
    k=st.integers(1, 60),
    effort=st.integers(1, 40),
)
def test_rows_hold_k_different_items_in_exact_order(seed, method, n, k, effort):
    """Few values and few rows: zeros, copies and ties are everywhere."""
    rng = np.random.default_rng(seed)
    k = min(k, n)
    distinct = rng.integers(-2, 3, (rng.integers(1, 60), 5)).astype(np.float32)
    database = distinct[rng.integers(0, len(distinct), n)]
    queries = rng.integers(-2, 3, (4, 5)).astype(np.float32)
    found = ApproximateIndex.of(database, method, seed=seed).search(queries, k, effort=effort)
    assert found.ids.dtype == np.int64
    assert found.similarities.dtype == np.float32
    assert found.ids.shape == found.similarities.shape == (4, k)
    for query, ids, similarities in zip(queries, found.ids, found.similarities, strict=True):
        assert len(set(ids.tolist())) == k
        assert oracles.order(query, database, ids.tolist()) == ids.tolist()
        literal = [oracles.similarity(query, database[item]) for item in ids]
        np.testing.assert_array_equal(similarities, literal)


@pytest.mark.parametrize("probes", [1, 3, 9])
@pytest.mark.parametrize(
    "database", [clouds(0, 700, 8), curves(1, clusters=9, per_cluster=80), uneven(2, 700, 8)]
)
def test_lists_give_the_best_items_of_the_nearest_lists(database, probes):
    index = ApproximateIndex.of(database, "ivf")
    d = database.shape[1]
    centroids = index._index.quantizer.reconstruct_n(0, index._index.nlist)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
    lists = lists_of(index)
    assert sorted(item for ids in lists for item in ids) == list(range(len(database)))
    found = index.search(database[1:41], 5, effort=probes)
    for query, ids in zip(database[1:41], found.ids, strict=True):
        probed = oracles.order(query, centroids[:, :d], list(range(len(centroids))))[:probes]
        candidates = [item for number in probed for item in lists[number]]
        assert len(candidates) > 10, "too few to tell"
        assert ids.tolist() == nearest_in(database, query, candidates, 5)


def test_all_lists_through_faiss_miss_nothing():
    database = curves(2, clusters=10, per_cluster=60, d=32)
    index = ApproximateIndex.of(database, "ivf")
    full, found = attempt(index, database, 20, index._exhaustive)
    assert full.all()
    equal(found, nearest_neighbors(database, database, 20))


@pytest.mark.parametrize(("spread", "least"), [(0.01, (0.999, 0.99)), (0.001, (0.99, 0.9))])
def test_near_copies_are_told_apart(spread, least):
    """Their inner products differ by the square of their distance: too little for float16."""
    database = tight(3, 900, 40, spread)
    exact = nearest_neighbors(database, database, 6)
    index = ApproximateIndex.of(database, "ivf")
    assert recall(attempt(index, database, 6, index._exhaustive)[1], exact) > least[0]
    index = ApproximateIndex.of(database, "hnsw")
    assert recall(index.search(database, 6, effort=100), exact) > least[1]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("method", METHODS)
def test_lengths_are_of_no_importance_where_they_are_equal(method, scale):
    plain = curves(16, clusters=8, per_cluster=60)
    database = (scale * plain).astype(np.float32)
    index = ApproximateIndex.of(database, method)
    full, found = attempt(index, database, 8, 7)
    assert full.all()
    wanted = {"ivf": 0.97, "hnsw": 0.999}[method]
    assert recall(found, nearest_neighbors(database, database, 8)) > wanted


@pytest.mark.parametrize("database", [clouds(0, 50, 15), uneven(1, 50, 16), uneven(2, 50, 1)])
def test_distances_on_the_sphere_are_in_the_order_of_inner_products(database):
    queries = uneven(3, 20, database.shape[1])[1:]
    norms = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (database, queries)]
    points = approximate._augmented(database, norms[0], norms[0].max()).astype(np.float64)
    lifted = approximate._augmented(queries, norms[1], norms[1]).astype(np.float64)
    assert points.shape[1] % 16 == 0
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), 1, rtol=1e-6)
    products = queries.astype(np.float64) @ database.T.astype(np.float64)
    cosines = products / (norms[1][:, None] * norms[0].max())
    squares = ((lifted[:, None] - points[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(squares, 2 - 2 * cosines, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_exhaustive_effort_is_exact_copies_included(method):
    database = np.concatenate([clouds(3, 200, 12)] * 3 + [np.zeros((9, 12), np.float32)])
    queries = np.concatenate([database[::17], -database[::29], clouds(4, 10, 12)])
    index = ApproximateIndex.of(database, method)
    for effort in (index._exhaustive, 10**9):
        equal(index.search(queries, 25, effort=effort), nearest_neighbors(database, queries, 25))


def test_recall_grows_with_the_lists_probed():
    database = clouds(5, 3000, 24)
    index, exact = ApproximateIndex.of(database, "ivf"), ExactIndex.of(database)
    found = [measured_recall(index, exact, 10, effort=e, sample=300) for e in (1, 4, 16, 46)]
    assert found == sorted(set(found))
    assert 0.1 < found[0] < 0.5
    assert found[-1] == 1


def test_recall_grows_with_the_candidates_kept_on_a_walk():
    database, queries = clouds(6, 2500, 64), clouds(15, 300, 64)
    index, exact = ApproximateIndex.of(database, "hnsw"), nearest_neighbors(database, queries, 2)
    found = [recall(index.search(queries, 2, effort=e), exact) for e in (4, 12, 40, 2500)]
    assert found == sorted(set(found))
    assert found[0] > 0.5
    assert found[-1] == 1
    # Twice k are kept at least.
    equal(index.search(queries, 2, effort=1), index.search(queries, 2, effort=4))


# Rows that find too little


def test_a_row_that_finds_too_few_items_probes_four_times_the_lists(monkeypatch):
    database = clouds(7, 1500, 8)
    index = ApproximateIndex.of(database, "ivf")
    found = index.search(database, 70, effort=1)
    full, expected = attempt(index, database, 70, 1)
    assert full.any()
    np.testing.assert_array_equal(found.ids[full], expected.ids)
    full_at_4, expected = attempt(index, database, 70, 4)
    again = full_at_4 & ~full
    assert again.sum() > 100
    np.testing.assert_array_equal(found.ids[again], expected.ids[again[full_at_4]])
    monkeypatch.setattr(approximate, "_BLOCK_ENTRIES", 10_000)
    equal(index.search(database, 70, effort=1), found)


def test_a_row_that_no_effort_short_of_all_lists_fills_is_exact():
    database = clouds(7, 1500, 8)
    found = ApproximateIndex.of(database, "ivf").search(database[:5], 1499, effort=1)
    equal(found, nearest_neighbors(database, database[:5], 1499))


def test_a_row_is_exact_where_a_walk_ends_too_soon(monkeypatch):
    """As in a part of the graph that no link leads out of: more effort would find no more."""
    database, walk, walks = clouds(8, 1500, 32), ApproximateIndex._walk, []

    def ends_too_soon(index, queries, fetch, effort, threads):
        walks.append(len(queries))
        found = walk(index, queries, fetch, effort, threads)
        found[::2, 9:] = -1
        found[1::2, 10:] = -1
        return found

    monkeypatch.setattr(ApproximateIndex, "_walk", ends_too_soon)
    found = ApproximateIndex.of(database, "hnsw").search(database, 10, effort=1)
    exact = nearest_neighbors(database, database, 10)
    np.testing.assert_array_equal(found.ids[::2], exact.ids[::2])
    np.testing.assert_array_equal(found.similarities[::2], exact.similarities[::2])
    assert not np.array_equal(found.ids[1::2], exact.ids[1::2])
    assert walks == [1500]


# A row depends on its query alone


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("database", [clouds(8, 1500, 24), tight(9, 1500, 200, 1e-4)])
def test_a_row_does_not_depend_on_other_queries_or_threads(monkeypatch, method, database):
    index = ApproximateIndex.of(database, method)
    whole = index.search(database, 6, effort=3)
    order = np.random.default_rng(0).permutation(len(database))
    shuffled = index.search(database[order], 6, effort=3)
    np.testing.assert_array_equal(shuffled.ids, whole.ids[order])
    equal(index.search(database, 6, effort=3, threads=2), whole)
    for size in (1, 19, 20, 50):
        for start in range(0, 200, size):
            part = index.search(database[start : start + size], 6, effort=3)
            np.testing.assert_array_equal(part.ids, whole.ids[start : start + size])
    monkeypatch.setattr(approximate, "_BLOCK_ENTRIES", 1000)
    equal(index.search(database, 6, effort=3), whole)


@pytest.mark.parametrize("method", METHODS)
def test_a_query_twice_gives_a_row_twice(method):
    database = curves(0, clusters=6, per_cluster=60)
    index = ApproximateIndex.of(database, method)
    found = index.search(np.repeat(database[:30], 3, axis=0), 8, effort=2)
    np.testing.assert_array_equal(found.ids, np.repeat(found.ids[::3], 3, axis=0))


@pytest.mark.parametrize("method", METHODS)
def test_a_query_of_zeros_finds_the_first_ids(method):
    queries = clouds(0, 5, 8)
    queries[[1, 3]] = 0
    index = ApproximateIndex.of(clouds(1, 400, 8), method)
    found = index.search(queries, 4, effort=1)
    np.testing.assert_array_equal(found.ids[[1, 3]], [[0, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(found.similarities[[1, 3]], np.zeros((2, 4)))
    equal(index.search(queries[[4]], 4, effort=1), Neighbors(found.ids[4:], found.similarities[4:]))


@pytest.mark.parametrize("method", METHODS)
def test_no_queries_give_an_empty_result(method):
    index = ApproximateIndex.of(clouds(0, 200, 8), method)
    assert index.search(np.empty((0, 8), np.float32), 3, effort=1).ids.shape == (0, 3)


# Building


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 5, 40, 63, 64, 150, 1200])
def test_few_items_are_enough_and_nothing_is_printed(capfd, method, n):
    database = clouds(n, n, 8)
    k = min(n, 10)
    index = ApproximateIndex.of(database, method)
    found = index.search(database, k, effort=10)
    assert recall(found, nearest_neighbors(database, database, k)) > 0.75
    if n <= 40:
        equal(found, nearest_neighbors(database, database, k))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("n", [1, 63, 64, 127, 128, 3000])
def test_every_list_has_64_items_to_train_on(n):
    index = ApproximateIndex.of(clouds(0, n, 2), "ivf")
    assert index._exhaustive == max(1, n // 64)


def test_every_item_is_added_whatever_the_blocks(monkeypatch):
    database = clouds(0, 1000, 8)
    index = ApproximateIndex.of(database, "ivf")
    monkeypatch.setattr(approximate, "_BLOCK_ROWS", 300)
    np.testing.assert_array_equal(ApproximateIndex.of(database, "ivf").trained, index.trained)
    assert ApproximateIndex.of(database, "hnsw")._index.ntotal == 1000


def test_there_are_no_more_lists_than_four_times_the_root_of_n(monkeypatch):
    monkeypatch.setattr(approximate, "_POINTS_PER_LIST", 39)  # else it takes 66,000 items
    index = ApproximateIndex.of(clouds(0, 26_000, 2), "ivf")
    assert index._exhaustive == round(4 * math.sqrt(26_000)) < 26_000 // 39


@pytest.mark.parametrize("rows", [np.zeros((500, 6), np.float32), np.ones((500, 6), np.float32)])
@pytest.mark.parametrize("method", METHODS)
def test_a_database_of_one_row_again_and_again_is_no_obstacle(capfd, method, rows):
    found = ApproximateIndex.of(rows, method).search(clouds(0, 4, 6), 90, effort=1)
    assert all(len(set(ids)) == 90 for ids in found.ids.tolist())
    np.testing.assert_array_equal(
        found.similarities, nearest_neighbors(rows, clouds(0, 4, 6), 90).similarities
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_build_equal_indexes(method):
    database = clouds(11, 2000, 16)
    one, two, other = (ApproximateIndex.of(database, method, seed=seed) for seed in (7, 7, 2**62))
    np.testing.assert_array_equal(one.trained, two.trained)
    assert not np.array_equal(one.trained, other.trained)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_takes_the_bytes_that_are_promised(method):
    n, d = 2000, 32
    index = ApproximateIndex.of(clouds(12, n, d), method)
    assert index.trained.dtype == np.uint8
    an_item = 2 * (d + 16) + (8 if method == "ivf" else 272)
    rest = 4 * (d + 16) * index._exhaustive if method == "ivf" else 0
    assert (index.trained.size - rest) / n == pytest.approx(an_item, rel=0.02)


def test_the_threads_of_other_callers_of_faiss_are_left_alone():
    before = faiss.omp_get_max_threads()
    index = ApproximateIndex.of(clouds(0, 300, 8), "ivf", threads=before + 1)
    index.search(clouds(1, 3, 8), 2, effort=1, threads=before + 2)
    assert faiss.omp_get_max_threads() == before
    with approximate.faiss_threads(before + 3):
        assert faiss.omp_get_max_threads() == before + 3
    assert faiss.omp_get_max_threads() == before


def test_faiss_does_not_tell_how_it_was_loaded():
    assert not logging.getLogger("faiss").isEnabledFor(logging.INFO)


@pytest.mark.parametrize("method", METHODS)
def test_the_inputs_are_left_as_they_were(method):
    database = np.asfortranarray(clouds(2, 300, 8))
    queries = np.asfortranarray(clouds(3, 9, 8))
    database.flags.writeable = queries.flags.writeable = False
    index = ApproximateIndex.of(database, method)
    plain = ApproximateIndex.of(database.copy(order="C"), method)
    equal(index.search(queries, 5, effort=2), plain.search(queries.copy(order="C"), 5, effort=2))


# Sharing


@pytest.mark.parametrize("method", METHODS)
def test_an_index_is_sent_as_plain_arrays_and_opened_where_they_lie(method):
    database = clouds(13, 900, 16)
    index = ApproximateIndex.of(database, method)
    found = index.search(database, 7, effort=3)
    arrays: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(index, protocol=5, buffer_callback=arrays.append)
    assert len(rest) < 1000
    shared = [bytes(array.raw()) for array in arrays]
    assert sorted(map(len, shared)) == sorted([database.nbytes, index.trained.nbytes])
    received = pickle.loads(rest, buffers=shared)
    assert not received.trained.flags.writeable
    assert (received.method, received.norm) == (index.method, index.norm)
    equal(received.search(database, 7, effort=3), found)
    assert received._index is received._index

    first = received.trained.ctypes.data
    if method == "ivf":
        lists = received._index.invlists
        addresses = [int(lists.get_codes(0)), int(lists.get_ids(lists.nlist - 1))]
    else:
        vectors = faiss.downcast_index(received._index.storage).codes
        addresses = [int(vectors.data()), int(received._index.hnsw.neighbors.data())]
    assert all(first <= address < first + received.trained.size for address in addresses)


# Recall


def test_recall_counts_items_as_similar_as_the_last_exact_one():
    exact = Neighbors(
        np.array([[0, 1, 2], [5, 6, 7]]), np.array([[0.9, 0.5, 0.5], [1, 1, 1]], np.float32)
    )
    found = Neighbors(
        np.array([[0, 8, 3], [6, 9, 4]]), np.array([[0.9, 0.5, 0.4], [1, 0.99, 0.3]], np.float32)
    )
    assert recall(found, exact) == pytest.approx(3 / 6)
    assert recall(exact, exact) == 1


def test_measured_recall_is_that_of_items_drawn_once():
    database = clouds(14, 1000, 16)
    index, exact = ApproximateIndex.of(database, "ivf"), ExactIndex.of(database)
    everything = measured_recall(index, exact, 8, effort=2, sample=5000)
    found = index.search(database, 8, effort=2)
    literal = [
        len(set(row) & set(wanted)) / 8
        for row, wanted in zip(found.ids, oracles.nearest(database, database, 8), strict=True)
    ]
    assert everything == pytest.approx(np.mean(literal))
    some = [measured_recall(index, exact, 8, effort=2, sample=50, seed=s) for s in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert abs(some[0] - everything) < 0.15


# Refusals


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [0, -1, 11])
def test_a_k_outside_the_database_is_refused(method, k):
    index = ApproximateIndex.of(clouds(0, 10), method)
    with pytest.raises(ValueError, match=rf"k must be between 1 and the 10 items.*got {k}$"):
        index.search(clouds(0, 2), k, effort=1)


@pytest.mark.parametrize("effort", [0, -3])
def test_an_effort_of_nothing_is_refused(effort):
    index = ApproximateIndex.of(clouds(0, 10), "ivf")
    with pytest.raises(ValueError, match=f"effort must be at least 1, got {effort}$"):
        index.search(clouds(0, 2), 3, effort=effort)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_row_that_is_not_finite_is_named(value):
    broken = clouds(0, 10)
    broken[[4, 7], 2] = value
    with pytest.raises(ValueError, match=r"database: row 4 holds NaN.*2 of 10 rows"):
        ApproximateIndex.of(broken, "ivf")
    with pytest.raises(ValueError, match="queries: row 4 holds NaN"):
        ApproximateIndex.of(clouds(0, 10), "hnsw").search(broken, 3, effort=1)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones((5, 3), np.float32), "equal second dimensions, got shapes (300, 16) and (5, 3)"),
        (np.ones(16, np.float32), "queries must be two-dimensional, got shape (16,)"),
        (np.ones((2, 16)), "queries must be float32, got float64"),
    ],
)
def test_queries_that_do_not_fit_are_refused(queries, message):
    index = ApproximateIndex.of(clouds(0, 300), "ivf")
    with pytest.raises(ValueError, match=re.escape(message)):
        index.search(queries, 3, effort=1)


@pytest.mark.parametrize(
    ("database", "method", "message"),
    [
        (clouds(0, 9), "lsh", "method must be 'ivf' or 'hnsw', got 'lsh'"),
        (clouds(0, 9).astype(np.float64), "ivf", "database must be float32, got float64"),
        (np.ones(9, np.float32), "ivf", "database must be two-dimensional, got shape (9,)"),
        (np.empty((0, 9), np.float32), "ivf", "database must not be empty, got shape (0, 9)"),
        (np.empty((9, 0), np.float32), "hnsw", "database must not be empty, got shape (9, 0)"),
    ],
)
def test_databases_that_cannot_be_indexed_are_refused(database, method, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ApproximateIndex.of(database, method)


def test_recall_of_different_shapes_or_nothing_is_refused():
    some, none = (
        nearest_neighbors(clouds(0, 9), clouds(0, 9), 3),
        nearest_neighbors(clouds(0, 9), clouds(0, 9)[:0], 3),
    )
    with pytest.raises(ValueError, match=re.escape("got shapes (9, 3) and (0, 3)")):
        recall(some, none)
    with pytest.raises(ValueError, match=re.escape("got shapes (0, 3) and (0, 3)")):
        recall(none, none)


def test_recall_cannot_be_measured_against_another_database_or_on_nothing():
    index, exact = ApproximateIndex.of(clouds(0, 90), "ivf"), ExactIndex.of(clouds(0, 80))
    with pytest.raises(ValueError, match=re.escape("got shapes (90, 16) and (80, 16)")):
        measured_recall(index, exact, 3, effort=1)
    with pytest.raises(ValueError, match="sample must be at least 1, got 0"):
        measured_recall(index, ExactIndex.of(clouds(0, 90)), 3, effort=1, sample=0)
