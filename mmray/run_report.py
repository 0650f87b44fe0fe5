"""The page of a run: what its job has to show, and what there is to say of every run."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version

from mmray import __version__, artifacts
from mmray.artifacts import Stage
from mmray.config.run import RunConfig
from mmray.evaluation.scores import Score
from mmray.evaluation.scoring import DEVIATION
from mmray.pages.report import GraphPicture, Report, StageTime, Unreadable, report_page
from mmray.pages.tables import Table
from mmray.report import results
from mmray.session import Session, identity_of
from mmray.system.folder import Folder
from mmray.system.progress import announce

REPORTS = "reports"  # below the storage folder


def write_report(session: Session[RunConfig], report: Report, *, part: str | None = None) -> None:
    """Write the page of a run below its storage, and log it.

    Parameters
    ----------
    report : what the job shows; the date, times, settings and versions are added
    part : the last stage of a run that was to end sooner, which keeps a page of its own
    """
    page = report_page(
        dataclasses.replace(
            report,
            date=f"{datetime.now().astimezone():%-d %B %Y, %H:%M %Z}",
            stages=_times(session.stages),
            settings=tuple(
                (f"--{flag.replace('_', '-')}", str(value))
                for flag, value in identity_of(session.config).items()
            ),
            versions=(("mmray", __version__), *((p, version(p)) for p in artifacts.PACKAGES)),
        )
    )
    name = f"{session.run.name}.html" if part is None else f"{session.run.name}-to-{part}.html"
    folder = session.storage / REPORTS
    folder.write(name, page.encode())
    session.run.log_file(folder, name, "report")
    announce(f"report: {folder.location(name)}")


def scores_table(scores: Sequence[Score]) -> Table:
    """The table of results; a standard deviation is nothing to be best in."""
    head, rows, numbers = results(scores)
    deviations = tuple(column for column in head if column.endswith(DEVIATION))
    return Table(head=head, rows=tuple(rows), numbers=numbers, unranked=deviations)


def graph_picture(mined: Stage) -> GraphPicture:
    """The picture that the mining stage left."""
    return GraphPicture(png=mined.folder.read("graph.png"))


def unreadable(folder: Folder) -> tuple[Unreadable, ...]:
    """What a stage that describes images set aside, from its folder."""
    bad = folder.read_table("quarantine.parquet").to_pylist()
    return tuple(Unreadable(name=row["uri"], reason=row["error"]) for row in bad)


def _times(stages: Sequence[Stage]) -> tuple[StageTime, ...]:
    """Those of one name together, as there may be many; a stage that was read twice counts once."""
    seconds: dict[str, list[float]] = {}
    for stage in {stage.fingerprint: stage for stage in stages}.values():
        seconds.setdefault(stage.name, []).append(stage.seconds)
    return tuple(
        StageTime(name=name, seconds=sum(each), times=len(each)) for name, each in seconds.items()
    )
