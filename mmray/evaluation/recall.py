"""Recall@k of items in classes: does an item find another of its own class (Sec. 4.2)?

n items, d dimensions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.evaluation.ranking import similarity_blocks
from mmray.system.arrays import Features


def recall_at_k(
    embeddings: Features, labels: NDArray[Any], ks: Sequence[int] = (1, 2, 4, 8)
) -> dict[int, float]:
    """Return Recall@k: the share of items with one of their own label among their k nearest others.

    Every item queries all others; equal similarities are ranked by ascending row. The only item of
    a label counts as a miss.

    Parameters
    ----------
    embeddings : (n, d) float32
        n >= 2.
    labels : (n,) of any type that compares
    ks : each at least 1; k >= n - 1 counts every item whose label another item has.

    Returns
    -------
    {k: recall in [0, 1]}, in the order of ks.

    Raises
    ------
    ValueError
        There are fewer than two items or not one label for each, a k is below 1, or an embedding
        is not finite.

    Examples
    --------
    >>> embeddings = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.8, 0.3]], np.float32)
    >>> recall_at_k(embeddings, np.array(["wren", "wren", "robin", "robin"]), ks=(1, 3))
    {1: 0.75, 3: 1.0}
    """
    n = len(embeddings)
    if n < 2 or labels.shape != (n,):
        raise ValueError(
            f"embeddings {embeddings.shape} and labels {labels.shape}: need at least two items and "
            "one label for each"
        )
    if min(ks, default=0) < 1:
        raise ValueError(f"ks {list(ks)}: name at least one k, each at least 1")
    ahead = np.empty(n, dtype=np.int64)  # other items ranked before the first of the same label
    for start, similarities in similarity_blocks(embeddings, embeddings):
        rows = np.arange(start, start + len(similarities))
        similarities[rows - start, rows] = -np.inf
        same = labels[rows, None] == labels[None, :]
        same[rows - start, rows] = False
        candidates = np.where(same, similarities, -np.inf)
        # argmax is the first of equals: the one of lowest row, which is the one ranked first.
        first = candidates.argmax(axis=1)[:, None]
        best = np.take_along_axis(candidates, first, axis=1)
        earlier = (similarities > best) | ((similarities == best) & (np.arange(n) < first))
        ahead[rows] = np.where(same.any(axis=1), earlier.sum(axis=1), n)
    return {k: float(np.mean(ahead < min(k, n))) for k in ks}
