"""The check by parts of images: literal figures, and what must not matter."""

import numpy as np
import pytest

from mmray.training.agreement import agreement, parts_of, shared_neighbors
from mmray.training.image_source import ImageSource
from tests.made.synthetic import clouds


@pytest.mark.parametrize("images", [3, 24, 2500])
def test_views_agree_by_the_neighbours_that_they_share(images):
    one = clouds(0, images)
    other = one.copy()
    other[: images // 2] = clouds(1, images)[: images // 2]
    k, places = min(10, (images - 1) // 2), np.linspace(0, images - 1, min(images, 2000))
    shared = []
    for place in np.unique(places.astype(np.int64)):
        near = []
        for rows in (one, other):
            cosines = rows @ rows[place]
            cosines[place] = -2
            near.append(set(np.argsort(-cosines)[:k].tolist()))
        shared.append(len(near[0] & near[1]) / k)
    assert shared_neighbors(one, other).tolist() == pytest.approx(shared)
    assert shared_neighbors(one, one).tolist() == [1] * len(shared)


def test_fewer_than_three_images_have_nothing_in_common():
    assert shared_neighbors(clouds(0, 2), clouds(1, 2)).shape == (0,)


def test_the_error_is_that_of_the_difference_from_the_initial_network():
    rng = np.random.default_rng(0)
    initially = rng.integers(0, 11, 50) / 10
    shared = np.clip(initially + rng.integers(-1, 3, 50) / 10, 0, 1)
    difference = shared - initially
    figures = agreement(shared, initially)
    assert figures["view_agreement"] == pytest.approx(shared.mean())
    assert figures["view_agreement_error"] == pytest.approx(
        np.sqrt(((difference - difference.mean()) ** 2).mean() / 50)
    )
    assert 0 < figures["view_agreement_error"] < initially.std() / 50**0.5
    assert agreement(initially, initially)["view_agreement_error"] == 0


def test_without_images_or_the_initial_network_there_is_no_agreement():
    assert agreement(np.empty(0), np.empty(0)) == {}
    assert agreement(np.ones(5), np.empty(0)) == {}


def test_parts_are_half_of_an_image_and_always_the_same():
    photos = [np.random.default_rng(i).integers(0, 256, (60, 80, 3), np.uint8) for i in range(4)]

    class Photos(ImageSource):
        def _load(self, request):
            return self.view(photos[request[0]], request[1])

        def seen_as(self, view):
            return Photos([], longest_side=80, view=view)

    def parts(source, ids):
        return next(source.groups([ids], [ids]))

    source = Photos([], longest_side=80, view=lambda pixels, key: pixels[::-1])
    found = parts(parts_of(source, 7), np.arange(4))
    for photo, part in zip(photos, found, strict=True):
        assert part.shape == (42, 57, 3)
        places = [
            (y, x)
            for y in range(19)
            for x in range(24)
            if np.array_equal(photo[::-1][y : y + 42, x : x + 57], part)
        ]
        assert len(places) == 1  # a part of what the source shows
    (again,) = parts(parts_of(source, 7), np.array([2]))
    np.testing.assert_array_equal(again, found[2])
    others = parts(parts_of(source, 8), np.arange(4))
    assert any(not np.array_equal(one, two) for one, two in zip(found, others, strict=True))
