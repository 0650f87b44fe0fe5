"""Compilation of the inner loops by numba."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numba
from numba.core.caching import FunctionCache

from mmray.system.folder import DAMAGE

_FAULTS: tuple[type[Exception], ...] = (pickle.UnpicklingError, *DAMAGE)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that needs no interpreter, and keep the machine code for later processes.

    Where neither the folder of the package nor that of the user can be written, as in a container
    of another user, each process compiles it anew, which takes seconds. A folder for temporary
    files is no place for it: others could put their code there.
    """
    dispatcher: Any = numba.njit(nogil=True)(function)
    with suppress(RuntimeError):  # no folder for the machine code
        dispatcher._cache = _KeptCode(function)  # type: ignore[no-untyped-call] # of numba
    return dispatcher


class _KeptCode(FunctionCache):
    """The kept machine code of a function; numba would fail where it is damaged or a disk full."""

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except _FAULTS:
            with suppress(OSError):
                self.flush()  # type: ignore[no-untyped-call] # of numba
