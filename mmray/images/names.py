"""Names that files of users give to images: path below the folder, file name, or stem."""

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from posixpath import splitext
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmray.system.arrays import Ids
from mmray.system.errors import InputError
from mmray.system.locations import bare, is_uri
from mmray.system.text_files import normalized

_CHANGED = "[^ -~]|://|/ *$"  # in names of which `normalized` or `forms` may change the last part
LEVELS = 3  # of names, the most exact first: path, file name, stem


def forms(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the names that mean an image: its path, its file name and its stem.

    Each is `normalized`. A URI has each of them twice, as it is and without its percent-encoding.
    """
    own = normalized(name)
    paths = (own, normalized(unquote(bare(own)))) if is_uri(own) else (own,)
    files = tuple(path.rstrip("/").rpartition("/")[2].strip() for path in paths)
    return paths, files, tuple(splitext(file)[0].strip() for file in files)


def likely(names: pa.ChunkedArray, wanted: AbstractSet[str]) -> Ids:
    """Find the names of images that some wanted ones may mean, few of ten million.

    All that are meant are among them.

    Parameters
    ----------
    names : (n,) of images
    wanted : `normalized` names

    Returns
    -------
    (m,) int64, ascending.
    """
    keys = frozenset(wanted).union(*(forms(name)[1] for name in wanted))
    values = pa.array(sorted(keys), names.type)
    # Whatever a name means, its last part is that of the image, or is the image's stem.
    files = pc.ascii_trim_whitespace(pc.replace_substring_regex(names, "^.*/", ""))
    stems = pc.ascii_trim_whitespace(pc.replace_substring_regex(files, "[.][^.]*$", ""))
    flags = pc.or_(pc.is_in(files, values), pc.is_in(stems, values))
    flags = pc.or_(flags, pc.match_substring_regex(names, _CHANGED))
    return np.flatnonzero(flags.to_numpy())


def joined(
    named: Mapping[str, str], names: Sequence[str], locations: Sequence[str] | None = None
) -> list[str]:
    """Look up the label of each image, by its path or else its file name or else its stem.

    A label by path is the image's alone: it does not count for an image of the same file name in
    another folder.

    Parameters
    ----------
    named : labels by name
    names : of n images
    locations : of the images, where they are known; images in one place are one image

    Returns
    -------
    The n labels, "" for an image without one.

    Raises
    ------
    InputError
        A name fits two images, or an image has two labels.
    """
    named = {normalized(name): label for name, label in named.items()}
    places = range(len(names)) if locations is None else locations
    found: list[str | None] = [None] * len(names)
    taken: dict[str, int] = {}  # the image that each name stands for
    for level in range(LEVELS):
        before = set(taken)
        for row in [row for row, own in enumerate(found) if own is None]:
            for key in forms(names[row])[level]:
                if key not in named:
                    continue
                other = taken.setdefault(key, row)
                if places[other] == places[row]:
                    found[row] = key
                elif key not in before:
                    raise InputError(_ambiguous(key, names, places, (other, row)))
    if len(taken) < len(named):  # names that are left over may contradict those that were taken
        for row, own in enumerate(found):
            if own is None:
                continue
            for spare in _spare(names[row], named, taken):
                # Beside a/x.jpg, x.jpg is an image that is not among these, as in a sample.
                if named[spare] != named[own] and not own.endswith(f"/{spare}"):
                    raise InputError(
                        f"{names[row]:.300} has the label {named[own]!r:.80} by the name "
                        f"{own!r:.300}, and {named[spare]!r:.80} by {spare!r:.300}; keep one of "
                        "them"
                    )
    return ["" if own is None else named[own] for own in found]


def _spare(name: str, named: Mapping[str, str], taken: Mapping[str, int]) -> list[str]:
    return [key for level in forms(name) for key in level if key in named and key not in taken]


def _ambiguous(
    key: str, names: Sequence[str], places: Sequence[object], rows: tuple[int, int]
) -> str:
    one, two = (names[row] for row in rows)
    remedy = "give their paths below the folder"
    if one == two:
        one, two = (str(places[row]) for row in rows)
        remedy = (
            f"name the folder of both in place of its parts, and {remedy}; within an archive, give "
            "each image a name of its own"
        )
    return f"the name {key!r:.300} may be {one:.300} or {two:.300}; {remedy}"


def fit(
    source: str, given: Collection[str], fitting: AbstractSet[str], images: Sequence[str]
) -> str:
    """Say how many of the names in a file are those of images, with one that is not.

    Parameters
    ----------
    source : the flag and the file
    given : names in the file
    fitting : those of them that are names of images
    images : names of the images; the first is enough

    Raises
    ------
    InputError
        None fits, or there is none.
    """
    if not given:
        raise InputError(f"{source}: there is no name in it; give one in each line")
    others = (name for name in given if name not in fitting)
    other = min(others, default=None) if fitting else min(given)
    if not fitting:
        such = f", such as {images[0]:.300}" if images else ""
        raise InputError(
            f"{source}: none of the {len(given):,} names, such as {other:.300}, is that of an "
            f"image{such}: give paths below the folders, file names, or file names without their "
            "suffix"
        )
    said = f"{len(fitting):,} of the {len(given):,} names of {source} fit an image"
    return said if other is None else f"{said}; {other!r:.300} fits none"
