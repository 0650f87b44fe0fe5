"""Baseline positives and negatives: against sets, every cycle, and all shortest paths."""

import itertools
import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from mmray.mining.baselines import (
    cyclic_positives,
    euclidean_lengths,
    euclidean_positives,
    geodesic_negatives,
    random_negatives,
)
from mmray.mining.graph import reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from tests.made.synthetic import clouds, curves, graph_of


def cyclic_oracle(lists, anchor, length):
    """All arrangements of all other items; each item by its first place on a cycle, then ranks."""
    lists = [[j for j in row if j != i] for i, row in enumerate(lists.tolist())]
    keys = {}
    others = [i for i in range(len(lists)) if i != anchor]
    for middle in itertools.permutations(others, length - 1):
        cycle = [anchor, *middle, anchor]
        if all(y in lists[x] for x, y in itertools.pairwise(cycle)):
            ranks = [lists[x].index(y) for x, y in itertools.pairwise(cycle)]
            for steps, item in enumerate(middle, start=1):
                keys[item] = min(keys.get(item, (length,)), (steps, ranks))
    return sorted(keys, key=lambda item: keys[item])


def geodesic_oracle(edges, n):
    """Floyd and Warshall; edges maps (i, j), i < j, to a length."""
    D = [[0.0 if i == j else math.inf for j in range(n)] for i in range(n)]
    for (i, j), length in edges.items():
        D[i][j] = D[j][i] = length
    for via in range(n):
        for i in range(n):
            for j in range(n):
                D[i][j] = min(D[i][j], D[i][via] + D[via][j])
    return D


def quantile_oracle(values, far):
    """Linear between the two values beside the place far * (m - 1)."""
    ordered, place = sorted(values), far * (len(values) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def csr_of(edges, n):
    """Symmetric CSR that stores lengths of 0 too."""
    pairs = [(*pair, x) for (i, j), x in edges.items() for pair in ((i, j), (j, i))]
    rows, columns, data = (np.array(part) for part in zip(*sorted(pairs), strict=True))
    starts = np.searchsorted(rows, np.arange(n + 1))
    return csr_array((data.astype(np.float64), columns, starts), shape=(n, n))


def random_edges(seed, n, density=0.12):
    """Lengths are multiples of 1/8, so that every sum is exact, ties happen, and zeros do."""
    rng = np.random.default_rng(seed)
    pairs = itertools.combinations(range(n), 2)
    edges = {pair: int(rng.integers(0, 12)) / 8 for pair in pairs if rng.random() < density}
    return edges | {(0, 1): 0.0}


def random_lists(seed, n, k):
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(n)[:k] for _ in range(n)])


def with_duplicates(seed):
    """Curves and, as items 40 to 47, copies of item 3."""
    features = curves(seed, clusters=2, per_cluster=20)
    return np.concatenate([features, np.repeat(features[3:4], 8, axis=0)])


# Nearest neighbours


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), k=st.integers(1, 12), extra=st.integers(0, 5))
def test_euclidean_positives_are_the_other_items_of_the_first_k(seed, k, extra):
    features = curves(seed, clusters=2, per_cluster=20)
    anchors = np.array([7, 0, 39])
    nearest = nearest_neighbors(features, features[anchors], k + extra).ids
    for anchor, row, found in zip(
        anchors, nearest, euclidean_positives(nearest, anchors, k), strict=True
    ):
        assert anchor in row[:k]
        assert found.tolist() == [i for i in row[:k] if i != anchor]
        assert found.dtype == np.int64


def test_the_paper_takes_five_places_with_the_anchor():
    nearest = np.array([[4, 2, 9, 1, 3, 8]])
    assert euclidean_positives(nearest, np.array([4]))[0].tolist() == [2, 9, 1, 3]
    assert euclidean_positives(nearest, np.array([9]))[0].tolist() == [4, 2, 1, 3]


@pytest.mark.parametrize("m", [5, 6, 9])
def test_an_anchor_behind_its_duplicates_still_takes_one_of_the_k_places(m):
    features = with_duplicates(0)
    nearest = nearest_neighbors(features, features[[47]], m).ids
    assert 47 not in nearest[0, :5]
    assert euclidean_positives(nearest, np.array([47]))[0].tolist() == [3, 40, 41, 42]


