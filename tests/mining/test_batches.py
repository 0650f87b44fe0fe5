"""Pools by any method: eqs. (5) and (6) or a rival's, in one format, batch by batch."""

import dataclasses

import numpy as np
import pytest

from mmray.mining.anchors import select_anchors
from mmray.mining.baselines import (
    cyclic_positives,
    euclidean_lengths,
    euclidean_positives,
    geodesic_negatives,
    random_negatives,
)
from mmray.mining.batches import Miner, MiningInput
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.files import pools_table
from mmray.mining.graph import largest_component, normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.pool_lists import summary
from mmray.mining.pools import MiningMethod, mine_pools
from tests import oracles
from tests.made.synthetic import curves

SIZES = {"positive_k": 12, "negative_k": 40, "max_negatives": 8, "geodesic_far": 0.1}
POSITIVES, NEGATIVES = ("manifold", "euclidean", "cyclic"), ("manifold", "random", "geodesic")


@pytest.fixture(scope="module")
def mined_on():
    """Features, graph and items of the largest component, whose ids are not its places."""
    features = curves(4)
    found = nearest_neighbors(features, features, 6)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    items = largest_component(graph)
    assert 30 <= len(items) < len(features)
    return features, graph, items


def given_for(mined_on, **method):
    features, graph, items = mined_on
    kept = graph[items][:, items]
    return MiningInput.of(features[items], kept, reorder(normalize_graph(kept)), items, **method)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("positives", POSITIVES)
def test_every_pair_of_methods_gives_its_own_lists_by_image_id(mined_on, positives, negatives):
    features, graph, items = mined_on
    kept, y = graph[items][:, items], features[items]
    anchors = np.arange(0, len(items), 5)
    method = MiningMethod(positives=positives, negatives=negatives, seed=3, **SIZES)
    given = given_for(mined_on, positives=positives, negatives=negatives)
    mined = Miner(given, method).mine(anchors)
    sizes = {name: SIZES[name] for name in ("positive_k", "negative_k", "max_negatives")}
    manifold = mine_pools(features, graph, items[anchors], items=items, **sizes)
    nearest = nearest_neighbors(y, y[anchors], -(-len(items) // 2)).ids
    expected = {
        "manifold": manifold.positives,
        "euclidean": [items[ids] for ids in euclidean_positives(nearest, anchors)],
        "cyclic": [items[ids] for ids in cyclic_positives(nearest_neighbors(y, y, 5).ids, anchors)],
    }[positives]
    assert [ids.tolist() for ids in mined.positives] == [ids.tolist() for ids in expected]
    drawn = random_negatives(len(items), nearest, anchors, count=8, seed=3)
    far = geodesic_negatives(euclidean_lengths(kept), nearest, anchors, count=8, far=0.1)
    expected = {
        "manifold": manifold.negatives,
        "random": [items[ids] for ids in drawn],
        "geodesic": [items[ids] for ids in far],
    }[negatives]
    assert [ids.tolist() for ids in mined.negatives] == [ids.tolist() for ids in expected]
    np.testing.assert_array_equal(mined.anchors, items[anchors])
    assert sum(map(len, mined.positives)) > 0
    assert sum(map(len, mined.negatives)) > 0
    pools_table(mined)  # has the format that training reads
    assert summary(mined)["anchors"] == len(anchors)


def test_what_the_manifold_does_not_give_is_euclidean_or_not_known(mined_on):
    features, _, items = mined_on
    anchors = np.array([3, 17])
    method = MiningMethod(positives="euclidean", negatives="random", **SIZES)
    mined = Miner(given_for(mined_on), method).mine(anchors)
    s_e = oracles.similarities(features, features[items[anchors]])
    within = oracles.similarities(features[items], features[items[anchors]])
    for row in range(2):
        np.testing.assert_array_equal(
            mined.positive_similarity[row], s_e[row][mined.positives[row]]
        )
        np.testing.assert_array_equal(
            mined.negative_similarity[row], s_e[row][mined.negatives[row]]
        )
        places = [oracles.descending(within[row]).index(i) + 1 for i in range(len(items))]
        ranks = dict(zip(items.tolist(), places, strict=True))
        assert mined.positive_rank_e[row].tolist() == [ranks[i] for i in mined.positives[row]]
        assert max(mined.positive_rank_e[row]) <= 5
        assert mined.negative_rank_m[row].tolist() == [0] * 8
    assert mined.residual.tolist() == [0, 0]
    assert mined.iterations.tolist() == [0, 0]
    assert mined.manifold_neighbors is mined.positives or [
        ids.tolist() for ids in mined.manifold_neighbors
    ] == [ids.tolist() for ids in mined.positives]


@pytest.mark.parametrize("positives", POSITIVES)
def test_neither_the_batch_nor_earlier_ones_change_anything(mined_on, positives):
    method = MiningMethod(positives=positives, negatives="random", seed=1, **SIZES)
    given = given_for(mined_on, positives=positives)
    anchors = np.array([0, 9, 21, 29])
    miner = Miner(given, method)
    whole = miner.mine(anchors)
    for row in range(4):
        single = miner.mine(anchors[row : row + 1])
        for field in dataclasses.fields(whole):
            np.testing.assert_array_equal(
                getattr(single, field.name)[0], getattr(whole, field.name)[row]
            )


def test_nothing_is_diffused_for_rivals_alone(mined_on, monkeypatch):
    monkeypatch.setattr("mmray.mining.batches.pools_of", lambda *_, **__: pytest.fail("diffused"))
    method = MiningMethod(positives="cyclic", negatives="geodesic", **SIZES)
    given = given_for(mined_on, positives="cyclic", negatives="geodesic")
    Miner(given, method).mine(np.array([1]))


def test_another_seed_draws_other_negatives(mined_on):
    given, anchors = given_for(mined_on), np.arange(10)
    one, other = (
        Miner(given, MiningMethod(negatives="random", seed=seed, **SIZES)).mine(anchors)
        for seed in (0, 1)
    )
    assert any(set(a) != set(b) for a, b in zip(one.negatives, other.negatives, strict=True))


def test_zero_vectors_and_lone_items_have_no_edges_and_are_never_anchors():
    """Copies, vectors of zeros and items far from all others, from the search to the pools."""
    lone = np.zeros((2, 16), np.float32)
    features = np.concatenate([curves(5), np.zeros((3, 16), np.float32), curves(5)[:4]])
    lone[0] = -features[:10].sum(axis=0) / np.linalg.norm(features[:10].sum(axis=0))
    features = np.concatenate([features, lone[:1]])
    found = nearest_neighbors(features, features, 6)
    assert found.similarities[120:123].tolist() == [[0.0] * 6] * 3
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    degrees = np.diff(graph.indptr)
    assert degrees[120:123].tolist() == [0, 0, 0]
    for selection in ("walk", "all", "random"):
        anchors = select_anchors(graph, 500, selection=selection)
        assert len(anchors)
        assert degrees[anchors].min() > 0
    every = np.arange(len(features))
    given = MiningInput.of(features, graph, reorder(normalize_graph(graph)), every)
    mined = Miner(given, MiningMethod(**SIZES)).mine(np.flatnonzero(degrees))
    for positives in mined.positives:
        assert degrees[positives].min(initial=1) > 0
    for item in (121, len(features) - 1):
        assert degrees[item] == 0
        alone = Miner(given, MiningMethod(**SIZES)).mine(np.array([item]))
        assert [len(alone.positives[0]), len(alone.manifold_neighbors[0])] == [0, 0]
        assert alone.positive_similarity[0].tolist() == []
