"""Modules of this package in a process of their own, and the folder that this process is in."""

import os
import sys
from pathlib import Path
from typing import Any

import mmray


def of_module(name: str) -> dict[str, Any]:
    """Return the arguments of `subprocess.Popen` that run a module with this Python.

    Nothing is imported from the current folder, which may be one of downloads, as `-m` would.
    """
    root = str(Path(mmray.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {
        "args": [sys.executable, "-P", "-m", name],
        "env": os.environ | {"PYTHONPATH": path},
    }


def enter_folder_again() -> None:
    """Change to the folder of this package if the current one is gone: libraries ask for its path.

    When a node starts that shares the disk, Ray may unpack the folder of a submitted job again at
    the same place while the job runs.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        os.chdir(Path(mmray.__file__).parents[1])
