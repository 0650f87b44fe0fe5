"""Compilation of the inner loops by numba."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that needs no interpreter, and keep the machine code for later processes.

    Where neither the folder of the package nor that of the user can be written, as in a container
    of another user, each process compiles it anew, which takes seconds. A folder for temporary
    files is no place for it: others could put their code there.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder for the machine code
        return numba.njit(nogil=True)(function)
