"""Whitening of embeddings: by PCA, without labels, and by LDA ("Lw"), from matching pairs.

n items, d dimensions, m matching pairs.

Sources: PCA whitening for retrieval, Jégou & Chum, ECCV 2012; LDA, Mikolajczyk & Matas, ICCV 2007,
as used by Radenović et al., "CNN image retrieval learns from BoW", ECCV 2016. Everything is learned
in double precision and kept in single; features are read a block of rows at a time.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from mmray.descriptors.moments import Moments, blocks, check_finite
from mmray.system.arrays import Features, Floats, Ids
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.foreign import read_npz, reported

# With fewer samples than this for each direction, the small variances of a sample are much smaller
# than the true ones, and dividing by them drowns the signal: full PCA whitening of n <= d items
# makes all of them equally similar. So only samples / 4 directions are whitened, and the rest get
# the variance of the last of these; with 4 samples a direction and more, nothing is changed.
# Measured with 1280-d features of 250 Paris photos among 1000 others, PCA learned from the others:
# mAP 0.736 without this, and 0.882, 0.888, 0.875 with 2, 4, 8 (0.858 before whitening).
_SAMPLES_PER_DIRECTION = 4

# Added to all variances where one is 0 in double precision, as of a channel that was never active;
# ten times as much until none is, as in the authors' code, which tries Cholesky's root.
_RIDGE = 1e-10

WHITENING = "whitening.npz"  # in a model's folder: for its network's own descriptor


@dataclass(frozen=True)
class Whitening:
    """A learned whitening: an affine map followed by l2-normalisation.

    Attributes
    ----------
    mean : (d,) float32
    projection : (d, d) float32
        Rows by descending variance: the first `dims` rows reduce to `dims` dimensions. The largest
        entry of each row is positive, so that learning again elsewhere gives the same rows.
    """

    mean: Features
    projection: Features

    def apply(self, x: Features, dims: int | None = None) -> Features:
        """Whiten embeddings, and reduce them to their first dimensions.

        Parameters
        ----------
        x : (n, d) float32
        dims : from 1 to d; None: all d.

        Returns
        -------
        (n, dims) float32, l2-normalised; a row that is projected to zero stays zero.

        Raises
        ------
        ValueError
            x does not have d columns, dims is outside 1..d, or a row is not finite.
        """
        d = len(self.mean)
        dims = d if dims is None else dims
        if x.ndim != 2 or x.shape[1] != d:
            raise ValueError(f"embeddings have shape {x.shape}: this whitening takes (n, {d})")
        if not 1 <= dims <= d:
            raise ValueError(f"dims = {dims}: this whitening has 1 to {d} dimensions")
        check_finite(x, "embeddings")
        centred: Features = np.subtract(x, self.mean, dtype=np.float32)
        projected: Features = centred @ self.projection[:dims].T
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        np.divide(projected, norms, out=projected, where=norms > 0)
        return projected

    def digest(self) -> str:
        """Return a fingerprint of the mean and the projection."""
        return hashlib.sha256(self.mean.tobytes() + self.projection.tobytes()).hexdigest()

    def save(self, file: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write a .npz file with the arrays `mean` and `projection`, under exactly this name."""
        if isinstance(file, str | os.PathLike):
            with Path(file).open("wb") as opened:
                self.save(opened)
        else:
            np.savez(file, mean=self.mean, projection=self.projection)

    @classmethod
    def load(
        cls, file: str | os.PathLike[str] | IO[bytes], location: str | None = None
    ) -> "Whitening":
        """Read a whitening that `save` wrote; nothing in the file is executed.

        Parameters
        ----------
        file : a path, or a seekable stream
        location : its name in messages; None: the path

        Raises
        ------
        InputError
            The file is not a whitening.
        FileNotFoundError
            There is no such file.
        """
        location = str(file) if location is None else location
        if isinstance(file, str | os.PathLike):
            with Path(file).open("rb") as opened:
                return cls.load(opened, location)
        what = "not a whitening (.npz of mean, projection)"
        with reported(location, "write it anew by `Whitening.save`", what):
            arrays = read_npz(file, ("mean", "projection"))
            for name, array in arrays.items():
                if array.dtype.kind != "f":
                    raise TypeError(f"{name} is of {array.dtype}, not of real numbers")
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
                mean, projection = (array.astype(np.float32) for array in arrays.values())
        if mean.ndim != 1 or projection.shape != (len(mean), len(mean)):
            raise InputError(
                f"{location}: not a whitening: mean has shape {mean.shape} and projection "
                f"{projection.shape}, expected (d,) and (d, d)"
            )
        if not (np.isfinite(mean).all() and np.isfinite(projection).all()):
            raise InputError(f"{location}: not a whitening: it holds values that are not finite")
        return cls(mean, projection)


def pca_whitening(features: Features) -> Whitening:
    """Learn PCA whitening from features, by `pca_from` of their moments.

    Parameters
    ----------
    features : (n, d) float32, memory-mapped or not
        n >= 2; all directions are whitened from n = 4 d on, fewer of them below.

    Raises
    ------
    ValueError
        A feature is not finite; an InputError if there are fewer than two, or all are equal.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(100, 2)).astype(np.float32) * np.float32([10, 1])
    >>> whitening = pca_whitening(features)
    >>> (features @ whitening.projection.T).std(axis=0).round(3)
    array([1., 1.], dtype=float32)
    >>> whitening.apply(features, dims=1).shape
    (100, 1)
    """
    _check_shape(features)
    return pca_from(Moments.of(features))


