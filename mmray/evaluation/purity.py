"""Purity of the pools: the share of mined pairs that are right according to labels.

n items. Labels only measure here; the exception is `without_false_pairs`, an oracle.
"""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmray.config.choices import Oracle
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Ids
from mmray.system.errors import InputError
from mmray.system.foreign import read_npy, reported
from mmray.system.locations import read_bytes


@dataclass(frozen=True, kw_only=True)
class Purity:
    """Rates of true pairs in pools (Sec. 4.2, Fig. 5: 40% and 96% on CUB).

    Attributes
    ----------
    positives : float
        Of all pairs (anchor, positive), the fraction of the same label; NaN if there are no pairs.
    negatives : float
        Of all pairs (anchor, negative), the fraction of different labels; NaN if there are none.
    positive_pairs, negative_pairs : int
        Number of pairs of all anchors.
    anchors : int
        Number of anchors, including those without a pair.
    """

    positives: float
    negatives: float
    positive_pairs: int
    negative_pairs: int
    anchors: int


def pool_purity(pools: Pools, labels: NDArray[Any]) -> Purity:
    """Measure the purity of pools by the labels of the items.

    Parameters
    ----------
    pools : ids in 0..n-1
    labels : (n,) of integers, floats, strings or objects
        -1, "-1", "", NaN or None stands for an item without a label, such as a distractor: it
        shows none of the objects, so it matches nothing, not even another item without a label.
        Its pairs are counted: as a positive pair they are false, as a negative pair true.

    Raises
    ------
    ValueError
        Labels are not one-dimensional, or there are fewer than the largest id requires.
    """
    ids = np.concatenate([pools.anchors, *pools.positives, *pools.negatives])
    if labels.ndim != 1:
        raise ValueError(f"labels must be one-dimensional, got shape {labels.shape}")
    if ids.max(initial=-1) >= len(labels):
        raise ValueError(f"the pools name item {ids.max()}, but there are {len(labels)} labels")
    same = _same_label(pools.anchors, pools.positives, labels)
    different = ~_same_label(pools.anchors, pools.negatives, labels)
    return Purity(
        positives=float(same.mean()) if len(same) else np.nan,
        negatives=float(different.mean()) if len(different) else np.nan,
        positive_pairs=len(same),
        negative_pairs=len(different),
        anchors=len(pools.anchors),
    )


def without_false_pairs(pools: Pools, labels: NDArray[Any], which: Oracle) -> Pools:
    """Remove the false pairs from pools by labels: an oracle, the upper bound of purer mining.

    Parameters
    ----------
    pools, labels : as for `pool_purity`
    which : "positives" removes positives of another label than the anchor's, "negatives" removes
        negatives of the same label, "both" removes both

    Returns
    -------
    Pools of the same anchors, some perhaps empty now, in the same order; `manifold_neighbors` are
    unchanged.
    """
    if which in ("positives", "both"):
        kept = _split(_same_label(pools.anchors, pools.positives, labels), pools.positives)
        pools = replace(
            pools,
            positives=_chosen(pools.positives, kept),
            positive_similarity=_chosen(pools.positive_similarity, kept),
            positive_rank_e=_chosen(pools.positive_rank_e, kept),
        )
    if which in ("negatives", "both"):
        kept = _split(~_same_label(pools.anchors, pools.negatives, labels), pools.negatives)
        pools = replace(
            pools,
            negatives=_chosen(pools.negatives, kept),
            negative_similarity=_chosen(pools.negative_similarity, kept),
            negative_rank_m=_chosen(pools.negative_rank_m, kept),
        )
    return pools


