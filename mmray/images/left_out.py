"""Files that a listing leaves out: what each is counted as, and a sentence on their counts."""

import re
from collections.abc import Mapping

from mmray.system.locations import as_text

# Folders of thumbnails (Synology, QNAP) and of what macOS keeps beside a file: copies, not photos.
_SYSTEM_FOLDERS = {"@eadir": "@eaDir", "@__thumb": "@__thumb", "__macosx": "__MACOSX"}
_SUFFIX = re.compile(r"(?<=[^.])\.[^\s.]{1,12}\Z")
_TOLD = 8  # kinds named in a sentence


class LeftOut(str):
    """A file or folder that is left out, by what it is counted as: ".mov", "hidden folder"."""

    __slots__ = ()


SPECIAL = LeftOut("special file")  # a pipe, a socket, a device


def by_suffix(name: str) -> LeftOut:
    """Return what a file is counted as that is left out for its suffix."""
    match = _SUFFIX.search(as_text(name).lower())
    return LeftOut(match[0] if match else "without suffix")


def hidden(name: str, *, is_folder: bool) -> LeftOut | None:
    """Return what a hidden file or folder is counted as; None: it is not hidden.

    A name of dots alone, as in "../a.jpg", is not hidden.
    """
    if name.startswith(".") and name.strip("."):
        return LeftOut("hidden folder" if is_folder else "hidden file")
    system = _SYSTEM_FOLDERS.get(name.lower()) if is_folder else None
    return LeftOut(f"{system} folder") if system else None


def hidden_in(path: str, known: set[str]) -> tuple[LeftOut, ...] | None:
    """Return what a path is counted as that is hidden or within a hidden folder.

    Parameters
    ----------
    path : below the folder that is listed, or in an archive
    known : the hidden folders so far, to which that of this path is added

    Returns
    -------
    Nothing where its folder was counted before; None if no part of the path is hidden.
    """
    parts = path.split("/")
    for depth, part in enumerate(parts, start=1):
        kind = hidden(part, is_folder=depth < len(parts))
        if kind is not None:
            folder = "/".join(parts[:depth])
            if folder in known:
                return ()
            if depth < len(parts):
                known.add(folder)
            return (kind,)
    return None


def counted(counts: Mapping[str, int], *, most: int = _TOLD) -> str:
    """Write counts as "312 .mov, 4 .cr2", the largest first; "" if there are none.

    Parameters
    ----------
    counts : what was left out -> its number
    most : kinds to name; the others are summed up
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) == most + 1:
        most += 1  # its name is as short as that it is one more
    said = [f"{count:,} {_plural(kind, count)}" for kind, count in ordered[:most]]
    rest = ordered[most:]
    if rest:
        said.append(f"and {sum(count for _, count in rest):,} more of {len(rest):,} other kinds")
    return ", ".join(said)


def _plural(kind: str, count: int) -> str:
    return f"{kind}s" if count != 1 and kind.endswith(("file", "folder")) else kind
