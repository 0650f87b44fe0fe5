"""The HTML page of a run: what came of it, results, charts, and pictures of pools and searches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from mmray.pipeline.reports.charts import Chart, Plot, plot
from mmray.pipeline.reports.examples import (
    Copies,
    MinedAnchor,
    QueryGroup,
    compared,
    found_kinds,
    mined_kinds,
)
from mmray.pipeline.reports.tables import Table
from mmray.pipeline.reports.templating import render

LISTED_UNREADABLE = 100

# Field of `Report` -> heading, in the order of the page.
SECTIONS = {
    "results": "Results",
    "retrieval": "Searches",
    "anchors": "What was mined",
    "charts": "Training",
    "graph": "Graph of similar images",
    "copies": "Near-duplicates",
    "left_out": "What was left out",
    "stages": "Time",
    "settings": "Settings",
}

Mood: TypeAlias = Literal["better", "worse", "unchanged", "unknown", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question of whoever opens the page, with its answer and, below it, commands to type."""

    question: str
    answer: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A key figure, with an optional note."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class GraphDrawing:
    """Drawings of a graph, each with the sentences beside it, and a paragraph above them."""

    plots: tuple[tuple[Plot, tuple[str, ...]], ...]
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An image that could not be read, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Content that took no part in a run: numbers by kind, and images that could not be read."""

    counts: tuple[Fact, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """The time of a stage, or the total of several stages of one name.

    Attributes
    ----------
    seconds : what they took when they were made
    times : number of stages
    read : how many of them an earlier run had made
    seconds_read : what those took
    """

    name: str
    seconds: float
    times: int = 1
    read: int = 0
    seconds_read: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"stage {self.name!r} took {self.seconds} seconds")

    @property
    def duration(self) -> str:
        return duration(self.seconds)

    @property
    def origin(self) -> str:
        """Tell whether the stages were made by this run or read from before."""
        if not self.read:
            return "made now"
        if self.read == self.times:
            return "read from before"
        return f"{self.read} of {self.times} read from before"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Content of the page of a run.

    Attributes
    ----------
    title, date : text at the top
    verdict, mood : what came of the run in a sentence, and whether that is good
    answers : to what whoever opens the page asks first
    summary : sentences, each on a line of its own
    settings : pairs (flag, value)
    versions : pairs (program, version)
    reasons : field -> why it is empty and what to change; without a reason, an empty section is
        left out
    """

    title: str
    date: str = ""
    verdict: str = ""
    mood: Mood = "unknown"
    answers: tuple[Answer, ...] = ()
    summary: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    results: Table | None = None
    charts: tuple[Chart, ...] = ()
    graph: GraphDrawing | None = None
    anchors: tuple[MinedAnchor, ...] = ()
    retrieval: tuple[QueryGroup, ...] = ()
    copies: Copies | None = None
    left_out: LeftOut | None = None
    stages: tuple[StageTime, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


def report_page(report: Report) -> str:
    """Render a report as one HTML page, which needs no other file except for its links."""
    shown = _without_empty(report)
    seconds = sum(stage.seconds for stage in shown.stages)
    before = sum(stage.seconds_read for stage in shown.stages)
    filled = {name for name in SECTIONS if getattr(shown, name)}
    return render(
        "report.html",
        report=shown,
        filled=filled,
        plots=[plot(chart) for chart in shown.charts],
        contents={
            name: title
            for name, title in SECTIONS.items()
            if name in filled or name in shown.reasons
        },
        kinds={"anchors": mined_kinds(shown.anchors), "retrieval": found_kinds(shown.retrieval)},
        compared=compared(shown.retrieval),
        listed=LISTED_UNREADABLE,
        total=duration(seconds),
        read_before=duration(before) if before else "",
        longest=max((stage.seconds for stage in shown.stages), default=0) or 1,
    )


def duration(seconds: float) -> str:
    """Format seconds with two units at most: 0.4 s, 31 s, 2 min 31 s, 1 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def _without_empty(report: Report) -> Report:
    """Remove empty tables, charts and groups from a report."""
    left_out = report.left_out
    if left_out is not None and not (left_out.counts or left_out.unreadable):
        left_out = None
    return replace(
        report,
        results=report.results if report.results and report.results.rows else None,
        charts=tuple(
            chart for chart in report.charts if any(series.points for series in chart.series)
        ),
        retrieval=tuple(group for group in report.retrieval if group.queries),
        left_out=left_out,
    )
