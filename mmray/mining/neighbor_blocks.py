"""Neighbours of all items, read block by block, so that they need not fit in memory.

n items, k neighbours of each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmray.mining.knn.results import Neighbors
from mmray.system.arrays import Ids

_BLOCK_ROWS = 1 << 14  # of lists that are in memory


@dataclass(frozen=True, eq=False)
class NeighborBlocks:
    """Neighbours (n, k) as blocks of consecutive rows, which every iteration reads anew.

    Attributes
    ----------
    count, k : n and k
    read : returns the blocks, in the order of their rows
    scratch : folder for temporary files; None: they are kept in memory
    """

    count: int
    k: int
    read: Callable[[], Iterator[Neighbors]]
    scratch: Path | None = None

    @classmethod
    def of(cls, found: Neighbors) -> "NeighborBlocks":
        """Return the blocks of neighbours in memory."""
        count, k = found.ids.shape

        def read() -> Iterator[Neighbors]:
            for start in range(0, count, _BLOCK_ROWS):
                rows = slice(start, start + _BLOCK_ROWS)
                yield Neighbors(found.ids[rows], found.similarities[rows])

        return cls(count, k, read)

    def numbered(self) -> Iterator[tuple[Neighbors, Ids]]:
        """Yield the blocks, each with the items (rows,) int64 whose neighbours it has."""
        first = 0
        for block in self.read():
            yield block, np.arange(first, first + len(block.ids))
            first += len(block.ids)
        assert first == self.count, f"{first} rows instead of {self.count}"

    def first(self, k: int) -> "NeighborBlocks":
        """Return the blocks with the k most similar of each item."""
        return replace(self, k=min(k, self.k), read=lambda: (each.first(k) for each in self.read()))
