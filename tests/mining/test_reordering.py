"""Reordering: the same graph under other numbers, with its entries nearer to the diagonal."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.mining.diffusion import reordering
from mmray.mining.diffusion.reordering import inverse, ordered, reorder
from tests.made.synthetic import graph_of, permuted, random_graph


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60))
def test_rows_and_columns_are_renumbered_alike(seed, n):
    graph = random_graph(seed, n, min(1.0, 4 / n), np.float32)
    moved = reorder(graph)
    np.testing.assert_array_equal(np.sort(moved.items), np.arange(n))
    wanted = graph.toarray()[np.ix_(moved.items, moved.items)]
    np.testing.assert_array_equal(moved.graph.toarray(), wanted)
    np.testing.assert_array_equal(moved.items[moved.positions], np.arange(n))
    assert moved.graph.has_sorted_indices
    assert moved.graph.dtype == graph.dtype
    assert moved.graph.indices.dtype == graph.indices.dtype


def test_a_shuffled_path_is_unshuffled():
    path = graph_of([(i, i + 1, 1.0) for i in range(199)], 200)
    shuffled = permuted(path, np.random.default_rng(0).permutation(200))
    moved = reorder(shuffled).graph
    rows = np.repeat(np.arange(200), np.diff(moved.indptr))
    assert np.abs(moved.indices - rows).max() == 1
    assert np.abs(shuffled.indices - rows).max() > 50


def test_only_a_graph_of_many_items_is_reordered(monkeypatch):
    graph = random_graph(1, 30, 0.2)
    plain = ordered(graph)
    assert plain.graph is graph
    np.testing.assert_array_equal(plain.positions, np.arange(30))
    assert ordered(plain) is plain
    monkeypatch.setattr(reordering, "_PAYS_FROM", 30)
    np.testing.assert_array_equal(ordered(graph).items, reorder(graph).items)
    assert ordered(plain) is plain


def test_the_inverse_undoes_a_permutation():
    permutation = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(inverse(permutation)[permutation], np.arange(20))
