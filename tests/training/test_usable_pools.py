from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray.mining.pool_lists import Pools
from mmray.system.errors import InputError
from mmray.training.usable_pools import hold_out, with_mean_weight_one
from tests.made.pools import pools, random_pools, usable


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_the_weights_of_the_usable_positives_get_the_mean_one(seed: int) -> None:
    mined = random_pools(seed)
    weighed = with_mean_weight_one(mined)
    values = [float(x) for i in usable(mined) for x in mined.positive_similarity[i]]
    mean = sum(values) / len(values)
    for new, old in zip(weighed.positive_similarity, mined.positive_similarity, strict=True):
        np.testing.assert_allclose(new, old / mean, rtol=1e-6)
        assert new.dtype == np.float32
    unused = sum(mined.positive_similarity[i].sum() for i in range(12) if i not in usable(mined))
    assert abs(mean - 1) > 0.1  # so that the division changes something
    assert unused > 0  # so that not all anchors are usable
    for field in fields(Pools):
        if field.name != "positive_similarity":
            assert getattr(weighed, field.name) is getattr(mined, field.name)


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_the_scale_of_the_similarities_does_not_matter_to_the_weights(scale: float) -> None:
    mined = random_pools(3)
    scaled = replace(
        mined, positive_similarity=tuple(np.float32(scale) * x for x in mined.positive_similarity)
    )
    for one, two in zip(
        with_mean_weight_one(mined).positive_similarity,
        with_mean_weight_one(scaled).positive_similarity,
        strict=True,
    ):
        np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize("lists", [[], [([], [1]), ([2], [])]])
def test_weights_of_pools_without_a_usable_anchor_stay(lists: list) -> None:
    mined = pools(lists)
    assert with_mean_weight_one(mined) is mined


@pytest.mark.parametrize("value", [0.0, -2.0, np.nan])
def test_weights_that_cannot_be_scaled_to_one_say_how_to_do_without(value: float) -> None:
    mined = pools([([2, 6], [3])])
    mined = replace(mined, positive_similarity=(np.full(2, value, np.float32),))
    with pytest.raises(InputError, match=f"the mean {value:g}, .*--training.no-weighted"):
        with_mean_weight_one(mined)


def assert_taken(part: Pools, mined: Pools, places: list[int]) -> None:
    """Every field of the part is that of the pools at these places."""
    for field in fields(Pools):
        new, old = getattr(part, field.name), getattr(mined, field.name)
        assert len(new) == len(places)
        assert type(new) is type(old)
        for x, i in zip(new, places, strict=True):
            np.testing.assert_array_equal(x, old[i], strict=True)


def numbered(mined: Pools) -> Pools:
    """The same with anchors of other ids and the last four columns filled."""
    a = len(mined.anchors)
    return replace(
        mined,
        anchors=np.arange(a)[::-1] + 100,
        manifold_neighbors=tuple(np.arange(i) for i in range(a)),
        zero_positives=np.arange(a) + 5,
        residual=np.arange(a) / 7,
        iterations=np.arange(a) * 3,
    )


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_a_split_holds_out_its_share_of_the_usable_anchors(seed: int, fraction: float) -> None:
    mined = numbered(random_pools(seed))
    train, held = hold_out(mined, fraction, np.random.default_rng(seed))
    place = {int(anchor): i for i, anchor in enumerate(mined.anchors)}
    left, right = ([place[int(x)] for x in part.anchors] for part in (train, held))
    assert sorted(left + right) == list(range(12))
    assert left == sorted(left)
    assert right == sorted(right)
    assert set(right) <= set(usable(mined))
    total = len(usable(mined))
    expected = round(fraction * total)
    if fraction > 0 and total >= 2:
        expected = max(expected, 1)
    assert len(right) == min(expected, total - 1)
    assert_taken(train, mined, left)
    assert_taken(held, mined, right)


@pytest.mark.parametrize(
    ("anchors", "fraction", "expected"),
    [
        (10, 0.0, 0),
        (10, 0.3, 3),
        (10, 0.01, 1),
        (10, 0.99, 9),
        (2, 0.1, 1),
        (1, 0.9, 0),
        (0, 0.5, 0),
    ],
)
def test_sizes_of_a_split(anchors: int, fraction: float, expected: int) -> None:
    mined = pools([([30], [31])] * anchors + [([], [31])])
    train, held = hold_out(mined, fraction, np.random.default_rng(0))
    assert len(held.anchors) == expected
    assert len(train.anchors) == anchors + 1 - expected


def test_every_usable_anchor_is_held_out_about_equally_often() -> None:
    mined = pools([([30], [31]), ([], [1]), *[([30], [31])] * 4])
    held = [hold_out(mined, 0.4, np.random.default_rng(seed))[1].anchors for seed in range(500)]
    found, counts = np.unique(np.concatenate(held), return_counts=True)
    assert found.tolist() == [0, 2, 3, 4, 5]
    assert (abs(counts - 200) < 5 * np.sqrt(200)).all()
    assert len({tuple(ids) for ids in held}) == 10


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_shares_that_leave_nothing_to_train_on_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction = {fraction}: hold out a share from 0 to belo"):
        hold_out(random_pools(0), fraction, np.random.default_rng(0))
