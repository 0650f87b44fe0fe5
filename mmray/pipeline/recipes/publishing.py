"""The report of a run that learns, assembled from its stages, and the logging of its model."""

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import version

from mmray import __version__
from mmray.config.learning import LearningConfig
from mmray.config.run import RunConfig, identity_of
from mmray.evaluation.candidates import TUNED
from mmray.evaluation.purity import percent
from mmray.evaluation.scores import Score
from mmray.evaluation.scoring import DEVIATION
from mmray.images.left_out import counted
from mmray.pipeline.recipes.outcome import LearningResult, RunResult
from mmray.pipeline.recipes.pictures import mined_anchors, near_duplicates, searches
from mmray.pipeline.recipes.steps import in_rounds
from mmray.pipeline.recipes.verdict import headline, verdict
from mmray.pipeline.registry import log_model
from mmray.pipeline.reports.charts import Chart, Series
from mmray.pipeline.reports.run_page import (
    Fact,
    GraphPicture,
    Report,
    StageTime,
    Unreadable,
    report_page,
)
from mmray.pipeline.reports.tables import Table, results
from mmray.pipeline.session import Session
from mmray.pipeline.stage import PACKAGES, StageFolder
from mmray.pipeline.stages.listing import LEFT_OUT
from mmray.pipeline.stages.training import FineTunedNetwork
from mmray.serving.encoder import TrainedModel
from mmray.system.folder import Folder
from mmray.system.progress import announce
from mmray.system.uris import masked_text


def publish(session: Session[LearningConfig], outcome: RunResult) -> None:
    """Log and register the model in MLflow, and write the report."""
    config, last = session.config, session.chosen[-1]
    part = None if last == config.all_stages[-1] else last
    page = _page_name(session, part)
    if session.finished_before and session.reports.has(page):
        session.page = page
        announce(f"report: done before, {session.reports.location(page)}")
        return
    if outcome.model is not None:
        _log(session, outcome.model)
    report = learning_report(config, outcome, part=part)
    if report.verdict:
        session.run.log_verdict(report.verdict)
    session.run.log_metrics(headline(outcome, of_rounds=in_rounds(config)))
    write_report(session, report, part=part)


def _log(session: Session[LearningConfig], folder: Folder) -> None:
    model = TrainedModel.read(folder)
    uri = log_model(
        session.run,
        folder,
        dims=model.network.dim,
        digest=model.digest(),
        registered=session.config.model_name,
    )
    if uri is not None:
        announce(f"model: registered in MLflow as {uri}")


_KINDS_LEFT_OUT = 20  # at most, on the page; the stage's record has all


def write_report(session: Session[RunConfig], report: Report, *, part: str | None = None) -> None:
    """Write the page of a run below its storage, and log it.

    Parameters
    ----------
    session : the run
    report : results of the job; the date, times, settings and versions are added, and a sentence on
        what was left out when images were listed
    part : last stage of a partial run, which has a page of its own; None: the run is complete
    """
    page = report_page(
        dataclasses.replace(
            report,
            summary=(*report.summary, *_left_out(session.stages)),
            date=f"{datetime.now().astimezone():%-d %B %Y, %H:%M %Z}",
            stages=_times(session.stages),
            settings=tuple(
                (f"--{flag.replace('_', '-')}", str(value))
                for flag, value in identity_of(session.config).items()
            ),
            versions=(("mmray", __version__), *((p, version(p)) for p in PACKAGES)),
        )
    )
    folder, name = session.reports, _page_name(session, part)
    session.page = name
    folder.write(name, masked_text(page).encode())
    session.run.log_file(folder, name, "report")
    announce(f"report: {folder.location(name)}")


def _page_name(session: Session[RunConfig], part: str | None) -> str:
    return f"{session.run.name}.html" if part is None else f"{session.run.name}-to-{part}.html"


def scores_table(scores: Sequence[Score]) -> Table:
    """Make the table of results, in which standard deviations are not ranked."""
    head, rows, numbers = results(scores)
    deviations = tuple(column for column in head if column.endswith(DEVIATION))
    return Table(head=head, rows=tuple(rows), numbers=numbers, unranked=deviations)


