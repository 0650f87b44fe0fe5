"""Images that are known are counted by their digests."""

import numpy as np
import pyarrow as pa
import pytest

from mmray.descriptors.known import KnownDescriptors


def digests_of(numbers):
    rows = [np.full(4, number, ">u8").tobytes() for number in numbers]
    return pa.chunked_array([rows[:3], rows[3:]], pa.binary(32))


@pytest.mark.parametrize("known", [0, 1, 7, 40])
def test_known_images_are_counted_as_often_as_they_are_listed(known):
    rng = np.random.default_rng(known)
    keys = np.sort(rng.choice(np.array([0, 2**64 - 1, *range(1, 60)], np.uint64), known, False))
    found = KnownDescriptors(
        np.stack([keys, keys], axis=1),
        np.zeros((known, 3), np.int32),
        np.zeros((known, 2), np.int32),
        [],
        ["mac"],
    )
    for count in (0, 1, 50):
        numbers = rng.choice(np.array([0, 2**64 - 1, *range(60)], np.uint64), count)
        assert found.count(digests_of(numbers)) == sum(number in keys for number in numbers)
