"""Matrix products that propose neighbours: what is multiplied, and the error of the result.

q queries, d dimensions.
"""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from mmray.system.arrays import Device, Features, Floats

_ROUNDED = 2.0**-9  # by which bfloat16 rounds a number of at most 1


def scaled(
    queries: Features, norm: float, half_error: float | None
) -> tuple[torch.Tensor, Features]:
    """Scale nonzero queries so that no product exceeds 1, and bound the errors of the products.

    Parameters
    ----------
    queries : (q, d) float32
    norm : float
        The largest norm of a row of the database, above 0.
    half_error : float or None
        The largest norm of a row's rounding error in bfloat16; None: the product is in float32.

    Returns
    -------
    scaled : (q, d) bfloat16 or float32
    slack : (q,) float32
        Twice the largest error of a product, whatever the order in which it is summed, in float32:
        items whose products differ by more are in order.
    """
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    unit = (queries * (0.99 / (lengths * norm))[:, None]).astype(np.float32)
    summed = (queries.shape[1] + 32) * 2.0**-24  # 32 for the roundings beside the sums
    if half_error is None:
        return torch.from_numpy(unit), np.full(len(queries), 2 * summed, np.float32)
    rounded, errors = halved(unit)
    error = errors * (norm + half_error) + half_error / norm + summed + _ROUNDED
    return rounded, (2 * error).astype(np.float32)


def halved(rows: Features) -> tuple[torch.Tensor, Floats]:
    """Round rows (m, d) to bfloat16; return them and the norms (m,) of their errors."""
    rounded = tensor(rows).bfloat16()
    errors: Floats = np.linalg.norm(rounded.double().numpy() - rows, axis=1)
    return rounded, errors


def tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """Wrap an array as a tensor that is only read."""
    with warnings.catch_warnings():
        # Arrays in shared memory cannot be written, of which PyTorch warns; nobody writes them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def starts_in_bfloat16(device: Device) -> bool:
    """Tell whether an index for this device holds bfloat16: for CPUs with instructions for it."""
    found = torch.cpu.get_capabilities()
    return device == "cpu" and bool(found.get("amx_bf16") or found.get("avx512_bf16"))
