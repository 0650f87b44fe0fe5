"""The reciprocal graph of eq. (1), its normalisation and components."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.mining.graph import (
    component_labels,
    largest_component,
    normalize_graph,
    reciprocal_knn_graph,
    weighted_degrees,
)
from mmray.mining.knn.exact import nearest_neighbors
from tests import oracles
from tests.made.synthetic import clouds, curves, graph_of, permuted, random_graph


def lists_of(seed, n, k):
    """Random neighbour lists; the two directions of a pair differ as if rounded differently."""
    rng = np.random.default_rng(seed)
    neighbors = np.array([rng.permutation(n)[:k] for _ in range(n)])
    return neighbors, rng.uniform(-0.3, 1, (n, k)).astype(np.float32)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 25), data=st.data())
def test_weights_are_those_of_eq_1(seed, n, data):
    neighbors, similarities = lists_of(seed, n, data.draw(st.integers(1, n)))
    power = data.draw(st.sampled_from([1.0, 3.0]))
    graph = reciprocal_knn_graph(neighbors, similarities, power=power)
    expected = oracles.adjacency(neighbors, similarities, power)
    np.testing.assert_allclose(graph.toarray(), expected, rtol=1e-6)
    assert graph.dtype == np.float32
    assert graph.has_sorted_indices
    assert np.all(graph.data > 0)
    np.testing.assert_array_equal(graph.toarray(), graph.toarray().T)
    assert not graph.diagonal().any()


def test_an_item_among_its_duplicates_gets_no_self_edge():
    """With 6 copies and k = 4, copies 4 and 5 are missing even from their own lists."""
    features = np.concatenate([np.repeat(clouds(0, 1), 6, axis=0), clouds(1, 20)])
    found = nearest_neighbors(features, features, 4)
    assert 5 not in found.ids[5]
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    assert not graph.diagonal().any()
    expected = np.ones((4, 4)) - np.eye(4)
    np.testing.assert_allclose(graph.toarray()[:4, :4], expected, atol=1e-6)
    assert graph.toarray()[4:6].sum() == 0


def test_the_item_itself_counts_among_its_k():
    features = clouds(3, 40)
    found = nearest_neighbors(features, features, 6)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(40))
    assert np.diff(graph.indptr).max() <= 5


def test_permuting_the_items_permutes_the_graph():
    features = curves(1)
    order = np.random.default_rng(2).permutation(len(features))
    found, moved = (
        nearest_neighbors(features, features, 10),
        nearest_neighbors(features[order], features[order], 10),
    )
    plain = reciprocal_knn_graph(found.ids, found.similarities)
    other = reciprocal_knn_graph(moved.ids, moved.similarities)
    np.testing.assert_array_equal(other.toarray(), permuted(plain, order).toarray())


def test_the_inputs_are_left_as_they_were():
    neighbors, similarities = lists_of(0, 30, 8)
    copies = neighbors.copy(), similarities.copy()
    graph = reciprocal_knn_graph(neighbors, similarities)
    kept = graph.copy()
    normalize_graph(graph).data[:] = 7
    np.testing.assert_array_equal(neighbors, copies[0])
    np.testing.assert_array_equal(similarities, copies[1])
    np.testing.assert_array_equal(graph.toarray(), kept.toarray())


def test_negative_similarities_give_no_edge():
    neighbors = np.array([[1], [0]])
    graph = reciprocal_knn_graph(neighbors, np.full((2, 1), -0.5, np.float32))
    assert graph.nnz == 0


@pytest.mark.parametrize(
    ("neighbors", "similarities", "power", "message"),
    [
        ([[1, 2], [0, 2]], [[0.5], [0.5]], 3, r"one shape, got \(2, 2\) and \(2, 1\)"),
        ([0, 1], [0.5, 0.5], 3, "must be two-dimensional"),
        ([[1], [2]], [[0.5], [0.5]], 3, r"item 1: the row holds an id outside 0\.\.1"),
        ([[1], [-1]], [[0.5], [0.5]], 3, r"item 1: the row holds an id outside 0\.\.1"),
        ([[0, 1], [1, 1]], [[1, 0.5]] * 2, 3, "item 1: the row lists an item twice"),
        ([[1], [0]], [[np.nan], [0.5]], 3, "item 0: the row has a similarity that is NaN"),
        ([[1], [0]], [[0.5], [0.5]], 0, "power must be positive, got 0"),
        ([[1], [0]], [[0.5], [0.5]], np.nan, "power must be positive, got nan"),
    ],
)
def test_unusable_neighbour_lists_are_refused(neighbors, similarities, power, message):
    with pytest.raises(ValueError, match=message):
        reciprocal_knn_graph(np.array(neighbors), np.array(similarities, np.float32), power=power)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_normalisation_divides_by_the_roots_of_both_degrees(density, dtype):
    graph = random_graph(4, 60, density, dtype)
    result = normalize_graph(graph)
    rtol = 1e-6 if dtype is np.float32 else 1e-14
    np.testing.assert_allclose(
        result.toarray(), oracles.normalized_graph(graph.toarray()), rtol=rtol
    )
    np.testing.assert_array_equal(result.toarray(), result.toarray().T)
    assert result.dtype == dtype
    assert np.linalg.eigvalsh(result.toarray().astype(np.float64)).max() <= 1 + 1e-6


def test_degrees_are_summed_in_double_precision():
    graph = random_graph(0, 300, 0.5)
    expected = graph.toarray().astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(weighted_degrees(graph), expected, rtol=1e-14)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40))
def test_components_are_those_a_search_finds(seed, n):
    graph = random_graph(seed, n, 1.2 / n)
    labels, sizes = component_labels(graph)
    expected = oracles.components(graph.toarray())
    assert [np.flatnonzero(labels == c).tolist() for c in range(len(sizes))] == expected
    assert sizes.tolist() == [len(part) for part in expected]
    assert largest_component(graph).tolist() == max(expected, key=len)


def test_of_equal_components_the_one_with_the_smallest_id_is_largest():
    graph = graph_of([(1, 4, 0.5), (2, 3, 0.9)], 5)
    np.testing.assert_array_equal(largest_component(graph), [1, 4])
