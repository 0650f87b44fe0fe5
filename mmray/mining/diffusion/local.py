"""Vectors of conjugate gradients on the part of a graph that is near one anchor.

n items, m of them within some edges of the anchor.

On the whole graph a worker holds five blocks of n rows, 640 bytes an item: at a hundred million
items no machine has these. Most of what mining asks for is near: see docs/results/mining-speed.md
for how many of the first neighbours are those of the whole graph. Far items get s_m = 0, as they do
in the first steps on the whole graph. Â is that of the whole graph: what would flow out is lost.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mmray.mining.diffusion import bands
from mmray.mining.diffusion.reordering import ReorderedGraph
from mmray.system.arrays import Features, Floats, Ids, read_only

_Vector = NDArray[np.floating]  # (m,), of the graph's dtype


class LocalVectors:
    """Vectors f, the best f so far, r, p and (I − αÂ) p of one anchor's neighbourhood."""

    columns = most_columns = 1

    def __init__(self, graph: ReorderedGraph, alpha: float, hops: int) -> None:
        matrix = graph.graph
        self.graph = tuple(map(read_only, (matrix.data, matrix.indices, matrix.indptr)))
        self.items, self.positions, self.hops = graph.items, graph.positions, hops
        self.dtype = matrix.dtype
        self.alpha = self.dtype.type(alpha)
        n = matrix.shape[0]
        self.places = np.full(n, -1, matrix.indices.dtype)  # of rows in the neighbourhood
        self.reached = np.zeros(n, bool)
        self.rows = np.empty(0, np.int64)
        self.near = np.zeros((1, n), np.float32)

    def start(self, sources: Ids) -> None:
        """Take the neighbourhood of the anchor; set its right-hand side e_i and f = 0."""
        self.near[0, self.items[self.rows]] = 0
        self.rows = self._within(self.positions[sources])
        self.places[self.rows] = np.arange(len(self.rows))
        entries = self._entries(self.rows)
        data, indices = np.empty(entries, self.dtype), np.empty(entries, self.places.dtype)
        indptr = np.empty(len(self.rows) + 1, self.graph[2].dtype)
        count = bands.cut(*self.graph, self.rows, self.places, data, indices, indptr)
        self.source = self.places[self.positions[sources]]
        self.places[self.rows] = -1
        m = len(self.rows)
        self.matrix = csr_array((data[:count], indices[:count], indptr), shape=(m, m))
        self.solution, self.best, self.remainder = (np.zeros(m, self.dtype) for _ in range(3))
        self.remainder[self.source] = 1
        self.direction = self.remainder.copy()

    def multiply(self) -> Floats:
        """Leave (I − αÂ) p in `image`; return pᵀ(I − αÂ)p (1,)."""
        self.image = self._product(self.direction)
        return _inner(self.direction, self.image)

    def step_remainder(self, step: Floats) -> Floats:
        """Update r −= step (I − αÂ) p; return ‖r‖² (1,)."""
        self.remainder -= self.dtype.type(step[0]) * self.image
        return _inner(self.remainder, self.remainder)

    def step_solution(self, step: Floats, conjugation: Floats) -> None:
        """Update f += step p, then p = r + conjugation p."""
        self.solution += self.dtype.type(step[0]) * self.direction
        self.direction = self.remainder + self.dtype.type(conjugation[0]) * self.direction

    def save(self, columns: object) -> None:
        """Remember f as the best."""
        self.best[:] = self.solution

    def restore(self, columns: object) -> None:
        """Put the best f back."""
        self.solution[:] = self.best

    def residuals(self, sources: Ids) -> Floats:
        """Compute ‖e_i − (I − αÂ) f‖ (1,) within the neighbourhood, from the current f."""
        left = self._product(self.solution)
        left[self.source] -= 1
        return np.sqrt(_inner(left, left))

    def similarity(self, count: int) -> Features:
        """Return f (1, n) float32, by item, until the next block."""
        self.near[0, self.items[self.rows]] = self.solution
        return self.near

    def _product(self, vector: _Vector) -> _Vector:
        image: _Vector = vector - self.alpha * (self.matrix @ vector)
        return image

    def _within(self, newest: Ids) -> Ids:
        """Return the rows within the hops of these, ascending; nothing takes time for all items."""
        _, indices, indptr = self.graph
        self.reached[newest] = True
        rings = [newest]
        for _ in range(self.hops):
            found = np.empty(self._entries(rings[-1]), np.int64)
            count = bands.spread(indices, indptr, rings[-1], self.reached, found)
            rings.append(found[:count].copy())
        rows = np.sort(np.concatenate(rings))
        self.reached[rows] = False
        return rows

    def _entries(self, rows: Ids) -> int:
        """Count the entries of some rows of the graph."""
        indptr = self.graph[2]
        return int((indptr[rows + 1] - indptr[rows]).sum())


def _inner(left: _Vector, right: _Vector) -> Floats:
    return np.array([left.astype(np.float64) @ right.astype(np.float64)])
