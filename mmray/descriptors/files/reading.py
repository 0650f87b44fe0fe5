"""Reading features from .npy, Parquet and MATLAB files, checked and l2-normalised.

n items, d dimensions. Nothing in a file is executed: pickles are refused, and of a MATLAB file only
the numbers of one variable are read.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from mmray.descriptors.files.matlab import opened_matrix
from mmray.descriptors.files.parquet import (
    NOT_FINITE,
    read_embeddings,
    refuse,
)
from mmray.system.arrays import Features, Floats
from mmray.system.errors import InputError, first_names, quoted
from mmray.system.folder import Folder
from mmray.system.foreign import WHOLE, reported
from mmray.system.text_files import natural_order

ACCEPTED = (
    "an .npy file, a .parquet file or a folder of them, a .mat file with the variable V, "
    "or the folder of an extraction"
)
TOLERANCE = 1e-3  # rows whose norms are so near 1 count as l2-normalised


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureSet:
    """The features of n items, with a fingerprint and notes on their norms.

    Attributes
    ----------
    features : (n, d) float32, C order
        l2-normalised rows; zero rows stay zero. A read-only map of the file if that holds them in
        this form (local .npy, float32, C order, normalised).
    fingerprint : str
        32 hex digits of the shape and the bits of `features`, whatever the format of the file.
    normalized : bool
        The rows had other norms, and were l2-normalised here.
    zero_rows : int
        Number of rows without a direction: items that no graph will link.
    """

    features: Features
    fingerprint: str
    normalized: bool
    zero_rows: int


def read_feature_set(uri: str) -> FeatureSet:
    """Read the features of a collection.

    Parameters
    ----------
    uri : a local path, or a URI (s3://, gs://; percent-encoded), of one of
        - an .npy file: (n, d) float16, float32 or float64
        - a .parquet file or a folder of them, in the order of their names (part.2 before part.10):
          a column `embedding` of lists or one-dimensional tensors of floats; rows in the order of
          the integer column `image_id` (0..n-1, each once), if there is one
        - a .mat file, version 5 or 7.3: a single or double matrix V (d, n), features in columns
        - a folder that an extraction left: its features.npy

    Returns
    -------
    FeatureSet : all rows l2-normalised, in float64, if the norm of one departs from 1 by more than
        1e-3; else the rows as they are. Halves and doubles are converted to float32 before.

    Raises
    ------
    InputError
        There is no such file, it is damaged or of another format or shape, an entry is not finite
        in float32, or image ids are missing or repeated.
    """
    whole, parent, name = _located(uri)
    with reported(uri, "give a local path, or a URI (s3:// or gs://)"):
        is_file = parent.has(name)
        inside = [] if is_file else whole.names()
    if is_file:
        return _checked(_read_file(parent, name), parent.location(name))
    if "features.npy" in inside:
        return _checked(_read_file(whole, "features.npy"), whole.location("features.npy"))
    shards = [name for name in inside if name.lower().endswith(".parquet")]
    shards.sort(key=natural_order)  # many writers number parts without zeros
    if not inside:
        raise InputError(f"{uri}: no such file, nor a folder with files in it; give {ACCEPTED}")
    if not shards:
        there = first_names(quoted(inside), 5)
        raise InputError(f"{uri}: no .parquet file among {there}; give {ACCEPTED}")
    return _checked(read_embeddings(whole, shards), uri)


def _located(uri: str) -> tuple[Folder, Folder, str]:
    """Return a location as a folder, and the folder that it is in with its name there."""
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        return Folder(str(path)), Folder(str(path.parent)), path.name
    parent, _, name = uri.rpartition("/")
    if parent.endswith(":/"):  # a bucket
        parent, name = uri, ""
    return Folder(uri.rstrip("/")), Folder(parent), unquote(name)


@np.errstate(over="ignore", invalid="ignore")  # `_checked` finds the resulting values
def _read_file(folder: Folder, name: str) -> Features:
    """Read features (n, d) float32, C order, without checking that entries are finite."""
    location, local = folder.location(name), folder.local is not None
    match Path(name).suffix.lower():
        case ".parquet":
            return read_embeddings(folder, [name])
        case ".npy":
            whole = WHOLE.format(".npy file of numbers, not of pickled objects")
            with reported(location, whole), _at_hand(folder, name) as path:
                # Not np.load, which takes archives and pickles for .npy files too.
                mapped: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
                _check_matrix(mapped, location)
                if local and mapped.dtype == np.float32 and mapped.flags.c_contiguous:
                    return mapped
                return np.array(mapped, np.float32, order="C")
        case ".mat":
            whole = WHOLE.format(".mat file")
            with (
                reported(location, whole),
                _at_hand(folder, name) as path,
                opened_matrix(path, location) as V,
            ):
                _check_matrix(V, location)
                return np.asarray(V, np.float32)
    raise InputError(f"{location}: the name has none of the known endings; give {ACCEPTED}")


@contextmanager
def _at_hand(folder: Folder, name: str) -> Iterator[Path]:
    """Yield a local file, or a copy of a remote one that exists until the block ends."""
    if folder.local is not None:
        yield folder.local / name
        return
    with tempfile.TemporaryDirectory(prefix="mmray-features-") as scratch:
        path = Path(scratch) / "copy"
        with folder.reading(name) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        yield path


def _check_matrix(matrix: Any, location: str) -> None:
    """Raise InputError if the shape or type of an array or HDF5 dataset is unusable."""
    shape, dtype = matrix.shape, matrix.dtype
    if len(shape) != 2:
        raise InputError(
            f"{location}: the array has shape {shape}, but features are two-dimensional; "
            "reshape it to one row an item"
        )
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise InputError(
            f"{location}: the entries are {dtype}, not float16, float32 or float64; "
            "convert them by astype(np.float32) and save again"
        )
    if 0 in shape:
        raise InputError(
            f"{location}: {shape[0]} items of {shape[1]} dimensions are no features; "
            "give at least one item of one dimension"
        )


def _checked(features: Features, location: str) -> FeatureSet:
    """Check that features are finite, l2-normalise them if needed, and fingerprint them."""
    # In float64 without a copy in float64, here and below; finite if and only if all of the row is.
    norms: Floats = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64))
    refuse(~np.isfinite(norms), location, NOT_FINITE)
    zero = norms == 0
    normalized = bool(np.any(np.abs(norms[~zero] - 1) > TOLERANCE))
    if normalized:
        # In place if the rows are our own, not a map of a file.
        result = features if features.flags.writeable else np.empty(features.shape, np.float32)
        features = np.divide(features, np.where(zero, 1, norms)[:, None], out=result)
    digest = hashlib.blake2b(repr(features.shape).encode(), digest_size=16)
    digest.update(features.astype("<f4", copy=False).reshape(-1).data)
    return FeatureSet(
        features=features,
        fingerprint=digest.hexdigest(),
        normalized=normalized,
        zero_rows=int(np.count_nonzero(zero)),
    )
