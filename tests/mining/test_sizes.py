"""Numbers of neighbours that are chosen from a collection."""

from dataclasses import replace

import numpy as np
import pytest

from mmray.config.presets import RETRIEVAL, preset
from mmray.mining.graph import component_labels, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.mining.sizes import with_chosen_sizes

OPEN = RETRIEVAL.mining


def groups(count, each, *, spread, seed=0):
    """Features of groups of items that lie close together."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((count, 32)), each, axis=0)
    rows = centres + spread * rng.standard_normal(centres.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def chosen(features, config=OPEN):
    k = min(10, len(features) - 1)
    return with_chosen_sizes(config, NeighborBlocks.of(nearest_neighbors(features, features, k)))


def largest_share(features, k):
    found = nearest_neighbors(features, features, k)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    return component_labels(graph)[1].max() / len(features)


@pytest.mark.parametrize("spread", [0.1, 0.5, 0.9, 3.0])
def test_the_graph_has_as_many_neighbours_as_keep_its_components_small(spread):
    features = groups(24, 13, spread=spread)
    config, why = chosen(features)
    k = config.graph_k
    assert 4 <= k <= 10
    assert k == 4 or largest_share(features, k) <= 0.25
    assert k == 10 or largest_share(features, k + 1) > 0.25
    assert f"graph-k {k} (" in why
    assert config.positive_k == 2 * (k - 1)


def test_the_item_itself_may_be_counted_apart():
    features = groups(24, 13, spread=0.9)
    found = NeighborBlocks.of(nearest_neighbors(features, features, 11))
    counted, apart = (
        with_chosen_sizes(replace(OPEN, count_self=own), found)[0].graph_k for own in (True, False)
    )
    assert apart == counted - 1


def test_things_that_lie_apart_get_more_neighbours_than_things_that_mix():
    apart, mixed = (chosen(groups(24, 13, spread=spread))[0] for spread in (0.1, 3.0))
    assert apart.graph_k == 10
    assert mixed.graph_k < 7


@pytest.mark.parametrize(
    ("items", "negative_k"), [(30, 100), (9000, 100), (40_000, 400), (5_000_000, 10_000)]
)
def test_negatives_are_among_the_nearest_hundredth(items, negative_k):
    found = nearest_neighbors(*[groups(4, 10, spread=0.5)] * 2, 10)
    repeated = replace(found, ids=np.broadcast_to(found.ids[:1], (items, 10)))
    config = replace(OPEN, graph_k=5, positive_k=8)
    assert with_chosen_sizes(config, NeighborBlocks.of(repeated))[0].negative_k == negative_k


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_few_items_have_few_neighbours(n):
    config, _ = chosen(groups(n, 1, spread=0.1))
    assert 2 <= config.graph_k < n
    assert 2 <= config.positive_k < n


def test_what_is_given_stays():
    given = preset("retrieval", "steady").mining
    assert chosen(groups(9, 9, spread=0.5), given) == (given, "")
    some = replace(OPEN, graph_k=7)
    config, why = chosen(groups(9, 9, spread=0.5), some)
    assert (config.graph_k, config.positive_k) == (7, 12)
    assert "graph-k" not in why
    assert why.startswith("positive-k 12 (")
