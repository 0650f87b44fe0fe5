"""Manifold similarity by diffusion: (I − αÂ) f = e_i, eqs. (2)-(4), for many anchors at once.

n items, a anchors, b columns solved at a time.

Conjugate gradients on b right-hand sides share every pass over the graph, which takes most of the
time. Columns do not affect one another: on CPUs there are always b of them, so that no column's
rounding depends on the number of others, and one that has converged takes steps of length 0. The
iteration is written once; the vectors live on CPUs or on a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmray.mining.diffusion.cpu import CpuVectors
from mmray.mining.diffusion.local import LocalVectors
from mmray.mining.diffusion.reordering import ReorderedGraph, ordered
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
    hops : int or None
        Solve on what is within so many edges of the anchor, from 1, as if there were nothing
        beyond; None: on the whole graph, as in the paper.

    Raises
    ------
    ValueError
        alpha is outside [0, 1), rtol is negative, or max_iter or hops is below 1.
    """

    alpha: float = 0.99
    rtol: float = 1e-10
    max_iter: int = 20
    hops: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {self.alpha}")
        if not self.rtol >= 0:
            raise ValueError(f"rtol must not be negative, got {self.rtol}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, got {self.max_iter}")
        if self.hops is not None and self.hops < 1:
            raise ValueError(f"hops must be at least 1, got {self.hops}")


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

    most_columns: int  # that a block can have
    columns: int  # of the block begun last

    def start(self, sources: Ids) -> None: ...
    def multiply(self) -> Floats: ...
    def step_remainder(self, step: Floats) -> Floats: ...
    def step_solution(self, step: Floats, conjugation: Floats) -> None: ...
    def save(self, columns: NDArray[np.bool_]) -> None: ...
    def restore(self, columns: NDArray[np.bool_]) -> None: ...
    def residuals(self, sources: Ids) -> Floats: ...
    def similarity(self, count: int) -> Features: ...


class Diffuser:
    """Diffusion on one graph, by one thread of Python: it keeps graph and work arrays in place.

    A worker makes it once; on a GPU the graph is then copied there once.

    Parameters
    ----------
    normalized : (n, n) float32 or float64 CSR
        Â from `normalize_graph`, see `diffuse`.
    solver
        Parameters of the diffusion.
    device, threads
        See `diffuse`.

    Raises
    ------
    ValueError
        The graph is not square or not float, or threads is below 1.
    """

    def __init__(
        self,
        normalized: Graph | ReorderedGraph,
        solver: Solver = Solver(),
        *,
        device: Device = "cpu",
        threads: int = 1,
    ) -> None:
        _check(normalized, threads)
        self.solver, self.device, self.threads = solver, device, threads
        self.graph = ordered(normalized)
        self._positions = self.graph.positions
        self._vectors = _vectors(self.graph, solver, device, threads)

    def blocks(self, anchors: Ids) -> Iterator[tuple[Ids, Diffusion]]:
        """Diffuse from a few anchors at a time, where (a, n) numbers are too many to hold.

        Parameters
        ----------
        anchors : (a,) int64, in 0..n-1

        Yields
        ------
        (m,) int64 and Diffusion : rows of `anchors`, each once, and their solutions; valid until
            the next are taken.

        Raises
        ------
        ValueError
            An anchor is outside 0..n-1.
        """
        n, vectors = len(self._positions), self._vectors
        outside = np.flatnonzero((anchors < 0) | (anchors >= n))
        if len(outside):
            raise ValueError(f"anchor {anchors[outside[0]]} is outside 0..{n - 1}")
        # Anchors that are near each other reach the same part of the graph first.
        nearby = np.argsort(self._positions[anchors], kind="stable")
        for start in range(0, len(anchors), vectors.most_columns):
            rows = nearby[start : start + vectors.most_columns]
            iterations = _conjugate_gradient(vectors, anchors[rows], self.solver)
            residual = vectors.residuals(anchors[rows])[: len(rows)]
            yield rows, Diffusion(vectors.similarity(len(rows)), residual, iterations)


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
        Â from `normalize_graph`; the solver works in its precision. A graph of many items is
        reordered for speed, see `ordered`; for several calls, do it once and pass `reorder(graph)`.
    anchors : (a,) int64, in 0..n-1
    alpha, rtol, max_iter
        See `Solver`.
    device : "cpu" or "cuda"
        Where the work arrays are; results differ in rounding.
    threads : int
        CPU threads, from 1; the result does not depend on them.

    Returns
    -------
    Diffusion : by item of the graph before it was reordered; on CPUs, each row is the same, bit for
        bit, whatever the other anchors are.

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
    solver = Solver(alpha, rtol, max_iter)
    diffuser = Diffuser(normalized, solver, device=device, threads=threads)
    result = Diffusion(
        similarity=np.empty((len(anchors), len(diffuser.graph.items)), np.float32),
        residual=np.empty(len(anchors)),
        iterations=np.empty(len(anchors), np.int64),
    )
    for rows, block in diffuser.blocks(anchors):
        result.similarity[rows] = block.similarity
        result.residual[rows] = block.residual
        result.iterations[rows] = block.iterations
    return result


def _vectors(graph: ReorderedGraph, solver: Solver, device: Device, threads: int) -> Vectors:
    if solver.hops is not None:
        return LocalVectors(graph, solver.alpha, solver.hops)
    if device == "cpu":
        return CpuVectors(graph, solver.alpha, threads)
    from mmray.mining.diffusion.cuda import TorchVectors  # not before: CPUs need no torch here

    return TorchVectors(graph, solver.alpha, device)


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


def _check(normalized: Graph | ReorderedGraph, threads: int) -> None:
    graph = normalized.graph if isinstance(normalized, ReorderedGraph) else normalized
    n = graph.shape[0]
    if graph.shape != (n, n) or graph.dtype not in (np.float32, np.float64):
        raise ValueError(
            "the graph must be square and float32 or float64, "
            f"got shape {graph.shape} and {graph.dtype}"
        )
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
