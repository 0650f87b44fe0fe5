"""Packages that a plain installation of mmray leaves out, each asked for by an extra."""

import importlib
from typing import Any

from mmray.system.errors import InputError

# Packages to install for an extra, as they stand in pyproject.toml.
EXTRAS = {
    "cpu": ("faiss-cpu",),
    "gpu": ("faiss-gpu",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
}


def import_extra(module: str, *extras: str) -> Any:
    """Import a module that one of the extras brings.

    Raises
    ------
    InputError
        It is not installed; the message has the command for each extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # it is there, and lacks something itself
            raise
        # By the names of the packages: from a copy of the code that is not installed, pip would
        # look for `mmray` in an index.
        commands = (
            f"python -m pip install {' '.join(EXTRAS[extra])} (extra `{extra}`)" for extra in extras
        )
        raise InputError(f"{module} is not installed: {', or '.join(commands)}") from error