# Random items


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 25),
    count=st.integers(1, 30),
    data=st.data(),
)
def test_random_negatives_are_so_many_others_without_repeats(seed, n, count, data):
    k = data.draw(st.integers(1, n))
    lists = random_lists(seed, n, n)[:, : data.draw(st.integers(k, n))]
    anchors = np.arange(n)
    found = random_negatives(n, lists, anchors, k=k, count=count, seed=seed)
    for anchor, row, drawn in zip(anchors, lists, found, strict=True):
        eligible = set(range(n)) - set(row[:k].tolist()) - {anchor}
        assert len(set(drawn.tolist())) == len(drawn) == min(count, len(eligible))
        assert set(drawn.tolist()) <= eligible
        assert drawn.dtype == np.int64


def test_positives_random_negatives_and_the_anchor_are_all_items():
    features = curves(0)
    anchors = np.arange(0, 120, 9)
    nearest = nearest_neighbors(features, features[anchors], 8).ids
    positives = euclidean_positives(nearest, anchors)
    negatives = random_negatives(120, nearest, anchors, count=120, seed=0)
    for anchor, near, rest in zip(anchors, positives, negatives, strict=True):
        assert sorted([anchor, *near, *rest]) == list(range(120))


def test_every_eligible_item_is_drawn_equally_often_at_every_place():
    """Of 12 items 7 are eligible: 3,000 draws give each place each of them 429 times, ± 19."""
    nearest, anchors = np.array([[5, 0, 11, 3, 2, 9]]), np.array([8])
    times = np.zeros((3, 12), np.int64)
    for seed in range(3000):
        drawn = random_negatives(12, nearest, anchors, k=4, count=3, seed=seed)[0]
        times[np.arange(3), drawn] += 1
    eligible = [1, 2, 4, 6, 7, 9, 10]
    assert np.all(np.abs(times[:, eligible] - 3000 / 7) < 5 * 19.2)
    assert times.sum() == times[:, eligible].sum()


def test_seeds_and_anchors_have_draws_of_their_own():
    lists = np.tile(np.arange(10), (40, 1))
    draws = [
        tuple(drawn.tolist())
        for seed in (0, 1)
        for drawn in random_negatives(1000, lists, np.arange(40), count=5, seed=seed)
    ]
    assert len(set(draws)) == 80
    again = random_negatives(1000, lists[:1], np.array([7]), count=5, seed=1)
    assert tuple(again[0].tolist()) == draws[47]


def test_a_draw_from_a_million_items_needs_no_memory_for_them():
    nearest, anchors = np.arange(5)[None], np.array([999_999])
    tracemalloc.start()
    random_negatives(1_000_000, nearest, anchors, count=50, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


# Cycles


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 8),
    length=st.integers(2, 5),
    data=st.data(),
)
def test_cyclic_positives_are_the_items_of_all_cycles_of_that_length(seed, n, length, data):
    """Every list may hold the item itself, anywhere."""
    lists = random_lists(seed, n, data.draw(st.integers(1, min(n, 4))))
    found = cyclic_positives(lists, np.arange(n), length=length)
    for anchor in range(n):
        assert found[anchor].tolist() == cyclic_oracle(lists, anchor, length)
        assert found[anchor].dtype == np.int64


def test_four_edges_are_a_cycle_and_mutual_neighbours_are_not():
    """0 -> 1 -> 2 -> 3 -> 0; the mutual pair 0, 4 and the triangle 0, 1, 5 are too short."""
    lists = np.array([[4, 1], [2, 5], [3, 3], [0, 0], [0, 0], [0, 0]])
    found = cyclic_positives(lists, np.arange(6))
    assert [ids.tolist() for ids in found] == [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2], [], []]
    assert cyclic_positives(lists, np.array([0]), length=2)[0].tolist() == [4]
    assert cyclic_positives(lists, np.array([0]), length=3)[0].tolist() == [1, 5]


def test_items_of_a_cycle_are_positives_of_each_other():
    features = curves(1)
    lists = nearest_neighbors(features, features, 5).ids
    found = cyclic_positives(lists, np.arange(120))
    pairs = {(i, int(j)) for i in range(120) for j in found[i]}
    assert len(pairs) > 300
    assert pairs == {(j, i) for i, j in pairs}


def test_renaming_the_items_renames_the_cycles():
    features = curves(2)
    order = np.random.default_rng(0).permutation(120)
    lists = nearest_neighbors(features, features, 5).ids
    renamed = np.argsort(order)[lists[order]]
    plain = cyclic_positives(lists, order)
    moved = cyclic_positives(renamed, np.arange(120))
    for one, other in zip(plain, moved, strict=True):
        np.testing.assert_array_equal(one, order[other])


