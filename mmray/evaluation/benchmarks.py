"""Labelled retrieval benchmarks, in the two forms they are published in.

* One pickle, `gnd_*.pkl`: {imlist, qimlist, gnd: [{bbx, ok, junk}]}, names without suffix and rows
  of imlist; or {easy, hard, junk} (Radenović et al., CVPR 2018), of which the Medium protocol is
  taken: easy and hard are positives.
* A folder of text files (Philbin et al. 2007): for each query `*_query.txt` (image and box),
  `*_good.txt`, `*_ok.txt` (positives) and `*_junk.txt` (one name a line).
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mmray.arrays import Box, Ids
from mmray.errors import InputError
from mmray.evaluation.plain_pickle import load_plain
from mmray.evaluation.ranking import Query
from mmray.storage import Folder

_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|ppm)$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A database of images, and queries with what a perfect search finds.

    Attributes
    ----------
    name : str
    images : tuple of str
        The database, relative to the folder of images; row i of the ground truth is images[i].
    queries : tuple of Query
        Their images may be in the database or not.
    """

    name: str
    images: tuple[str, ...]
    queries: tuple[Query, ...]


class _Named(NamedTuple):
    """An image by the name that a ground truth gives it, and where the name stands."""

    place: str
    name: str


def load_benchmark(ground_truth: str, images: Sequence[str]) -> Benchmark:
    """Read a ground truth and match its names with image files.

    Parameters
    ----------
    ground_truth : local path or URI
        A .pkl file, or else a folder of text files.
    images : the files there are, relative to the folder of images
        A name in the ground truth means the file of that name, whatever its suffix and folder; a
        name that holds a folder means a file in such a folder.

    Raises
    ------
    InputError
        The ground truth cannot be read or is damaged (which file, which item), an image in it is
        missing, or it fits several files.
    """
    uri = ground_truth.rstrip("/")
    if "://" not in uri:
        uri = str(Path(uri).expanduser().absolute())
    try:
        if uri.endswith(".pkl"):
            parent, _, name = uri.rpartition("/")
            data = Folder(parent).read(name)
            return read_pickle_ground_truth(data, images, source=ground_truth)
        folder = Folder(uri)
        files = {name: folder.read(name) for name in folder.names() if name.endswith(".txt")}
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"ground truth {ground_truth}: cannot be read: {error}") from error
    return read_oxford_ground_truth(files, images, source=ground_truth)


def read_pickle_ground_truth(data: bytes, images: Sequence[str], *, source: str) -> Benchmark:
    """Read a `gnd_*.pkl`; its database is imlist. Nothing in it is executed.

    Parameters
    ----------
    data : the pickle
    images : as for `load_benchmark`
    source : its path, for messages and the benchmark's name

    Raises
    ------
    InputError
        As for `load_benchmark`; also if the pickle asks for anything but plain containers, text,
        numbers and numpy arrays.
    """
    content = load_plain(data, source)
    if not isinstance(content, dict) or not {"imlist", "qimlist", "gnd"} <= content.keys():
        raise InputError(f"{source}: not a ground truth: expected a dict of imlist, qimlist, gnd")
    names = _typed_list(content["imlist"], str, f"{source}: imlist")
    query_names = _typed_list(content["qimlist"], str, f"{source}: qimlist")
    truths = _typed_list(content["gnd"], dict, f"{source}: gnd")
    if len(query_names) != len(truths):
        raise InputError(f"{source}: {len(query_names)} queries in qimlist, {len(truths)} in gnd")

    named = [_Named(f"imlist[{i}]", name) for i, name in enumerate(names)]
    named += [_Named(f"qimlist[{i}]", name) for i, name in enumerate(query_names)]
    file_of = _match(named, images, source)
    queries = []
    for i, (name, truth) in enumerate(zip(query_names, truths, strict=True)):
        place = f"{source}: gnd[{i}] ({name})"
        positives, junk = _relevance(truth, len(names), place)
        box = None if truth.get("bbx") is None else _box(truth["bbx"], place)
        queries.append(Query(name, file_of[name], box, positives, junk))
    return Benchmark(_title(source), tuple(file_of[name] for name in names), tuple(queries))


def read_oxford_ground_truth(
    files: Mapping[str, bytes], images: Sequence[str], *, source: str
) -> Benchmark:
    """Read `*_query.txt`, `*_good.txt`, `*_ok.txt` and `*_junk.txt`.

    The database is all images, in alphabetical order; queries come in the order of their names.

    Parameters
    ----------
    files : name -> content
    images : as for `load_benchmark`
    source : the folder, for messages and the benchmark's name

    Raises
    ------
    InputError
        As for `load_benchmark`.
    """
    names = sorted(n.removesuffix("_query.txt") for n in files if n.endswith("_query.txt"))
    if not names:
        raise InputError(f"{source}: neither a .pkl file nor a folder of *_query.txt files")
    searched = [_query_line(files, f"{name}_query.txt", source) for name in names]
    good, ok, junk = (
        [_name_lines(files, f"{name}_{kind}.txt", source) for name in names]
        for kind in ("good", "ok", "junk")
    )
    named = [image for image, _ in searched]
    named += [image for lists in (good, ok, junk) for one in lists for image in one]
    file_of = _match(named, images, source)
    database = tuple(sorted(set(images)))
    row = {file: i for i, file in enumerate(database)}

    def rows(listed: list[_Named]) -> Ids:
        return np.unique(np.array([row[file_of[image.name]] for image in listed], dtype=np.int64))

    queries = tuple(
        Query(name, file_of[image.name], box, rows(good[i] + ok[i]), rows(junk[i]))
        for i, (name, (image, box)) in enumerate(zip(names, searched, strict=True))
    )
    return Benchmark(_title(source), database, queries)


