"""The verdict of a run in one sentence: last on the terminal, first on the page, and in MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.config.learning import LearningConfig
from mmray.config.presets import departures_told
from mmray.evaluation.candidates import INITIAL, LDA, PLAIN, TUNED
from mmray.evaluation.scores import Score
from mmray.pipeline.metric_names import CHECKS, initial, of_change, of_measure, of_pools
from mmray.pipeline.recipes.outcome import LearningResult, RunResult
from mmray.pipeline.reports.tables import DESCRIPTORS, results_table
from mmray.pipeline.stages.training import FineTunedNetwork
from mmray.training.validation import chosen_by, rise

FIRST_OF_CLASSES = "R@1"  # the measure of labelled classes that counts


def results_told(outcome: RunResult, config: LearningConfig) -> str:
    """Return what a job prints last: the table and the verdict, where there are any.

    Between them stand the settings that differ from the paper's, where it is to compare with them.
    """
    parts = []
    if outcome.scores:
        parts.append(results_table(outcome.scores))
        own: Any = config  # `recipe` is a field of the applications
        if own.recipe in ("paper", "released"):
            parts.append(departures_told(config))
    return "\n\n".join(part for part in (*parts, verdict(outcome)) if part)


def verdict(outcome: RunResult) -> str:
    """Tell whether the network got better, by how much, and by what this is known.

    It is judged by its first measure on labelled images, where there are any, and else by the check
    without labels that chose it. Where the two disagree, it is said.

    Returns
    -------
    One sentence or two; "" where the run ended before mining.
    """
    learned = outcome.learned
    if learned is None:
        return ""
    kept = learned.kept
    if kept is None:
        anchors = len(learned.mined.pools.anchors)
        return f"Nothing was trained: the pools of {anchors:,} anchors are mined{_purity(learned)}."
    measured = _measured(outcome.scores, kept.label)
    if kept.epoch == 0:
        return _no_gain(kept, measured, _purity(learned))
    change, rose = _change(kept), rise(kept.history, kept.epoch)
    rounds = f" in round {learned.kept_round}" if len(learned.trained) > 1 else ""
    told = (
        f"{measured or _unmeasured(change, rose)}{_purity(learned)}; epoch {kept.epoch} of "
        f"{kept.epochs}{rounds} kept."
    )
    if measured is not None and change is not None and rose * measured.points < 0:
        told += f" The check without labels says the opposite: {change}."
    if kept.label != TUNED:
        told += f" This is a comparison, not the method: {kept.label}."
    return told


def headline(outcome: RunResult, *, of_rounds: bool) -> dict[str, float]:
    """Return the metrics by which a run is judged, for the top level in MLflow.

    Parameters
    ----------
    outcome : result of the run
    of_rounds : whether runs within this one have the curves of training; of the kept round the run
        then has the values of the network that was kept
    """
    learned = outcome.learned
    kept = None if learned is None else learned.kept
    if learned is None or kept is None:
        return {}
    found, measured = dict[str, float](), _measured(outcome.scores, kept.label)
    if measured is not None:
        found |= of_change(of_measure(measured.before.measure), *measured.values)
    first, last = learned.trained[0].history, kept.history
    for name in CHECKS:
        if first and name in first[0]:
            found[initial(name)] = first[0][name]
        if of_rounds and name in last[kept.epoch]:
            found[name] = last[kept.epoch][name]
    if of_rounds and learned.purity is not None:
        found |= of_pools(learned.purity.positives, learned.purity.negatives)
    return found


@dataclass(frozen=True)
class _Measured:
    """A score of the initial network and that of the kept one, the other things being equal."""

    before: Score
    after: Score

    @property
    def values(self) -> tuple[float, float]:
        return self.before.value, self.after.value

    @property
    def points(self) -> float:
        return 100 * (self.after.value - self.before.value)

    def __str__(self) -> str:
        of, (before, after) = self.before, (100 * each.value for each in (self.before, self.after))
        whitened = "" if of.whitening == PLAIN else f" with {of.whitening} whitening"
        on = f" on {of.benchmark}" if of.benchmark else ""
        change = f"{before:.1f} -> {after:.1f} ({self.points:+.1f})"
        if self.points == 0:
            change = f"stays {before:.1f}"
        return f"{of.measure} {change}, {DESCRIPTORS[of.descriptor]}{whitened}{on}"


def _measured(scores: Sequence[Score], label: str) -> _Measured | None:
    """Choose the scores that a network is judged by, of those that the table has first.

    They are of plain searches, and of rows with LDA whitening where both networks have one.
    """
    plain = [score for score in scores if score.search == "plain"]
    if not plain:
        return None
    measures = [score.measure for score in plain]
    counts = FIRST_OF_CLASSES if FIRST_OF_CLASSES in measures else measures[0]
    first = min((score.descriptor for score in plain), key=list(DESCRIPTORS).index)
    by_kind = {
        (score.network, score.whitening): score
        for score in plain
        if (score.measure, score.benchmark) == (counts, plain[0].benchmark)
        if score.descriptor == first
    }
    for whitening in (LDA, PLAIN):
        before, after = by_kind.get((INITIAL, whitening)), by_kind.get((label, whitening))
        if before is not None and after is not None:
            return _Measured(before, after)
    return None


def _unmeasured(change: str | None, rose: float) -> str:
    """Tell how a network is judged that was not measured on labelled images."""
    if change is None:
        return "Not measured, as there is no labelled set"
    if rose > 0:
        return f"The network finds its neighbours better by the check without labels: {change}"
    return f"Not measured, as there are no labels; the check without them: {change}"


def _no_gain(first: FineTunedNetwork, measured: _Measured | None, purity: str) -> str:
    """Tell why the network before the first round is kept."""
    name = chosen_by(first.history)
    before, *after = (100 * figures.get(name, 0.0) for figures in first.history)
    best = f" ({before:.1f}% before, {max(after):.1f}% at best)" if after else ""
    stays = "" if measured is None else f"; {measured}"
    return (
        f"No gain: the initial network is kept, as none of {first.epochs} epochs was surely better "
        f"by the check without labels{best}{stays}{purity}."
    )


def _change(tuned: FineTunedNetwork) -> str | None:
    """Tell how the check without labels changed; None where there was none."""
    name = chosen_by(tuned.history)
    if not tuned.history[0].get(name):
        return None
    before, after = (100 * tuned.history[epoch].get(name, 0.0) for epoch in (0, tuned.epoch))
    return f"{before:.1f}% -> {after:.1f}%"


def _purity(learned: LearningResult) -> str:
    if learned.purity is None or np.isnan(learned.purity.positives):
        return ""
    chance = "" if learned.labels is None else f", chance {100 * _chance(learned.labels):.0f}%"
    return f"; pools {100 * learned.purity.positives:.0f}% true{chance}"


def _chance(labels: NDArray[Any]) -> float:
    """Return the probability that two labelled images have the same label."""
    counts = np.unique(labels[labels != ""], return_counts=True)[1].astype(float)
    pairs = counts.sum() * (counts.sum() - 1)
    return float((counts * (counts - 1)).sum() / pairs) if pairs else 0.0
