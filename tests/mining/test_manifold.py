"""Manifold neighbours are the ranking by s_m, the item itself and what is not reached left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.mining.diffusion.reordering import reorder
from mmray.mining.diffusion.solver import Solver, diffuse
from mmray.mining.graph import normalize_graph
from mmray.mining.manifold import ManifoldNeighbors, manifold_neighbors
from mmray.mining.pools import mine_pools
from tests import oracles
from tests.made.synthetic import clouds, graph_of, random_graph

ALPHA = 0.9


def neighbors_of(graph, items, k, **options):
    reordered = reorder(normalize_graph(graph))
    return manifold_neighbors(reordered, np.array(items), k, Solver(**options))


def literal_neighbors(graph, item, k):
    """The ids and s_m of the first k items by the dense inverse, in float64."""
    A_hat = oracles.normalized_graph(graph.toarray().astype(np.float64))
    s_m = oracles.diffusion(A_hat, item, ALPHA)
    near = [i for i in oracles.descending(s_m) if i != item and s_m[i] > 1e-12][:k]
    return near, s_m[near]


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), k=st.integers(1, 45))
def test_neighbors_are_the_ranking_by_the_dense_inverse(seed, n, k):
    graph = random_graph(seed, n, min(1.0, 2.5 / n), dtype=np.float64)
    items = np.random.default_rng(seed).permutation(n)[:12]
    found = neighbors_of(graph, items, k, alpha=ALPHA, max_iter=500)
    assert found.items.tolist() == items.tolist()
    for item, near, similarity in zip(items, found.neighbors, found.similarity, strict=True):
        wanted, values = literal_neighbors(graph, item, k)
        assert near.tolist() == wanted
        np.testing.assert_allclose(similarity, values, rtol=1e-5)
        assert (near.dtype, similarity.dtype) == (np.int64, np.float32)


def test_the_random_graphs_have_parts_and_more_neighbors_than_asked_for():
    """The test above would prove little on graphs where every list is empty, or is everything."""
    lengths = [
        len(near)
        for seed in range(10)
        for near in neighbors_of(random_graph(seed, 30, 2.5 / 30), range(30), 9).neighbors
    ]
    assert {0, 9} < set(lengths)


def test_an_item_less_similar_to_itself_than_its_hub_gives_k_others_all_the_same():
    """At α = 0.99 a leaf of a star diffuses more to the hub than it keeps."""
    star = graph_of([(0, leaf, 0.5) for leaf in range(1, 9)], 9)
    found = neighbors_of(star, [7], 1)
    assert found.neighbors[0].tolist() == [0]
    s_m = diffuse(normalize_graph(star), np.array([7])).similarity[0]
    assert s_m[0] > s_m[7]


@pytest.mark.parametrize("k", [1, 3, 5, 80])
def test_neighbors_that_tie_come_by_id(k):
    star = graph_of([(4, leaf, 0.5) for leaf in (6, 1, 3, 5, 0)], 8)
    found = neighbors_of(star, [4], k)
    assert found.neighbors[0].tolist() == [0, 1, 3, 5, 6][:k]
    assert len(set(found.similarity[0].tolist())) == 1


def test_an_isolated_item_has_no_neighbors():
    found = neighbors_of(graph_of([(0, 1, 0.5), (1, 2, 0.3)], 5), [4, 1, 3], 4)
    assert [near.tolist() for near in found.neighbors] == [[], [0, 2], []]
    assert [len(similarity) for similarity in found.similarity] == [0, 2, 0]


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 30))
def test_neighbors_are_those_that_the_pools_are_chosen_from(seed, k):
    graph, features = random_graph(seed, 40, 0.08), clouds(seed, 40)
    items = np.random.default_rng(seed).permutation(40)[:15]
    # NN^m of the pools counts the anchor: one more place. Where it is behind them, one is too many.
    mined = mine_pools(features, graph, items, positive_k=k + 1, negative_k=5, max_negatives=5)
    found = neighbors_of(graph, items, k)
    for near, matching in zip(found.neighbors, mined.manifold_neighbors, strict=True):
        assert near.tolist() == matching[:k].tolist()


def test_no_items_have_no_neighbors():
    found = neighbors_of(random_graph(0, 5), np.empty(0, np.int64), 3)
    assert found.items.shape == (0,)
    assert found.neighbors == found.similarity == ()


def test_renaming_writes_the_given_id_for_every_item():
    found = ManifoldNeighbors(
        items=np.array([2, 0]),
        neighbors=(np.array([1]), np.array([3, 2])),
        similarity=(np.array([0.5], np.float32), np.array([0.4, 0.1], np.float32)),
    )
    renamed = found.renamed(np.array([10, 40, 20, 30]))
    assert renamed.items.tolist() == [20, 10]
    assert [near.tolist() for near in renamed.neighbors] == [[40], [30, 20]]
    assert renamed.similarity is found.similarity
    assert found.items.tolist() == [2, 0]
