"""The photos of one index, or of two that are compared, under one numbering.

p photos, n_i rows of index i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmray.images.collection import Collection
from mmray.system.arrays import Ids


@dataclass(frozen=True, eq=False, kw_only=True)
class Photos:
    """All photos that can be found, each of them once.

    A photo of the first index has the number of its row there. Those that the second index alone
    has follow. The same photo is told by its place, `Collection.places`.

    Attributes
    ----------
    images : p images
    rows : for each index (p,) int64, the row of each photo in it, -1 where it has none
    numbers : for each index (n_i,) int64, the photo of each row
    """

    images: Collection
    rows: tuple[Ids, ...]
    numbers: tuple[Ids, ...]

    @classmethod
    def of(cls, collections: Sequence[Collection]) -> "Photos":
        """Number the images of one index or of several."""
        first, *others = collections
        if not others:
            same = np.arange(len(first))
            return cls(images=first, rows=(same,), numbers=(same,))
        number_of: dict[str, int] = {}
        numbers, parts = [], []
        for images in collections:
            own = np.empty(len(images), np.int64)
            known = len(number_of)
            for row, place in enumerate(images.places.to_pylist()):
                own[row] = number_of.setdefault(place, len(number_of))
            parts.append(images.take(np.flatnonzero(own >= known)))
            numbers.append(own)
        rows = []
        for own in numbers:
            of_photos = np.full(len(number_of), -1, np.int64)
            of_photos[own] = np.arange(len(own))
            rows.append(of_photos)
        return cls(images=Collection.joined(parts), rows=tuple(rows), numbers=tuple(numbers))

    def __len__(self) -> int:
        return len(self.images)
