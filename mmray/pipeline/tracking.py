"""Experiment tracking with MLflow: the driver opens a run, any process logs to it by its id."""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

# Telemetry of MLflow calls its makers: without a network a run would wait for that.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# The files of a model are many and small: a progress bar for each would flood the terminal.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import mlflow.entities
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
)
from mlflow.utils.validation import (
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)

from mmray import __version__
from mmray.pipeline.database import (
    ARTIFACTS,
    DATABASE,
    REMEDY,
    database_path,
    database_uri,
    make_ready,
    unusable,
)
from mmray.pipeline.metric_names import of_epoch
from mmray.pipeline.notes import Note, read_note, write_note
from mmray.pipeline.tracking_server import (
    ERRORS,
    MAX_NAME,
    as_text,
    dataset_source,
    experiment_id,
    first_line,
    living_run,
    metric_name,
    tagged_run,
    wait_for_server,
    wait_long,
)
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.uris import masked, masked_text

# "Context impl SQLiteImpl" and the forty migrations of a new database mean nothing to a user.
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
# It logs the traceback of errors that it also raises.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

VERSION = "mmray.version"  # tag: of the package that made the run
STORAGE = "mmray.storage"  # tag: of the storage in which the run, or the model, was made
DIGEST = 16  # hex digits of a dataset's digest; MLflow takes up to 36

wait_long()


