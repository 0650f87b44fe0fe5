"""Answers to what whoever opens the page of a run asks first: did it get better, and what next."""

import shlex
from collections.abc import Iterable, Sequence

import numpy as np

from mmray.config.learning import FinegrainedConfig, LearningConfig
from mmray.evaluation.candidates import TUNED
from mmray.pipeline.recipes.left_out import left_out_told
from mmray.pipeline.recipes.outcome import LearningResult, RunResult
from mmray.pipeline.recipes.verdict import Judgement, chance_of, judgement
from mmray.pipeline.reports.run_page import Answer
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.minable import NothingMinedError
from mmray.system.uris import masked
from mmray.training.agreement import VIEW_AGREEMENT
from mmray.training.validation import MANIFOLD_MAP, chosen_by

BETTER, HOW_MUCH, ON_WHAT = "Did it get better?", "By how much?", "On what?"
LEFT_OUT, NEXT = "What was left out?", "What next?"

MEASURES = {  # of labelled images, in words
    "mAP": "100% where every search lists all the right images first",
    "R@1": "the share of searches whose first result is right",
}
CHECKS = {  # without labels, in words
    VIEW_AGREEMENT: "of an image's nearest neighbours, those that a part of it finds too",
    MANIFOLD_MAP: "mAP of the neighbours that the graph of similar images gives",
}
NAMED = "is an image by its name; none was opened"
_NO_LABELS = "the check without labels"
_CHECK = "Check without labels"
_PURER = "--mining.positive-k with a lower value or --mining.positive-cut 0.5 makes pools purer"


def answers(
    config: LearningConfig, outcome: RunResult, stages: Sequence[StageFolder]
) -> tuple[Answer, ...]:
    """Answer the five questions for a run that mined something; none where it ended before."""
    learned = outcome.learned
    if learned is None:
        return ()
    judged = judgement(outcome)
    following, commands = _next(config, outcome, learned, judged)
    told = left_out_told(stages, learned.extracted, learned.near)
    return (
        Answer(question=BETTER, answer=_better(learned, judged)),
        Answer(question=HOW_MUCH, answer=_how_much(learned, judged)),
        Answer(question=ON_WHAT, answer=_on_what(outcome, learned, judged)),
        Answer(question=LEFT_OUT, answer="; ".join([_dropped(told), *_in_no_pool(learned)]) + "."),
        Answer(question=NEXT, answer=following, commands=commands),
    )


def answers_without_pools(
    error: NothingMinedError, config: LearningConfig, stages: Sequence[StageFolder]
) -> tuple[Answer, ...]:
    """Answer the five questions for a run that found nothing to learn from."""
    listed = next((stage for stage in stages if stage.name == "list"), None)
    extracted = next((stage for stage in stages if stage.name == "extract"), None)
    count = "The" if listed is None else f"{listed.counts['images']:,}"
    where = ", ".join(masked(source) for source in config.images) or "the rendered images"
    return (
        Answer(question=BETTER, answer="No. Nothing was mined, so nothing was trained."),
        Answer(question=HOW_MUCH, answer="Not at all: there is no new network."),
        Answer(question=ON_WHAT, answer=f"{count} images of {where}: {error.why}."),
        Answer(
            question=LEFT_OUT,
            answer=_dropped(left_out_told(stages, extracted), opened=extracted is not None) + ".",
        ),
        Answer(
            question=NEXT,
            answer=f"{error.remedy[:1].upper()}{error.remedy[1:]}. The method learns from several "
            "photos of the same things; stages that are done are read again.",
        ),
    )


def _better(learned: LearningResult, judged: Judgement) -> str:
    kept = learned.kept
    if kept is None:
        return "Not known: the run ended before training, as --stages says."
    if kept.epoch == 0:
        return (
            f"No. No epoch of {kept.epochs} was surely better by {_NO_LABELS}, so the initial "
            "network is kept as it was."
        )
    if judged.measured is None:
        if judged.mood == "better":
            return f"Yes, by {_NO_LABELS}: a sign, not a proof. Nothing was measured by labels."
        return "Not known: there are no labelled images to measure it on."
    told = {
        "better": "Yes: with the new network, searches find more of the right images.",
        "worse": "No: with the new network, searches find fewer of the right images.",
    }.get(judged.mood, "It makes no difference on labelled images.")
    if judged.contradicted:
        way = "better" if judged.rose > 0 else "worse"
        told += f" A contradiction: {_NO_LABELS} says it got {way}."
    if kept.label != TUNED:
        told += f" It learned from labels: {kept.label}."
    return told


