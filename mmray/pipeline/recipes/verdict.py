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
from mmray.pipeline.recipes.search_pictures import most_changed, without_labels
from mmray.pipeline.reports.run_page import Mood
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

    Where the labels and the check without them disagree, it is said.

    Returns
    -------
    One sentence or two; "" where the run ended before mining.
    """
    learned = outcome.learned
    if learned is None:
        return ""
    kept, purity = learned.kept, _purity(learned)
    if kept is None:
        anchors = len(learned.mined.pools.anchors)
        return f"Nothing was trained: the pools of {anchors:,} anchors are mined{purity}."
    judged = judgement(outcome)
    if kept.epoch == 0:
        return _no_gain(kept, judged.measured, purity)
    rounds = f" in round {learned.kept_round}" if len(learned.trained) > 1 else ""
    told = (
        f"{judged.measured or _unmeasured(judged)}{purity}; epoch {kept.epoch} of "
        f"{kept.epochs}{rounds} kept."
    )
    if judged.contradicted:
        told += f" The check without labels says the opposite: {judged.change}."
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
class Measured:
    """A score of the initial network and that of the kept one, the other things being equal."""

    before: Score
    after: Score

    @property
    def values(self) -> tuple[float, float]:
        return self.before.value, self.after.value

    @property
    def points(self) -> float:
        return 100 * (self.after.value - self.before.value)

    @property
    def change(self) -> str:
        """Return both values in percent, and their difference in points."""
        before, after = (100 * each.value for each in (self.before, self.after))
        if self.points == 0:
            return f"stays {before:.1f}%"
        return f"{before:.1f}% -> {after:.1f}% ({self.points:+.1f} points)"

    @property
    def way(self) -> str:
        """Name the descriptor with its whitening."""
        of = self.before
        whitened = "" if of.whitening == PLAIN else f" with {of.whitening} whitening"
        return f"{DESCRIPTORS[of.descriptor]}{whitened}"

    @property
    def told(self) -> str:
        """Return the measure, its change, the descriptor and the labelled images."""
        on = f" on {self.before.benchmark}" if self.before.benchmark else ""
        return f"{self.before.measure} {self.change}, {self.way}{on}"

    def __str__(self) -> str:
        word = {"better": "Better: ", "worse": "Worse: "}.get(_mood(self.points), "")
        return f"{word}{self.told}"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Judgement whether a network got better, with all by which this is known.

    It is judged by its first measure on labelled images, where there are any, and else by the check
    without labels that chose it.

    Attributes
    ----------
    mood : better, worse, unchanged; unknown where nothing measured it, or nothing was trained
    measured : on labelled images
    change : of the check without labels, in words; None where there was none
    rose : by how much that rose
    changed : number of searches without labels to look at, those that changed most
    """

    mood: Mood = "unknown"
    measured: Measured | None = None
    change: str | None = None
    rose: float = 0.0
    changed: int = 0

    @property
    def contradicted(self) -> bool:
        """Tell whether the labels and the check without them say the opposite."""
        if self.measured is None or self.change is None:
            return False
        return self.rose * self.measured.points < 0


def judgement(outcome: RunResult) -> Judgement:
    """Judge the network that a run kept."""
    kept = None if outcome.learned is None else outcome.learned.kept
    if kept is None:
        return Judgement()
    measured, change = _measured(outcome.scores, kept.label), _change(kept)
    rose = rise(kept.history, kept.epoch)
    mood: Mood = "unknown"
    if kept.epoch == 0:
        mood = "unchanged"
    elif measured is not None:
        mood = _mood(measured.points)
    elif change is not None:
        mood = "better" if rose > 0 else "unknown"
    changed = len(most_changed(outcome.found)) if without_labels(outcome.found) else 0
    return Judgement(mood=mood, measured=measured, change=change, rose=rose, changed=changed)


def _mood(points: float) -> Mood:
    return "better" if points > 0 else "worse" if points < 0 else "unchanged"


def _measured(scores: Sequence[Score], label: str) -> Measured | None:
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
            return Measured(before, after)
    return None


def _unmeasured(judged: Judgement) -> str:
    """Tell how a network is judged that was not measured on labelled images."""
    if judged.change is None:
        return "Not measured, as there is no labelled set"
    look = ""
    if judged.changed > 1:
        look = f"; look at the {judged.changed} searches that changed most"
    if judged.rose > 0:
        better = "The network finds its neighbours better"
        return f"{better}: {judged.change} by the check without labels{look}"
    return f"Not measured, as there are no labels; the check without them: {judged.change}{look}"


def _no_gain(first: FineTunedNetwork, measured: Measured | None, purity: str) -> str:
    """Tell why the network before the first round is kept."""
    name = chosen_by(first.history)
    before, *after = (100 * figures.get(name, 0.0) for figures in first.history)
    best = f" ({before:.1f}% before, {max(after):.1f}% at best)" if after else ""
    stays = "" if measured is None else f"; {measured.told}"
    return (
        f"No gain: the initial network is kept, as no epoch of {first.epochs} was surely better "
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
    chance = "" if learned.labels is None else f", chance {100 * chance_of(learned.labels):.0f}%"
    return f"; pools {100 * learned.purity.positives:.0f}% true{chance}"


def chance_of(labels: NDArray[Any]) -> float:
    """Return the probability that two labelled images have the same label."""
    counts = np.unique(labels[labels != ""], return_counts=True)[1].astype(float)
    pairs = counts.sum() * (counts.sum() - 1)
    return float((counts * (counts - 1)).sum() / pairs) if pairs else 0.0
