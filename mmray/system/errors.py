"""Errors whose message a job prints as its last sentence, and the names in messages.

No traceback is printed with it.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmray.system.uris import masked_text

# What moves a terminal's cursor, changes its state, ends a line, or turns the order of letters:
# C0 and C1, line and paragraph separators, marks and overrides of direction, the byte order mark,
# and lone surrogates, which stand for bytes that are not UTF-8.
_CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class InputError(ValueError):
    """An unusable argument or input, status 2: the message names item, value and remedy.

    Credentials of URIs in it are hidden.
    """

    def __init__(self, message: str, *more: Any) -> None:
        super().__init__(masked_text(message), *more)


class DamagedFileError(InputError):
    """A file of a storage folder that is not as it was written; a stage makes its own anew.

    Attributes
    ----------
    location : path or URI of the file
    reason : how it was noticed
    """

    def __init__(self, location: str, reason: object) -> None:
        super().__init__(
            f"{location}: this file is damaged ({reason}); run the same command again: what is "
            "damaged is found and made anew, what is whole is kept"
        )
        self.location, self.reason = location, str(reason)

    def __reduce__(self) -> tuple[type["DamagedFileError"], tuple[str, str]]:
        return DamagedFileError, (self.location, self.reason)


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Name a setting or step, and how to mend it, in the InputError of a block."""
    try:
        yield
    except DamagedFileError:  # has a remedy of its own
        raise
    except InputError as error:
        raise InputError(f"{what}: {error}; {remedy}") from error


class MachineError(RuntimeError):
    """A failure of the machine, status 1: the message says what failed, and what may help."""


def first_names(names: Iterable[str], count: int = 20) -> str:
    """Join the first names for a message, and say how many more there are."""
    listed = list(names)
    more = len(listed) - count
    return (", ".join(listed[:count]) or "nothing") + (f" and {more} more" if more > 0 else "")


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> str:
    """Ask for the names that a wrong one is like; "" where it is like none.

    >>> did_you_mean("graph_kk", ["graph_k", "alpha"])
    'did you mean graph_k?'
    """
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""


def quoted(names: Iterable[str]) -> list[str]:
    """Quote names that were read from a file, each cut off after 63 characters."""
    return [repr(name[:63]) for name in names]


def printable(text: str) -> str:
    r"""Make control characters visible, such as \x1b for ESC: names of others may hold any."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
