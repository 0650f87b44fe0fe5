"""Modules of this package that run in a process of their own."""

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