def _title(source: str) -> str:
    """paris6k for .../gnd_paris6k.pkl; the name of a folder."""
    return source.rstrip("/").rpartition("/")[2].removeprefix("gnd_").removesuffix(".pkl")


def _without_suffix(name: str) -> str:
    return _IMAGE_SUFFIX.sub("", name)


def _match(named: Sequence[_Named], images: Sequence[str], source: str) -> dict[str, str]:
    """The image file that each name stands for."""
    by_stem = defaultdict(list)
    for file in sorted(set(images)):
        by_stem[_without_suffix(file).rpartition("/")[2]].append(file)
    file_of: dict[str, str] = {}
    missing: dict[str, str] = {}
    for place, name in named:
        wanted = _without_suffix(name)
        fitting = [
            file
            for file in by_stem.get(wanted.rpartition("/")[2], [])
            if f"/{_without_suffix(file)}".endswith(f"/{wanted}")
        ]
        if len(fitting) > 1:
            raise InputError(
                f"{source}: {place}: {name} may be {fitting[0]} or {fitting[1]}: keep one"
            )
        if fitting:
            file_of[name] = fitting[0]
        else:
            missing.setdefault(name, place)
    if missing:
        first = ", ".join(f"{name!r} ({place})" for name, place in list(missing.items())[:3])
        raise InputError(
            f"{source}: {len(missing)} of {len(missing) + len(file_of)} names fit none of the "
            f"{len(set(images))} images: {first}{', ...' if len(missing) > 3 else ''}"
        )
    return file_of


def _lines(
    files: Mapping[str, bytes], file: str, expected: Sequence[str], source: str
) -> list[tuple[str, list[str]]]:
    """The lines that are not blank, cut into the expected fields, each with its place."""
    if file not in files:
        raise InputError(f"{source}/{file}: there is no such file, though other files need it")
    try:
        text = files[file].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}/{file}: not a text file: {error}") from error
    lines = [
        (f"{file}:{number}", line.split())
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    for place, fields in lines:
        if len(fields) != len(expected):
            raise InputError(
                f"{source}/{place}: {' '.join(fields)!r:.80}: expected '{' '.join(expected)}'"
            )
    return lines


def _name_lines(files: Mapping[str, bytes], file: str, source: str) -> list[_Named]:
    return [_Named(place, name) for place, (name,) in _lines(files, file, ["image"], source)]


def _query_line(files: Mapping[str, bytes], file: str, source: str) -> tuple[_Named, Box]:
    lines = _lines(files, file, ["image", "x1", "y1", "x2", "y2"], source)
    if len(lines) != 1:
        raise InputError(f"{source}/{file}: {len(lines)} lines, expected one: image x1 y1 x2 y2")
    place, (name, *corners) = lines[0]
    # The Oxford queries carry the name of a feature collection before that of the image.
    return _Named(place, name.removeprefix("oxc1_")), _box(corners, f"{source}/{place}")


def _box(corners: Any, place: str) -> Box:
    try:
        x1, y1, x2, y2 = (float(corner) for corner in corners)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: box {shorten(corners)}: expected four numbers") from error
    if not (math.isfinite(x1 + y1 + x2 + y2) and x1 < x2 and y1 < y2):
        raise InputError(f"{place}: box {shorten(corners)}: expected x1 < x2 and y1 < y2")
    return x1, y1, x2, y2


def _typed_list(items: Any, kind: type, place: str) -> list[Any]:
    if not isinstance(items, list | tuple) or not items:
        raise InputError(f"{place}: expected a list that is not empty")
    for i, item in enumerate(items):
        if not isinstance(item, kind):
            raise InputError(f"{place}[{i}] is {shorten(item)}: expected a {kind.__name__}")
    return list(items)


def _relevance(truth: dict[str, Any], n: int, place: str) -> tuple[Ids, Ids]:
    """Positives and junk of one entry of gnd."""
    if "ok" in truth:
        positives = ["ok"]
    elif {"easy", "hard"} <= truth.keys():
        positives = ["easy", "hard"]
    else:
        raise InputError(f"{place}: expected ok or easy and hard, found {shorten(list(truth))}")

    def rows(keys: list[str]) -> Ids:
        listed = []
        for key in keys:
            ids = truth.get(key, [])
            if not isinstance(ids, list | tuple | set):
                raise InputError(f"{place}: {key} is {shorten(ids)}: expected rows of imlist")
            for item in ids:
                if type(item) is not int or not 0 <= item < n:
                    raise InputError(
                        f"{place}: {key} holds {shorten(item)}: expected rows of imlist, 0..{n - 1}"
                    )
            listed += list(ids)
        return np.unique(np.array(listed, dtype=np.int64))

    return rows(positives), rows(["junk"])
