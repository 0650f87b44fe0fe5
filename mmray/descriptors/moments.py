"""Mean and covariance of rows, computed in double precision, a block of rows at a time.

n rows, d dimensions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.system.arrays import Floats

_BLOCK = 8192  # rows converted to double precision at a time


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and scatter of rows: all that PCA needs of them.

    The moments of parts, however cut and in any order, merge to those of the whole, to rounding.

    Attributes
    ----------
    count : n
    mean : (d,) float64
    scatter : (d, d) float64
        Sum of the outer products of the centred rows, symmetric.
    """

    count: int
    mean: Floats
    scatter: Floats

    @classmethod
    def of(cls, rows: NDArray[np.floating]) -> "Moments":
        """Compute the moments of the rows (n, d) of an array.

        Parameters
        ----------
        rows : (n, d) of any floating type, memory-mapped or not; n may be 0

        Raises
        ------
        ValueError
            The array is not (n, d), or a row is not finite.
        """
        if rows.ndim != 2:
            raise ValueError(f"features have shape {rows.shape}: need (n, d)")
        total = cls.none(rows.shape[1])
        for part in blocks(len(rows)):
            block = rows[part]
            if not np.isfinite(block).all():
                check_finite(rows, "features")
            total = total.merge(cls._of_block(np.asarray(block, np.float64)))
        return total

    @classmethod
    def none(cls, dims: int) -> "Moments":
        """Return the moments of no rows, the neutral element of `merge`."""
        return cls(0, np.zeros(dims), np.zeros((dims, dims)))

    @classmethod
    def _of_block(cls, rows: Floats) -> "Moments":
        mean: Floats = rows.mean(axis=0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of two sets of rows joined.

        Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979.

        Raises
        ------
        ValueError
            The rows have different numbers of dimensions.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(
                f"moments of {len(self.mean)} and of {len(other.mean)} dimensions: not of one kind"
            )
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = np.outer(shift, shift)
        scatter *= self.count * (other.count / count)
        scatter += self.scatter
        scatter += other.scatter
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    def covariance(self) -> Floats:
        """Return the covariance (d, d) float64, the scatter divided by n; ValueError if n is 0."""
        return self.about(self.mean)

    def about(self, centre: Floats) -> Floats:
        """Return the second moment (d, d) about a centre (d,); ValueError if n is 0."""
        if not self.count:
            raise ValueError("no rows, so they have no covariance")
        shift = self.mean - centre
        return self.scatter / self.count + np.outer(shift, shift)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the attributes as arrays, which np.savez writes without pickle."""
        return {"count": np.array(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Moments":
        """Restore moments from the arrays of `to_arrays`; ValueError for any others."""
        try:
            count, mean, scatter = (arrays[name] for name in ("count", "mean", "scatter"))
        except KeyError as error:
            raise ValueError(f"not moments: no array {error}") from error
        shapes = (count.shape, mean.shape, scatter.shape)
        if mean.ndim != 1 or shapes != ((), mean.shape, mean.shape * 2):
            raise ValueError(
                f"not moments: count, mean and scatter have shapes {shapes}, "
                "expected (), (d,) and (d, d)"
            )
        return cls(int(count), mean.astype(np.float64), scatter.astype(np.float64))


def blocks(count: int) -> Iterator[slice]:
    """Yield slices that cut the rows 0..count - 1 into blocks."""
    return (slice(start, start + _BLOCK) for start in range(0, count, _BLOCK))


def check_finite(rows: NDArray[np.floating], name: str) -> None:
    """Raise ValueError at the first row that is not finite, if there is one."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ValueError(f"{name}: row {bad[0]} is not finite ({bad.size} of {len(rows)} rows)")