# Geodesic distances


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    far=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    count=st.integers(1, 12),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_geodesic_negatives_are_the_first_that_lie_beyond_the_quantile(seed, far, count, dtype):
    n = 20
    edges, nearest = random_edges(seed, n), random_lists(seed, n, 12)
    found = geodesic_negatives(
        csr_of(edges, n).astype(dtype), nearest, np.arange(n), count=count, far=far
    )
    D = geodesic_oracle(edges, n)
    for anchor, row in enumerate(nearest.tolist()):
        threshold = quantile_oracle([x for x in D[anchor] if x < math.inf], far)
        expected = [i for i in row if D[anchor][i] > threshold and i != anchor]
        assert found[anchor].tolist() == expected[:count]
        assert found[anchor].dtype == np.int64


def test_half_of_what_is_reached_is_far_by_default():
    """Items 0 to 4 on a line; nothing leads to item 5."""
    lengths = graph_of([(i, i + 1, 1.0) for i in range(4)], 6)
    found = geodesic_negatives(lengths, np.array([[0, 4, 2, 5, 3, 1]]), np.array([0]), count=9)
    assert found[0].tolist() == [4, 5, 3]


def test_all_others_are_far_from_an_anchor_without_edges():
    lengths = graph_of([(0, 1, 1.0)], 4)
    found = geodesic_negatives(lengths, np.array([[2, 3, 1, 0]]), np.array([2]), count=9)
    assert found[0].tolist() == [3, 1, 0]


