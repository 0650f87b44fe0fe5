"""Units of images of any size end where a loop over the images would end them."""

import numpy as np
import pytest

from mmray.images.collection import Collection, ImageFile
from mmray.pipeline.distributed.decoding import PIXEL_BUDGET, UNKNOWN_PHOTO, units_of

FULL = PIXEL_BUDGET // 12  # bytes of a file whose pixels fill the budget
SIZES = [-1, 0, 1, FULL - 1, FULL, FULL + 1, FULL // 2, FULL // 2 + 1, FULL // 7, 3 * FULL, 1 << 61]


def slow_starts(sizes, shard_size):
    """The first image of each unit, by a loop."""
    starts, filled = [0], 0
    for place, size in enumerate(sizes):
        pixels = UNKNOWN_PHOTO if size < 0 else 12 * size
        full = filled + pixels > PIXEL_BUDGET or place - starts[-1] == shard_size
        if place > starts[-1] and full:
            starts.append(place)
            filled = 0
        filled += pixels
    return starts


@pytest.mark.parametrize("shard_size", [1, 2, 5, 100])
def test_units_end_where_a_loop_over_the_images_ends_them(shard_size):
    rng = np.random.default_rng(shard_size)
    for count in (1, 2, *rng.integers(3, 60, 100)):
        sizes = rng.choice(SIZES, count).tolist()
        images = Collection.of([ImageFile(uri="", name="", size=size) for size in sizes])
        units = units_of(images, shard_size=shard_size, longest_side=None)
        assert units["first"].to_pylist() == slow_starts(sizes, shard_size)
        assert sum(units["items"].to_pylist()) == count
