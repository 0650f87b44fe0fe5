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

# Telemetry of MLflow calls its makers: without a network a run would wait for that.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# The files of a model are many and small: a progress bar for each would flood the terminal.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
)

from mmray import __version__
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.formats import read_json, write_json
from mmray.system.uris import masked, masked_text

# "Context impl SQLiteImpl" and the forty migrations of a new database mean nothing to a user.
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)

DATABASE = "mlflow.db"  # below a local storage folder
DIGEST = 16  # hex digits of a dataset's digest; MLflow takes up to 36


@dataclass(frozen=True)
class Run:
    """Handle of an MLflow run: the server's address and the run's id; cheap to send to workers."""

    uri: str
    run_id: str
    name: str = ""

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.uri)

    def __getstate__(self) -> dict[str, str]:
        return {"uri": self.uri, "run_id": self.run_id, "name": self.name}

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        with self.reporting():
            for name, value in metrics.items():
                self.client.log_metric(self.run_id, name, float(value), step=step)

    def log_epochs(self, history: Sequence[Mapping[str, float]]) -> None:
        """Log the metrics of epochs 0, 1, ..., except epochs that are already logged.

        The metrics of an epoch are logged all at once or not at all.
        """
        names = {name for metrics in history for name in metrics}
        with self.reporting():
            logged = {
                metric.step
                for name in names
                for metric in self.client.get_metric_history(self.run_id, name)
            }
            now = int(1000 * time.time())
            for step, metrics in enumerate(history):
                if step in logged:
                    continue
                entries = [Metric(k, float(v), now, step) for k, v in metrics.items()]
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
            source=json.dumps({"uri": " ".join(map(masked, sources))}),
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
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"MLflow at {self.uri} cannot be written ({reason}); fix that, then run the same "
                "command again: what is done is kept"
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
    return f"sqlite:///{storage.local / DATABASE}"


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
        Folder that remembers the ids of runs.
    uri
        Of the tracking server or its database.
    experiment
        Name of the experiment, which is created if need be.
    name
        Name of the run.
    identity
        Fingerprint of the settings that determine the results; `<storage>/runs/<identity>.json`
        holds the id of the run.
    settings
        Name -> value, logged as parameters.
    parent
        Id of the run that this one is nested in.

    Raises
    ------
    InputError
        The server does not answer, or refuses the experiment.
    """
    runs, file = storage / "runs", f"{identity}.json"
    try:
        client = mlflow.MlflowClient(uri)
        known: dict[str, str] = read_json(runs, file) if runs.has(file) else {}
        if known.get("uri") == masked(uri) and _lives(client, known["run_id"]):
            client.update_run(known["run_id"], status="RUNNING")
            return Run(uri, known["run_id"], name)
        found = client.get_experiment_by_name(experiment)
        place = None if storage.local is None else (storage.local / "mlartifacts").as_uri()
        experiment_id = (
            found.experiment_id
            if found
            else client.create_experiment(experiment, place if uri.startswith("sqlite:") else None)
        )
        run = client.create_run(experiment_id, run_name=name)
        client.log_batch(
            run.info.run_id,
            params=[Param(key, str(value)[:6000]) for key, value in settings.items()],
            tags=[
                # User, file and commit, as MLflow's own function to start a run records them.
                *(RunTag(key, masked_text(str(value))) for key, value in resolve_tags().items()),
                RunTag("mmray.version", __version__),
                RunTag("mmray.identity", identity),
                *([] if parent is None else [RunTag(MLFLOW_PARENT_RUN_ID, parent)]),
            ],
        )
    except (MlflowException, OSError) as error:
        raise InputError(
            f"--tracking-uri {uri}: MLflow cannot be used there ({error}); start the server, or "
            "leave the flag out for a database under --storage"
        ) from error
    write_json(runs, file, {"uri": masked(uri), "run_id": run.info.run_id})
    return Run(uri, run.info.run_id, name)


def _lives(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Tell whether the run still exists: its database may be new, or the run deleted."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return False