def graph_picture(mined: StageFolder) -> GraphPicture:
    """Read the picture of the graph that the mining stage wrote."""
    return GraphPicture(png=mined.folder.read("graph.png"))


def unreadable(folder: Folder) -> tuple[Unreadable, ...]:
    """Read the images that an extraction stage could not read, from its folder."""
    bad = folder.read_table("quarantine.parquet").to_pylist()
    return tuple(Unreadable(name=row["uri"], reason=row["error"]) for row in bad)


def _left_out(stages: Sequence[StageFolder]) -> Iterable[str]:
    """Tell what was found beside the images that were listed; earlier versions kept no record."""
    for stage in {stage.fingerprint: stage for stage in stages if stage.name == "list"}.values():
        counts = stage.counts.get(LEFT_OUT)
        if counts:
            yield f"Left out when the images were listed: {counted(counts, most=_KINDS_LEFT_OUT)}."


def _times(stages: Sequence[StageFolder]) -> tuple[StageTime, ...]:
    """Sum up the times of stages by name; a stage that was read twice counts once."""
    seconds: dict[str, list[float]] = {}
    for stage in {stage.fingerprint: stage for stage in stages}.values():
        seconds.setdefault(stage.name, []).append(stage.seconds)
    return tuple(
        StageTime(name=name, seconds=sum(each), times=len(each)) for name, each in seconds.items()
    )


CURVES = {  # title of a chart -> metric -> name in the legend
    "Loss": {"loss": "training", "held_out_loss": "held-out anchors"},
    "Check without labels": {
        "view_agreement": "neighbours that parts of photos find too",
        "manifold_map": "mAP of manifold neighbours",
    },
    "mAP, by labels": {"map": "labelled set"},
}


def learning_report(config: LearningConfig, outcome: RunResult, *, part: str | None) -> Report:
    """Make the report of a run from its settings and results.

    Parameters
    ----------
    config : settings of the job
    outcome : results of the run
    part : last stage of a partial run; None: the run is complete
    """
    learned, most = outcome.learned, config.extraction.max_pixels
    page = Report(
        title=_title(config, learned),
        verdict=verdict(outcome),
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
        copies=near_duplicates(learned.near, max_pixels=most),
        quarantine=() if learned.extracted is None else unreadable(learned.extracted.folder),
    )


def _title(config: LearningConfig, learned: LearningResult | None) -> str:
    kept = None if learned is None else learned.kept
    unlabelled = kept is not None and kept.epoch > 0 and kept.label == TUNED
    return config.network + (", fine-tuned without labels" if unlabelled else "")


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
    if learned.extracted is not None:
        counts = learned.extracted.counts
        if counts["quarantined"]:
            yield Fact(name="could not be read", value=f"{counts['quarantined']:,}")
        if counts["duplicates"]:
            yield Fact(name="exact duplicates", value=f"{counts['duplicates']:,}", note="left out")
    if learned.near is not None and (count := learned.near.stage.counts["near_duplicates"]):
        note = "left out" if learned.near.left_out else "kept"
        yield Fact(name="near-duplicates", value=f"{count:,}", note=note)
    if learned.graph is not None:
        yield Fact(name="edges", value=f"{learned.graph.counts['edges']:,}", note="reciprocal k-NN")
        yield Fact(name="anchors", value=f"{len(learned.mined.pools.anchors):,}")
        yield Fact(name="images in pools", value=f"{len(learned.mined.pools.members):,}")
    if learned.purity is not None:
        for name, rate in (
            ("true positives", learned.purity.positives),
            ("true negatives", learned.purity.negatives),
        ):
            yield Fact(name=name, value=percent(rate), note="by labels, for information only")
    if learned.kept is not None:
        rounds = f" in round {learned.kept_round}" if len(learned.trained) > 1 else ""
        note = f"of {learned.kept.epochs}{rounds}"
        yield Fact(name="epoch kept", value=str(learned.kept.epoch), note=note)


def _charts(trained: Sequence[FineTunedNetwork]) -> tuple[Chart, ...]:
    """Make the charts of measured metrics by epoch, those of all rounds side by side."""
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