def _how_much(learned: LearningResult, judged: Judgement) -> str:
    kept = learned.kept
    if kept is None:
        return "Nothing was trained yet."
    parts = ["Not at all"] if judged.mood == "unchanged" else []
    if judged.measured is not None:
        measure = judged.measured.before.measure
        meaning = f" ({MEASURES[measure]})" if measure in MEASURES else ""
        parts.append(f"{measure} {judged.measured.change}{meaning}")
    history, check = kept.history, chosen_by(kept.history)
    if kept.epoch == 0 and kept.epochs and history[0].get(check):
        most = max(figures.get(check, 0.0) for figures in history[1:])
        told = f"{_CHECK}: {100 * history[0][check]:.1f}% before, {100 * most:.1f}% at best"
        parts.append(f"{told} ({CHECKS[check]})")
    elif judged.change is not None:
        points = f"{100 * judged.rose:+.1f} points"
        parts.append(f"{_CHECK}: {judged.change}, {points} ({CHECKS[check]})")
    return f"{'. '.join(parts) or 'Not measured'}."


def _on_what(outcome: RunResult, learned: LearningResult, judged: Judgement) -> str:
    count = f"{len(learned.images):,} images"
    if judged.measured is not None and outcome.found:
        tested, name = outcome.found[0].labelled, judged.measured.before.benchmark
        others = f" and {len(tested.distractors):,} others" if tested.distractors else ""
        named = f" (“{name}”)" if name else ""
        unlabelled = learned.kept is None or learned.kept.label == TUNED
        return (
            f"{len(tested.queries):,} searches among {len(tested.database):,} labelled images"
            f"{others}{named}, by {judged.measured.way}. It learned from {count}"
            f"{' without their labels' if unlabelled else ''}."
        )
    if learned.kept is None:
        return f"{count}, from which pools were mined."
    return f"The {count} that it learned from, without labels; no labelled images were given."


def _dropped(told: str, *, opened: bool = True) -> str:
    """Tell what was left out; where nothing was, whether the images were opened to know that."""
    nothing = f"Nothing: every file {'was an image that could be read' if opened else NAMED}"
    return told[:1].upper() + told[1:] or nothing


def _in_no_pool(learned: LearningResult) -> Iterable[str]:
    total = len(learned.images)
    rest = total - len(learned.mined.pools.members)
    if learned.graph is not None and rest:
        are, them = ("is", "it") if rest == 1 else ("are", "them")
        yield f"{rest:,} of the {total:,} images {are} in no pool: nothing was learned from {them}"


def _next(
    config: LearningConfig, outcome: RunResult, learned: LearningResult, judged: Judgement
) -> tuple[str, tuple[str, ...]]:
    """Return what to do next, and commands for it."""
    storage = masked(config.storage)
    kept = learned.kept
    if kept is None:
        return (
            "Look below at what was mined: do the positives show what their anchor shows? Then "
            "train: the same command without --stages.",
            (),
        )
    if kept.epoch == 0:
        return f"Nothing is lost. {_impure(learned)}", ()
    if judged.mood == "worse":
        return (
            "Trust the labels if they stand for what you search for: keep the initial network, "
            f"and look below at the searches that worsened. {_PURER}.",
            (),
        )
    commands = []
    if outcome.model is not None:
        index = ["mmray", "search", "index", "--model", outcome.model.uri, "--images", "FOLDER"]
        commands.append(f"{shlex.join([*index, '--storage', storage])}")
        commands.append(shlex.join(["mmray", "serve", "--storage", storage]))
    if judged.measured is None:
        many = f"the {judged.changed} searches below that changed most"
        look = f"Look at {many if judged.changed > 1 else 'what was mined, below'}"
        flag = "--test.images" if isinstance(config, FinegrainedConfig) else "--evaluation.images"
        return (
            f"{look}: is what they find now what you want? To measure it, give {flag} a folder "
            "with a folder of photos for each thing. To search with the new network:",
            tuple(commands),
        )
    return (
        "Look below at the searches that improved and worsened, then search your own photos with "
        "the new network:",
        tuple(commands),
    )


def _impure(learned: LearningResult) -> str:
    """Tell what may help where nothing was gained, by the purity of the pools if it is known."""
    slower = "--training.learning-rate with a lower value takes smaller steps"
    purity = learned.purity
    if purity is None or learned.labels is None or np.isnan(purity.positives):
        return (
            "Look below at what was mined. Where positives do not show what their anchor shows, "
            f"{_PURER}; where they do, {slower}. More photos of the same things help most."
        )
    share, chance = 100 * purity.positives, 100 * chance_of(learned.labels)
    told = f"{share:.0f}% of the mined positives are right ({chance:.0f}% by chance)"
    if share < 50:
        return f"{told}: {_PURER}. More photos of the same things help most."
    return f"{told}, so pools are not to blame: {slower}; --training.epochs with more goes on."
