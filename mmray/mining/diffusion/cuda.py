"""Vectors of a block of conjugate gradients in PyTorch, for a GPU.

n items, b = 32 or 64 columns, rows in the order of the graph given. Passes are those of
`mmray.mining.diffusion.cpu`, with sums in double precision too. Bits differ from those of a CPU,
and may from run to run: PyTorch multiplies by cuSPARSE's CSR_ALG2, which is not promised to add up
in the same order each time.
"""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from mmray.mining.diffusion.reordering import ReorderedGraph
from mmray.system.arrays import Features, Floats, Ids

# Columns of a block; the fewest that hold the sources. A GPU wants more in flight than a CPU, and
# five arrays of n x 64 still fit.
WIDTHS = (32, 64)


class TorchVectors:
    """Vectors f, the best f so far, r, p and (I − αÂ) p of b columns, reused for every block."""

    columns = most_columns = WIDTHS[-1]

    def __init__(self, graph: ReorderedGraph, alpha: float, device: str) -> None:
        self.device, self.alpha = device, alpha
        # Copies, because the graph may lie in shared memory that cannot be written.
        indptr, indices, data = (
            torch.from_numpy(part.copy()).to(device)
            for part in (graph.graph.indptr, graph.graph.indices, graph.graph.data)
        )
        with warnings.catch_warnings():
            # It warns of its beta state, and that it does not check again what scipy guarantees.
            warnings.filterwarnings("ignore", "Sparse (CSR|invariant)", UserWarning)
            self.graph = torch.sparse_csr_tensor(indptr, indices, data, graph.graph.shape)
        self.positions = graph.positions
        self.order = torch.from_numpy(self.positions).to(device)
        shape = (5, len(self.positions) * self.most_columns)
        self.memory = torch.zeros(shape, dtype=self.graph.dtype, device=device)
        self._shape()

    def start(self, sources: Ids) -> None:
        """Set the columns' right-hand sides e_i and first directions, and f = 0."""
        self.columns = next(width for width in WIDTHS if len(sources) <= width)
        self._shape()
        self.solution.zero_()
        self.remainder.zero_()
        self.remainder[self.positions[sources], np.arange(len(sources))] = 1
        self.direction.copy_(self.remainder)

    def multiply(self) -> Floats:
        """Leave (I − αÂ) p in `image`; return pᵀ(I − αÂ)p (b,)."""
        self._multiply(self.direction)
        return _sums(self.direction * self.image)

    def step_remainder(self, step: Floats) -> Floats:
        """Update r −= step (I − αÂ) p; return ‖r‖² (b,)."""
        self.remainder.addcmul_(self.image, self._row(step), value=-1)
        return _sums(self.remainder.square())

    def step_solution(self, step: Floats, conjugation: Floats) -> None:
        """Update f += step p, then p = r + conjugation p."""
        self.solution.addcmul_(self.direction, self._row(step))
        self.direction.mul_(self._row(conjugation)).add_(self.remainder)

    def save(self, columns: NDArray[np.bool_]) -> None:
        """Remember f of these columns (b,) as their best."""
        chosen = torch.from_numpy(columns).to(self.device)
        torch.where(chosen, self.solution, self.best, out=self.best)

    def restore(self, columns: NDArray[np.bool_]) -> None:
        """Put the best f of these columns (b,) back."""
        chosen = torch.from_numpy(columns).to(self.device)
        torch.where(chosen, self.best, self.solution, out=self.solution)

    def residuals(self, sources: Ids) -> Floats:
        """Compute ‖e_i − (I − αÂ) f‖ (b,) from the current f, not from the r of the iteration."""
        self._multiply(self.solution)
        self.image[self.positions[sources], np.arange(len(sources))] -= 1
        return np.sqrt(_sums(self.image.square()))

    def similarity(self, count: int) -> Features:
        """Return f of the first columns (count, n) float32, by item."""
        chosen = self.solution[:, :count][self.order]
        result: Features = chosen.T.float().contiguous().cpu().numpy()
        return result

    def _shape(self) -> None:
        """Lay the blocks out in their memory with the columns of the block at hand."""
        n = len(self.positions)
        self.solution, self.best, self.remainder, self.direction, self.image = (
            part[: n * self.columns].view(n, self.columns) for part in self.memory
        )

    def _multiply(self, vectors: torch.Tensor) -> None:
        torch.mm(self.graph, vectors, out=self.image)
        self.image.mul_(-self.alpha).add_(vectors)

    def _row(self, values: Floats) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device, self.graph.dtype)


def _sums(products: torch.Tensor) -> Floats:
    totals: Floats = products.sum(dim=0, dtype=torch.float64).cpu().numpy()
    return totals