def test_the_other_end_of_a_curve_is_near_in_space_and_far_along_it():
    """Items 0 and 39 are the ends of an open ring."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = nearest_neighbors(features, features, 7)
    graph = reciprocal_knn_graph(found.ids, found.similarities).tolil()
    graph[:6, 34:] = 0
    graph[34:, :6] = 0
    lengths = euclidean_lengths(graph.tocsr())
    nearest = nearest_neighbors(features, features[:1], 9).ids
    assert set(nearest[0]) == {0, 1, 2, 3, 4, 36, 37, 38, 39}
    negatives = geodesic_negatives(lengths, nearest, np.array([0]), count=10)
    assert set(negatives[0]) == {36, 37, 38, 39}


def test_lengths_are_the_euclidean_distances_of_the_features():
    features = curves(3)
    found = nearest_neighbors(features, features, 8)
    for power in (1.0, 3.0):
        graph = reciprocal_knn_graph(found.ids, found.similarities, power=power)
        lengths = euclidean_lengths(graph, power=power)
        assert lengths.dtype == np.float64
        np.testing.assert_array_equal(lengths.indptr, graph.indptr)
        np.testing.assert_array_equal(lengths.indices, graph.indices)
        rows = features.astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        for i, j in zip(*graph.nonzero(), strict=True):
            assert lengths[i, j] == pytest.approx(math.dist(rows[i], rows[j]), rel=1e-4)


def test_duplicates_stay_connected_at_a_length_above_0():
    """Rounding may leave the similarity of duplicates on either side of 1."""
    for weight in (1.0, np.nextafter(np.float32(1), np.float32(2))):
        lengths = euclidean_lengths(graph_of([(0, 1, weight), (1, 2, 0.5)], 4))
        assert lengths.nnz == 4
        assert lengths[0, 1] == lengths[1, 0] == 1e-6
        found = geodesic_negatives(lengths, np.array([[0, 1, 2, 3]]), np.array([0]), count=9)
        assert found[0].tolist() == [2, 3]


# All of them


def cases():
    features = with_duplicates(1)
    n = len(features)
    found = nearest_neighbors(features, features, 12)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    lengths = euclidean_lengths(graph)

    def geodesic(nearest, anchors):
        return geodesic_negatives(lengths, nearest, anchors, count=4, far=0.1)

    def cyclic(_, anchors):
        return cyclic_positives(found.ids[:, :5], anchors)

    random = partial(random_negatives, n, count=7, seed=3)
    return found.ids, (euclidean_positives, random, cyclic, geodesic)


@pytest.mark.parametrize("which", range(4))
def test_what_an_anchor_gets_does_not_depend_on_the_batch(which):
    nearest, functions = cases()
    select = functions[which]
    n = len(nearest)
    whole = select(nearest, np.arange(n))
    assert sum(map(len, whole)) > n
    order = np.random.default_rng(0).permutation(n)
    for size in (1, 7, n):
        for batch in np.split(order, range(size, n, size)):
            for anchor, ids in zip(batch, select(nearest[batch], batch), strict=True):
                np.testing.assert_array_equal(ids, whole[anchor])
                assert ids.dtype == np.int64
                assert anchor not in ids
                assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("which", range(4))
def test_no_anchors_give_nothing(which):
    nearest, functions = cases()
    assert functions[which](nearest[:0], np.empty(0, np.int64)) == ()


def test_the_inputs_are_left_as_they_were():
    features = clouds(0, 30)
    found = nearest_neighbors(features, features, 8)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    lengths = euclidean_lengths(graph)
    inputs = found.ids, np.arange(30), graph.data, lengths.data
    copies = [array.copy() for array in inputs]
    for ids in (
        *euclidean_positives(found.ids, inputs[1]),
        *random_negatives(30, found.ids, inputs[1], count=4, seed=0),
        *cyclic_positives(found.ids, inputs[1]),
        *geodesic_negatives(lengths, found.ids, inputs[1], count=3),
    ):
        ids[:] = -1
    euclidean_lengths(graph).indices[:] = 0
    for array, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert graph.indices.any()


NEAREST, ANCHORS = np.array([[3, 1, 2], [1, 4, 0]]), np.array([3, 1])
LINE = graph_of([(i, i + 1, 1.0) for i in range(4)], 5)
POSITIVES = partial(euclidean_positives, nearest=NEAREST, anchors=ANCHORS, k=3)
RANDOM = partial(random_negatives, n=5, nearest=NEAREST, anchors=ANCHORS, k=3, count=2, seed=0)
CYCLES = partial(cyclic_positives, neighbors=np.array([[1], [0]]), anchors=np.array([1]))
GEODESIC = partial(geodesic_negatives, LINE, nearest=NEAREST, anchors=ANCHORS, count=2)
LENGTHS = partial(euclidean_lengths, LINE)


@pytest.mark.parametrize(
    ("function", "change", "message"),
    [
        (POSITIVES, {"k": 0}, "k must be at least 1, got 0"),
        (POSITIVES, {"k": 4}, "nearest lists 3 items an anchor, but k = 4"),
        (POSITIVES, {"nearest": NEAREST[:1]}, r"each of 2 anchors, got shape \(1, 3\)"),
        (POSITIVES, {"nearest": ANCHORS}, r"each of 2 anchors, got shape \(2,\)"),
        (POSITIVES, {"nearest": [[3, 1, 2], [1, 0, 1]]}, "anchor 1 lists an item twice"),
        (RANDOM, {"k": 4}, "nearest lists 3 items an anchor, but k = 4"),
        (RANDOM, {"n": 4}, r"nearest: id 4 is outside 0\.\.3"),
        (RANDOM, {"anchors": [3, 7]}, r"anchors: id 7 is outside 0\.\.4"),
        (RANDOM, {"anchors": [-1, 1]}, r"anchors: id -1 is outside 0\.\.4"),
        (RANDOM, {"count": 0}, "count must be at least 1, got 0"),
        (RANDOM, {"seed": -1}, "seed must not be negative, got -1"),
        (CYCLES, {"length": 1}, "length must be at least 2, got 1"),
        (CYCLES, {"neighbors": [1, 0]}, r"two-dimensional, got shape \(2,\)"),
        (CYCLES, {"neighbors": [[1], [2]]}, r"neighbors: id 2 is outside 0\.\.1"),
        (CYCLES, {"anchors": [2]}, r"anchors: id 2 is outside 0\.\.1"),
        (GEODESIC, {"nearest": [[5], [1]]}, r"nearest: id 5 is outside 0\.\.4"),
        (GEODESIC, {"nearest": [[4, 4], [1, 2]]}, "anchor 3 lists an item twice"),
        (GEODESIC, {"anchors": [3, -1]}, r"anchors: id -1 is outside 0\.\.4"),
        (GEODESIC, {"count": 0}, "count must be at least 1, got 0"),
        (GEODESIC, {"far": 1.5}, r"far must be in 0\.\.1, got 1\.5"),
        (GEODESIC, {"far": math.nan}, r"far must be in 0\.\.1, got nan"),
        (LENGTHS, {"power": 0}, "power must be positive, got 0"),
    ],
)
def test_unusable_arguments_are_refused(function, change, message):
    change = {
        name: np.array(value) if isinstance(value, list) else value
        for name, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        function(**change)


@pytest.mark.parametrize("weight", [-0.5, math.nan])
def test_edges_that_are_negative_or_no_number_are_refused(weight):
    graph = graph_of([(0, 1, weight)], 3)
    with pytest.raises(ValueError, match="weights of edges must not be negative or NaN"):
        euclidean_lengths(graph)
    with pytest.raises(ValueError, match="lengths of edges must not be negative or NaN"):
        geodesic_negatives(graph, np.array([[1]]), np.array([0]), count=1)
