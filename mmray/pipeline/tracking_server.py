"""MLflow behind a client: what it takes, raises and still has, and how long it is waited for."""

import json
import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import mlflow
import mlflow.entities
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_DATASET_SOURCE_SIZE, MAX_ENTITY_KEY_LENGTH
from sqlalchemy.exc import SQLAlchemyError

from mmray.system.errors import InputError
from mmray.system.uris import masked

MAX_NAME = 250  # characters of a run's name in MLflow's tables

# What MLflow and the libraries below it raise: of SQLite and others, of files, of missing drivers.
ERRORS = (MlflowException, SQLAlchemyError, OSError, ImportError)

_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
_OURS = [name for name in (_RETRIES, _TIMEOUT) if name not in os.environ]  # not set by the user


def wait_for_server(retries: int, timeout: int) -> None:
    """Set how often a server is asked again and how many seconds for an answer may take.

    MLflow reads this from the environment with each request. What the user set there stays.
    """
    for name, value in ((_RETRIES, retries), (_TIMEOUT, timeout)):
        if name in _OURS:
            os.environ[name] = str(value)


def wait_long() -> None:
    """Outlast a server that is started again: about a minute, for work that is under way."""
    wait_for_server(retries=5, timeout=60)


@contextmanager
def waiting_briefly() -> Iterator[None]:
    """Take a server that does not answer within seconds for one that is not there."""
    wait_for_server(retries=1, timeout=8)
    try:
        yield
    finally:
        wait_long()


def experiment_id(client: mlflow.MlflowClient, name: str, artifacts: str | None) -> str:
    """Return the id of an experiment, which is created if need be, also by another job just now.

    Raises
    ------
    InputError
        It was deleted, or MLflow does not take its name.
    """
    with waiting_briefly():
        found = client.get_experiment_by_name(name)
    if found is None:
        try:
            made = client.create_experiment(name, artifacts)
            return str(made)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
                raise InputError(
                    f"--experiment {name[:80]!r}: MLflow does not take this name "
                    f"({first_line(error)}); choose another"
                ) from error
            found = client.get_experiment_by_name(name)
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS) or found is None:
                raise
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise InputError(
            f"--experiment {name}: it was deleted in MLflow; restore it (MLFLOW_TRACKING_URI="
            f"{shlex.quote(client.tracking_uri)} mlflow experiments restore --experiment-id "
            f"{found.experiment_id}), or name another with --experiment"
        )
    return str(found.experiment_id)


def living_run(client: mlflow.MlflowClient, run_id: str) -> mlflow.entities.Run | None:
    """Return a run that still exists: its database may be new, or the run deleted."""
    run = _any_run(client, run_id)
    return run if run is not None and run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _any_run(client: mlflow.MlflowClient, run_id: str) -> mlflow.entities.Run | None:
    """Return a run, deleted or not; None where the server does not know it."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        unknown = (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)  # the second: no id at all
        if error.error_code not in map(ErrorCode.Name, unknown):
            raise
        return None


def deleted_runs(uri: str, run_ids: Iterable[str]) -> set[str]:
    """Return those of some runs that were deleted on a server, or whose parent run was.

    Raises
    ------
    InputError
        The server does not answer.
    """
    client, deleted = mlflow.MlflowClient(uri), set[str]()
    try:
        for run_id in run_ids:
            chain: str | None = run_id
            while chain is not None and run_id not in deleted:
                run = _any_run(client, chain)
                if run is not None and run.info.lifecycle_stage == LifecycleStage.DELETED:
                    deleted.add(run_id)
                chain = None if run is None else run.data.tags.get(MLFLOW_PARENT_RUN_ID)
    except ERRORS as error:
        raise InputError(
            f"--tracking-uri {uri}: MLflow cannot be asked which runs were deleted "
            f"({first_line(error)}); start the server"
        ) from error
    return deleted


def run_page(uri: str, experiment: str, run_id: str) -> str:
    """Tell where to see a run: its address on a server, or what serves it from its database.

    >>> run_page("http://host:5000/", "1", "ab")
    'http://host:5000/#/experiments/1/runs/ab'
    """
    path = f"/#/experiments/{experiment}/runs/{run_id}"
    if uri.startswith(("http://", "https://")):
        return f"{masked(uri).rstrip('/')}{path}"
    serve = f"mlflow ui --backend-store-uri {shlex.quote(masked(uri))}"
    return f"to see the run, {serve} and open http://127.0.0.1:5000{path}"


def tagged_run(
    client: mlflow.MlflowClient, experiment: str, tags: Mapping[str, str]
) -> mlflow.entities.Run | None:
    """Return the first run of an experiment that has these tags, none of which has a quote."""
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = client.search_runs([experiment], wanted, max_results=1, order_by=["start_time"])
    return next(iter(found), None)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or the cause that is hidden in its lines."""
    text = str(error).strip()
    cause = re.search(r"\(Caused by (.*)\)$|\(sqlite3\.\w+\) (.*)$", text, re.MULTILINE)
    if cause is not None:
        return str(cause[1] or cause[2])
    return next(iter(text.splitlines()), type(error).__name__)


def as_text(value: object, limit: int) -> str:
    """Return a value as text that MLflow takes: in UTF-8, and no longer than its limit."""
    return str(value).encode("utf-8", "backslashreplace").decode()[:limit]


def metric_name(name: str) -> str:
    """Return the name of a metric without what MLflow refuses in one.

    >>> metric_name("mAP of C&A/photos?")
    'mAP of C_A/photos_'
    """
    plain = posixpath.normpath(re.sub(r"[^\w .:/-]", "_", name))
    return re.sub(r"^[./]+", "", plain)[:MAX_ENTITY_KEY_LENGTH] or "_"


def dataset_source(sources: Sequence[str]) -> str:
    """Return the source of a dataset as JSON: as many names as MLflow takes, and a count."""
    # A character outside of Unicode's first plane takes twelve in JSON: one name always fits.
    shown = [as_text(each, MAX_DATASET_SOURCE_SIZE // 13) for each in sources]
    while True:
        more = len(sources) - len(shown)
        uri = " ".join(shown) + (f" and {more} more" if more else "")
        text = json.dumps({"uri": uri})
        if len(text) <= MAX_DATASET_SOURCE_SIZE:
            return text
        shown = shown[: len(shown) * 9 // 10]
