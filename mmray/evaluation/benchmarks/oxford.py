"""Retrieval benchmarks in the two layouts of ground truth that most are published in.

* One pickle, `gnd_*.pkl`: {imlist, qimlist, gnd: [{bbx, ok, junk}]}, names without suffix and rows
  of imlist; or {easy, hard, junk} (Radenović et al., CVPR 2018), with three protocols.
* A folder of text files (Philbin et al. 2007): for each query `*_query.txt` (image and box),
  `*_good.txt`, `*_ok.txt` (positives) and `*_junk.txt` (one name a line).
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

import numpy as np
import pyarrow as pa

from mmray.evaluation.benchmarks.ground_truth import (
    Keys,
    Named,
    box,
    listed,
    match,
    rows,
    stem,
    title,
)
from mmray.evaluation.benchmarks.plain_pickle import load_plain
from mmray.evaluation.ranking import Query
from mmray.system.arrays import Box, Ids
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.text_files import read_lines

# Keys of the positives, and of the junk that is removed from the ranking, by rule.
_ONE_RULE: dict[str, tuple[Keys, Keys]] = {"": (("ok",), ("junk",))}
_PROTOCOLS: dict[str, tuple[Keys, Keys]] = {
    "Easy": (("easy",), ("junk", "hard")),
    "Medium": (("easy", "hard"), ("junk",)),
    "Hard": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A database of images, and queries with their ground truth.

    Attributes
    ----------
    name : str
    images : tuple of str
        The database, relative to the folder of images; row i of the ground truth is images[i].
    queries : tuple of Query
        Their images may be in the database or not.
    protocols : name -> the same queries with the positives and junk of another rule
        Easy, Medium and Hard of the revisited benchmarks (`queries` are those of Medium); empty
        where there is one rule.
    labels : the class of each image of the database, or None
        Where there are classes, Recall@k is measured too.
    """

    name: str
    images: tuple[str, ...]
    queries: tuple[Query, ...]
    protocols: Mapping[str, tuple[Query, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None


def load_benchmark(ground_truth: str, images: Sequence[str]) -> Benchmark:
    """Read a ground truth and match its names with image files.

    Parameters
    ----------
    ground_truth : local path or URI
        A .pkl file, or else a folder of text files.
    images : names of the image files, relative to the folder of images
        A name in the ground truth means the file of that name, whatever its suffix and folder; a
        name that holds a folder means a file in such a folder.

    Raises
    ------
    InputError
        The ground truth cannot be read or is damaged (the message names file and item), or a name
        in it fits no image file or several.
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
    """Read a `gnd_*.pkl` without executing anything in it; the database is its imlist.

    Parameters
    ----------
    data : content of the pickle
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
    names, query_names, truths, file_of = listed(content, images, source)
    found: dict[str, list[Query]] = defaultdict(list)
    for i, (name, truth) in enumerate(zip(query_names, truths, strict=True)):
        place = f"{source}: gnd[{i}] ({name})"
        corners = None if truth.get("bbx") is None else box(truth["bbx"], place)
        for rule, (positives, junk) in _rules(truth, truths[0], place).items():
            to_find, to_ignore = (
                rows(truth, keys, len(names), place) for keys in (positives, junk)
            )
            found[rule].append(Query(name, file_of[name], corners, to_find, to_ignore))
    by_rule = {rule: tuple(queries) for rule, queries in found.items()}
    return Benchmark(
        name=title(source),
        images=tuple(file_of[name] for name in names),
        queries=by_rule.get("Medium") or by_rule[""],
        protocols={} if "" in by_rule else by_rule,
    )


def _rules(
    truth: Mapping[str, Any], first: Mapping[str, Any], place: str
) -> dict[str, tuple[Keys, Keys]]:
    """Return the rules of an entry of gnd; all entries must have those of the first."""
    if "ok" in first:
        keys, rules = {"ok"}, _ONE_RULE
    else:
        keys, rules = {"easy", "hard"}, _PROTOCOLS
    if not keys <= truth.keys():
        expected = "ok or easy and hard" if truth is first else " and ".join(sorted(keys))
        raise InputError(f"{place}: expected {expected}, found {shorten(list(truth))}")
    return rules


def read_oxford_ground_truth(
    files: Mapping[str, bytes],
    images: Sequence[str],
    *,
    source: str,
    corrupt: Collection[str] = (),
) -> Benchmark:
    """Read a ground truth of `*_query.txt`, `*_good.txt`, `*_ok.txt` and `*_junk.txt` files.

    The database is all images, in alphabetical order; queries come in the order of their names.

    Parameters
    ----------
    files : name -> content
    images : as for `load_benchmark`
    source : the folder, for messages and the benchmark's name
    corrupt : images, named without suffix, to leave out of the database and of the lists

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
        [_name_lines(files, f"{name}_{kind}.txt", source, corrupt) for name in names]
        for kind in ("good", "ok", "junk")
    )
    whole = sorted({image for image in images if stem(image) not in corrupt})
    named = [image for image, _ in searched]
    named += [image for lists in (good, ok, junk) for one in lists for image in one]
    file_of = match(named, whole, source)
    row = {file: i for i, file in enumerate(whole)}

    def rows_of(listed: list[Named]) -> Ids:
        return np.unique(np.array([row[file_of[image.name]] for image in listed], dtype=np.int64))

    queries = tuple(
        Query(name, file_of[image.name], corners, rows_of(good[i] + ok[i]), rows_of(junk[i]))
        for i, (name, (image, corners)) in enumerate(zip(names, searched, strict=True))
    )
    return Benchmark(title(source), tuple(whole), queries)


def _lines(
    files: Mapping[str, bytes], file: str, expected: Sequence[str], source: str
) -> list[tuple[str, list[str]]]:
    """Split the lines of a file, except blank ones, into fields, each line with its place."""
    if file not in files:
        raise InputError(f"{source}/{file}: there is no such file, though other files need it")
    try:
        numbered = enumerate(read_lines(files[file]), start=1)
    except ValueError as error:
        raise InputError(f"{source}/{file}: not a text file: {error}") from error
    # Not split(), which also splits at other characters, such as U+2028.
    lines = [(f"{file}:{number}", re.split(r"[ \t]+", line)) for number, line in numbered if line]
    for place, fields in lines:
        if len(fields) != len(expected):
            raise InputError(
                f"{source}/{place}: {' '.join(fields)!r:.80}: expected '{' '.join(expected)}'"
            )
    return lines


def _name_lines(
    files: Mapping[str, bytes], file: str, source: str, corrupt: Collection[str]
) -> list[Named]:
    lines = _lines(files, file, ["image"], source)
    return [Named(place, name) for place, (name,) in lines if stem(name) not in corrupt]


def _query_line(files: Mapping[str, bytes], file: str, source: str) -> tuple[Named, Box]:
    lines = _lines(files, file, ["image", "x1", "y1", "x2", "y2"], source)
    if len(lines) != 1:
        raise InputError(f"{source}/{file}: {len(lines)} lines, expected one: image x1 y1 x2 y2")
    place, (name, *corners) = lines[0]
    # The Oxford queries carry the name of a feature collection before that of the image.
    return Named(place, name.removeprefix("oxc1_")), box(corners, f"{source}/{place}")
