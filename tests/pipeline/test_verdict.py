"""One sentence tells whether the network got better, by how much, and by what this is known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mmray.evaluation.purity import Purity
from mmray.evaluation.scores import Score
from mmray.pipeline.recipes.outcome import LearningResult, RunResult
from mmray.pipeline.recipes.verdict import headline, verdict
from mmray.pipeline.stages.evaluation import SearchExamples
from mmray.pipeline.stages.training import FineTunedNetwork

LABELS = np.array(["a", "a", "b", "b", "", ""])  # of 6 pairs of four labelled images, 2 agree
PURITY = Purity(positives=0.364, negatives=0.97, positive_pairs=9, negative_pairs=9, anchors=24)


def trained(*agreement: float, epoch: int, label: str = "fine-tuned") -> FineTunedNetwork:
    history = [{"view_agreement": value} for value in agreement]
    return FineTunedNetwork(network=None, epoch=epoch, label=label, history=history)


def outcome(*rounds, scores=(), purity=PURITY, labels=LABELS):
    mined = SimpleNamespace(pools=SimpleNamespace(anchors=range(1500)))
    learned = LearningResult(
        images=None, mined=mined, purity=purity, labels=labels, trained=list(rounds)
    )
    return RunResult(scores=list(scores), learned=learned)


def scores(before, after, whitening="none", **more):
    more = {"benchmark": "gt", **more}
    return [
        Score(network, "mac", whitening, value, **more)
        for network, value in (("initial", before), ("fine-tuned", after))
    ]


GAIN = trained(0.565, 0.600, 0.637, epoch=2)


def test_a_gain_is_told_by_its_measure_the_pools_and_the_epoch():
    told = verdict(outcome(GAIN, scores=scores(0.616, 0.760)))
    assert told == (
        "Better: mAP 61.6% -> 76.0% (+14.4 points), MAC on gt; pools 36% true, "
        "chance 33%; epoch 2 of 2 kept."
    )


def test_networks_are_compared_with_one_whitening_where_both_have_it():
    both = [*scores(0.5, 0.6), *scores(0.616, 0.760, "LDA"), *scores(0.1, 0.9, search="aqe")]
    assert verdict(outcome(GAIN, scores=both)).startswith(
        "Better: mAP 61.6% -> 76.0% (+14.4 points), MAC with LDA whitening on gt; "
    )
    regions = [Score(name, "rmac", "none", 0.1, "gt") for name in ("initial", "fine-tuned")]
    assert ", MAC with LDA whitening" in verdict(outcome(GAIN, scores=[*regions, *both]))
    alone = [*scores(0.5, 0.6), Score("initial", "mac", "PCA", 0.9, "gt")]
    assert verdict(outcome(GAIN, scores=alone)).startswith(
        "Better: mAP 50.0% -> 60.0% (+10.0 points), MAC on gt; "
    )


def test_the_first_benchmark_and_of_classes_the_nearest_image_count():
    classes = [
        *scores(0.3, 0.4, benchmark=""),
        *scores(0.519, 0.547, benchmark="", measure="R@1"),
    ]
    told = verdict(outcome(GAIN, scores=classes, purity=None))
    assert told == "Better: R@1 51.9% -> 54.7% (+2.8 points), MAC; epoch 2 of 2 kept."
    two = [*scores(0.3, 0.4), *scores(0.5, 0.9, benchmark="other")]
    assert "mAP 30.0% -> 40.0%" in verdict(outcome(GAIN, scores=two))


def test_without_labels_the_check_that_chose_the_network_is_told():
    told = verdict(outcome(GAIN, purity=None, labels=None))
    assert told == (
        "The network finds its neighbours better: 56.5% -> 63.7% by the check without labels; "
        "epoch 2 of 2 kept."
    )
    worse = verdict(outcome(trained(0.5, 0.4, epoch=1), purity=None, labels=None))
    assert worse == (
        "Not measured, as there are no labels; the check without them: 50.0% -> 40.0%; epoch 1 of "
        "1 kept."
    )


def searched(*changed):
    """Search without labels: the first results of each query, so many of which are new."""
    nothing = np.full(len(changed), np.nan)
    before = tuple(np.arange(10) for _ in changed)
    after = tuple(np.arange(new, 10 + new) for new in changed)
    return [
        SearchExamples(network=name, labelled=None, first=first, precision=nothing)
        for name, first in (("initial", before), ("fine-tuned", after))
    ]


@pytest.mark.parametrize(
    ("changed", "look"), [([3] * 25, 20), ([0, 5, 1], 2), ([0, 0], 0), ([1, 0], 0)]
)
def test_without_labels_it_names_the_searches_to_look_at(changed, look):
    told = verdict(replace(outcome(GAIN, purity=None, labels=None), found=searched(*changed)))
    words = f"look at the {look} searches that changed most" if look else ""
    assert ("searches that changed most" in told) == bool(look)
    assert words in told


def test_no_gain_says_why_the_initial_network_is_kept():
    no_gain = trained(0.692, 0.694, 0.69, epoch=0)
    assert verdict(outcome(no_gain, scores=scores(0.769, 0.769))) == (
        "No gain: the initial network is kept, as no epoch of 2 was surely better by the check "
        "without labels (69.2% before, 69.4% at best); mAP stays 76.9%, MAC on gt; pools 36% true, "
        "chance 33%."
    )
    assert verdict(outcome(trained(0.692, epoch=0), purity=None)) == (
        "No gain: the initial network is kept, as no epoch of 0 was surely better by the check "
        "without labels."
    )


@pytest.mark.parametrize(("after", "opposite"), [(0.55, True), (0.616, False), (0.7, False)])
def test_it_is_said_where_labels_and_the_check_disagree(after, opposite):
    told = verdict(outcome(GAIN, scores=scores(0.616, after)))
    words = " The check without labels says the opposite: 56.5% -> 63.7%."
    assert told.endswith(words) == opposite
    assert told.startswith("Worse: mAP 61.6% -> 55.0% (-6.6 points)") == opposite


def test_the_last_round_that_gained_is_named():
    rounds = [GAIN, trained(0.6, 0.65, epoch=1), trained(0.65, 0.65, epoch=0)]
    assert verdict(outcome(*rounds, purity=None, labels=None)) == (
        "The network finds its neighbours better: 60.0% -> 65.0% by the check without labels; "
        "epoch 1 of 1 in round 2 kept."
    )


def test_a_comparison_is_called_one():
    rival = trained(0, 0, epoch=1, label="proxy NCA (uses labels)")
    found = [Score("initial", "mac", "none", 0.5), Score(rival.label, "mac", "none", 0.6)]
    assert verdict(outcome(rival, scores=found, purity=None)) == (
        "Better: mAP 50.0% -> 60.0% (+10.0 points), MAC; epoch 1 of 1 kept. "
        "This is a comparison, not the method: proxy NCA (uses labels)."
    )


def test_what_ends_before_training_tells_what_was_mined():
    told = verdict(outcome())
    assert told == (
        "Nothing was trained: the pools of 1,500 anchors are mined; pools 36% true, chance 33%."
    )
    nothing = Purity(
        positives=np.nan, negatives=np.nan, positive_pairs=0, negative_pairs=0, anchors=0
    )
    assert verdict(outcome(purity=nothing)) == (
        "Nothing was trained: the pools of 1,500 anchors are mined."
    )
    assert verdict(RunResult()) == ""


def test_the_metrics_of_a_run_are_those_of_its_verdict():
    found = headline(outcome(GAIN, scores=scores(0.616, 0.760)), of_rounds=False)
    assert found == {
        "mAP": 0.760,
        "mAP_initial": 0.616,
        "mAP_gain": pytest.approx(0.144),
        "view_agreement_initial": 0.565,
    }
    classes = [each for m in ("R@1", "R@2") for each in scores(0.3, 0.4, measure=m)]
    assert headline(outcome(GAIN, scores=classes), of_rounds=False)["recall_at_1_gain"] == (
        pytest.approx(0.1)
    )
    assert headline(RunResult(), of_rounds=False) == {}


def test_a_run_of_rounds_has_the_values_of_the_network_that_was_kept():
    found = headline(outcome(GAIN, trained(0.637, 0.6, epoch=0)), of_rounds=True)
    assert found == {
        "view_agreement_initial": 0.565,
        "view_agreement": 0.637,
        "pool_true_positives": PURITY.positives,
        "pool_true_negatives": PURITY.negatives,
    }
