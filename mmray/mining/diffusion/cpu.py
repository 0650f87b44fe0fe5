"""Vectors of a block of conjugate gradients on CPUs.

n items, b = 32 columns, rows in the order of the graph given.

Rows are taken in bands; sums over a band are added up in double precision and the bands' sums in
their order, so that bits depend neither on the number of threads nor on the other columns. From one
item, t steps reach t edges far: rows that no column has reached hold zeros and are skipped.
"""

import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.mining.diffusion import bands, kernels
from mmray.mining.diffusion.kernels import COLUMNS
from mmray.mining.diffusion.reordering import ReorderedGraph
from mmray.system.arrays import Features, Floats, Ids, read_only

_BAND_ROWS = 512
_FEW = 8  # a step that reaches more than one in so many rows ends the search for rows to skip

_Block = NDArray[np.floating]  # (n, b), of the graph's dtype


class CpuVectors:
    """Vectors f, the best f so far, r, p and (I − αÂ) p of b columns, reused for every block."""

    columns = most_columns = COLUMNS

    def __init__(self, graph: ReorderedGraph, alpha: float, threads: int) -> None:
        matrix = graph.graph
        n, self.dtype = matrix.shape[0], matrix.dtype
        self.graph = tuple(map(read_only, (matrix.data, matrix.indices, matrix.indptr)))
        self.positions = graph.positions
        self.alpha = self.dtype.type(alpha)
        self.solution, self.best, self.remainder, self.direction, self.image = (
            _zeros(n, self.dtype) for _ in range(5)
        )
        self.outgoing = np.zeros(COLUMNS, bool)  # columns whose f the next step saves
        self.sums = np.zeros((-(-n // _BAND_ROWS), COLUMNS))
        self.reached, self.bands = np.zeros(n, bool), np.empty(0, np.int64)
        self.newest = np.empty(0, np.int64)  # rows that the last step reached
        self.found = np.empty(n // _FEW + 1, np.int64)
        self.threads = threads
        self.pool = ThreadPoolExecutor(max(1, threads - 1))

    def start(self, sources: Ids) -> None:
        """Set the columns' right-hand sides e_i and first directions, and f = 0."""
        rows, columns = self.positions[sources], np.arange(len(sources))
        # `best` too: f is 0 where it will only be reached later.
        for block in (self.solution, self.best, self.remainder, self.direction):
            self._run(bands.clear, block)
        self.reached[:] = False
        self.reached[rows] = True
        self.newest = np.unique(rows)
        self._choose_bands()
        self.remainder[rows, columns] = 1
        self.direction[rows, columns] = 1

    def multiply(self) -> Floats:
        """Leave (I − αÂ) p in `image`; return pᵀ(I − αÂ)p (b,)."""
        return self._multiply(self.direction)

    def step_remainder(self, step: Floats) -> Floats:
        """Update r −= step (I − αÂ) p; return ‖r‖² (b,)."""
        return self._sums(kernels.add, self.remainder, self.image, -step.astype(self.dtype))

    def step_solution(self, step: Floats, conjugation: Floats) -> None:
        """Update f += step p, then p = r + conjugation p."""
        lengths = step.astype(self.dtype), conjugation.astype(self.dtype)
        blocks = self.solution, self.direction, self.remainder, self.best
        self._run(kernels.advance, *blocks, *lengths, self.outgoing)
        self.outgoing = np.zeros(COLUMNS, bool)

    def save(self, columns: NDArray[np.bool_]) -> None:
        """Remember f of these columns (b,) as their best: the next step does, which reads f."""
        self.outgoing = columns

    def restore(self, columns: NDArray[np.bool_]) -> None:
        """Put the best f of these columns (b,) back."""
        self._run(kernels.take, self.solution, self.best, columns)

    def residuals(self, sources: Ids) -> Floats:
        """Compute ‖e_i − (I − αÂ) f‖ (b,) from the current f, not from the r of the iteration."""
        self._multiply(self.solution)
        self.image[self.positions[sources], np.arange(len(sources))] -= 1
        nothing = np.zeros(COLUMNS, self.dtype)
        return np.sqrt(self._sums(kernels.add, self.image, self.image, nothing))

    def similarity(self, count: int) -> Features:
        """Return f of the first columns (count, n) float32, by item, until the next block."""
        # In the memory of `image`, which is not needed any more.
        memory = self.image.reshape(-1).view(np.float32)[: count * len(self.positions)]
        result: Features = memory.reshape(count, -1)
        everything = np.zeros(1, np.int64), np.arange(len(self.sums))
        self._share(bands.transpose, self.solution, self.positions, result, _BAND_ROWS, *everything)
        return result

    def _multiply(self, vectors: _Block) -> Floats:
        self._spread()
        return self._sums(kernels.product, *self.graph, vectors, self.image, -self.alpha)

    def _spread(self) -> None:
        """Reach the neighbours of the rows reached last; all rows once they become many."""
        count = bands.spread(*self.graph[1:], self.newest, self.reached, self.found)
        if count < 0:
            self.reached[:] = True
        self.newest = self.found[: max(0, count)].copy()
        if count:
            self._choose_bands()

    def _choose_bands(self) -> None:
        starts = np.arange(0, len(self.reached), _BAND_ROWS)
        self.bands = np.flatnonzero(np.logical_or.reduceat(self.reached, starts))

    def _sums(self, kernel: Callable[..., None], *arguments: Any) -> Floats:
        self.sums[:] = 0
        self._run(kernel, *arguments, self.sums)
        totals: Floats = self.sums.sum(axis=0)
        return totals

    def _run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """Run a kernel on the rows reached, in turns from the first and from the last.

        So a pass begins where the one before ended: what that left in the cache is still there.
        """
        turn = np.zeros(1, np.int64)
        self.bands = self.bands[::-1].copy()
        self._share(kernel, *arguments, _BAND_ROWS, turn, self.reached, self.bands)

    def _share(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """Run a kernel whose threads take one band after the other, whichever is free."""
        runs = [self.pool.submit(kernel, *arguments) for _ in range(self.threads - 1)]
        kernel(*arguments)
        for run in runs:
            if not run.cancel():  # a thread that has not begun is not needed any more
                run.result()


def _zeros(n: int, dtype: np.dtype) -> _Block:
    """Make a block (n, b) of zeros, its rows at multiples of 64 bytes, as cache lines are.

    The system zeroes each page for the thread that writes there first; all of them share that.
    """
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, max(1, n) * COLUMNS * dtype.itemsize, flags=private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype)[: n * COLUMNS].reshape(n, COLUMNS)
