"""The published training tuples of Radenović, Tolias and Chum: retrieval-SfM-30k.pkl and -120k.pkl.

A file is a pickle {"train": {...}, "val": {...}}. Each part has `cids`, the ids of n images;
`cluster`, the 3D model that each of them belongs to; and `qidxs` and `pidxs`, m rows of cids each:
query i matches positive i. The image abcdef012345 lies at ims/45/23/01/abcdef012345, and has no
suffix.

Clusters and pairs come from structure from motion: they are labels, for the supervised baseline.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import Any, Literal

import numpy as np

from mmray.evaluation.benchmarks.plain_pickle import load_plain
from mmray.images.collection import Collection
from mmray.images.sources import list_files
from mmray.system.arrays import Ids
from mmray.system.errors import InputError
from mmray.system.locations import error_line, read_bytes
from mmray.training.supervised.labelled_tuples import LabelledPairs

_CID = re.compile(r"[0-9A-Za-z]{6,255}")  # becomes a path, which must not leave the folder
_LARGEST = 2**62  # largest number of a cluster


@dataclass(frozen=True, eq=False, kw_only=True)
class SfmTuples:
    """The content of a file of tuples: n images, and pairs and clusters by places among them.

    Attributes
    ----------
    file : path or URI of the file
    """

    file: str
    images: Collection
    pairs: LabelledPairs


def read_sfm_tuples(
    file: str, images_folder: str, split: Literal["train", "val"] = "train"
) -> SfmTuples:
    """Read a file of tuples and find its images in a folder.

    Parameters
    ----------
    file : path or URI
    images_folder : the folder `ims`, a path or URI

    Raises
    ------
    InputError
        The file cannot be read or is damaged, or an image is missing.
    """
    try:
        data = read_bytes(file)
    except OSError as error:
        raise InputError(
            f"--tuples {file}: cannot be read ({error_line(error)}); name retrieval-SfM-30k.pkl or "
            "retrieval-SfM-120k.pkl"
        ) from error
    content = load_plain(data, file)
    if not isinstance(content, dict) or not isinstance(content.get(split), dict):
        raise _damaged(file, f"no part {split!r}")
    part, where = content[split], f"{file}: {split}"
    cids = _column(part, "cids", where)
    for row, cid in enumerate(cids):
        if not isinstance(cid, str) or not _CID.fullmatch(cid):
            raise _damaged(where, f"cids[{row}] is {shorten(cid)}, not the id of an image")
    n = len(cids)
    clusters = _numbers(part, "cluster", where, -_LARGEST, _LARGEST)
    queries, positives = (_numbers(part, name, where, 0, n - 1) for name in ("qidxs", "pidxs"))
    for name, values, wanted in (("cluster", clusters, cids), ("pidxs", positives, queries)):
        if len(values) != len(wanted):
            other = "cids" if name == "cluster" else "qidxs"
            raise _damaged(where, f"{len(values)} {name}, but {len(wanted)} {other}")
    if not len(queries) or len(np.unique(clusters)) < 2:
        raise _damaged(where, "it needs a pair and images of two clusters at least")
    return SfmTuples(
        file=file,
        images=_images_of_tuples(cids, images_folder, file),
        pairs=LabelledPairs(queries=queries, positives=positives, clusters=clusters),
    )


def path_of(cid: str) -> str:
    """Return the path of an image below the folder `ims`."""
    return f"{cid[-2:]}/{cid[-4:-2]}/{cid[-6:-4]}/{cid}"


def _images_of_tuples(cids: Sequence[str], folder: str, file: str) -> Collection:
    """Find the files of all images, in their order; InputError where some are missing."""
    listed = {each.name: each for each in list_files(folder)}
    paths = [path_of(cid) for cid in cids]
    missing = [path for path in paths if path not in listed or listed[path].error is not None]
    if missing:
        first = listed.get(missing[0])
        why = "missing" if first is None else first.error
        there = f" (this folder holds {min(listed):.300})" if listed else ""
        raise InputError(
            f"{folder.rstrip('/')}/{missing[0]}: {why}, as are {len(missing):,} of the "
            f"{len(paths):,} images of {file}{there}: name their folder `ims`, as it was "
            "published, by --images"
        )
    return Collection.of([listed[path] for path in paths])


def _column(part: Mapping[str, Any], name: str, where: str) -> list[Any]:
    values = part.get(name)
    if not isinstance(values, list):
        raise _damaged(where, f"no list {name!r}")
    return values


def _numbers(part: Mapping[str, Any], name: str, where: str, low: int, high: int) -> Ids:
    values = _column(part, name, where)
    for row, value in enumerate(values):
        if type(value) is not int or not low <= value <= high:
            raise _damaged(
                where, f"{name}[{row}] is {shorten(value)}, not a number from {low} to {high}"
            )
    return np.array(values, np.int64)


def _damaged(where: str, what: str) -> InputError:
    return InputError(f"{where}: {what}; this is no file of retrieval-SfM tuples, or a damaged one")
