"""Purity of the pools: the share of mined pairs that are right according to labels.

n items. Labels only measure here; `oracles` are the exception.
"""

import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmray.images.collection import Collection, named_images
from mmray.images.names import fit, joined
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Ids
from mmray.system.errors import InputError
from mmray.system.foreign import read_npy, reported
from mmray.system.locations import read_bytes
from mmray.system.text_files import Row, normalized, read_lines, read_rows

NOT_MEASURED = "not measured"

# What the column of names is called in a header.
_NAME_COLUMN = re.compile(
    "(image|img|photo|picture|file)s?([ _-]?file)?([ _-]?(name|path|id|uri|url))?"
    "|names?|path|uri|url|key|id|stem",
    re.IGNORECASE,
)


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


def percent(rate: float) -> str:
    """Format a rate of true pairs for a table."""
    return NOT_MEASURED if np.isnan(rate) else f"{rate:.1%}"


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
    same = same_label(pools.anchors, pools.positives, labels)
    different = ~same_label(pools.anchors, pools.negatives, labels)
    return Purity(
        positives=float(same.mean()) if len(same) else np.nan,
        negatives=float(different.mean()) if len(different) else np.nan,
        positive_pairs=len(same),
        negative_pairs=len(different),
        anchors=len(pools.anchors),
    )


def coverage(pools: Pools, labels: NDArray[Any]) -> tuple[str, bool]:
    """Say what a purity by these labels (n,) is worth, and whether it is worth anything."""
    ids = np.unique(np.concatenate([pools.anchors, *pools.positives, *pools.negatives]))
    labelled = ~without_label(labels)
    known, values = np.count_nonzero(labelled[ids]), labels[labelled].tolist()
    if not known:
        return "none of their items has a label", False
    if len(set(values)) == len(values):
        return "no two items have the same label", False
    return f"{known:,} of their {len(ids):,} items have a label", True


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
    remedy = "give text in UTF-8 with one label a line, or an .npy file of integers or strings"
    with reported(uri, remedy, "cannot be read as labels"):
        content = read_bytes(uri)
        if uri.endswith(".npy"):
            labels = _from_npy(content)
        else:
            labels = np.array([normalize("NFC", line) for line in read_lines(content)], np.str_)
    if len(labels) != count:
        noun = "labels" if uri.endswith(".npy") else "lines"
        raise InputError(
            f"{uri}: {len(labels)} {noun}, but there are {count} items; give one label for each "
            "item, in their order"
        )
    return labels


def read_named_labels(uri: str) -> dict[str, str]:
    """Read labels by image name from a CSV file: name,label in the first columns.

    Cells are separated by commas, tabs or semicolons. The first line is a header, and left out, if
    its name is a word for names (name, file_name, path, image, id, ...) and its label is that of no
    other line; any other first line counts like the rest.

    Parameters
    ----------
    uri : local path or URI of a file in UTF-8, or in UTF-16 with a byte order mark

    Returns
    -------
    Labels by `normalized` name, "" for an image without a label.

    Raises
    ------
    InputError
        The file cannot be read, a line has no label, or a name has two labels.
    """
    try:
        rows = read_rows(read_bytes(uri))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{uri}: cannot be read as labels ({error}); give a CSV file in UTF-8: name,label in "
            "each line"
        ) from error
    if _is_header(rows):
        del rows[0]
    named: dict[str, str] = {}
    line_of: dict[str, int] = {}
    for line, (written, text, *_) in rows:
        name, label = normalized(written), normalize("NFC", text)
        if named.setdefault(name, label) != label:
            raise InputError(
                f"{uri}: line {line} gives {name!r:.300} the label {label!r:.80}, line "
                f"{line_of[name]} gave it {named[name]!r:.80}; keep one of them"
            )
        line_of.setdefault(name, line)
    return named


def _is_header(rows: Sequence[Row]) -> bool:
    if not rows:
        return False
    name, label, *_ = rows[0][1]
    return _NAME_COLUMN.fullmatch(name) is not None and all(
        cells[1] != label for _, cells in rows[1:]
    )


def labels_of(
    names: Sequence[str], named: Mapping[str, str], locations: Sequence[str] | None = None
) -> NDArray[np.str_]:
    """Look up the label of each image name, as `joined` does: (n,), "" if there is none."""
    return np.array(joined(named, names, locations), np.str_)


def labels_of_images(
    images: Collection, named: Mapping[str, str], source: str
) -> tuple[NDArray[np.str_], str]:
    """Look up the labels of images in those of a file: (n,), "" where an image has none.

    Parameters
    ----------
    images : n images
    named : labels by `normalized` name
    source : the flag and the file, for messages

    Returns
    -------
    The labels, and a sentence on how many of the names fit.

    Raises
    ------
    InputError
        None of the names fits an image, or it is not clear which label an image has.
    """
    names, (_, fitting) = images.table["name"].to_pylist(), named_images(images, named.keys())
    said = fit(source, named, fitting, names)
    try:
        return labels_of(names, named, images.locations.to_pylist()), said
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def same_label(anchors: Ids, pool: Sequence[Ids], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Flag each pair (anchor, item of its pool), in order, whose two items have the same label."""
    items = np.concatenate([np.empty(0, np.int64), *pool])
    sizes = np.array([len(ids) for ids in pool], np.int64)
    ours = labels[np.repeat(anchors, sizes)]
    return np.asarray((ours == labels[items]) & ~without_label(ours), bool)


def without_label(labels: NDArray[Any]) -> NDArray[np.bool_]:
    if labels.dtype.kind in "USO":
        absent = (None, -1, "", "-1", b"", b"-1")
        return np.array([label in absent for label in labels.tolist()], bool)
    return np.asarray((labels == -1) | (labels != labels), bool)  # NaN differs from itself


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
