"""The number of stages follows from the settings; end-to-end tests count those that run."""

import dataclasses

import pytest

from mmray.config.learning import chosen_stages
from mmray.config.presets import (
    DEMO,
    EVALUATE,
    FINEGRAINED_PRESETS,
    MINE_PRESETS,
    PRESETS,
    RECIPES,
    preset,
)
from mmray.config.tools import IndexConfig
from mmray.pipeline.plan import WORDS
from mmray.pipeline.recipes.steps import (
    evaluation_steps,
    in_rounds,
    index_steps,
    learning_steps,
    mining_steps,
    round_steps,
    row_steps,
)

STEADY = preset("demo", "steady")
BIRDS = FINEGRAINED_PRESETS["demo"]


def steps(config, **changes):
    config = dataclasses.replace(config, **changes)
    return learning_steps(config, chosen_stages(config))


def test_a_flat_run_has_all_stages_in_order():
    learned = ["extract", "near", "knn", "graph", "mine", "check", "train"]
    whitened = ["whiten/extract", "whiten/extract", "whiten"]
    measured = ["evaluate/extract", "evaluate/extract", "evaluate"]
    assert steps(STEADY) == ["demo", "list", *learned, *whitened, *measured]
    assert steps(STEADY, images=("photos",)) == ["list", *learned, *whitened]


def test_rounds_are_counted_by_themselves():
    assert in_rounds(DEMO)
    assert steps(DEMO)[:3] == ["demo", "list", "whiten/extract"]
    chosen = chosen_stages(DEMO)
    assert "sizes" in round_steps(DEMO, chosen)
    assert "near" in round_steps(DEMO, chosen)
    assert "near" not in round_steps(DEMO, chosen, first=False)


@pytest.mark.parametrize(
    ("last", "step"),
    [("extract", "near"), ("graph", "graph"), ("mine", "mine"), ("train", "train")],
)
def test_the_last_of_the_stages_flag_is_the_last_that_is_counted(last, step):
    assert steps(STEADY, stages=f"extract,{last}")[-1] == step


def test_options_bring_their_stages():
    extraction = dataclasses.replace(STEADY.extraction, pca=8, region_whitening=True)
    found = steps(STEADY, extraction=extraction, oracle="filter-both")
    assert {"pca", "regions", "oracle"} < {*found}
    assert steps(STEADY, tuples="t.pkl", images=("ims",))[:2] == ["tuples", "train"]
    test = dataclasses.replace(STEADY.evaluation, pca_images="others", images="labelled")
    found = steps(STEADY, images=("photos",), evaluation=test)
    assert (found.count("whiten/extract"), found.count("evaluate/extract")) == (3, 2)


def test_distractors_are_described_beside_their_benchmark():
    config = dataclasses.replace(
        EVALUATE, model=("vgg16", "resnet50"), benchmark=("oxford5k", "oxford105k"), data="x"
    )
    described = "evaluate/extract"
    assert evaluation_steps(config) == [
        *([described] * 2 + ["evaluate"]),
        *([described] * 4 + ["evaluate"]),
    ]
    with_pca = dataclasses.replace(config, pca_images="others")
    assert len(evaluation_steps(with_pca)) == len(evaluation_steps(config)) + 2


def test_an_index_lists_each_source_and_describes_what_is_new_within_its_last_stage():
    assert index_steps(IndexConfig(images=("a", "b"))) == ["list", "list", "index"]


def test_a_fine_grained_run_lists_its_images_unless_it_splits_their_classes():
    head = ["extract", "head"]
    assert steps(BIRDS)[:4] == ["demo", "list", *head]
    assert steps(BIRDS, images=("birds",))[:2] == head
    assert steps(BIRDS, head="random")[:3] == ["demo", "list", "extract"]
    assert steps(BIRDS, baseline="triplet-semihard")[2:7] == [
        *(*head, "extract", "near", "classes")
    ]
    assert row_steps(BIRDS, chosen_stages(BIRDS))[:2] == head


@pytest.mark.parametrize(
    "found",
    [
        *(steps(preset(name, recipe)) for name in PRESETS for recipe in RECIPES),
        *(steps(config, images=("x",)) for config in FINEGRAINED_PRESETS.values()),
        *(mining_steps(config) for config in MINE_PRESETS.values()),
    ],
)
def test_every_stage_has_words(found):
    assert found
    assert {*found} <= {*WORDS}
