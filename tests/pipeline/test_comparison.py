"""The table of a comparison: means and deviations over seeds, of what was mined and measured."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmray.evaluation.purity import Purity
from mmray.evaluation.scores import Score
from mmray.pipeline.recipes.comparison import RowResult, comparison_table
from mmray.pipeline.recipes.outcome import LearningResult, RunResult
from mmray.pipeline.stages.training import FineTunedNetwork


def row(name="a", seed=0, **values):
    known = {
        "label": f"row {name}",
        "anchors": 1200,
        "positives": 0.5,
        "negatives": 0.9,
        "epoch": 2,
        "epochs": 4,
        "initial": {"R@1": 0.5},
        "tuned": {"R@1": 0.6},
    }
    return RowResult(name=name, seed=seed, **known | values)


def lines(results):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in comparison_table(results).splitlines()
    ]


def test_figures_are_means_and_deviations_over_seeds_in_percent():
    results = [
        row("a", 0, tuned={"R@1": 0.60, "NMI": 0.4}, positives=0.4),
        row("b", 0, epoch=None, positives=None, negatives=None),
        row("a", 1, tuned={"R@1": 0.64, "NMI": 0.4}, initial={"R@1": 0.5}, epoch=0, anchors=1201),
    ]
    head, _, initial, first, second = lines(results)
    assert head == ["row", "anchors", "true P+", "true P-", "epochs kept", "R@1", "NMI"]
    assert initial == ["initial", "", "", "", "", "50.0 ± 0.0", ""]
    deviation = 100 * np.std([0.60, 0.64])
    assert first == [
        "row a",
        "1,200",
        "45.0 ± 5.0",
        "90.0 ± 0.0",
        "2 0",
        f"62.0 ± {deviation:.1f}",
        "40.0 ± 0.0",
    ]
    assert second == ["row b", "1,200", "", "", "-", "60.0", ""]


def test_a_row_that_learned_from_labels_has_no_anchors():
    assert lines([row("a", anchors=0, positives=None, negatives=None)])[-1][1:4] == ["", "", ""]


def test_where_nothing_was_trained_only_the_pools_are_shown():
    results = [row(tuned={}, initial={}, epoch=None, epochs=None)]
    head, _, *rows = lines(results)
    assert head == ["row", "anchors", "true P+", "true P-"]
    assert rows == [["row a", "1,200", "50.0", "90.0"]]


def test_columns_are_ordered_by_measure_and_the_spread_of_clusterings_is_none():
    figures = dict.fromkeys(["NMI", "NMI sd", "R@8", "R@1", "mAP"], 0.5)
    head, *_ = lines([row(tuned=figures)])
    assert head[5:] == ["mAP", "R@1", "R@8", "NMI"]
    figures = dict.fromkeys(["R-MAC mAP", "MAC mAP whitened", "MAC mAP"], 0.5)
    head, *_ = lines([row(tuned=figures)])
    assert head[5:] == ["MAC mAP", "MAC mAP whitened", "R-MAC mAP"]


def outcome(scores, purity=None):
    pools = SimpleNamespace(anchors=np.arange(7))
    learned = LearningResult(
        images=None,
        extracted=None,
        mined=SimpleNamespace(pools=pools),
        purity=purity,
        trained=[FineTunedNetwork(None, 3, "fine-tuned", [{}] * 6)],
    )
    return RunResult(scores=scores, learned=learned)


def test_whitened_figures_of_the_two_networks_share_a_column():
    scores = [
        Score("initial", "mac", "none", 0.1),
        Score("initial", "mac", "PCA", 0.2),
        Score("fine-tuned", "mac", "none", 0.3),
        Score("fine-tuned", "mac", "LDA", 0.4),
        Score("fine-tuned", "mac", "LDA", 0.9, search="aqe"),
        Score("fine-tuned", "embedding", "none", 0.5, measure="R@1"),
    ]
    found = RowResult.of("a", "row a", 2, outcome(scores))
    assert found.initial == {"MAC mAP": 0.1, "MAC mAP whitened": 0.2}
    assert found.tuned == {"MAC mAP": 0.3, "MAC mAP whitened": 0.4, "R@1": 0.5}
    assert (found.anchors, found.epoch, found.epochs, found.positives) == (7, 3, 5, None)


def test_figures_of_several_sets_are_told_apart():
    scores = [
        Score("fine-tuned", "mac", "none", 0.1, "oxford5k"),
        Score("fine-tuned", "mac", "none", 0.2, "paris6k"),
    ]
    found = RowResult.of("a", "row a", 0, outcome(scores)).tuned
    assert found == {"oxford5k MAC mAP": 0.1, "paris6k MAC mAP": 0.2}


def test_what_was_stored_comes_back_and_is_logged_by_row():
    purity = Purity(positives=np.nan, negatives=0.75, positive_pairs=0, negative_pairs=4, anchors=7)
    scores = [Score("fine-tuned", "embedding", "none", 0.5, measure="R@1")]
    found = RowResult.of("a", "row a", 2, outcome(scores, purity))
    assert (found.positives, found.negatives) == (None, 0.75)  # JSON has no NaN
    assert found.metrics() == {"a/pool_true_negatives": 0.75, "a/recall_at_1": 0.5}
    stored = {name: getattr(found, name) for name in found.__dataclass_fields__}
    assert RowResult.from_json(stored) == found
    with pytest.raises(TypeError):
        RowResult.from_json(stored | {"other": 1})
