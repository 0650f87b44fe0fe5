"""Manifold similarity by diffusion: (I − αÂ) f = e_i, eqs. (2)-(4), for many anchors at once.

n items, a anchors, b columns solved at a time.

Conjugate gradients on b right-hand sides share every pass over the graph, which takes most of the
time. Columns do not affect one another: the width of the arrays is always b, so that no column's
rounding depends on the number of others, and a column that has converged takes steps of length 0.
The iteration is written once; the vectors live on CPUs or on a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmray.mining.diffusion.cpu import CpuVectors
from mmray.mining.diffusion.reordering import ReorderedGraph, unordered
from mmray.system.arrays import Device, Features, Floats, Graph, Ids


@dataclass(frozen=True)
class Solver:
    """Parameters of the diffusion and of the conjugate gradients that solve it.

    The defaults are those of the paper and of its released code.

    Attributes
    ----------
    alpha : float
        In [0, 1), eq. (2). The condition number is at most (1+α)/(1−α): 199 at 0.99.
    rtol : float
        A column stops when its residual, as updated by the iteration, is at most this.
    max_iter : int
        Most steps, from 1. The f of smallest residual is returned, not the last.

    Raises
    ------
    ValueError
        alpha is outside [0, 1), rtol is negative, or max_iter is below 1.
    """

    alpha: float = 0.99
    rtol: float = 1e-10
    max_iter: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {self.alpha}")
        if not self.rtol >= 0:
            raise ValueError(f"rtol must not be negative, got {self.rtol}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, got {self.max_iter}")


@dataclass(frozen=True, eq=False)
class Diffusion:
    """Solutions of eq. (3), one row per anchor.

    Attributes
    ----------
    similarity : (a, n) float32
        Manifold similarity s_m of every item: the right-hand side is e_i, so s_m is (1−α)⁻¹ times
        that of eq. (3).
    residual : (a,) float64
        ‖e_i − (I − αÂ) f‖ of the returned f, computed from it; ‖e_i‖ is 1.
    iterations : (a,) int64
        Steps taken; the returned f may belong to an earlier one.
    """

    similarity: Features
    residual: Floats
    iterations: Ids


class Vectors(Protocol):
    """The work arrays of b columns, on some device, and the passes over them."""

    columns: int

    def start(self, sources: Ids) -> None: ...
    def multiply(self) -> Floats: ...
    def step_remainder(self, step: Floats) -> Floats: ...
    def step_solution(self, step: Floats, conjugation: Floats) -> None: ...
    def save(self, columns: NDArray[np.bool_]) -> None: ...
    def restore(self, columns: NDArray[np.bool_]) -> None: ...
    def residuals(self, sources: Ids) -> Floats: ...
    def write(self, similarity: Features) -> None: ...


def diffuse(
    normalized: Graph | ReorderedGraph,
    anchors: Ids,
    *,
    alpha: float = 0.99,
    rtol: float = 1e-10,
    max_iter: int = 20,
    device: Device = "cpu",
    threads: int = 1,
) -> Diffusion:
    """Diffuse from every anchor i: solve (I − αÂ) f = e_i for the manifold similarities f, eq. (3).

    As in the released code, the result is the f of smallest residual among all steps.

    Parameters
    ----------
    normalized : (n, n) float32 or float64 CSR
        Â from `normalize_graph`, reordered for speed or not; the solver works in its precision.
    anchors : (a,) int64, in 0..n-1
    alpha, rtol, max_iter
        See `Solver`.
    device : "cpu" or "cuda"
        Where the work arrays are; results differ in rounding.
    threads : int
        CPU threads, from 1; the result does not depend on them.

    Returns
    -------
    Diffusion : by item of the graph before it was reordered; each row the same, bit for bit,
        whatever the other anchors are.

    Raises
    ------
    ValueError
        The graph is not square or not float, an anchor is outside 0..n-1, threads is below 1, or
        `Solver` refuses a value.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> from mmray.mining import normalize_graph
    >>> path = csr_array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    >>> diffuse(normalize_graph(path), np.array([0]), alpha=0.5).similarity.round(3)
    array([[1.167, 0.471, 0.167]], dtype=float32)
    """
    n = normalized.items.size if isinstance(normalized, ReorderedGraph) else normalized.shape[0]
    result = Diffusion(
        similarity=np.empty((len(anchors), n), np.float32),
        residual=np.empty(len(anchors)),
        iterations=np.empty(len(anchors), np.int64),
    )
    for rows, block in diffuse_blocks(
        normalized, anchors, Solver(alpha, rtol, max_iter), device=device, threads=threads
    ):
        result.similarity[rows] = block.similarity
        result.residual[rows] = block.residual
        result.iterations[rows] = block.iterations
    return result


def diffuse_blocks(
    normalized: Graph | ReorderedGraph,
    anchors: Ids,
    solver: Solver = Solver(),
    *,
    device: Device = "cpu",
    threads: int = 1,
) -> Iterator[tuple[Ids, Diffusion]]:
    """Diffuse from a few anchors at a time, where (a, n) numbers are too many to hold.

    Parameters
    ----------
    normalized, anchors, device, threads
        See `diffuse`.
    solver
        Parameters of the diffusion.

    Yields
    ------
    (m,) int64 and Diffusion : rows of `anchors`, each once, and their solutions; valid until the
        next are taken.
    """
    graph = normalized if isinstance(normalized, ReorderedGraph) else unordered(normalized)
    _check(graph.graph, anchors, threads)
    vectors = _vectors(graph, solver.alpha, device, threads)
    similarity = np.empty((vectors.columns, len(graph.items)), np.float32)
    # Anchors that are near each other reach the same part of the graph first.
    nearby = np.argsort(graph.positions[anchors], kind="stable")
    for start in range(0, len(anchors), vectors.columns):
        rows = nearby[start : start + vectors.columns]
        iterations = _conjugate_gradient(vectors, anchors[rows], solver)
        residual = vectors.residuals(anchors[rows])[: len(rows)]
        vectors.write(similarity[: len(rows)])
        yield rows, Diffusion(similarity[: len(rows)], residual, iterations)


def _vectors(graph: ReorderedGraph, alpha: float, device: Device, threads: int) -> Vectors:
    if device == "cpu":
        return CpuVectors(graph, alpha, threads)
    from mmray.mining.diffusion.cuda import TorchVectors  # not before: CPUs need no torch here

    return TorchVectors(graph, alpha, device)


def _conjugate_gradient(vectors: Vectors, sources: Ids, solver: Solver) -> Ids:
    """Solve for f of each source, left in the vectors; return the steps (len(sources),) taken."""
    vectors.start(sources)
    active = np.arange(vectors.columns) < len(sources)
    squared = active.astype(np.float64)  # ‖r‖²; the columns past the sources are 0
    smallest = np.full(vectors.columns, np.inf)
    current_is_best = np.ones(vectors.columns, bool)
    steps = np.zeros(vectors.columns, np.int64)
    for _ in range(solver.max_iter):
        curvature = vectors.multiply()
        active &= curvature > 0  # otherwise p has vanished in rounding
        step = _quotient(squared, curvature, active)
        updated = vectors.step_remainder(step)
        better = active & (updated < smallest)
        # Copied only when the residual is about to rise above that of the f at hand.
        outgoing = active & current_is_best & ~better
        if outgoing.any():
            vectors.save(outgoing)
        current_is_best = np.where(active, better, current_is_best)
        smallest[better] = updated[better]
        steps += active
        vectors.step_solution(step, _quotient(updated, squared, active))
        squared = np.where(active, updated, squared)
        active &= squared > solver.rtol**2
        if not active.any():
            break
    if not current_is_best.all():
        vectors.restore(~current_is_best)
    return steps[: len(sources)]


def _quotient(numerator: Floats, denominator: Floats, where: NDArray[np.bool_]) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=where)


def _check(normalized: Graph, anchors: Ids, threads: int) -> None:
    n = normalized.shape[0]
    if normalized.shape != (n, n) or normalized.dtype not in (np.float32, np.float64):
        raise ValueError(
            "the graph must be square and float32 or float64, "
            f"got shape {normalized.shape} and {normalized.dtype}"
        )
    outside = np.flatnonzero((anchors < 0) | (anchors >= n))
    if len(outside):
        raise ValueError(f"anchor {anchors[outside[0]]} is outside 0..{n - 1}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
