"""The exception for errors that a user can mend: jobs print its message and exit with status 2."""

from collections.abc import Iterable
from typing import Any

from mmray.system.uris import masked_text


class InputError(ValueError):
    """An unusable argument or input: the message names the item, the value and the remedy.

    Credentials of URIs in it are hidden.
    """

    def __init__(self, message: str, *more: Any) -> None:
        super().__init__(masked_text(message), *more)


def first_names(names: Iterable[str], count: int = 20) -> str:
    """Join the first names for a message, and say how many more there are."""
    listed = list(names)
    more = len(listed) - count
    return (", ".join(listed[:count]) or "nothing") + (f" and {more} more" if more > 0 else "")


def quoted(names: Iterable[str]) -> list[str]:
    """Quote names that were read from a file, each cut off after 63 characters."""
    return [repr(name[:63]) for name in names]
