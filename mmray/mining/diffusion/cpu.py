"""Vectors of a block of conjugate gradients on CPUs.

n items, b = 16 columns, rows in the order of the graph given.

Rows are taken in bands; sums over a band are added up in double precision and the bands' sums in
their order, so that bits depend neither on the number of threads nor on the other columns. From one
item, t steps reach t edges far: bands that no column has reached hold zeros and are skipped.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.mining.diffusion import kernels
from mmray.mining.diffusion.kernels import COLUMNS
from mmray.mining.diffusion.reordering import ReorderedGraph
from mmray.system.arrays import Features, Floats, Ids, read_only

_BAND_ROWS = 512
_MOST_BANDS = 2048  # bands of a larger graph are wider, as `touches` is a square table of bands

_Block = NDArray[np.floating]  # (n, b), of the graph's dtype


class CpuVectors:
    """Vectors f, the best f so far, r, p and (I − αÂ) p of b columns, reused for every block."""

    columns = COLUMNS

    def __init__(self, graph: ReorderedGraph, alpha: float, threads: int) -> None:
        matrix = graph.graph
        n, self.dtype = matrix.shape[0], matrix.dtype
        self.graph = tuple(map(read_only, (matrix.data, matrix.indices, matrix.indptr)))
        self.positions = graph.positions
        self.alpha = self.dtype.type(alpha)
        self.solution, self.best, self.remainder, self.direction, self.image = (
            _zeros(n, self.dtype) for _ in range(5)
        )
        self.height = max(_BAND_ROWS, -(-n // _MOST_BANDS))
        count = -(-n // self.height)
        self.sums = np.zeros((count, COLUMNS))
        self.touches = np.zeros((count, count), bool)
        kernels.mark_touched(*self.graph[1:], self.height, self.touches)
        self.reached = np.zeros(count, bool)
        self.threads = threads
        self.pool = ThreadPoolExecutor(max(1, threads - 1))

    def start(self, sources: Ids) -> None:
        """Set the columns' right-hand sides e_i and first directions, and f = 0."""
        rows, columns = self.positions[sources], np.arange(len(sources))
        blocks = (self.solution, self.remainder, self.direction, self.image)
        self._each(kernels.clear, *blocks)
        self.reached[:] = False
        self.reached[rows // self.height] = True
        self.remainder[rows, columns] = 1
        self.direction[rows, columns] = 1

    def multiply(self) -> Floats:
        """Leave (I − αÂ) p in `image`; return pᵀ(I − αÂ)p (b,)."""
        return self._multiply(self.direction)

    def step_remainder(self, step: Floats) -> Floats:
        """Update r −= step (I − αÂ) p; return ‖r‖² (b,)."""
        self._each(kernels.add, self.remainder, self.image, -step.astype(self.dtype))
        return self._sums()

    def step_solution(self, step: Floats, conjugation: Floats) -> None:
        """Update f += step p, then p = r + conjugation p."""
        lengths = step.astype(self.dtype), conjugation.astype(self.dtype)
        self._each(kernels.advance, self.solution, self.direction, self.remainder, *lengths)

    def save(self, columns: NDArray[np.bool_]) -> None:
        """Remember f of these columns (b,) as their best."""
        self._each(kernels.take, self.best, self.solution, columns)

    def restore(self, columns: NDArray[np.bool_]) -> None:
        """Put the best f of these columns (b,) back."""
        self._each(kernels.take, self.solution, self.best, columns)

    def residuals(self, sources: Ids) -> Floats:
        """Compute ‖e_i − (I − αÂ) f‖ (b,) from the current f, not from the r of the iteration."""
        self._multiply(self.solution)
        self.image[self.positions[sources], np.arange(len(sources))] -= 1
        self._each(kernels.add, self.image, self.image, np.zeros(COLUMNS, self.dtype))
        return np.sqrt(self._sums())

    def write(self, similarity: Features) -> None:
        """Write f of the first m columns to `similarity` (m, n) float32, by item."""
        kernels.transpose(self.solution, self.positions, similarity)

    def _sums(self) -> Floats:
        totals: Floats = self.sums.sum(axis=0)
        return totals

    def _multiply(self, vectors: _Block) -> Floats:
        self.reached |= self.touches[:, self.reached].any(axis=1)
        self._each(kernels.product, *self.graph, vectors, self.image, -self.alpha)
        return self._sums()

    def _each(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """Run a kernel on the bands reached, in equal shares per thread."""
        self.sums[:] = 0
        shares = np.array_split(np.flatnonzero(self.reached), self.threads)
        runs = [
            self.pool.submit(kernel, *arguments, share, self.height, self.sums)
            for share in shares[1:]
        ]
        kernel(*arguments, shares[0], self.height, self.sums)
        for run in runs:
            run.result()


def _zeros(n: int, dtype: np.dtype) -> _Block:
    """Allocate zeros (n, b) whose rows begin at multiples of 64 bytes, a cache line in float32."""
    spare = 64 // dtype.itemsize
    memory = np.empty(n * COLUMNS + spare, dtype)  # asks for huge pages, unlike np.zeros
    memory[:] = 0
    first = -(memory.ctypes.data // dtype.itemsize) % spare
    return memory[first : first + n * COLUMNS].reshape(n, COLUMNS)
