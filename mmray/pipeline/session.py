"""The session of a run: settings, storage, tracking and workers that all of its stages share."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from mmray.config.bounds import seconds_in
from mmray.config.run import RunConfig
from mmray.pipeline import distributed
from mmray.pipeline.lease import lease
from mmray.pipeline.metric_names import of_counts, of_progress
from mmray.pipeline.notes import note_stages
from mmray.pipeline.plan import Plan, step_of
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.tracking import Run
from mmray.system.errors import DamagedFileError, InputError, first_names
from mmray.system.folder import Folder
from mmray.system.processes import enter_folder_again
from mmray.system.progress import announce, timed

REPORTS = "reports"  # below the storage folder
Counts = Mapping[str, Any]
Settings = TypeVar("Settings", bound=RunConfig, covariant=True)
Given = TypeVar("Given", bound=RunConfig)


class Session(Generic[Settings]):
    """A run on a connected cluster."""

    def __init__(
        self,
        config: Settings,
        storage: Folder,
        run: Run,
        chosen: Sequence[str],
        plan: Plan | None = None,
    ) -> None:
        self.config: Settings = config
        self.storage, self.run, self.chosen = storage, run, chosen
        self.plan = Plan() if plan is None else plan
        # MLflow runs that still have to be ended: of this session and of those around or within it.
        self.open_runs: list[Run] = []
        self.page: str | None = None  # name of the page of the run below `reports`, once written
        self.stages: list[StageFolder] = []  # stages that were done or read, in this order
        self.seconds_before = 0.0  # seconds of the stages around a session within another
        # Fingerprints of stages that were not read, of this session and those within it.
        self.made: list[str] = []
        self._nested_seconds = 0.0  # seconds of stages that were run within the current one

    @property
    def reports(self) -> Folder:
        """Return the folder of the pages and the settings of all runs."""
        return self.storage / REPORTS

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
            self.run.log_metrics(of_progress(label, figures), step=int(figures["done"]))

        return report

    def run_stage(
        self,
        name: str,
        *inputs: Any,
        work: Callable[[StageFolder], Counts],
        stage_flag: str | None = None,
        words: str | None = None,
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
        words
            What the stage does, for the terminal; None: as in `plan.WORDS`.
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
        stage, step = StageFolder.of(self.storage, name, *inputs), step_of(name, stage_flag)
        does = self.plan.reach(step, words)

        def usable() -> bool:
            return stage.done and not stale(stage) and not stage.damaged()

        if usable():
            announce(f"{does}: done before ({stage.label})")
        elif (stage_flag or name) not in self.chosen:
            found = "is damaged or outdated" if stage.done else "has not been done"
            raise InputError(
                f"--stages {','.join(self.chosen)}: the stage {stage_flag or name} {found} for "
                f"these settings under --storage {self.storage.uri}; add it to --stages"
            )
        else:
            with lease(self.storage, stage.label, done=usable) as needed:
                if needed:
                    _clear(stage, stale(stage) if stage.done else "")
                    with timed(does, stage.label), self.plan.inside():
                        self._make(stage, work, internal=internal, read_by_part=read_by_part)
                else:
                    announce(f"{does}: made meanwhile ({stage.label})")
        self.stages.append(stage)
        if not self.finished_before:  # else they are there
            numbers = {k: v for k, v in stage.counts.items() if isinstance(v, (int, float))}
            self.run.log_metrics(of_counts(step, numbers))
        return stage

    def share_with(self, outer: "Session[RunConfig]") -> None:
        """Join an outer session: the two are one job."""
        self.open_runs, self.made = outer.open_runs, outer.made
        self.seconds_before = outer.seconds

    def note_stages(self) -> None:
        """Note in the storage that the run used these stages and no others."""
        labels = (stage.label for stage in self.stages)
        note_stages(self.storage, self.run.identity, labels, whole=True)

    @property
    def finished_before(self) -> bool:
        """Tell whether an earlier job published this run, and this one has made nothing anew."""
        return self.run.finished_before and not self.made

    def _make(
        self, stage: StageFolder, work: Callable[[StageFolder], Counts], **files: Sequence[str]
    ) -> None:
        """Run the work of a stage, again where it meets a damaged file of its own."""
        enter_folder_again()  # numba asks for the current folder when it compiles
        self.made.append(stage.fingerprint)
        labels = [each.label for each in (*self.stages, stage)]
        note_stages(self.storage, self.run.identity, labels, whole=False)
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
