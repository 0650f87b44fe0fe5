"""What the page of a run that learns shows, put together from what its stages left."""

import dataclasses
from collections.abc import Iterable, Sequence

from mmray.config.learning import LearningConfig
from mmray.evaluation.candidates import TUNED
from mmray.learning import Learned, Outcome
from mmray.pages.charts import Chart, Series
from mmray.pages.report import Fact, Report
from mmray.report_pictures import mined_anchors, searches
from mmray.run_report import graph_picture, scores_table, unreadable
from mmray.training_stages import Tuned

CURVES = {  # title of a chart -> metric -> its name in the legend
    "Loss": {"loss": "training", "held_out_loss": "held-out anchors"},
    "Health, without labels": {"health": "finds the manifold's neighbours"},
    "mAP, by labels": {"map": "labelled set"},
}


def learning_report(config: LearningConfig, outcome: Outcome, *, part: str | None) -> Report:
    """The page of a run, as far as its job knows what to show.

    Parameters
    ----------
    part : the last stage of a run that was to end sooner
    """
    learned, most = outcome.learned, config.extraction.max_pixels
    page = Report(
        title=_title(config, learned),
        summary=tuple(_summary(outcome, part)),
        results=scores_table(outcome.scores),
        retrieval=searches(outcome.found, seed=config.seed, max_pixels=most),
    )
    if learned is None:
        return page
    return dataclasses.replace(
        page,
        facts=tuple(_facts(learned)),
        charts=_charts(learned.trained),
        graph=None if learned.graph is None else graph_picture(learned.mined.stage),
        anchors=mined_anchors(learned, max_pixels=most),
        quarantine=() if learned.extracted is None else unreadable(learned.extracted.folder),
    )


def _title(config: LearningConfig, learned: Learned | None) -> str:
    tuned = None if learned is None else learned.tuned
    unlabelled = tuned is not None and tuned.label == TUNED
    return config.network + (", fine-tuned without labels" if unlabelled else "")


def _summary(outcome: Outcome, part: str | None) -> Iterable[str]:
    trained = [] if outcome.learned is None else outcome.learned.trained
    if part is not None:
        yield f"It was to end with the stage {part}."
    if trained and trained[-1].label != TUNED:
        yield f"This is a comparison, not the method: {trained[-1].label}."
    for number, tuned in enumerate(trained, start=1):
        which = f"Round {number}: " if len(trained) > 1 else ""
        if tuned.epoch == 0:
            yield (
                f"{which}None of {tuned.epochs} epochs made the network healthier: it is the one "
                "that training began with."
            )
        else:
            yield f"{which}The network after epoch {tuned.epoch} of {tuned.epochs} is kept."
    if outcome.model is not None:
        yield f"Model: {outcome.model.uri}"


def _facts(learned: Learned) -> Iterable[Fact]:
    yield Fact(name="images", value=f"{len(learned.images):,}")
    if learned.extracted is not None:
        counts = learned.extracted.counts
        if counts["quarantined"]:
            yield Fact(name="could not be read", value=f"{counts['quarantined']:,}")
        if counts["duplicates"]:
            yield Fact(name="exact duplicates", value=f"{counts['duplicates']:,}", note="left out")
    if learned.graph is not None:
        yield Fact(name="edges", value=f"{learned.graph.counts['edges']:,}", note="reciprocal k-NN")
        yield Fact(name="anchors", value=f"{len(learned.mined.pools.anchors):,}")
    if learned.purity is not None:
        for name, rate in (
            ("true positives", learned.purity.positives),
            ("true negatives", learned.purity.negatives),
        ):
            yield Fact(name=name, value=f"{rate:.1%}", note="by labels, to look at only")
    if learned.tuned is not None:
        rounds, tuned = len(learned.trained), learned.tuned
        note = f"of {tuned.epochs}" + (f" in round {rounds}" if rounds > 1 else "")
        yield Fact(name="epoch kept", value=str(tuned.epoch), note=note)


def _charts(trained: Sequence[Tuned]) -> tuple[Chart, ...]:
    """Figures by epoch, those that were measured: of each round, which stand side by side."""
    charts = []
    for title, curves in CURVES.items():
        for number, tuned in enumerate(trained, start=1):
            series = [
                Series(
                    name=name,
                    points=tuple(
                        (epoch, figures[metric])
                        for epoch, figures in enumerate(tuned.history)
                        if metric in figures
                    ),
                )
                for metric, name in curves.items()
            ]
            drawn = tuple(each for each in series if each.points)
            named = title if len(trained) == 1 else f"{title}: round {number}"
            charts.append(Chart(title=named, series=drawn, kept=tuned.epoch))
    return tuple(charts)
