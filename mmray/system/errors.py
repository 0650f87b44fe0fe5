"""The exception for errors that a user can mend: jobs print its message and exit with status 2."""

from collections.abc import Iterable


class InputError(ValueError):
    """An unusable argument or input: the message names the item, the value and the remedy."""


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


def first_names(names: Iterable[str], count: int = 20) -> str:
    """Join the first names for a message, and say how many more there are."""
    listed = list(names)
    more = len(listed) - count
    return (", ".join(listed[:count]) or "nothing") + (f" and {more} more" if more > 0 else "")


def quoted(names: Iterable[str]) -> list[str]:
    """Quote names that were read from a file, each cut off after 63 characters."""
    return [repr(name[:63]) for name in names]