def pca_from(moments: Moments) -> Whitening:
    """Learn PCA whitening: P = diag(v)^-1/2 E^T for the covariance E diag(v) E^T of the features.

    Variances v that the number of features does not support are raised (top of this module): with
    n >= 4 d and no variance of 0, the whitened features have the identity as their covariance,
    before l2-normalisation.

    Raises
    ------
    InputError
        The moments are of fewer than two features, or of equal ones.
    """
    if moments.count < 2:
        raise InputError(f"whitening is learned from at least 2 features, not {moments.count}")
    # Exact for float32: double precision holds the sum of equal ones, and so their mean.
    if not moments.scatter.any():
        raise InputError(f"all {moments.count} features are equal: there is nothing to whiten")
    variances, directions = _principal_axes(moments.covariance())
    scales = _deviations(variances, moments.count)
    return _whitening(moments.mean, directions / scales[:, None])


def lda_whitening(features: Features, queries: Ids, positives: Ids) -> Whitening:
    """Learn LDA whitening: P = R C^-1/2, C the covariance of the differences of matching pairs.

    R rotates to the principal axes of the features whitened by C^-1/2 and centred on the mean of
    the pairs' queries (as in the authors' code), the most discriminative axis first. Any square
    root of C gives the same P: theirs is Cholesky's. Variances of C that the number of pairs, and
    of items in them, does not support are raised (top of this module).

    Parameters
    ----------
    features : (n, d) float32, memory-mapped or not
    queries, positives : (m,) int64
        Rows of features that match: queries[i] and positives[i] show the same object.

    Raises
    ------
    ValueError
        There are no pairs, an id is outside 0..n-1, or a feature is not finite; an InputError if
        the features of every pair are equal.
    """
    _check_shape(features)
    _check_pairs(queries, positives, len(features))
    moments = Moments.of(features)
    origin = np.zeros(features.shape[1])
    total, differences = origin, Moments.none(len(origin))
    for part in blocks(len(queries)):
        matches = features[queries[part]].astype(np.float64)
        total = total + matches.sum(axis=0)
        matches -= features[positives[part]]
        differences = differences.merge(Moments.of(matches))
    mean, within = total / len(queries), differences.about(origin)
    if not within.any():
        raise InputError(
            f"the two features of each of the {len(queries)} matching pairs are equal: LDA "
            "whitening learns from how they differ"
        )
    variances, directions = _principal_axes(within)
    # Pairs that share an item are not independent: r items span at most r - 1 differences.
    independent = min(len(queries), np.unique([queries, positives]).size)
    whitener = directions / _deviations(variances, independent)[:, None]
    _, rotation = _principal_axes(whitener @ moments.about(mean) @ whitener.T)
    return _whitening(mean, rotation @ whitener)


def _principal_axes(covariance: Floats) -> tuple[Floats, Floats]:
    """Return the variances (d,), descending, and the directions (d, d) as rows."""
    variances, columns = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.maximum(variances[::-1], 0), columns[:, ::-1].T


def _deviations(variances: Floats, samples: int) -> Floats:
    """Return the deviations (d,) to divide by, raised where samples do not support them."""
    last = min(len(variances), max(1, samples // _SAMPLES_PER_DIRECTION)) - 1
    raised = np.maximum(variances, variances[last])
    ridge, zero = 0.0, len(variances) * np.finfo(np.float64).eps * variances[0]
    while raised[-1] + ridge <= zero:
        ridge = 10 * ridge or _RIDGE
    deviations: Floats = np.sqrt(raised + ridge)
    return deviations


def _whitening(mean: Floats, projection: Floats) -> Whitening:
    """Build a whitening: fix the sign of each row, and round to single precision."""
    largest = np.abs(projection).argmax(axis=1)[:, None]
    signs = np.sign(np.take_along_axis(projection, largest, axis=1))
    return Whitening(mean.astype(np.float32), (projection * signs).astype(np.float32))


def _check_shape(features: Features) -> None:
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise InputError(f"features have shape {features.shape}: need (n, d) with n >= 2")


def _check_pairs(queries: Ids, positives: Ids, n: int) -> None:
    if queries.ndim != 1 or queries.shape != positives.shape or not queries.size:
        raise ValueError(
            f"queries {queries.shape} and positives {positives.shape} must be lists of the same "
            "length, at least 1"
        )
    for name, ids in (("queries", queries), ("positives", positives)):
        if not 0 <= ids.min() <= ids.max() < n:
            raise ValueError(f"{name} holds ids outside 0..{n - 1}: {ids.min()}..{ids.max()}")


# -- files ----------------------------------------------------------------------------------------


def whitening_name(pooling: str, trained: str) -> str:
    """Return the file name of a descriptor's whitening in a model's folder.

    Parameters
    ----------
    pooling : the descriptor's
    trained : pooling that the network was trained with
    """
    return WHITENING if pooling == trained else f"whitening-{pooling}.npz"


def write_whitening(folder: Folder, name: str, whitening: Whitening) -> None:
    with folder.writing(name) as sink:
        whitening.save(sink)


def read_whitening(folder: Folder, name: str, dims: int | None = None) -> Whitening:
    """Read a whitening for embeddings of `dims` dimensions, None: of any; else InputError."""
    location = folder.location(name)
    with reported(location, "take the one that was learned with the network"):
        with folder.reading(name) as source:
            whitening = Whitening.load(source, location)
        if dims is not None and len(whitening.mean) != dims:
            raise ValueError(
                f"a whitening for {len(whitening.mean)} dimensions, the network's embeddings have "
                f"{dims}"
            )
        return whitening