@dataclass(frozen=True)
class Run:
    """Handle of an MLflow run: the server's address and the run's id; cheap to send to workers.

    `identity` is the name of its note, see `mmray.pipeline.notes`; `finished_before` tells whether
    a job of this version had ended it with success.
    """

    uri: str
    run_id: str
    name: str = ""
    identity: str = ""
    finished_before: bool = False
    experiment_id: str = ""

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.uri)

    def __getstate__(self) -> dict[str, str]:
        return {"uri": self.uri, "run_id": self.run_id, "name": self.name}

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        with self.reporting():
            now = int(1000 * time.time())
            entries = [Metric(metric_name(k), float(v), now, step) for k, v in metrics.items()]
            self.client.log_batch(self.run_id, metrics=entries)

    def log_epochs(self, history: Sequence[Mapping[str, float]]) -> None:
        """Log the metrics of epochs 0, 1, ..., except epochs that are already logged.

        The metrics of an epoch are logged all at once or not at all, under their `of_epoch` names.
        Earlier versions logged them under those of the history.
        """
        names = {own for metrics in history for name in metrics for own in (name, of_epoch(name))}
        with self.reporting():
            there = self.client.get_run(self.run_id).data.metrics
            logged = {
                metric.step
                for name in names & there.keys()
                for metric in self.client.get_metric_history(self.run_id, name)
            }
            now = int(1000 * time.time())
            for step, metrics in enumerate(history):
                if step in logged:
                    continue
                entries = [Metric(of_epoch(k), float(v), now, step) for k, v in metrics.items()]
                self.client.log_batch(self.run_id, metrics=entries)

    def log_data(self, name: str, *, digest: str, sources: Sequence[str], rows: int) -> None:
        """Log the data that the run learns from, as its dataset and as a tag for searches.

        Parameters
        ----------
        name : of the dataset
        digest : hash of the data
        sources : paths and URIs that the user named
        rows : number of images
        """
        data = Dataset(
            name=name,
            digest=digest[:DIGEST],
            source_type="mmray",
            source=dataset_source([masked(source) for source in sources]),
            profile=json.dumps({"num_rows": rows}),
        )
        used = DatasetInput(data, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])
        with self.reporting():
            self.client.log_inputs(self.run_id, [used])
            self.client.set_tag(self.run_id, "mmray.data", digest[:DIGEST])

    def log_labels(self, label: str) -> None:
        """Mark the run as one whose network learned from labels, and name the method.

        MLflow shows this as the description of the run and as a tag.
        """
        with self.reporting():
            self.client.set_tag(self.run_id, "mmray.comparison", label)
            note = f"A comparison, not the method: {label}."
            self.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, note)

    def log_verdict(self, verdict: str) -> None:
        """Show what came of the run as its description, and as a tag for the table of runs."""
        with self.reporting():
            self.client.set_tag(self.run_id, "mmray.verdict", verdict)
            self.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, verdict)

    def log_text(self, name: str, text: str) -> None:
        with self.reporting():
            self.client.log_text(self.run_id, text, name)

    def log_file(self, folder: Folder, name: str, artifact_folder: str) -> None:
        """Log a file of a storage folder as an artifact."""
        with self.reporting(), tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / name
            copy.write_bytes(folder.read(name))
            self.client.log_artifact(self.run_id, str(copy), artifact_folder)

    def end(self, status: str) -> None:
        """End the run with a status: FINISHED, FAILED or KILLED."""
        with self.reporting():
            self.client.set_terminated(self.run_id, status)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn errors of the server, such as a full disk, into an InputError for the user."""
        try:
            yield
        except ERRORS as error:
            wait_for_server(retries=0, timeout=5)  # the job ends: it only says that it failed
            remedy = REMEDY if database_path(self.uri) else "fix that"
            raise InputError(
                f"MLflow at {self.uri} cannot be written ({first_line(error)}); {remedy}, then run "
                "the same command again: what is done is kept"
            ) from error


def default_uri(storage: Folder) -> str:
    """Return the URI of the database under a local storage folder.

    Raises
    ------
    InputError
        The storage is not local: a database cannot live in a bucket.
    """
    if storage.local is None:
        raise InputError(
            f"--storage {storage.uri} is not a local folder, so MLflow's database cannot live "
            "there: name a server with --tracking-uri http://..."
        )
    return database_uri(storage.local / DATABASE)


def open_run(
    storage: Folder,
    *,
    uri: str,
    experiment: str,
    name: str,
    identity: str,
    settings: Mapping[str, Any],
    parent: str | None = None,
) -> Run:
    """Open the run of an identity: the one that an earlier call began if it exists, or a new one.

    Parameters
    ----------
    storage
        Folder in which runs are noted.
    uri
        Of the tracking server or its database.
    experiment
        Name of the experiment, which is created if need be.
    name
        Name of the run.
    identity
        Fingerprint of the settings that determine the results, under which the run is noted. Where
        the note is damaged, or a job was killed before it wrote it, the run is found by its tags.
    settings
        Name -> value, logged as parameters.
    parent
        Id of the run that this one is nested in.

    Raises
    ------
    InputError
        The server does not answer or refuses the experiment, or the database cannot be used.
    """
    local = database_path(uri)
    if local is not None:
        make_ready(local)
    marks = {"mmray.identity": identity, STORAGE: storage_mark(storage)}
    own = {VERSION: __version__} | marks
    if parent is not None:
        own[MLFLOW_PARENT_RUN_ID] = parent
    try:
        client = mlflow.MlflowClient(uri)
        artifacts = None if storage.local is None else (storage.local / ARTIFACTS).as_uri()
        belongs = experiment_id(client, experiment, artifacts if local else None)
        note = read_note(storage, identity)
        noted = None if note is None else living_run(client, note.run_id)
        known = noted or tagged_run(client, belongs, marks)
        finished = known is not None and _is_finished(known)
        # Of a run that was found by its tags nobody knows which it used; of a new one, none.
        stages = None if note is None or noted is None else note.stages
        if known is None:
            stages = ()
            # User, file and commit, as MLflow's own function to start a run records them.
            of_process = resolve_tags().items()
            texts = {key: masked_text(str(value)) for key, value in of_process}
            tags = {k: as_text(text, MAX_TAG_VAL_LENGTH) for k, text in texts.items()} | own
            known = client.create_run(belongs, tags=tags, run_name=name[:MAX_NAME])
        else:
            client.update_run(known.info.run_id, status="RUNNING")
            if known.data.tags.get(VERSION) != __version__:
                client.set_tag(known.info.run_id, VERSION, __version__)
        write_note(storage, identity, Note(known.info.run_id, masked(uri), stages))
        # All of them, or what a job that was killed had not logged.
        missing = [key for key in settings if key not in known.data.params]
        for first in range(0, len(missing), MAX_PARAMS_TAGS_PER_BATCH):
            some = missing[first : first + MAX_PARAMS_TAGS_PER_BATCH]
            params = [Param(key, as_text(settings[key], MAX_PARAM_VAL_LENGTH)) for key in some]
            client.log_batch(known.info.run_id, params=params)
    except ERRORS as error:
        reason = first_line(error).replace("<database_uri>", uri)
        if local is not None:
            raise unusable(local, reason) from error
        raise InputError(
            f"--tracking-uri {uri}: MLflow cannot be used there ({reason}); start the server, or "
            "leave the flag out for a database under --storage"
        ) from error
    return Run(uri, known.info.run_id, name, identity, finished, belongs)


def storage_mark(storage: Folder) -> str:
    """Return the value of the tag of a storage, without ', which a search ends at."""
    return quote(masked(storage.uri), safe=":/")[:MAX_TAG_VAL_LENGTH]


def _is_finished(run: mlflow.entities.Run) -> bool:
    same_version = run.data.tags.get(VERSION) == __version__
    return bool(run.info.status == RunStatus.to_string(RunStatus.FINISHED)) and same_version
