"""The HTML page of a run: results, charts, and pictures of pools and searches."""

import math
from dataclasses import dataclass, replace

from mmray.pipeline.reports.charts import Chart, plot
from mmray.pipeline.reports.tables import Table
from mmray.pipeline.reports.templating import render
from mmray.pipeline.reports.thumbnails import Kind, Picture, png_uri

LISTED_UNREADABLE = 100

# Field of `Report` -> heading, in the order of the page.
SECTIONS = {
    "results": "Results",
    "charts": "Training",
    "graph": "Graph",
    "anchors": "What was mined",
    "retrieval": "Searches",
    "copies": "Near-duplicates",
    "quarantine": "Quarantine",
    "stages": "Time",
    "settings": "Settings",
}

# Meanings of the frames, by section.
MEANINGS: dict[str, dict[Kind, str]] = {
    "anchors": {
        "anchor": "the anchor",
        "same": "its label",
        "other": "another label",
        "unlabelled": "no label",
    },
    "retrieval": {
        "anchor": "the query",
        "same": "hit",
        "other": "miss",
        "unlabelled": "does not count",
    },
}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A key figure at the top of the page, with an optional note below it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class GraphPicture:
    """The PNG of `graph_figure`, with its alternative text and a paragraph above it."""

    png: bytes
    alt: str = "Histograms of the items' degrees and of the components' sizes"
    text: str = ""

    @property
    def uri(self) -> str:
        return png_uri(self.png)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An image in a pool of an anchor, with its ranks by both similarities if they are known.

    Ranks are from 1; a Euclidean rank of 0 is past all places that were compared.
    """

    picture: Picture
    manifold_rank: int | None = None
    euclidean_rank: int | None = None
    similarity: float | None = None


@dataclass(frozen=True, kw_only=True)
class MinedAnchor:
    """An anchor with its pools, and its nearest neighbours, which the baseline would choose."""

    anchor: Picture
    caption: str = ""
    positives: tuple[Chosen, ...] = ()
    negatives: tuple[Chosen, ...] = ()
    nearest: tuple[Chosen, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """The first search results of a network for a query.

    Attributes
    ----------
    network : label of the network
    pictures : the results; a hit has the kind "same", a miss "other", junk "unlabelled"
    average_precision : of the whole ranking, in [0, 1]; None where it is undefined
    """

    network: str
    pictures: tuple[Picture, ...]
    average_precision: float | None = None

    def __post_init__(self) -> None:
        value = self.average_precision
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"average precision must be in [0, 1] or None, got {value}")


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A query with the search results of the networks to compare, in their order."""

    query: Picture
    rankings: tuple[Ranked, ...]

    @property
    def points(self) -> float | None:
        """Return the gain in average precision from the first to the last network, in points."""
        if len(self.rankings) < 2:
            return None
        first, last = (self.rankings[place].average_precision for place in (0, -1))
        return None if first is None or last is None else round(100 * (last - first), 1)


@dataclass(frozen=True, kw_only=True)
class QueryGroup:
    """Queries with a heading that says how they were chosen, such as "Most improved"."""

    heading: str
    queries: tuple[Searched, ...]


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A near-duplicate beside the image that represents it: their similarity, and bits apart."""

    picture: Picture
    similarity: float
    distance: int


@dataclass(frozen=True, kw_only=True)
class CopyGroup:
    """A group of near-duplicates: its representative, with copies of it, `more` of them not shown.

    `caption` is a line below the representative.
    """

    representative: Picture
    caption: str
    copies: tuple[Copy, ...]
    more: int = 0


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The near-duplicates of a run: a sentence, and groups by the heading that says which."""

    text: str
    groups: tuple[tuple[str, tuple[CopyGroup, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An image that could not be read, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """The time of a stage, or the total of several stages of one name."""

    name: str
    seconds: float
    times: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"stage {self.name!r} took {self.seconds} seconds")

    @property
    def duration(self) -> str:
        return duration(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Content of the page of a run; empty sections are left out.

    Attributes
    ----------
    title, date, verdict : text at the top
    summary : sentences, each on a line of its own
    settings : pairs (flag, value)
    versions : pairs (program, version)
    """

    title: str
    date: str = ""
    verdict: str = ""
    summary: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    results: Table | None = None
    charts: tuple[Chart, ...] = ()
    graph: GraphPicture | None = None
    anchors: tuple[MinedAnchor, ...] = ()
    retrieval: tuple[QueryGroup, ...] = ()
    copies: Copies | None = None
    quarantine: tuple[Unreadable, ...] = ()
    stages: tuple[StageTime, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()


def report_page(report: Report) -> str:
    """Render a report as one HTML page, which needs no other file.

    Raises
    ------
    ValueError
        The graph's picture is not a PNG.
    """
    shown = _without_empty(report)
    return render(
        "report.html",
        report=shown,
        plots=[plot(chart) for chart in shown.charts],
        contents={name: title for name, title in SECTIONS.items() if getattr(shown, name)},
        kinds={"anchors": _mined_kinds(shown), "retrieval": _found_kinds(shown)},
        compared=_compared(shown),
        listed=LISTED_UNREADABLE,
        total=duration(sum(stage.seconds for stage in shown.stages)),
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
    return replace(
        report,
        results=report.results if report.results and report.results.rows else None,
        charts=tuple(
            chart for chart in report.charts if any(series.points for series in chart.series)
        ),
        retrieval=tuple(group for group in report.retrieval if group.queries),
    )


def _compared(report: Report) -> tuple[str, str] | None:
    """Return the first and the last network of the searches, if their precision is compared."""
    for group in report.retrieval:
        for searched in group.queries:
            if searched.points is not None:
                return searched.rankings[0].network, searched.rankings[-1].network
    return None


def _mined_kinds(report: Report) -> dict[Kind, str]:
    pictures = [mined.anchor for mined in report.anchors]
    for mined in report.anchors:
        pools = mined.positives, mined.negatives, mined.nearest
        pictures += [chosen.picture for pool in pools for chosen in pool]
    return _occurring("anchors", pictures)


def _found_kinds(report: Report) -> dict[Kind, str]:
    searches = [searched for group in report.retrieval for searched in group.queries]
    pictures = [searched.query for searched in searches]
    for searched in searches:
        for ranking in searched.rankings:
            pictures += ranking.pictures
    return _occurring("retrieval", pictures)


def _occurring(section: str, pictures: list[Picture]) -> dict[Kind, str]:
    """Return the meanings of the frames that occur in a section."""
    kinds = {picture.kind for picture in pictures}
    return {kind: word for kind, word in MEANINGS[section].items() if kind in kinds}
