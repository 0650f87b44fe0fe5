"""Mean and covariance of rows, in double precision, a block of rows at a time.

n rows, d dimensions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.system.arrays import Floats

_BLOCK = 8192  # rows turned to double precision together


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and scatter of rows: all that PCA wants to know of them.

    Those of parts, however cut and in any order, merge to those of the whole, to rounding.

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
        """Of the rows (n, d) of an array, which may be memory-mapped; n may be 0.

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
        """Of no rows: merging them changes nothing."""
        return cls(0, np.zeros(dims), np.zeros((dims, dims)))

    @classmethod
    def _of_block(cls, rows: Floats) -> "Moments":
        mean: Floats = rows.mean(axis=0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Of the rows of both (Chan, Golub & LeVeque, "Updating formulae", 1979).

        Raises
        ------
        ValueError
            The rows are of different widths.
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
        """(d, d) float64: the scatter divided by n; ValueError if n is 0."""
        return self.about(self.mean)

    def about(self, centre: Floats) -> Floats:
        """Mean outer product of the rows minus a centre (d,): (d, d); ValueError if n is 0."""
        if not self.count:
            raise ValueError("no rows, so they have no covariance")
        shift = self.mean - centre
        return self.scatter / self.count + np.outer(shift, shift)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The attributes, as np.savez writes them without pickle."""
        return {"count": np.array(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Moments":
        """What `to_arrays` made; ValueError if it is something else."""
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
    """The rows 0..count - 1 in turn, a block at a time."""
    return (slice(start, start + _BLOCK) for start in range(0, count, _BLOCK))


def check_finite(rows: NDArray[np.floating], name: str) -> None:
    """ValueError names the first row that is not finite."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ValueError(f"{name}: row {bad[0]} is not finite ({bad.size} of {len(rows)} rows)")
