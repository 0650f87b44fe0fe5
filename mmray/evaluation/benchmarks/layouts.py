"""Benchmarks with their ground truth in the names of images, in classes or in a MATLAB file.

Holidays (Jégou et al., ECCV 2008), classes, INSTRE as Iscen et al. use it (CVPR 2017).
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mmray.descriptors.files.matlab_plain import read_plain
from mmray.evaluation.benchmarks.ground_truth import box, listed, rows, stem, title
from mmray.evaluation.benchmarks.oxford import Benchmark
from mmray.evaluation.ranking import Query
from mmray.system.errors import InputError, first_names

_GROUP = 100  # numbers that a group of Holidays has; the query has the first
_FIRST = 1  # MATLAB counts from 1


def read_holidays(images: Sequence[str], *, source: str) -> Benchmark:
    """Read Holidays from the names of its images: 1234xx is a group, and 123400 its query.

    The database is all images, by number. A query searches for the others of its group and is
    itself removed from the ranking.

    Parameters
    ----------
    images : names of the image files, relative to the folder of images, at any depth
    source : the folder, for messages and the benchmark's name

    Raises
    ------
    InputError
        An image is named otherwise, two have the same number, or a group lacks its query or any
        other image.
    """
    database = _numbered(images, source)
    groups = _grouped([str(int(stem(image)) // _GROUP) for image in database]).values()
    headless = [database[first] for first, *_ in groups if int(stem(database[first])) % _GROUP]
    if headless:
        raise InputError(
            f"{source}: {len(headless)} groups have no query, whose number ends in 00: those of "
            f"{first_names(headless)}; add the missing images"
        )
    alone = [database[first] for first, *others in groups if not others]
    if alone:
        raise InputError(
            f"{source}: {len(alone)} queries have no other image in their group: "
            f"{first_names(alone)}; add the missing images"
        )
    queries = [_among(database, members[0], members) for members in groups]
    return Benchmark(title(source), tuple(database), tuple(queries))


def _numbered(images: Sequence[str], source: str) -> list[str]:
    """Sort the images of Holidays by number; InputError where a name is not six digits."""
    if not images:
        raise InputError(f"{source}: no images in this folder; add those of Holidays")
    others = [image for image in images if not re.fullmatch(r"[0-9]{6}", stem(image))]
    if others:
        raise InputError(
            f"{source}: {len(others)} of {len(images)} images are not named by six digits: "
            f"{first_names(others)}; give the folder of the images of Holidays alone"
        )
    database = sorted(set(images), key=lambda image: (stem(image), image))
    for one, two in pairwise(database):
        if stem(one) == stem(two):
            raise InputError(f"{source}: {stem(one)} may be {one} or {two}: keep one")
    return database


def class_benchmark(images: Sequence[str], labels: Sequence[str], *, name: str) -> Benchmark:
    """Make a benchmark in which every image searches for the others of its class.

    The only image of a class is a query without positives.

    Parameters
    ----------
    images : n names of files, the database
    labels : n classes
    name : of the benchmark
    """
    classes = _grouped(labels)
    queries = [_among(images, row, classes[label]) for row, label in enumerate(labels)]
    return Benchmark(name, tuple(images), tuple(queries), labels=tuple(labels))


def _grouped(labels: Sequence[str]) -> Mapping[str, list[int]]:
    """Return the rows of each label, ascending."""
    rows_of = defaultdict(list)
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    return rows_of


def _among(database: Sequence[str], itself: int, members: Sequence[int]) -> Query:
    """Make the query of a database image for the other members of its group."""
    positives = np.array([row for row in members if row != itself], np.int64)
    name = database[itself]
    return Query(name, name, None, positives, np.array([itself], np.int64), itself)


def read_instre(data: bytes, images: Sequence[str], *, source: str) -> Benchmark:
    """Read `gnd_instre.mat`; the database is its imlist, which does not include the queries.

    Its variables are imlist and qimlist, cells of paths, and gnd, a struct for each query: ok, rows
    of imlist counted from 1, and bbx, x1 y1 x2 y2.

    Parameters
    ----------
    data : content of the file
    images : names of the image files, relative to the folder of images; see `load_benchmark`
    source : its path, for messages and the benchmark's name

    Raises
    ------
    InputError
        The file is damaged (the message names the item, counted from 1), or a name in it fits no
        image file or several.
    """
    content = read_plain(data, ("imlist", "qimlist", "gnd"), source)
    if isinstance(content["gnd"], dict):  # of a single query
        content = content | {"gnd": [content["gnd"]]}
    names, query_names, truths, file_of = listed(content, images, source, first=_FIRST)
    queries = []
    for i, (name, truth) in enumerate(zip(query_names, truths, strict=True), start=_FIRST):
        place = f"{source}: gnd[{i}] ({name})"
        entry = {key: _numbers(value) for key, value in truth.items()}
        if "ok" not in entry:
            raise InputError(f"{place}: expected ok and bbx, found {first_names(sorted(entry))}")
        positives, junk = (
            rows(entry, (key,), len(names), place, first=_FIRST) for key in ("ok", "junk")
        )
        corners = box(entry.get("bbx"), place)
        queries.append(Query(name, file_of[name], corners, positives, junk))
    return Benchmark(title(source), tuple(file_of[name] for name in names), tuple(queries))


def _numbers(value: Any) -> Any:
    """Convert an array to a list, whole numbers to int: MATLAB stores them as float."""
    if not isinstance(value, np.ndarray):
        return value
    return [int(x) if float(x).is_integer() else x for x in value.ravel(order="F").tolist()]
