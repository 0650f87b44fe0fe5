"""Names for types in signatures, mostly arrays; every docstring gives its own shapes.

`csr_array` is scipy's, single precision where nothing else is said.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Ids: TypeAlias = NDArray[np.int64]  # row numbers of items, from 0
Features: TypeAlias = NDArray[np.float32]  # l2-normalised rows, unless said otherwise
Floats: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.uint8]  # (height, width, 3), RGB
Graph: TypeAlias = csr_array[Any, tuple[int, int]]
Device: TypeAlias = Literal["cpu", "cuda"]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view of an array that cannot be written.

    Arrays in shared memory cannot be written either: with views of all others, compiled code needs
    one version only.
    """
    view = array.view()
    view.flags.writeable = False
    return view
