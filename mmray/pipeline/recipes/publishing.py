"""Writing the page of a run, its last words in MLflow, and the logging of its model."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version

from mmray import __version__
from mmray.config.learning import LearningConfig
from mmray.config.run import RunConfig, identity_of
from mmray.pipeline.recipes.left_out import left_out_of
from mmray.pipeline.recipes.outcome import RunResult
from mmray.pipeline.recipes.run_report import learning_report, report_without_pools
from mmray.pipeline.recipes.steps import in_rounds
from mmray.pipeline.recipes.verdict import headline
from mmray.pipeline.registry import log_model
from mmray.pipeline.reports.run_page import Report, StageTime, report_page
from mmray.pipeline.session import Session
from mmray.pipeline.stage import PACKAGES, StageFolder
from mmray.pipeline.stages.minable import NothingMinedError
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
    session.run.log_metrics(headline(outcome, of_rounds=in_rounds(config)))
    _publish(session, learning_report(config, outcome, session.stages, part=part), part)


def publish_without_pools(session: Session[LearningConfig], error: NothingMinedError) -> None:
    """Write the report of a run that found nothing to learn from."""
    _publish(session, report_without_pools(session.config, error, session.stages), None)


def _publish(session: Session[LearningConfig], report: Report, part: str | None) -> None:
    if report.verdict:
        session.run.log_verdict(report.verdict)
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


def write_report(session: Session[RunConfig], report: Report, *, part: str | None = None) -> None:
    """Write the page of a run below its storage, and log it.

    Parameters
    ----------
    session : the run
    report : results of the job; the date, times, settings and versions are added, and what was left
        out when images were listed unless it tells what was
    part : last stage of a partial run, which has a page of its own; None: the run is complete
    """
    now = datetime.now().astimezone()
    page = report_page(
        dataclasses.replace(
            report,
            left_out=report.left_out or left_out_of(session.stages),
            date=f"{now:%-d %B %Y, %H:%M %Z}, run {session.run.name}",
            stages=_times(session),
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


def _times(session: Session[RunConfig]) -> tuple[StageTime, ...]:
    """Sum up the times of stages by name; a stage that was read twice counts once."""
    by_name, made = dict[str, list[StageFolder]](), frozenset(session.made)
    for stage in {stage.fingerprint: stage for stage in session.stages}.values():
        by_name.setdefault(stage.name, []).append(stage)
    return tuple(_time(name, stages, made) for name, stages in by_name.items())


def _time(name: str, stages: Sequence[StageFolder], made: frozenset[str]) -> StageTime:
    read = [stage for stage in stages if stage.fingerprint not in made]
    return StageTime(
        name=name,
        seconds=sum(stage.seconds for stage in stages),
        times=len(stages),
        read=len(read),
        seconds_read=sum(stage.seconds for stage in read),
    )
