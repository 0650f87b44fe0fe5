"""The content of a run's page, collected from its stages and its result."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from mmray.config.learning import FinegrainedConfig, LearningConfig
from mmray.evaluation.candidates import TUNED
from mmray.evaluation.purity import percent
from mmray.evaluation.scores import Score
from mmray.evaluation.scoring import DEVIATION
from mmray.mining.graph_statistics import GraphReport, summarize
from mmray.pipeline.recipes.answers import NAMED, answers, answers_without_pools
from mmray.pipeline.recipes.left_out import left_out_of
from mmray.pipeline.recipes.outcome import LearningResult, RunResult
from mmray.pipeline.recipes.pictures import (
    SIDE,
    mined_anchors,
    near_duplicates,
    relative_importance,
)
from mmray.pipeline.recipes.search_pictures import searches
from mmray.pipeline.recipes.verdict import judgement, verdict
from mmray.pipeline.reports.charts import Chart, Series
from mmray.pipeline.reports.graph_plots import graph_plots
from mmray.pipeline.reports.run_page import Fact, GraphDrawing, Report
from mmray.pipeline.reports.tables import Table, results
from mmray.pipeline.reports.thumbnails import Thumbnails
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.minable import NothingMinedError
from mmray.pipeline.stages.training import FineTunedNetwork
from mmray.system.formats import read_json

# Title of a chart -> metric -> name in the legend. All but the loss are shares, drawn in percent.
LOSS = "Loss (lower is better)"
CURVES = {
    LOSS: {"loss": "training", "held_out_loss": "held-out anchors"},
    "Check without labels (higher is better)": {
        "view_agreement": "neighbours that parts of photos find too",
        "manifold_map": "mAP of the graph's neighbours",
    },
    "mAP on labelled images (higher is better)": {"map": "labelled set"},
}

NOTHING_LEFT_OUT = "Nothing: every file was an image that could be read, and all are different."


def learning_report(
    config: LearningConfig,
    outcome: RunResult,
    stages: Sequence[StageFolder],
    *,
    part: str | None,
) -> Report:
    """Make the report of a run from its settings and results.

    Parameters
    ----------
    config : settings of the job
    outcome : results of the run
    stages : all stages of the run
    part : last stage of a partial run; None: the run is complete
    """
    learned = outcome.learned
    picture = Thumbnails(SIDE, max_pixels=config.extraction.max_pixels)
    unchanged = learned is not None and learned.kept is not None and learned.kept.epoch == 0
    # The network that is kept is the initial one: its searches are the same twice.
    found = outcome.found[:1] if unchanged and len(outcome.found) == 2 else outcome.found
    page = Report(
        title=_title(config, learned),
        verdict=verdict(outcome),
        mood=judgement(outcome).mood,
        answers=answers(config, outcome, stages),
        summary=tuple(_summary(outcome, part)),
        results=scores_table(outcome.scores),
        retrieval=searches(found, picture, seed=config.seed),
        reasons=_reasons(config, outcome) if part is None else {},
    )
    if learned is None:
        return page
    return dataclasses.replace(
        page,
        facts=tuple(_facts(learned)),
        charts=_charts(learned.trained),
        graph=None
        if learned.graph is None
        else graph_drawing(
            learned.graph,
            learned.mined.stage,
            only_largest=learned.mining is not None and learned.mining.component == "largest",
        ),
        anchors=mined_anchors(learned, picture),
        copies=near_duplicates(learned.near, picture),
        left_out=left_out_of(stages, learned.extracted, learned.near),
    )


def report_without_pools(
    config: LearningConfig, error: NothingMinedError, stages: Sequence[StageFolder]
) -> Report:
    """Make the report of a run that found nothing to learn from: why, and what to change."""
    known = {stage.name: stage for stage in reversed(stages)}
    graph = known.get("graph")
    nothing = f"Nothing was mined: {error.why}. {error.remedy[:1].upper()}{error.remedy[1:]}."
    return Report(
        title=f"Fine-tuning {config.network} without labels: nothing was mined",
        verdict=f"Nothing was mined, so nothing was trained: {error.why}.",
        mood="nothing",
        answers=answers_without_pools(error, config, stages),
        graph=None if graph is None else graph_drawing(graph),
        left_out=left_out_of(stages, known.get("extract")),
        reasons={
            "anchors": nothing,
            "left_out": NOTHING_LEFT_OUT if "extract" in known else f"Nothing: every file {NAMED}.",
        },
    )


def scores_table(scores: Sequence[Score]) -> Table:
    """Make the table of results, in which standard deviations are not ranked."""
    head, rows, numbers = results(scores)
    texts = len(head) - numbers
    measured = {column: f"{column} (%)" for column in head[texts:]}
    return Table(
        head=(*head[:texts], *measured.values()),
        rows=tuple(rows),
        numbers=numbers,
        unranked=tuple(title for column, title in measured.items() if column.endswith(DEVIATION)),
    )


def graph_drawing(
    graph: StageFolder, mined: StageFolder | None = None, *, only_largest: bool = False
) -> GraphDrawing:
    """Draw the graph of a stage, with the importance of the anchors of another.

    Parameters
    ----------
    graph, mined : the stages
    only_largest : whether only the largest component is mined
    """
    report = GraphReport(**read_json(graph.folder, "report.json"))
    importance = None if mined is None else relative_importance(mined, graph)
    return GraphDrawing(
        plots=graph_plots(report, importance), text=summarize(report, only_largest=only_largest)
    )


def _title(config: LearningConfig, learned: LearningResult | None) -> str:
    kept = None if learned is None else learned.kept
    count = "" if learned is None else f" on {len(learned.images):,} images"
    unlabelled = kept is None or kept.label == TUNED
    return f"Fine-tuning {config.network}{count}{' without labels' if unlabelled else ''}"


def _summary(outcome: RunResult, part: str | None) -> Iterable[str]:
    trained = [] if outcome.learned is None else outcome.learned.trained
    if part is not None:
        yield f"The run ended after the stage {part}, as --stages says."
    for number, tuned in enumerate(trained if len(trained) > 1 else [], start=1):
        kept = f"the network after epoch {tuned.epoch} of {tuned.epochs} is kept"
        if tuned.epoch == 0:
            before = "the initial network" if number == 1 else f"that of round {number - 1}"
            kept = f"none of {tuned.epochs} epochs passed the check, {before} is kept"
        yield f"Round {number}: {kept}."
    if outcome.model is not None:
        yield f"Model: {outcome.model.uri}"


def _facts(learned: LearningResult) -> Iterable[Fact]:
    yield Fact(name="images", value=f"{len(learned.images):,}")
    if learned.graph is not None:
        yield Fact(name="edges", value=f"{learned.graph.counts['edges']:,}", note="reciprocal k-NN")
        yield Fact(name="anchors", value=f"{len(learned.mined.pools.anchors):,}")
        yield Fact(name="images in pools", value=f"{len(learned.mined.pools.members):,}")
    if learned.purity is not None:
        for name, rate in (
            ("positives right", learned.purity.positives),
            ("negatives right", learned.purity.negatives),
        ):
            yield Fact(name=name, value=percent(rate), note="by labels it did not see")
    if learned.kept is not None:
        rounds = f" in round {learned.kept_round}" if len(learned.trained) > 1 else ""
        note = f"of {learned.kept.epochs}{rounds}"
        yield Fact(name="epoch kept", value=str(learned.kept.epoch), note=note)


def _charts(trained: Sequence[FineTunedNetwork]) -> tuple[Chart, ...]:
    """Make the charts of measured metrics by epoch, those of all rounds side by side."""
    charts = []
    for title, curves in CURVES.items():
        scale, unit = (1, "") if title == LOSS else (100, "%")
        for number, tuned in enumerate(trained, start=1):
            series = [
                Series(
                    name=name,
                    points=tuple(
                        (epoch, None if figures[metric] is None else scale * figures[metric])
                        for epoch, figures in enumerate(tuned.history)
                        if metric in figures
                    ),
                )
                for metric, name in curves.items()
            ]
            drawn = tuple(each for each in series if each.points)
            named = title if len(trained) == 1 else f"Round {number}: {title}"
            charts.append(Chart(title=named, series=drawn, unit=unit, kept=tuned.epoch))
    return tuple(charts)


def _reasons(config: LearningConfig, outcome: RunResult) -> Mapping[str, str]:
    """Tell why each section may be empty, and what to change."""
    learned = outcome.learned
    flag, more = "--evaluation.images", ", or --evaluation.ground-truth with the right answers"
    if isinstance(config, FinegrainedConfig):
        flag, more = "--test.images", ""
    unmeasured = (
        "There are no labelled images to measure on. Name a folder that has a folder of images for "
        f"each thing: {flag} FOLDER{more}; the stages that are done are read again."
    )
    reasons = {
        "results": unmeasured,
        "retrieval": "No search changed: before and after, each image finds the same ones first."
        if outcome.found
        else unmeasured,
        "left_out": NOTHING_LEFT_OUT,
    }
    if learned is None:
        return reasons
    if learned.graph is None:
        labels = "It learned from labels, so nothing was mined; leave these out to mine."
        return reasons | {"anchors": labels, "graph": labels}
    near = learned.near
    looked = near is not None and not near.stage.counts.get("unhashed")
    return reasons | {
        "anchors": "No anchor has both positives and negatives to show: a larger --mining.graph-k "
        "or --mining.positive-k finds more.",
        "copies": "No image is a near-duplicate of another, by descriptors and by a hash."
        if looked
        else "They were not looked for among all images, as an earlier version described these.",
    }
