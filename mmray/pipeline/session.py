"""The session of a run: settings, storage, tracking and workers that all of its stages share."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

from mmray.config.bounds import seconds_in
from mmray.config.run import EXPERIMENT, RunConfig, identity_of, stored
from mmray.config.validation import validate
from mmray.pipeline import distributed
from mmray.pipeline.lease import lease
from mmray.pipeline.notes import note_stages
from mmray.pipeline.stage import StageFolder, fingerprint
from mmray.pipeline.tracking import Run, default_uri, open_run
from mmray.system.errors import DamagedFileError, InputError, first_names
from mmray.system.folder import Folder, open_storage
from mmray.system.processes import enter_folder_again
from mmray.system.progress import announce
from mmray.system.termination import last_words, on_termination

KILLED = "KILLED"  # MLflow's status of a run whose job was stopped
# Ray's core, too, ends the process at once, in silence, when its own processes are killed.
LAST_WORDS = (
    "error: this job was killed, or Ray's processes on this machine were, perhaps for lack of "
    "memory; the same command goes on from here"
)

Counts = Mapping[str, Any]
Settings = TypeVar("Settings", bound=RunConfig, covariant=True)
Given = TypeVar("Given", bound=RunConfig)


class Session(Generic[Settings]):
    """A run on a connected cluster."""

    def __init__(self, config: Settings, storage: Folder, run: Run, chosen: Sequence[str]) -> None:
        self.config: Settings = config
        self.storage, self.run, self.chosen = storage, run, chosen
        # MLflow runs that still have to be ended: of this session and of those around or within it.
        self.open_runs: list[Run] = []
        self.stages: list[StageFolder] = []  # stages that were done or read, in this order
        self.seconds_before = 0.0  # seconds of the stages around a session within another
        # Fingerprints of stages that were not read, of this session and those within it.
        self.made: list[str] = []
        self._nested_seconds = 0.0  # seconds of stages that were run within the current one

    @property
    def pool(self) -> "distributed.ActorPool":
        """Return the workers of stages; with the first use, Ray is joined or started."""
        config = self.config
        capacity = distributed.Capacity(
            given_cpus=config.num_cpus,
            given_gpus=config.num_gpus,
            timeout=config.resource_timeout,
        )
        distributed.connect(capacity)
        return distributed.ActorPool(
            minimum=config.min_workers, maximum=config.max_workers, capacity=capacity
        )

    def with_settings(self, config: Given) -> "Session[Given]":
        """Return a session of the same run with other settings; both collect the same stages."""
        other: Any = copy.copy(self)
        other.config = config
        session: Session[Given] = other
        return session

    def time_left(self, budget: str | None) -> float | None:
        """Return the seconds that are left of a budget such as 30m; None without one."""
        total = None if budget is None else seconds_in(budget)
        return None if total is None else total - self.seconds

    @property
    def seconds(self) -> float:
        """Return how long the stages so far took when they were made, in seconds."""
        return self.seconds_before + sum(stage.seconds for stage in self.stages)

    def ends_with(self, stage: str) -> bool:
        """Tell whether this is the last stage of --stages."""
        return self.chosen[-1] == stage

    def reporting(self, label: str) -> Callable[[Mapping[str, float]], None]:
        """Return a callback that logs the figures of a `Progress` to MLflow under a label."""

        def report(figures: Mapping[str, float]) -> None:
            named = {f"{label}/{name}": value for name, value in figures.items()}
            self.run.log_metrics(named, step=int(figures["done"]))

        return report

    def run_stage(
        self,
        name: str,
        *inputs: Any,
        work: Callable[[StageFolder], Counts],
        stage_flag: str | None = None,
        stale: Callable[[StageFolder], str] = lambda stage: "",
        internal: Sequence[str] = (),
        read_by_part: Sequence[str] = (),
    ) -> StageFolder:
        """Return the stage of these inputs: read if it is done, else run if it was chosen.

        The files of a stage that is done are compared with their digests; what is damaged is made
        anew. While another process makes the stage, this one waits, and then reads it.

        Parameters
        ----------
        name
            Name of the stage, and of its folder.
        inputs : JSON-like
            Everything that determines the result of the stage.
        work
            Fills the stage's folder and returns counts for its record.
        stage_flag
            Name of the stage in --stages that this one belongs to; None: `name`.
        stale
            Returns why the results of a stage that is done are outdated, so that it is run again,
            or "".
        internal
            Beginnings of the names of files that no other stage reads: they have no digest.
        read_by_part
            Beginnings of the names of files that are not compared as a whole, only their sizes:
            they are large, and checked as their parts are read.

        Raises
        ------
        InputError
            The stage is not done, and --stages leaves it out.
        """
        stage = StageFolder.of(self.storage, name, *inputs)

        def usable() -> bool:
            return stage.done and not stale(stage) and not stage.damaged()

        if usable():
            announce(f"{name}: done before, {stage.folder.uri}")
        elif (stage_flag or name) not in self.chosen:
            found = "is damaged or outdated" if stage.done else "has not been done"
            raise InputError(
                f"--stages {','.join(self.chosen)}: the stage {stage_flag or name} {found} for "
                f"these settings under --storage {self.storage.uri}; add it to --stages"
            )
        else:
            with lease(self.storage, f"{name}-{stage.fingerprint}", done=usable) as needed:
                if needed:
                    _clear(stage, stale(stage) if stage.done else "")
                    self._make(stage, work, internal=internal, read_by_part=read_by_part)
                else:
                    announce(f"{name}: made meanwhile, {stage.folder.uri}")
        self.stages.append(stage)
        if not self.finished_before:  # else they are there
            numbers = {k: v for k, v in stage.counts.items() if isinstance(v, (int, float))}
            self.run.log_metrics({f"{name}/{key}": value for key, value in numbers.items()})
        return stage

    def _note(self, stages: Sequence[StageFolder], *, whole: bool) -> None:
        names = (f"{stage.name}-{stage.fingerprint}" for stage in stages)
        note_stages(self.storage, self.run.identity, names, whole=whole)

    @property
    def finished_before(self) -> bool:
        """Tell whether an earlier job published this run, and this one has made nothing anew."""
        return self.run.finished_before and not self.made

    def _make(
        self, stage: StageFolder, work: Callable[[StageFolder], Counts], **files: Sequence[str]
    ) -> None:
        """Run the work of a stage, again where it meets a damaged file of its own."""
        announce(f"{stage.name}: {stage.folder.uri}")
        enter_folder_again()  # numba asks for the current folder when it compiles
        self.made.append(stage.fingerprint)
        self._note([*self.stages, stage], whole=False)
        stage.started = time.monotonic()
        before, self._nested_seconds = self._nested_seconds, 0.0
        counts, removed = None, set[str]()
        while counts is None:
            try:
                with distributed.reporting_losses():
                    counts = work(stage)
            except DamagedFileError as error:
                places = {stage.folder.location(file): file for file in stage.folder.sizes()}
                if error.location not in places or error.location in removed:
                    raise
                removed.add(error.location)
                announce(f"{stage.name}: {places[error.location]} is damaged, and made again")
                stage.folder.delete(places[error.location])
        stage.finish(counts, nested_seconds=self._nested_seconds, **files)
        self._nested_seconds = before + time.monotonic() - stage.started


def _clear(stage: StageFolder, outdated: str) -> None:
    """Remove what is outdated or damaged of a stage that was done."""
    if not stage.done:
        return
    if outdated:
        announce(f"{stage.name}: made again, as {outdated}")
        stage.folder.remove()
        return
    damaged = stage.damaged()
    announce(f"{stage.name}: {first_names(damaged, 3)} damaged or missing, and made again")
    stage.reopen(damaged)


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
def running(config: Given, storage: Folder, chosen: Sequence[str]) -> Iterator[Session[Given]]:
    """Open a session, and end its MLflow run with the status of the job.

    Raises
    ------
    InputError
        The tracking server or, where a stage needs workers, the cluster cannot be used.
    MachineError
        The cluster does not start, or lost a part of the job.
    """
    tracked = _tracked(config, storage)
    session = Session(config, storage, tracked, chosen)

    def end_as_killed() -> None:
        with suppress(InputError):  # `_ending` raises the same error where it is reported
            for run in session.open_runs:
                run.end(KILLED)

    with (
        last_words(LAST_WORDS),
        on_termination(end_as_killed),
        _ending(session),
    ):
        announce(f"mlflow: run {tracked.name} of the experiment {config.experiment}")
        yield session


@contextmanager
def nested(
    outer: Session[RunConfig], config: Given, chosen: Sequence[str], *, name: str
) -> Iterator[Session[Given]]:
    """Open a session within another, on the same cluster and storage, with a nested MLflow run.

    Raises
    ------
    InputError
        The tracking server cannot be used.
    """
    tracked = _tracked(config, outer.storage, name, parent=outer.run.run_id)
    session = Session(config, outer.storage, tracked, chosen)
    session.open_runs, session.made = outer.open_runs, outer.made
    session.seconds_before = outer.seconds
    with _ending(session):
        yield session


@contextmanager
def _ending(session: Session[Given]) -> Iterator[None]:
    """End the MLflow run of a session with the status of the job, or on a SIGTERM."""
    status = "FAILED"
    session.open_runs.append(session.run)
    try:
        yield
        session._note(session.stages, whole=True)
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
