"""The stages of a job are counted in one place, and said in plain words."""

import re

import pytest

from mmray.pipeline.plan import WORDS, Plan, step_of


def test_a_stage_says_which_of_how_many_it_is():
    plan = Plan(["list", "extract", "extract"])
    said = [plan.reach(step) for step in plan.steps]
    assert [line.partition(": ")[0] for line in said] == [f"stage {n} of 3" for n in (1, 2, 3)]
    assert said[0] == "stage 1 of 3: list the images"


def test_a_stage_of_a_round_says_which_round():
    plan = Plan(["extract", "knn"], within="round 2 of at most 3")
    assert plan.reach("extract").startswith("round 2 of at most 3, stage 1 of 2: describe")


def test_a_stage_that_is_left_out_is_passed_and_one_that_is_run_again_keeps_its_number():
    plan = Plan(["extract", "near", "knn", "graph"])
    assert [plan.reach(step)[:12] for step in ("extract", "knn", "extract", "knn", "graph")] == [
        *("stage 1 of 4", "stage 3 of 4", "stage 1 of 4", "stage 3 of 4", "stage 4 of 4")
    ]


def test_a_stage_within_another_or_unplanned_has_no_number():
    plan = Plan(["train"])
    plan.reach("train")
    with plan.inside():
        assert plan.reach("cache") == "  decode the images to train on"
    assert plan.reach("index") == "bring the search index up to date"
    assert Plan(within="row 1 of 2").reach("mine").startswith("row 1 of 2: mine positives")


def test_a_description_serves_the_stage_that_asks_for_it():
    assert step_of("extract", "extract") == step_of("extract") == "extract"
    assert step_of("extract", "evaluate") == "evaluate/extract"
    assert step_of("near", "extract") == "near"


@pytest.mark.parametrize("words", WORDS.values())
def test_words_are_plain_short_and_no_path(words):
    assert re.fullmatch(r"[a-z][A-Za-z -]{8,50}", words)