def read_labels(uri: str, count: int) -> NDArray[Any]:
    """Read the labels of `count` items from a file.

    Parameters
    ----------
    uri : local path or URI
        A name that ends in .npy: a one-dimensional array of integers or strings. Any other: a text
        file in UTF-8 with one label a line, in the order of the items, without the blanks around
        it. See `pool_purity` for the marks of an item without a label.
    count : n, the number of labels expected

    Returns
    -------
    (n,) : the array of an .npy file; from text always strings, even where all are numbers ("01"
    differs from "1").

    Raises
    ------
    InputError
        The file cannot be read, is of another kind, or holds another number of labels.
    """
    remedy = (
        "give a text file in UTF-8 with one label a line, or an .npy file of integers or strings"
    )
    with reported(uri, remedy, "cannot be read as labels"):
        content = read_bytes(uri)
        labels = _from_npy(content) if uri.endswith(".npy") else _from_text(content)
    if len(labels) != count:
        noun = "labels" if uri.endswith(".npy") else "lines"
        raise InputError(
            f"{uri}: {len(labels)} {noun}, but there are {count} items; give one label for each "
            "item, in their order"
        )
    return labels


def read_named_labels(uri: str) -> dict[str, str]:
    """Read labels by image name from a CSV file: a header, then name,label in the first columns.

    Raises
    ------
    InputError
        The file cannot be read, or a line has no label.
    """
    try:
        lines = list(csv.reader(read_bytes(uri).decode("utf-8-sig").splitlines()))[1:]
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise InputError(
            f"{uri}: cannot be read as labels ({error}); give a CSV file in UTF-8: a header, then "
            "name,label"
        ) from error
    for number, line in enumerate(lines, start=2):
        if len(line) < 2:
            raise InputError(f"{uri}: line {number} is not name,label; correct or remove it")
    return {line[0]: line[1].strip() for line in lines}


def labels_of(names: Sequence[str], named: Mapping[str, str]) -> NDArray[np.str_]:
    """Look up the label of each image name, with or without folder and suffix: (n,), "" if none."""
    found = []
    for name in names:
        path = PurePosixPath(name)
        keys = (name, path.name, path.stem)
        found.append(next((named[key] for key in keys if key in named), ""))
    return np.array(found, np.str_)


def _same_label(anchors: Ids, pool: Sequence[Ids], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Flag each pair (anchor, item of its pool), in order, whose two items have the same label."""
    items = np.concatenate([np.empty(0, np.int64), *pool])
    sizes = np.array([len(ids) for ids in pool], np.int64)
    ours = labels[np.repeat(anchors, sizes)]
    return np.asarray((ours == labels[items]) & ~_unlabelled(ours), bool)


def _split(flags: NDArray[np.bool_], pool: Sequence[Ids]) -> list[NDArray[np.bool_]]:
    """Split the flags of all pairs into one array for each anchor."""
    return np.split(flags, np.cumsum([len(ids) for ids in pool]))[: len(pool)]


def _chosen(lists: Sequence[Any], kept: Sequence[NDArray[np.bool_]]) -> tuple[Any, ...]:
    return tuple(values[flags] for values, flags in zip(lists, kept, strict=True))


def _unlabelled(labels: NDArray[Any]) -> NDArray[np.bool_]:
    if labels.dtype.kind in "USO":
        absent = (None, -1, "", "-1", b"", b"-1")
        return np.array([label in absent for label in labels.tolist()], bool)
    return np.asarray(labels == -1, bool)


def _from_npy(content: bytes) -> NDArray[Any]:
    labels = read_npy(io.BytesIO(content), len(content))
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise ValueError(f"an array of shape {labels.shape} and type {labels.dtype}")
    if labels.dtype.kind == "U" and labels.dtype.itemsize:
        native = labels.astype(labels.dtype.newbyteorder("="))
        # numpy would fail where such a letter is looked at.
        if native.view(np.uint32).max(initial=0) > sys.maxunicode:
            raise ValueError("text with letters beyond Unicode")
    return labels


def _from_text(content: bytes) -> NDArray[np.str_]:
    lines = content.decode("utf-8-sig").splitlines()
    return np.array([line.strip() for line in lines], np.str_)
