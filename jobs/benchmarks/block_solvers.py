"""Conjugate gradients on blocks of anchors, as one would write them with a sparse product at hand.

n items, a anchors, b = 16 columns. No needless copies; the last iterate is taken, not the best.
"""

import warnings

import numpy as np
import torch

from mmray.system.arrays import Features, Graph, Ids

COLUMNS = 16
_RTOL, _STEPS = 1e-10, 20  # those of `mmray.mining.diffusion.solver.Solver`
_TINY = 1e-30  # a column that has converged divides 0 by 0


def solve_by_scipy(system: Graph, rows: Ids, positions: Ids) -> Features:
    """Solve for e_i of each row by scipy's product and numpy, in place.

    Parameters
    ----------
    system : (n, n) float32 CSR
        I − αÂ.
    rows : (a,) int64
    positions : (n,) int64
        The row of each item.

    Returns
    -------
    (a, n) float32, by item.
    """
    n = system.shape[0]
    result = np.empty((len(rows), n), np.float32)
    for start in range(0, len(rows), COLUMNS):
        sources = rows[start : start + COLUMNS]
        f, r = np.zeros((2, n, len(sources)), np.float32)
        r[sources, np.arange(len(sources))] = 1
        p, product = r.copy(), np.empty_like(r)
        squared = np.einsum("ij,ij->j", r, r)
        for _ in range(_STEPS):
            image = system @ p
            step = squared / np.maximum(np.einsum("ij,ij->j", p, image), _TINY)
            f += np.multiply(p, step, out=product)
            r -= np.multiply(image, step, out=product)
            updated = np.einsum("ij,ij->j", r, r)
            if updated.max() <= _RTOL**2:
                break
            p *= updated / np.maximum(squared, _TINY)
            p += r
            squared = updated
        result[start : start + COLUMNS] = f[positions].T
    return result


def solve_by_torch(system: torch.Tensor, rows: Ids, positions: Ids) -> Features:
    """Solve for e_i of each row by torch's sparse product; otherwise as `solve_by_scipy`."""
    n, order = system.shape[0], torch.from_numpy(positions)
    result = torch.empty(len(rows), n)
    for start in range(0, len(rows), COLUMNS):
        sources = rows[start : start + COLUMNS]
        f, r = torch.zeros(2, n, len(sources))
        r[sources, np.arange(len(sources))] = 1
        p, image, product = r.clone(), torch.empty_like(r), torch.empty_like(r)
        squared = torch.mul(r, r, out=product).sum(0)
        for _ in range(_STEPS):
            torch.mm(system, p, out=image)
            step = squared / torch.mul(p, image, out=product).sum(0).clamp_min_(_TINY)
            f.addcmul_(p, step)
            r.addcmul_(image, step, value=-1)
            updated = torch.mul(r, r, out=product).sum(0)
            if updated.max() <= _RTOL**2:
                break
            p.mul_(updated / squared.clamp_min(_TINY)).add_(r)
            squared = updated
        result[start : start + COLUMNS] = f[order].T
    solved: Features = result.numpy()
    return solved


def as_tensor(system: Graph) -> torch.Tensor:
    """Copy a CSR to torch's own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(system.indptr),
            torch.from_numpy(system.indices),
            torch.from_numpy(system.data),
            system.shape,
        )
