"""Opening of a session: its settings are checked, its MLflow run is begun, and ended with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from mmray.config.run import EXPERIMENT, RunConfig, identity_of, stored
from mmray.config.settings_file import settings_text
from mmray.config.validation import validate
from mmray.pipeline.plan import Plan
from mmray.pipeline.session import Session
from mmray.pipeline.stage import fingerprint
from mmray.pipeline.tracking import Run, default_uri, open_run
from mmray.pipeline.tracking_server import run_page
from mmray.system.errors import InputError
from mmray.system.folder import Folder, open_storage
from mmray.system.progress import announce
from mmray.system.termination import last_words, on_termination

KILLED = "KILLED"  # MLflow's status of a run whose job was stopped
# Ray's core, too, ends the process at once, in silence, when its own processes are killed.
LAST_WORDS = (
    "error: this job was killed, or Ray's processes on this machine were, perhaps for lack of "
    "memory; the same command goes on from here"
)

Given = TypeVar("Given", bound=RunConfig)


def usable_storage(config: RunConfig) -> Folder:
    """Check the settings of a run and open its storage folder.

    Raises
    ------
    InputError
        A setting is impossible, or the storage folder cannot be used.
    """
    validate(config)
    return open_storage(config.storage)


@contextmanager
def running(
    config: Given, storage: Folder, chosen: Sequence[str], steps: Sequence[str] = ()
) -> Iterator[Session[Given]]:
    """Open a session, and end its MLflow run with the status of the job.

    Parameters
    ----------
    config : settings of the job
    storage : where everything is kept
    chosen : the stages of --stages
    steps : the stages that users see, see `Plan`

    Raises
    ------
    InputError
        The tracking server or, where a stage needs workers, the cluster cannot be used.
    MachineError
        The cluster does not start, or lost a part of the job.
    """
    tracked = _tracked(config, storage)
    session = Session(config, storage, tracked, chosen, Plan(steps))

    def end_as_killed() -> None:
        with suppress(InputError):  # `_ending` raises the same error where it is reported
            for run in session.open_runs:
                run.end(KILLED)

    with (
        last_words(LAST_WORDS),
        on_termination(end_as_killed),
        _ending(session),
    ):
        announce(f"storage: {storage.uri}")
        keep_settings(session)
        announce(f"mlflow: run {tracked.name} of the experiment {config.experiment}")
        yield session
    announce(f"mlflow: {run_page(tracked.uri, tracked.experiment_id, tracked.run_id)}")


def keep_settings(session: Session[RunConfig]) -> None:
    """Write all settings of a run as a file for --config, beside its page, and log it."""
    if session.run.finished_before and session.reports.has(settings_name(session)):
        return
    text = settings_text(session.config, run=session.run.name)
    session.reports.write(settings_name(session), text.encode())
    session.run.log_text("settings.yaml", text)


def settings_name(session: Session[RunConfig]) -> str:
    """Return the name of the file of the settings, below `Session.reports`."""
    return f"{session.run.name}.yaml"


@contextmanager
def nested(
    outer: Session[RunConfig], config: Given, chosen: Sequence[str], plan: Plan, *, name: str
) -> Iterator[Session[Given]]:
    """Open a session within another, on the same cluster and storage, with a nested MLflow run.

    Parameters
    ----------
    outer : the session around it
    config, chosen : settings, and stages of --stages
    plan : the stages of this session, within those of the other
    name : of the MLflow run

    Raises
    ------
    InputError
        The tracking server cannot be used.
    """
    tracked = _tracked(config, outer.storage, name, parent=outer.run.run_id)
    session = Session(config, outer.storage, tracked, chosen, plan)
    session.share_with(outer)
    with _ending(session):
        yield session


@contextmanager
def _ending(session: Session[Given]) -> Iterator[None]:
    """End the MLflow run of a session with the status of the job, or on a SIGTERM."""
    status = "FAILED"
    session.open_runs.append(session.run)
    try:
        yield
        session.note_stages()
        status = "FINISHED"
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        session.run.end(status)
        session.open_runs.remove(session.run)


def _tracked(
    config: RunConfig, storage: Folder, name: str | None = None, *, parent: str | None = None
) -> Run:
    """Open the MLflow run of these settings, perhaps with a name of its own below a parent run."""
    identity = identity_of(config)
    # Who shares a storage has runs of their own, though these share stages.
    owner = [] if config.experiment == EXPERIMENT else [config.experiment]
    mark = fingerprint(stored(identity), *(owner if parent is None else [parent, name]))
    return open_run(
        storage,
        uri=config.tracking_uri or default_uri(storage),
        experiment=config.experiment,
        name=name or f"{config.title}-{mark[:6]}",
        identity=mark,
        settings=identity,
        parent=parent,
    )
