"""Numbers at their edges: what cannot be mined ends in a sentence with a value that is allowed."""

import contextlib
import dataclasses

import numpy as np
import pytest

from mmray.config.bounds import Between, annotated_fields
from mmray.config.presets import MINE_PRESETS
from mmray.config.sections import MiningConfig
from mmray.config.validation import validate
from mmray.mining.anchors import select_anchors
from mmray.mining.batches import Miner, MiningInput
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.mining.pools import MiningMethod
from mmray.pipeline.stages.minable import (
    need_anchors,
    need_component,
    need_edges,
    need_items,
    need_pairs,
)
from mmray.system.errors import InputError

CONFIG = MiningConfig(
    graph_k=6, positive_k=6, negative_k=12, component="all", selection="all", anchors=None
)


def mined(features, **changes):
    """Mine as the stages do, and return the pools."""
    config = dataclasses.replace(CONFIG, **changes)
    need_items(config, len(features), "features")
    found = nearest_neighbors(features, features, config.graph_k)
    graph = reciprocal_knn_graph(found.ids, found.similarities, power=config.power)
    need_edges(config, graph, NeighborBlocks.of(found), "features")
    anchors = select_anchors(graph, config.anchors or len(features), selection=config.selection)
    need_anchors(config, anchors, graph, "features")
    given = MiningInput.of(
        *(features, graph, reorder(normalize_graph(graph)), np.arange(len(features))),
        power=config.power,
        positives=config.positives,
        negatives=config.negatives,
    )
    pools = Miner(given, MiningMethod.of(config, 0)).mine(anchors)
    need_pairs(config, pools)
    return pools


def directions(n, d=3, spread=1.0, seed=0):
    rows = np.eye(1, d) + spread * np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


EQUAL = np.tile(directions(1), (60, 1))


@pytest.mark.parametrize(
    ("features", "changes", "message"),
    [
        (directions(0), {}, "too few features, 0: mining needs at least 3"),
        (directions(1), {}, "too few features, 1: mining needs at least 3"),
        (directions(2), {"graph_k": 2, "positive_k": 2}, "too few features, 2: .* at least 3"),
        (directions(4), {"positives": "euclidean"}, "too few features, 4: .* at least 5"),
        (directions(3), {}, "3 features are too few for --mining.graph-k 6: .* below 3"),
        (np.zeros((60, 4), "f4"), {}, "the 60 features has no edge: .* similarity above 0"),
        (np.eye(60, dtype="f4"), {}, "the 60 features has no edge: .* orthogonal"),
        (
            np.eye(60, dtype="f4") * np.float32(0.9) + np.float32(1e-3),
            {"power": 100.0},
            "highest similarity, .* vanishes .* --mining.power 100: lower it",
        ),
        (EQUAL, {"selection": "walk"}, "none of the 60 features is an anchor.*selection filled"),
        (EQUAL, {}, r"none of the \d+ anchors has a positive: .*--mining.positive-k"),
        (directions(60), {"alpha": 0.0}, "has a positive: --mining.alpha 0 .* choose 0.99"),
        (directions(60), {"positive_k": 2, "graph_k": 2}, None),
    ],
)
def test_features_without_anything_to_mine_are_refused_with_the_remedy(features, changes, message):
    if message is None:
        message = "has a positive|has a negative"
    with pytest.raises(InputError, match=message):
        mined(features, **changes)


def test_a_few_anchors_without_positives_are_no_fault():
    pools = mined(directions(60, d=8))
    assert any(map(len, pools.positives))
    assert any(map(len, pools.negatives))


def test_a_component_too_small_is_said_with_values_that_are_allowed():
    need_component(CONFIG, 7, 60, "images")
    with pytest.raises(InputError, match=r"has 6 of the 60 images.*positive-k from 2 to 5$"):
        need_component(CONFIG, 6, 60, "images")
    with pytest.raises(InputError, match=r"has 2 of the 60 images.*--mining.component all$"):
        need_component(CONFIG, 2, 60, "images")


@pytest.mark.parametrize("baseline", [{"positives": "euclidean"}, {"negatives": "random"}])
def test_a_component_too_small_for_a_baseline_is_said(baseline):
    config = dataclasses.replace(CONFIG, graph_k=3, positive_k=3, **baseline)
    need_component(config, 5, 60, "images")
    with pytest.raises(InputError, match=r"has 4 of .* needs at least 5: .*component all$"):
        need_component(config, 4, 60, "images")
    with pytest.raises(InputError, match=r"has 3 of .*positive-k 3: .*component all$"):
        need_component(config, 3, 60, "images")


MINE = dataclasses.replace(MINE_PRESETS["retrieval"], features="x.npy")
ENDS = [
    (name.removeprefix("mining."), end)
    for name, _, metadata in annotated_fields(MINE)
    for bound in metadata
    if name.startswith("mining.") and isinstance(bound, Between)
    for end in (bound.low, bound.high)
]


@pytest.mark.parametrize(("name", "end"), ENDS)
def test_both_ends_of_a_bound_are_taken_or_refused_in_a_sentence(name, end):
    value = end if end % 1 else type(getattr(MINE.mining, name) or 1)(end)
    validate(dataclasses.replace(MINE, mining=dataclasses.replace(MINE.mining, **{name: value})))
    with contextlib.suppress(InputError):
        mined(directions(60, d=8), **{name: value})


@pytest.mark.parametrize("name", sorted({name for name, _ in ENDS}))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1])
def test_no_number_outside_its_bounds_is_taken(name, value):
    with pytest.raises(InputError, match=f"--mining.{name.replace('_', '-')} {value}: choose"):
        validate(
            dataclasses.replace(MINE, mining=dataclasses.replace(MINE.mining, **{name: value}))
        )
