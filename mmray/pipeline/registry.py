"""Models of runs in MLflow: logged, registered by name, found and read."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
import mlflow.entities
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from mmray.config.choices import network_and_weights
from mmray.config.run import ALIAS, owned_name
from mmray.descriptors.weights import save_published
from mmray.pipeline.database import DATABASE, database_path, make_ready
from mmray.pipeline.mlflow_model import LOADER, NAME, save
from mmray.pipeline.tracking import STORAGE, Run, default_uri, storage_mark
from mmray.pipeline.tracking_server import ERRORS, first_line, waiting_briefly
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import absolute
from mmray.system.progress import announce

REGISTERED = ("models:/", "runs:/")  # beginnings of MLflow's URIs of models


def log_model(
    run: Run, folder: Folder, *, dims: int, digest: str, registered: str | None
) -> str | None:
    """Log a model's folder with a run, and register it, unless that was done before.

    Parameters
    ----------
    run : the MLflow run
    folder : as `descriptors.weights.save` writes it, with a whitening or without
    dims : dimensions of a descriptor
    digest : hash of the model
    registered : name under which this becomes the newest version; None: it is only logged

    Returns
    -------
    The URI for `mlflow.pyfunc.load_model`; None where it was logged before.

    Raises
    ------
    InputError
        The server refuses the model.
    """
    client, tags = run.client, {"mmray.model": digest}
    with run.reporting():
        known = client.get_run(run.run_id)
        if known.data.tags.get("mmray.model") == digest:
            return None
        # An earlier job may have been killed after any of these steps: each looks for its result.
        logged = _logged_model(client, known, tags)
        if logged.status != LoggedModelStatus.READY:
            with tempfile.TemporaryDirectory() as scratch:
                model = Model(
                    artifact_path=logged.artifact_location,
                    model_id=logged.model_id,
                    run_id=run.run_id,
                    model_uuid=logged.model_id,
                )
                save(folder, Path(scratch) / NAME, dims=dims, model=model)
                client.log_model_artifacts(logged.model_id, str(Path(scratch) / NAME))
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        outputs = known.outputs.model_outputs if known.outputs else []
        if logged.model_id not in {output.model_id for output in outputs}:
            client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        uri = f"models:/{logged.model_id}"
        if registered is not None:
            place = {STORAGE: known.data.tags.get(STORAGE, "")}
            uri = _register(run, registered, uri, tags, place)
        client.set_tag(run.run_id, "mmray.model", digest)
    return uri


def _logged_model(
    client: mlflow.MlflowClient, run: mlflow.entities.Run, tags: Mapping[str, str]
) -> LoggedModel:
    """Return the model of a run with these tags, complete if there is one, perhaps new."""
    query = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], filter_string=query)
    same = [model for model in found if tags.items() <= model.tags.items()]
    if same:
        return max(same, key=lambda model: bool(model.status == LoggedModelStatus.READY))
    return client.create_logged_model(
        run.info.experiment_id,
        name=NAME,
        source_run_id=run.info.run_id,
        tags=dict(tags),
        model_type="embedding",
    )


def _register(
    run: Run, name: str, source: str, tags: Mapping[str, str], place: Mapping[str, str]
) -> str:
    """Register a logged model as the newest version of a name, and return the URI of that name.

    A version of the same run and model is not made again, nor its alias taken from a newer one.
    The place, the tag of the storage, is that by which `newest_model` finds the version.
    """
    client = run.client
    try:
        client.create_registered_model(name, description="Image embeddings learned by mmray")
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    versions = [
        int(version.version)
        for version in client.search_model_versions(f"run_id = '{run.run_id}'")
        if version.name == name and tags.items() <= version.tags.items()
    ]
    if not versions:
        model = source.removeprefix("models:/")
        with _on_server(run.uri):
            made = client.create_model_version(
                name, source, run.run_id, tags={**tags, **place}, model_id=model
            )
        versions.append(int(made.version))
    newest = client.get_registered_model(name).aliases.get(ALIAS, 0)
    if int(newest) < max(versions):
        client.set_registered_model_alias(name, ALIAS, str(max(versions)))
    return f"models:/{name}@{ALIAS}"


@contextmanager
def _on_server(uri: str) -> Iterator[None]:
    """Set the tracking server of the process: MLflow looks for logged models there."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def newest_model(storage: Folder, *, uri: str | None, experiment: str) -> str:
    """Return the URI of the newest model that was learned in a storage.

    Parameters
    ----------
    storage, uri : as for `model_folder`
    experiment : whose models go before others where several people share the storage

    Raises
    ------
    InputError
        No model of this storage was registered.
    """
    server = _answering("--model", storage, uri)
    # A database in the storage has the models of no other, and those of earlier versions no tag.
    here = [] if uri is None else [f"tags.`{STORAGE}` = '{storage_mark(storage)}'"]
    for wanted in ([f"name = '{owned_name(experiment)}'", *here], here):
        try:
            found = mlflow.MlflowClient(server).search_model_versions(
                " and ".join(wanted), max_results=1, order_by=["creation_timestamp DESC"]
            )
        except ERRORS as error:
            raise _unusable("--model", server, error) from error
        if found:
            model = f"models:/{found[0].name}/{found[0].version}"
            announce(f"model: {model}, the newest of this storage")
            return model
    raise InputError(
        f"--model: no model that was learned in --storage {storage.uri} is registered in MLflow at "
        f"{server}; name one: a folder model/ that a run left, models:/NAME@{ALIAS}, or a network "
        "as it was published, such as efficientnet_lite0"
    )


