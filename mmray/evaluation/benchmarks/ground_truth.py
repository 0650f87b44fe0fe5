"""Parts that ground truths of all layouts share: names of images, boxes, rows of the database.

n database images. Every message names the place in the file and what was expected there.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as shorten
from typing import Any, NamedTuple

import numpy as np

from mmray.images.collection import SUFFIXES
from mmray.system.arrays import Box, Ids
from mmray.system.errors import InputError, first_names
from mmray.system.locations import absolute, is_uri
from mmray.system.text_files import normalized
from mmray.system.uris import masked

_SUFFIX = "|".join(map(re.escape, (*SUFFIXES, ".ppm")))  # of images; names in INSTRE have .ppm too
_IMAGE_SUFFIX = re.compile(f"({_SUFFIX})$", re.IGNORECASE)

Keys = tuple[str, ...]  # keys of an entry of a ground truth, whose rows are merged


class Named(NamedTuple):
    """A name of an image in a ground truth, with its place there."""

    place: str
    name: str


class MissingImageError(InputError):
    """Images that a ground truth names are missing.

    Attributes
    ----------
    names : of the missing images, as in the ground truth
    """

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


def title(source: str) -> str:
    """Derive a benchmark's name from its file or folder: .../gnd_paris6k.pkl gives paris6k."""
    place = masked(absolute(source))
    if is_uri(place):
        place = place.partition("?")[0]  # options of the file system follow
    name = place.rstrip("/").rpartition("/")[2]
    return re.sub(r"\.(pkl|mat)$", "", name.removeprefix("gnd_"))


def stem(name: str) -> str:
    """Strip the folder and the suffix from the name of an image."""
    return _without_suffix(name).rpartition("/")[2]


def match(named: Sequence[Named], images: Sequence[str], source: str) -> dict[str, str]:
    """Match each name with an image file.

    Raises
    ------
    InputError
        A name fits two files.
    MissingImageError
        Names fit no file.
    """
    files = sorted(set(images))
    ending = _by_ending(files)
    file_of: dict[str, str] = {}
    missing: dict[str, str] = {}
    for place, name in named:
        wanted = _without_suffix(name)
        fitting = [
            file
            for file in ending.get("/".join(wanted.split("/")[-2:]), [])
            if f"/{_without_suffix(file)}".endswith(f"/{wanted}")
        ]
        if len(fitting) > 1:
            raise InputError(
                f"{source}: {place}: {name[:200]} may be {fitting[0]} or {fitting[1]}: keep one"
            )
        if fitting:
            file_of[name] = fitting[0]
        else:
            missing.setdefault(name, place)
    if missing:
        listed = first_names([f"{name[:63]!r} ({place})" for name, place in missing.items()])
        such = f", such as {files[0]!r:.300}" if files and not file_of else ""
        raise MissingImageError(
            f"{source}: {len(missing)} of {len(missing) + len(file_of)} names fit none of the "
            f"{len(files)} images{such}: {listed}",
            missing,
        )
    return file_of


def _by_ending(files: Sequence[str]) -> Mapping[str, list[str]]:
    """Group files by name without suffix, and by that name with its innermost folder."""
    ending = defaultdict(list)
    for file in files:
        parts = _without_suffix(file).split("/")
        for count in range(1, min(len(parts), 2) + 1):
            ending["/".join(parts[-count:])].append(file)
    return ending


def _without_suffix(name: str) -> str:
    return _IMAGE_SUFFIX.sub("", normalized(name))


class Listed(NamedTuple):
    """The lists imlist, qimlist and gnd of a ground truth, with the image files of their names.

    Attributes
    ----------
    images, queries : names of the database images, and of the queries
    truths : the entry of gnd for each query
    file_of : name -> image file
    """

    images: list[str]
    queries: list[str]
    truths: list[dict[str, Any]]
    file_of: dict[str, str]


def listed(
    content: Mapping[str, Any], images: Sequence[str], source: str, *, first: int = 0
) -> Listed:
    """Read the lists of a ground truth, and match their names with image files.

    Parameters
    ----------
    content : the variables imlist, qimlist and gnd
    images : names of the image files there are
    source : its path, for messages
    first : number of the first item of a list, in messages

    Raises
    ------
    InputError
        A list is empty or holds items of another type, there is not one entry for each query, or
        `match` raises it.
    """
    names = typed_list(content["imlist"], str, f"{source}: imlist", first=first)
    query_names = typed_list(content["qimlist"], str, f"{source}: qimlist", first=first)
    truths = typed_list(content["gnd"], dict, f"{source}: gnd", first=first)
    if len(query_names) != len(truths):
        raise InputError(f"{source}: {len(query_names)} queries in qimlist, {len(truths)} in gnd")
    named = [Named(f"imlist[{i}]", name) for i, name in enumerate(names, start=first)]
    named += [Named(f"qimlist[{i}]", name) for i, name in enumerate(query_names, start=first)]
    return Listed(names, query_names, truths, match(named, images, source))


def box(corners: Any, place: str) -> Box:
    """Check a box (x1, y1, x2, y2), in pixels, and convert it to floats."""
    try:
        x1, y1, x2, y2 = (float(corner) for corner in corners)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: box {shorten(corners)}: expected four numbers") from error
    if not (math.isfinite(x1 + y1 + x2 + y2) and x1 < x2 and y1 < y2):
        raise InputError(f"{place}: box {shorten(corners)}: expected x1 < x2 and y1 < y2")
    return x1, y1, x2, y2


def typed_list(items: Any, kind: type, place: str, *, first: int = 0) -> list[Any]:
    """Check a list that must have items, all of one type; messages count them from `first`."""
    if not isinstance(items, list | tuple) or not items:
        raise InputError(f"{place}: expected a list that is not empty")
    for i, item in enumerate(items, start=first):
        if not isinstance(item, kind):
            raise InputError(f"{place}[{i}] is {shorten(item)}: expected a {kind.__name__}")
    return list(items)


def rows(truth: Mapping[str, Any], keys: Keys, n: int, place: str, *, first: int = 0) -> Ids:
    """Collect the database rows under some keys of an entry, ascending and without repeats.

    Parameters
    ----------
    truth : the entry of one query; a key that it lacks has no rows
    keys : whose rows are merged
    n : number of database images
    place : where the entry stands, for messages
    first : number of the first row in the entry: 0, or 1 in MATLAB
    """
    listed: list[int] = []
    for key in keys:
        ids = truth.get(key, [])
        if not isinstance(ids, list | tuple | set):
            raise InputError(f"{place}: {key} is {shorten(ids)}: expected rows of imlist")
        for item in ids:
            if type(item) is not int or not first <= item < first + n:
                raise InputError(
                    f"{place}: {key} holds {shorten(item)}: "
                    f"expected rows of imlist, {first}..{first + n - 1}"
                )
        listed += ids
    return np.unique(np.array(listed, dtype=np.int64)) - first
