"""Manifold similarity by diffusion: (I − αÂ) f = e_i, eqs. (2)-(4), for many anchors at once.

n items, a anchors, b = 16 columns solved together.

Conjugate gradient on b right-hand sides shares every pass over the graph, which is what costs.
All arithmetic on a column is its own: the width of the arrays is always b, so that no column's
rounding depends on how many others there are, and a column that has converged takes steps of
length 0. The graph is taken in bands of rows, and the vectors are updated band by band while they
are in the cache; sums over a band are added up in double precision. Five arrays of n x b are held.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mmray.arrays import Features, Floats, Graph, Ids

_COLUMNS = 16  # in single precision, one row of a work array is one cache line
_BAND_ROWS = 4096

_Block = NDArray[np.floating]  # (n, b), of the graph's dtype
_Band = tuple[slice, Graph]


@dataclass(frozen=True, eq=False)
class Diffusion:
    """Solutions of eq. (3), one row an anchor.

    Attributes
    ----------
    similarity : (a, n) float32
        Manifold similarity s_m of every item: e_i at the right, so (1−α)⁻¹ times that of eq. (3).
    residual : (a,) float64
        ‖e_i − (I − αÂ) f‖ of the returned f, computed from it; ‖e_i‖ is 1.
    iterations : (a,) int64
        Steps taken; the returned f may belong to an earlier one.
    """

    similarity: Features
    residual: Floats
    iterations: Ids


def diffuse(
    normalized: Graph,
    anchors: Ids,
    *,
    alpha: float = 0.99,
    rtol: float = 1e-10,
    max_iter: int = 20,
) -> Diffusion:
    """Solve (I − αÂ) f = e_i for every anchor i, as released: of all steps, the f that fits best.

    Parameters
    ----------
    normalized : (n, n) float32 or float64 CSR
        Â from `normalize_graph`; the solver works in its precision.
    anchors : (a,) int64, in 0..n-1
    alpha : float
        In [0, 1). The condition number is at most (1+α)/(1−α): 199 at 0.99.
    rtol : float
        A column stops when its residual, carried along by the iteration, is at most this.
    max_iter : int
        Or after so many steps, from 1. The f of smallest residual is returned, not the last.

    Returns
    -------
    Diffusion : each row the same, bit for bit, whatever the other anchors are.

    Raises
    ------
    ValueError
        The graph is not square or not float, an anchor is outside 0..n-1, alpha is outside [0, 1),
        rtol is negative, or max_iter is below 1.
    """
    n = normalized.shape[0]
    _check(normalized, anchors, alpha, rtol, max_iter)
    bands = list(_bands(normalized))
    solver = _BlockSolver(bands, n, alpha, normalized.dtype)
    result = Diffusion(
        similarity=np.empty((len(anchors), n), np.float32),
        residual=np.empty(len(anchors)),
        iterations=np.empty(len(anchors), np.int64),
    )
    for start in range(0, len(anchors), _COLUMNS):
        sources = anchors[start : start + _COLUMNS]
        rows = slice(start, start + len(sources))
        result.iterations[rows] = solver.solve(sources, rtol, max_iter)
        result.residual[rows] = solver.residuals(sources)
        for band, _ in bands:
            result.similarity[rows, band] = solver.solution[band, : len(sources)].T
    return result


class _BlockSolver:
    """Conjugate gradient on b columns, in work arrays that all blocks of anchors use again."""

    def __init__(self, bands: list[_Band], n: int, alpha: float, dtype: np.dtype) -> None:
        self.bands = bands
        self.alpha = dtype.type(alpha)
        self.solution: _Block = np.empty((n, _COLUMNS), dtype)  # f
        self.best = np.empty_like(self.solution)  # f of the smallest residual, where not `solution`
        self.remainder = np.empty_like(self.solution)  # r = e − (I − αÂ) f
        self.direction = np.empty_like(self.solution)  # p
        self.image = np.empty_like(self.solution)  # (I − αÂ) p

    def solve(self, sources: Ids, rtol: float, max_iter: int) -> Ids:
        """Leave f of each source in `solution`; return the steps (len(sources),) taken."""
        self._start(sources)
        active = np.arange(_COLUMNS) < len(sources)
        squared = active.astype(
            np.float64
        )  # ‖r‖² of each column; the columns past the sources are 0
        smallest = np.full(_COLUMNS, np.inf)
        current_is_best = np.ones(_COLUMNS, bool)
        steps = np.zeros(_COLUMNS, np.int64)
        for _ in range(max_iter):
            curvature = self._multiply(self.direction)
            active &= curvature > 0  # otherwise p has vanished in rounding
            step = _quotient(squared, curvature, active)
            updated = self._step_remainder(step)
            better = active & (updated < smallest)
            # Copied only when the residual is about to rise above that of the f at hand.
            self._save(active & current_is_best & ~better)
            current_is_best = np.where(active, better, current_is_best)
            smallest[better] = updated[better]
            steps += active
            self._step_solution(step, _quotient(updated, squared, active))
            squared = np.where(active, updated, squared)
            active &= squared > rtol**2
            if not active.any():
                break
        if not current_is_best.all():
            np.copyto(self.solution, self.best, where=~current_is_best)
        return steps[: len(sources)]

    def residuals(self, sources: Ids) -> Floats:
        """‖e_i − (I − αÂ) f‖ (len(sources),) of what `solve` left: computed, not carried along."""
        self._multiply(self.solution)
        self.image[sources, np.arange(len(sources))] -= 1
        total = np.zeros(_COLUMNS)
        for band, _ in self.bands:
            total += _column_products(self.image[band], self.image[band])
        return np.sqrt(total[: len(sources)])

    def _start(self, sources: Ids) -> None:
        self.solution.fill(0)
        self.remainder.fill(0)
        self.remainder[sources, np.arange(len(sources))] = 1
        self.direction[:] = self.remainder

    def _multiply(self, vectors: _Block) -> Floats:
        """Leave (I − αÂ) v in `image`; return the products vᵀ(I − αÂ)v (b,)."""
        total = np.zeros(_COLUMNS)
        for band, rows in self.bands:
            image = self.image[band]
            np.multiply(rows @ vectors, -self.alpha, out=image)
            image += vectors[band]
            total += _column_products(vectors[band], image)
        return total

    def _step_remainder(self, step: Floats) -> Floats:
        """R −= step (I − αÂ) p; return ‖r‖² (b,)."""
        length = step.astype(self.image.dtype)
        total = np.zeros(_COLUMNS)
        for band, _ in self.bands:
            remainder, image = self.remainder[band], self.image[band]
            image *= length
            remainder -= image
            total += _column_products(remainder, remainder)
        return total

    def _step_solution(self, step: Floats, conjugation: Floats) -> None:
        """F += step p, then p = r + conjugation p."""
        length, ratio = step.astype(self.image.dtype), conjugation.astype(self.image.dtype)
        for band, _ in self.bands:
            direction = self.direction[band]
            self.solution[band] += length * direction
            direction *= ratio
            direction += self.remainder[band]

    def _save(self, columns: NDArray[np.bool_]) -> None:
        if columns.any():
            np.copyto(self.best, self.solution, where=columns)


def _bands(graph: Graph) -> Iterator[_Band]:
    """Views of the graph's rows, in order: a product of a band needs no array of n x b."""
    n = graph.shape[0]
    for start in range(0, n, _BAND_ROWS):
        stop = min(start + _BAND_ROWS, n)
        entries = slice(graph.indptr[start], graph.indptr[stop])
        starts = graph.indptr[start : stop + 1] - graph.indptr[start]
        rows = csr_array(
            (graph.data[entries], graph.indices[entries], starts), shape=(stop - start, n)
        )
        yield slice(start, stop), rows


def _column_products(left: _Block, right: _Block) -> Floats:
    sums: NDArray[np.floating] = np.einsum("nb,nb->b", left, right)
    return sums.astype(np.float64)


def _quotient(numerator: Floats, denominator: Floats, where: NDArray[np.bool_]) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros(_COLUMNS), where=where)


def _check(normalized: Graph, anchors: Ids, alpha: float, rtol: float, max_iter: int) -> None:
    n = normalized.shape[0]
    if normalized.shape != (n, n) or normalized.dtype not in (np.float32, np.float64):
        raise ValueError(
            "the graph must be square and float32 or float64, "
            f"got shape {normalized.shape} and {normalized.dtype}"
        )
    outside = np.flatnonzero((anchors < 0) | (anchors >= n))
    if len(outside):
        raise ValueError(f"anchor {anchors[outside[0]]} is outside 0..{n - 1}")
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be in [0, 1), got {alpha}")
    if not rtol >= 0:
        raise ValueError(f"rtol must not be negative, got {rtol}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
