"""The stationary distribution in closed form, and its strict local maxima."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.mining.anchors import select_anchors, stationary_distribution
from mmray.mining.graph import reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from tests import oracles
from tests.made.synthetic import curves, graph_of, permuted, random_graph


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 16), density=st.sampled_from([0.1, 0.3, 0.8]))
def test_closed_form_is_the_limit_of_the_lazy_walk(seed, n, density):
    graph = random_graph(seed, n, density)
    expected = oracles.stationary_by_iteration(graph.toarray().astype(np.float64))
    np.testing.assert_allclose(stationary_distribution(graph), expected, rtol=1e-9, atol=1e-12)


def test_the_walk_on_a_bipartite_star_has_a_stationary_distribution():
    """The plain power iteration swings between hub and leaves for ever."""
    star = graph_of([(0, i, 0.5) for i in range(1, 5)], 5)
    np.testing.assert_allclose(stationary_distribution(star), [0.5] + [0.125] * 4)


def test_components_carry_their_share_of_the_linked_items():
    graph = graph_of([(0, 1, 0.5), (1, 2, 0.25), (3, 4, 0.01)], 6)
    pi = stationary_distribution(graph)
    assert pi[:3].sum() == pytest.approx(3 / 5)
    assert pi[3:5].sum() == pytest.approx(2 / 5)
    assert pi[5] == 0
    degrees = np.array([0.5, 0.75, 0.25])
    np.testing.assert_allclose(pi[:3] / pi[0], degrees / degrees[0])


def test_a_graph_without_edges_has_no_walk_and_no_anchors():
    graph = graph_of([], 4)
    np.testing.assert_array_equal(stationary_distribution(graph), np.zeros(4))
    assert select_anchors(graph, 3).shape == (0,)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), count=st.integers(1, 20))
def test_anchors_are_the_most_important_local_maxima(seed, n, count):
    graph = random_graph(seed, n, min(1.0, 3 / n))
    anchors = select_anchors(graph, count)
    importance = stationary_distribution(graph)
    assert anchors.dtype == np.int64
    assert anchors.tolist() == oracles.local_maxima(graph.toarray(), importance, count)


def test_items_that_tie_with_a_neighbour_are_no_anchors():
    ring = graph_of([(i, (i + 1) % 6, 0.5) for i in range(6)], 6)
    assert select_anchors(ring, 6).shape == (0,)


def test_equal_anchors_come_by_id():
    stars = graph_of([(hub, leaf, 0.5) for hub in (9, 2, 5) for leaf in (hub - 1, hub + 1)], 11)
    assert select_anchors(stars, 5).tolist() == [2, 5, 9]
    assert select_anchors(stars, 2).tolist() == [2, 5]


def test_permuting_the_items_permutes_the_anchors():
    features = curves(5, clusters=5)
    found = nearest_neighbors(features, features, 10)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    order = np.random.default_rng(1).permutation(len(features))
    anchors = select_anchors(graph, 100)
    assert len(anchors) > 5
    np.testing.assert_array_equal(order[select_anchors(permuted(graph, order), 100)], anchors)


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_one_is_refused(count):
    with pytest.raises(ValueError, match=f"count must be at least 1, got {count}"):
        select_anchors(random_graph(0, 5), count)


def test_all_linked_items_or_some_at_random_can_be_anchors():
    graph = random_graph(3, 40, 0.05)
    importance = stationary_distribution(graph)
    linked = np.flatnonzero(importance)
    assert 20 < len(linked) < 40
    everything = select_anchors(graph, 100, selection="all")
    np.testing.assert_array_equal(np.sort(everything), linked)
    assert (np.diff(importance[everything]) <= 0).all()
    np.testing.assert_array_equal(select_anchors(graph, 7, selection="all"), everything[:7])
    some = select_anchors(graph, 9, selection="random", seed=1)
    assert len(np.unique(some)) == 9
    assert set(some) < set(linked)
    assert set(some) != set(everything[:9])
    assert (np.diff(importance[some]) <= 0).all()
    np.testing.assert_array_equal(some, select_anchors(graph, 9, selection="random", seed=1))
    assert set(some) != set(select_anchors(graph, 9, selection="random", seed=2))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), count=st.integers(1, 40))
def test_filled_anchors_are_all_local_maxima_and_others_up_to_the_count(seed, n, count):
    graph = random_graph(seed, n, min(1.0, 3 / n))
    importance = stationary_distribution(graph)
    linked = np.flatnonzero(importance)
    maxima = oracles.local_maxima(graph.toarray(), importance, n)
    filled = select_anchors(graph, count, selection="filled", seed=seed)
    assert filled.dtype == np.int64
    assert len(set(filled)) == len(filled) == min(count, len(linked))
    assert set(filled) <= set(linked)
    # Where they are more than the count, they are those of the walk.
    assert set(maxima[:count]) <= set(filled)
    assert filled.tolist() == sorted(filled, key=lambda i: (-importance[i], i))


def test_what_fills_up_the_anchors_is_drawn_with_the_seed():
    graph = random_graph(3, 60, 0.05)
    maxima = set(select_anchors(graph, 60))
    filled = [set(select_anchors(graph, 25, selection="filled", seed=s)) for s in (1, 1, 2)]
    assert 3 < len(maxima) < 20
    assert maxima < filled[0] == filled[1] != filled[2]
    everything = select_anchors(graph, 25, selection="all")
    assert filled[0] != set(everything)
    # Others are as likely as at random: over many draws each of them comes up.
    drawn = [select_anchors(graph, 25, selection="filled", seed=s) for s in range(60)]
    assert set(np.concatenate(drawn)) == set(select_anchors(graph, 60, selection="all"))


def test_where_the_walk_has_enough_maxima_nothing_is_filled_up():
    stars = graph_of([(hub, leaf, 0.5) for hub in (9, 2, 5) for leaf in (hub - 1, hub + 1)], 11)
    assert select_anchors(stars, 2, selection="filled").tolist() == [2, 5]
    assert select_anchors(stars, 3, selection="filled", seed=5).tolist() == [2, 5, 9]
    assert select_anchors(graph_of([], 4), 3, selection="filled").shape == (0,)
