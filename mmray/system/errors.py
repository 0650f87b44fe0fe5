"""The exceptions whose message a job prints as its last sentence, without a traceback."""

from collections.abc import Iterable


class InputError(ValueError):
    """An unusable argument or input, status 2: the message names item, value and remedy."""


class MachineError(RuntimeError):
    """A failure of the machine, status 1: the message says what failed, and what may help."""


def first_names(names: Iterable[str], count: int = 20) -> str:
    """Join the first names for a message, and say how many more there are."""
    listed = list(names)
    more = len(listed) - count
    return (", ".join(listed[:count]) or "nothing") + (f" and {more} more" if more > 0 else "")


def quoted(names: Iterable[str]) -> list[str]:
    """Quote names that were read from a file, each cut off after 63 characters."""
    return [repr(name[:63]) for name in names]
