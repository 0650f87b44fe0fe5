"""The page of a run: what its stages left, put together to be looked at."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any

from mmray import __version__, artifacts
from mmray.config import LearningConfig
from mmray.learning import Learned, Outcome
from mmray.mining_stages import TUNED
from mmray.pages.charts import Chart, Series
from mmray.pages.report import (
    Fact,
    GraphPicture,
    Report,
    StageTime,
    Unreadable,
    report_page,
)
from mmray.pages.tables import Table
from mmray.progress import announce
from mmray.report import results
from mmray.report_pictures import changed_queries, mined_anchors
from mmray.session import Session, identity_of
from mmray.training_stages import Tuned

CURVES = {  # title of a chart -> metric -> its name in the legend
    "Loss": {"loss": "training", "held_out_loss": "held-out anchors"},
    "Health, without labels": {"health": "finds the manifold's neighbours"},
    "mAP, by labels": {"map": "labelled set"},
}


def write_report(session: Session[LearningConfig], outcome: Outcome) -> None:
    """Write the page of a run below its storage, and log it."""
    identity = identity_of(session.config)
    page = report_page(_report(session, outcome, identity))
    folder, name = session.storage / "reports", f"{session.run.name}.html"
    folder.write(name, page.encode())
    session.run.log_file(folder, name, "report")
    announce(f"report: {folder.location(name)}")


def _report(
    session: Session[LearningConfig], outcome: Outcome, identity: Mapping[str, Any]
) -> Report:
    learned, config = outcome.learned, session.config
    tuned, most = (None if learned is None else learned.tuned), config.extraction.max_pixels
    head, rows, numbers = results(outcome.scores)
    stages = {stage.fingerprint: stage for stage in session.stages}.values()
    return Report(
        title=_title(config, tuned),
        date=f"{datetime.now().astimezone():%-d %B %Y, %H:%M %Z}",
        summary=tuple(_summary(outcome)),
        facts=() if learned is None else tuple(_facts(learned)),
        results=Table(head=head, rows=tuple(rows), numbers=numbers),
        charts=() if tuned is None else _charts(tuned),
        graph=None if learned is None else _graph(learned),
        anchors=() if learned is None else mined_anchors(learned, max_pixels=most),
        retrieval=()
        if outcome.found is None
        else changed_queries(*outcome.found, seed=config.seed, max_pixels=most),
        quarantine=() if learned is None else _quarantine(learned),
        stages=tuple(StageTime(name=stage.name, seconds=stage.seconds) for stage in stages),
        settings=tuple((f"--{flag.replace('_', '-')}", str(v)) for flag, v in identity.items()),
        versions=(("mmray", __version__), *((p, version(p)) for p in artifacts.PACKAGES)),
    )


def _title(config: LearningConfig, tuned: Tuned | None) -> str:
    unlabelled = tuned is not None and tuned.label == TUNED
    return config.network + (", fine-tuned without labels" if unlabelled else "")


def _summary(outcome: Outcome) -> Iterable[str]:
    learned = outcome.learned
    if learned is not None and learned.tuned is not None:
        tuned = learned.tuned
        if tuned.label != TUNED:
            yield f"This is a comparison, not the method: {tuned.label}."
        if tuned.epoch == 0:
            yield (
                f"None of {tuned.epochs} epochs made the network healthier: it is the initial one."
            )
        else:
            yield f"The network after epoch {tuned.epoch} of {tuned.epochs} is kept."
    if outcome.model is not None:
        yield f"Model: {outcome.model.uri}"


def _facts(learned: Learned) -> Iterable[Fact]:
    counts = learned.extracted.counts
    yield Fact(name="images", value=f"{len(learned.images):,}")
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
        tuned = learned.tuned
        yield Fact(name="epoch kept", value=str(tuned.epoch), note=f"of {tuned.epochs}")


def _charts(tuned: Tuned) -> tuple[Chart, ...]:
    """Figures by epoch, those that were measured."""
    charts = []
    for title, curves in CURVES.items():
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
        charts.append(Chart(title=title, series=drawn, kept=tuned.epoch))
    return tuple(charts)


def _graph(learned: Learned) -> GraphPicture | None:
    if learned.graph is None:
        return None
    return GraphPicture(png=learned.mined.stage.folder.read("graph.png"))


def _quarantine(learned: Learned) -> tuple[Unreadable, ...]:
    bad = learned.extracted.folder.read_table("quarantine.parquet").to_pylist()
    return tuple(Unreadable(name=row["uri"], reason=row["error"]) for row in bad)