def _unusable(named: str, server: str, error: Exception) -> InputError:
    return InputError(
        f"{named}: MLflow at {server} cannot be used ({first_line(error)}); start the server, or "
        "name a folder model/ that a run left"
    )


def _answering(named: str, storage: Folder, uri: str | None) -> str:
    """Return the address of MLflow, which answers; InputError, with what was named, if not."""
    if uri is None and not storage.has(DATABASE):
        raise InputError(
            f"{named}: no run has been made under --storage {storage.uri}; name the "
            "--storage or the --tracking-uri of one, or a folder model/ that a run left"
        )
    server = uri or default_uri(storage)
    local = database_path(server)
    if local is not None:
        make_ready(local)
    try:
        with waiting_briefly():
            mlflow.MlflowClient(server).search_experiments(max_results=1)
    except ERRORS as error:
        raise _unusable(named, server, error) from error
    return server


@contextmanager
def model_folder(model: str, *, storage: Folder, uri: str | None) -> Iterator[Folder]:
    """Yield the folder of a model that a user names, downloaded from MLflow if need be.

    Parameters
    ----------
    model : a folder; the URI of a logged model: models:/NAME@ALIAS, models:/NAME/VERSION or
        runs:/RUN/model; or a network as it was published, NETWORK or NETWORK:FILE
    storage : of the runs, where MLflow's database is if `uri` is None
    uri : of the tracking server

    Raises
    ------
    InputError
        MLflow has no such model, or it is not a model of this package, or the network or its
        weights cannot be had.
    """
    known = network_and_weights(model)
    if known is not None:
        with tempfile.TemporaryDirectory() as scratch:
            save_published(known[0], Folder(scratch), weights=known[1] or None)
            yield Folder(scratch)
        return
    if not model.startswith(REGISTERED):
        yield Folder(absolute(model))
        return
    server = _answering(f"--model {model}", storage, uri)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with _on_server(server):
                found = mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=scratch)
            flavour = Model.load(found).flavors["python_function"]
        except (*ERRORS, KeyError) as error:
            raise InputError(
                f"--model {model}: MLflow at {server} has no such model ({first_line(error)}); "
                "name a folder model/ that a run left, or the --storage or --tracking-uri of the "
                "run"
            ) from error
        if flavour.get("loader_module") != LOADER:
            raise InputError(f"--model {model}: not a model of mmray; name one that a run left")
        yield Folder(str(Path(found) / flavour["data"]))
