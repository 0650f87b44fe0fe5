"""Exact k-NN: against brute force, ties, independence of blocks, errors."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.mining.knn import exact as neighbors
from mmray.mining.knn import exact_cuda
from mmray.mining.knn.exact import ExactIndex, nearest_in_parts, nearest_neighbors
from mmray.mining.knn.products import scaled
from mmray.system.errors import InputError
from mmray.system.rows import Rows
from tests import oracles
from tests.made.synthetic import clouds, curves, unit_rows


@pytest.mark.parametrize(("n", "d", "k"), [(1, 3, 1), (120, 16, 30), (700, 96, 50), (90, 8, 90)])
def test_search_equals_brute_force(n, d, k):
    features = clouds(n, n, d)
    found = nearest_neighbors(features, features, k)
    assert found.ids.dtype == np.int64
    assert found.similarities.dtype == np.float32
    np.testing.assert_array_equal(found.ids, oracles.nearest(features, features, k))
    expected = np.take_along_axis(oracles.similarities(features, features), found.ids, axis=1)
    np.testing.assert_array_equal(found.similarities, expected)


def test_search_agrees_with_the_literal_sum_of_products():
    features = clouds(0, 40, 7)
    found = nearest_neighbors(features, features[:3], 40)
    for row in range(3):
        literal = [oracles.similarity(features[row], features[i]) for i in found.ids[row]]
        np.testing.assert_array_equal(found.similarities[row], literal)


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), distinct=st.integers(1, 6), k=st.integers(1, 120))
def test_ties_go_to_the_smaller_id_also_at_the_last_place(seed, distinct, k):
    """Hundreds of copies of a few rows: the tie runs far past anything fetched at first."""
    rng = np.random.default_rng(seed)
    database = rng.integers(-2, 3, (distinct, 5)).astype(np.float32)[rng.integers(0, distinct, 400)]
    queries = rng.integers(-2, 3, (3, 5)).astype(np.float32)
    found = nearest_neighbors(database, queries, k)
    np.testing.assert_array_equal(found.ids, oracles.nearest(database, queries, k))


def test_items_closer_together_than_blas_rounds_are_ordered_exactly():
    rng = np.random.default_rng(5)
    center = rng.standard_normal(512)
    database = unit_rows(center + 1e-6 * rng.standard_normal((1500, 512)))
    queries = unit_rows(center + 0.3 * rng.standard_normal((40, 512)))
    found = nearest_neighbors(database, queries, 20)
    np.testing.assert_array_equal(found.ids, oracles.nearest(database, queries, 20))


def test_ten_thousand_neighbours_are_exact():
    database = clouds(1, 30_000, 4)
    similarities = oracles.similarities(database, database[:3])
    expected = np.argsort(-similarities, axis=1, kind="stable")[:, :10_000]
    np.testing.assert_array_equal(nearest_neighbors(database, database[:3], 10_000).ids, expected)


def test_a_row_depends_on_its_query_alone(monkeypatch):
    features = curves(3, clusters=6, per_cluster=50, d=24)
    features = np.concatenate([features, features[:40]])
    whole = nearest_neighbors(features, features, 35)
    monkeypatch.setattr(neighbors, "_TILE_QUERIES", 7)
    monkeypatch.setattr(neighbors, "_TILE_ITEMS", 64)
    blocked = nearest_neighbors(features, features, 35)
    threaded = nearest_neighbors(features, features, 35, threads=3)
    alone = nearest_neighbors(features, features[11:12], 35)
    for field in ("ids", "similarities"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(blocked, field))
        np.testing.assert_array_equal(getattr(whole, field), getattr(threaded, field))
        np.testing.assert_array_equal(getattr(whole, field)[11:12], getattr(alone, field))


def tight(seed, n, d, spread):
    """Rows so near each other that bfloat16 cannot tell them apart."""
    rng = np.random.default_rng(seed)
    return unit_rows(rng.standard_normal(d) + spread * rng.standard_normal((n, d)))


@pytest.mark.parametrize("k", [1, 30, 400])
@pytest.mark.parametrize(
    "features",
    [
        clouds(0, 3000, 24),
        tight(1, 3000, 24, 0.05),
        tight(2, 3000, 24, 1e-4),
        np.concatenate([clouds(3, 900, 24)] * 3),
        1e4 * clouds(4, 2000, 24),
    ],
    ids=["clouds", "tight", "very tight", "copies", "long"],
)
def test_half_precision_changes_nothing(monkeypatch, features, k):
    """Whether a CPU has units for bfloat16 or not, and where its candidates find no room."""
    monkeypatch.setattr(neighbors, "_TILE_ITEMS", 256)
    queries = features[::29]
    plain = ExactIndex.of(features, half=False).search(queries, k)
    index = ExactIndex.of(features, half=True)
    assert len(index.half) == len(features)
    halved = index.search(queries, k)
    np.testing.assert_array_equal(halved.ids, plain.ids)
    np.testing.assert_array_equal(halved.similarities, plain.similarities)
    np.testing.assert_array_equal(plain.ids, oracles.nearest(features, queries, k))


@pytest.mark.parametrize(("spread", "expected"), [(1.0, 100), (1e-4, 16)])
def test_half_precision_is_given_up_where_it_tells_nothing_apart(monkeypatch, spread, expected):
    attempted, call = [], neighbors._CandidateSearch.__call__

    def counted(attempt, queries):
        if attempt.half:
            attempted.append(len(queries))
        return call(attempt, queries)

    monkeypatch.setattr(neighbors._CandidateSearch, "__call__", counted)
    features = tight(0, 3000, 24, spread)
    ExactIndex.of(features, half=True).search(features[:100], 10)
    assert attempted[0] == 16
    assert max(attempted) == expected


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("d", [3, 64, 300])
def test_products_err_by_no_more_than_is_allowed_for(half, d):
    rng = np.random.default_rng(d)
    # Entries just above half of a unit in the last place: the worst case of rounding.
    worst = unit_rows(np.sign(rng.standard_normal((500, d))) * (1 + 2.0**-8.001))
    features = np.concatenate([worst, clouds(1, 500, d), np.abs(clouds(2, 500, d))])
    index = ExactIndex.of(features, half=half)
    items = torch.from_numpy(features)
    queries, slack = scaled(features, index.norm, index.half_error if half else None)
    products = (queries @ (items.bfloat16() if half else items).T).double().numpy()
    lengths = np.linalg.norm(features.astype(np.float64), axis=1)
    exact = features.astype(np.float64) @ features.T.astype(np.float64)
    exact *= 0.99 / (lengths[:, None] * index.norm)
    errors = np.abs(products - exact).max(axis=1)
    assert np.all(errors <= slack / 2)
    assert errors.max() > slack.max() / (8 if half else 200), "the bound says nothing"


@pytest.mark.parametrize(
    "features",
    [
        clouds(0, 700, 24),
        np.concatenate([clouds(3, 90, 24)] * 8),
        np.concatenate([clouds(4, 3, 24)] * 900),  # more copies than there is room for at first
    ],
    ids=["clouds", "copies", "very many copies"],
)
@pytest.mark.parametrize("k", [1, 30, 700])
@pytest.mark.parametrize("d", [24, 29])
def test_a_gpu_finds_the_same_bits(monkeypatch, features, k, d):
    """Its code, run on the CPU: candidates by thresholds, settled in sums of the same order."""
    features = np.ascontiguousarray(
        features[:, :d] if d < 24 else np.pad(features, ((0, 0), (0, d - 24)), mode="wrap")
    )
    plain = nearest_neighbors(features, features[::7], k)
    monkeypatch.setattr(exact_cuda, "_TILE_ITEMS", 100)
    monkeypatch.setattr(exact_cuda, "_BLOCK", 3)
    monkeypatch.setattr(exact_cuda, "_GATHERED", 20_000)
    index = ExactIndex.of(features, half=False)
    on_device = exact_cuda.DeviceIndex(features, index.norm, "cpu")
    vars(index)["_on_device"] = on_device
    found = index.search(features[::7], k, device="cuda")
    np.testing.assert_array_equal(found.ids, plain.ids)
    np.testing.assert_array_equal(found.similarities, plain.similarities)
    assert on_device.half_error == pytest.approx(ExactIndex.of(features, half=True).half_error)


def test_a_gpu_that_has_no_room_for_the_database_is_named_with_what_to_do(monkeypatch):
    def full(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(InputError, match=r"^500,000 features of 2 dimensions take 0.0 GB of a GPU"):
        exact_cuda.DeviceIndex(np.zeros((500_000, 2), np.float32), 1.0, "cpu")


@pytest.mark.parametrize("part", [1, 7, 250, 1000])
def test_parts_of_the_database_change_nothing(part):
    features = np.concatenate([clouds(0, 200, 24), curves(1)[:, :8].repeat(3, axis=1)])
    features = np.concatenate([features, features[::3]])
    chosen = np.flatnonzero(np.arange(len(features)) % 5)
    found = nearest_in_parts(
        Rows(lambda: features, chosen), features[::9], 40, part=part, threads=2
    )
    plain = nearest_neighbors(features[chosen], features[::9], 40)
    np.testing.assert_array_equal(found.ids, plain.ids)
    np.testing.assert_array_equal(found.similarities, plain.similarities)
    some = np.array([1, 3, 100])
    assert found.places(2, some).tolist() == [
        (plain.ids[2] == item).argmax() + 1 if item in plain.ids[2] else 0 for item in some
    ]


def test_a_search_of_zeros_finds_the_first_ids():
    found = nearest_neighbors(np.zeros((50, 8), np.float32), clouds(0, 3, 8), 5)
    np.testing.assert_array_equal(found.ids, np.tile(np.arange(5), (3, 1)))


def test_permuting_the_items_permutes_the_result():
    features = curves(4)
    order = np.random.default_rng(0).permutation(len(features))
    plain, moved = (
        nearest_neighbors(features, features, 12),
        nearest_neighbors(features[order], features[order], 12),
    )
    np.testing.assert_array_equal(order[moved.ids], plain.ids[order])
    np.testing.assert_array_equal(moved.similarities, plain.similarities[order])


def test_a_query_of_zeros_finds_the_first_ids():
    found = nearest_neighbors(clouds(0, 300, 8), np.zeros((1, 8), np.float32), 5)
    np.testing.assert_array_equal(found.ids, [[0, 1, 2, 3, 4]])


def test_no_queries_give_an_empty_result():
    assert nearest_neighbors(clouds(0, 10, 8), np.empty((0, 8), np.float32), 3).ids.shape == (0, 3)


def test_the_inputs_are_left_as_they_were():
    features = np.asfortranarray(clouds(2, 100, 8))
    features.flags.writeable = False
    nearest_neighbors(features, features, 10)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_a_k_outside_the_database_is_refused(k):
    with pytest.raises(ValueError, match=rf"k must be between 1 and the 10 items.*got {k}$"):
        nearest_neighbors(clouds(0, 10), clouds(0, 2), k)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_a_row_that_is_not_finite_is_named(value):
    features, broken = clouds(0, 10), clouds(0, 10)
    broken[[4, 7], 2] = value
    with pytest.raises(ValueError, match=r"database: row 4 holds NaN.*2 of 10 rows"):
        nearest_neighbors(broken, features, 3)
    with pytest.raises(ValueError, match="queries: row 4 holds NaN"):
        nearest_neighbors(features, broken, 3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 3), "equal second dimensions, got shapes (10, 16) and (5, 3)"),
        ((16,), "queries must be two-dimensional, got shape (16,)"),
        ((2, 2, 16), "queries must be two-dimensional, got shape (2, 2, 16)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        nearest_neighbors(clouds(0, 10), np.zeros(shape, np.float32), 3)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="database must be float32, got float64"):
        nearest_neighbors(clouds(0, 10).astype(np.float64), clouds(0, 10), 3)
