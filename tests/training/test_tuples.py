from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray.mining.pool_lists import Pools
from mmray.system.errors import InputError
from mmray.training.tuples import (
    Tuples,
    add_negatives,
    hold_out,
    sample_pairs,
    with_mean_weight_one,
)
from tests import oracles

N = 40  # items


def pools(lists: list[tuple[list[int], list[int]]]) -> Pools:
    """Anchors 0, 1, ... with (positives, negatives); s_m(r, x) = r + x / 100."""
    a = len(lists)
    ids = [tuple(np.array(part, dtype=np.int64) for part in one) for one in lists]
    none = tuple(np.empty(0, np.int64) for _ in lists)
    return Pools(
        anchors=np.arange(a),
        positives=tuple(positives for positives, _ in ids),
        positive_similarity=tuple(
            (r + positives / 100).astype(np.float32) for r, (positives, _) in enumerate(ids)
        ),
        positive_rank_e=none,
        negatives=tuple(negatives for _, negatives in ids),
        negative_similarity=tuple(np.zeros(len(n), np.float32) for _, n in ids),
        negative_rank_m=none,
        manifold_neighbors=none,
        zero_positives=np.zeros(a, np.int64),
        residual=np.zeros(a),
        iterations=np.zeros(a, np.int64),
    )


def random_pools(seed: int, a: int = 12) -> Pools:
    """Disjoint positives and negatives, some of them empty."""
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(a):
        ids = rng.permutation(np.arange(a, N)).tolist()
        p, q = rng.integers(0, 5), rng.integers(0, 20)
        lists.append((ids[:p], ids[p : p + q]))
    lists[0] = (lists[0][0] or [a], [N - 1])
    return pools(lists)


def embed(ids: np.ndarray, d: int = 3) -> np.ndarray:
    """Embeddings that depend on the image alone; every third image is one and the same."""
    rows = np.random.default_rng(99).standard_normal((N, d))
    rows[::3] = rows[0]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)[ids]


def draw(
    mined: Pools,
    count: int,
    seed: int,
    hard_negatives: int = 10,
    p: int = 1,
    n: int = 1,
    top_positives: int | None = None,
) -> Tuples:
    rng = np.random.default_rng(seed)
    hard = {"hard_negatives": hard_negatives}
    pairs = sample_pairs(mined, count, rng, positives=p, top_positives=top_positives, **hard)
    return add_negatives(pairs, embed(pairs.needed), negatives=n, rng=rng, **hard)


def usable(mined: Pools) -> list[int]:
    return [
        i for i in range(len(mined.anchors)) if len(mined.positives[i]) * len(mined.negatives[i])
    ]


def drawn_without_replacement(row: np.ndarray, choices: list[int]) -> bool:
    """Different ones of the choices; past the last of them the row repeats itself."""
    first = row[: len(choices)].tolist()
    return (
        len(set(first)) == len(first)
        and set(first) <= set(choices)
        and row.tolist() == [first[i % len(first)] for i in range(len(row))]
    )


@given(
    st.integers(0, 1000),
    st.integers(1, 15),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 6),
    st.none() | st.integers(1, 5),
)
def test_tuples_come_from_the_pools_of_their_anchor(
    seed: int, count: int, hard: int, p: int, n: int, top: int | None
) -> None:
    mined = random_pools(seed)
    drawn = draw(mined, count, seed, hard, p, n, top)
    t = min(count, len(usable(mined)))
    assert drawn.anchors.shape == (t,)
    assert drawn.positives.shape == drawn.weights.shape == (t, p)
    assert drawn.negatives.shape == (t, n)
    assert len(set(drawn.anchors.tolist())) == t
    for r, positives, negatives, weights in zip(
        drawn.anchors, drawn.positives, drawn.negatives, drawn.weights, strict=True
    ):
        assert r in usable(mined)
        listed = mined.positives[r].tolist()
        assert drawn_without_replacement(positives, listed[:top])
        hardest = oracles.hard_negatives(
            embed(r), embed(np.arange(N)), mined.negatives[r].tolist(), hard
        )
        assert drawn_without_replacement(negatives, hardest)
        for x, w in zip(positives, weights, strict=True):
            assert w == mined.positive_similarity[r][listed.index(x)]
    for ids in (drawn.anchors, drawn.positives, drawn.negatives):
        assert ids.dtype == np.int64
    assert drawn.weights.dtype == np.float32


@given(st.integers(0, 1000), st.integers(1, 15), st.integers(1, 4))
def test_the_anchors_are_a_permutation_of_the_usable_ones_cut_off(
    seed: int, count: int, p: int
) -> None:
    mined = random_pools(seed)
    pairs = sample_pairs(mined, count, np.random.default_rng(seed), positives=p)
    expected = np.random.default_rng(seed).permutation(usable(mined))[:count]
    assert pairs.anchors.tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hard", [1, 3, 6])
def test_the_images_to_embed_are_those_whose_negatives_have_to_be_ranked(
    seed: int, hard: int
) -> None:
    mined = random_pools(seed)
    pairs = sample_pairs(mined, 4, np.random.default_rng(seed), hard_negatives=hard)
    expected = set()
    for r in pairs.anchors.tolist():
        if len(mined.negatives[r]) > hard:
            expected.update([r, *mined.negatives[r].tolist()])
    assert pairs.needed.tolist() == sorted(expected)


def test_every_choice_is_drawn_and_about_equally_often() -> None:
    negatives = list(range(10, 30))
    mined = pools([([5, 6, 7], negatives)] * 3 + [([], [1]), ([1], [])])
    epochs = [draw(mined, 2, seed) for seed in range(600)]
    for values, choices in (
        (np.concatenate([e.anchors for e in epochs]), [0, 1, 2]),
        (np.concatenate([e.positives for e in epochs]), [5, 6, 7]),
        (
            np.concatenate([e.negatives[e.anchors == 1] for e in epochs]),
            sorted(oracles.hard_negatives(embed(1), embed(np.arange(N)), negatives, 10)),
        ),
        (np.array([e.anchors[0] for e in epochs]), [0, 1, 2]),
    ):
        found, counts = np.unique(values, return_counts=True)
        assert found.tolist() == choices
        expected = len(values) / len(choices)
        assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_every_ordered_choice_of_several_is_about_equally_often() -> None:
    mined = pools([([5, 6, 7, 8], [10, 11, 12, 13])])
    epochs = [draw(mined, 1, seed, p=2, n=2, top_positives=3) for seed in range(900)]
    hardest = oracles.hard_negatives(embed(0), embed(np.arange(N)), [10, 11, 12, 13], 3)
    hard = [draw(mined, 1, seed, hard_negatives=3, n=2) for seed in range(900)]
    for values, choices in (
        ([e.positives[0] for e in epochs], [5, 6, 7]),
        ([e.negatives[0] for e in hard], hardest),
    ):
        found, counts = np.unique(np.array(values), axis=0, return_counts=True)
        assert found.tolist() == sorted([x, y] for x in choices for y in choices if x != y)
        assert (abs(counts - 150) < 5 * np.sqrt(150)).all()


def test_a_pool_that_is_too_small_gives_all_of_it_and_repeats_in_the_drawn_order() -> None:
    mined = pools([([5, 6, 7], [10, 11])])
    orders = set()
    for seed in range(40):
        drawn = draw(mined, 1, seed, p=7, n=5)
        x, y, z = drawn.positives[0, :3]
        assert sorted([x, y, z]) == [5, 6, 7]
        assert drawn.positives[0].tolist() == [x, y, z, x, y, z, x]
        assert drawn.weights[0].tolist() == [np.float32(i / 100) for i in (x, y, z, x, y, z, x)]
        v, w = drawn.negatives[0, :2]
        assert {v, w} == {10, 11}
        assert drawn.negatives[0].tolist() == [v, w, v, w, v]
        orders.add((x, y, z))
    assert len(orders) == 6


def test_the_top_positives_are_those_listed_first() -> None:
    mined = pools([([30, 5, 20, 1], [2])])
    for top, expected in ((1, {30}), (2, {30, 5}), (9, {30, 5, 20, 1}), (None, {30, 5, 20, 1})):
        epochs = [draw(mined, 1, seed, top_positives=top) for seed in range(60)]
        assert {int(e.positives[0, 0]) for e in epochs} == expected


def test_with_one_hard_negative_it_is_the_nearest_and_ties_go_to_the_lowest_id() -> None:
    mined = pools([([5], [33, 12, 30, 9])])  # all the same image, as is the anchor
    assert draw(mined, 1, 0, hard_negatives=1).negatives.tolist() == [[9]]


@pytest.mark.parametrize("d", [64, 100, 513, 2047])
@pytest.mark.parametrize("n", [5, 7, 9, 17, 33])
def test_equal_negatives_are_told_apart_by_id_alone(n: int, d: int) -> None:
    # At these sizes a matrix product sums the terms of some rows in another order.
    mined = pools([([1], list(range(2, n + 2)))])
    rng = np.random.default_rng(n)
    pairs = sample_pairs(mined, 1, rng, hard_negatives=1)
    anchor, negative = rng.standard_normal((2, d)).astype(np.float32)
    embeddings = np.stack([anchor, *[negative] * n])
    assert add_negatives(pairs, embeddings, hard_negatives=1, rng=rng).negatives.item() == 2


def test_all_anchors_are_drawn_in_random_order_if_there_are_no_more() -> None:
    mined = pools([([30], [31])] * 25)
    orders = [draw(mined, count, 1).anchors.tolist() for count in (25, 1000)]
    assert orders[0] == orders[1] != sorted(orders[0])
    assert sorted(orders[0]) == list(range(25))


def test_the_same_seed_draws_the_same_tuples_and_another_others() -> None:
    mined = random_pools(3)
    one, two, three = (draw(mined, 6, seed, p=2, n=3) for seed in (4, 4, 5))
    for name in ("anchors", "positives", "negatives", "weights"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.anchors.tolist() != three.anchors.tolist()


def test_pools_from_which_nothing_can_be_drawn_name_the_settings_to_change() -> None:
    mined = pools([([], [1]), ([2], [])])
    message = "none of the 2 anchors has both a positive and a negative.*--mining.positive-k"
    with pytest.raises(InputError, match=message):
        sample_pairs(mined, 1, np.random.default_rng(0))
    with pytest.raises(InputError, match="none of the 0 anchors"):
        sample_pairs(pools([]), 1, np.random.default_rng(0))


def test_impossible_counts_are_refused() -> None:
    rng, mined = np.random.default_rng(0), pools([([2], [3])])
    with pytest.raises(ValueError, match="count = 0: draw at least one anchor"):
        sample_pairs(mined, 0, rng)
    with pytest.raises(ValueError, match="positives = 0: draw at least one for each anchor"):
        sample_pairs(mined, 1, rng, positives=0)
    with pytest.raises(ValueError, match="top_positives = 0: choose at least 1"):
        sample_pairs(mined, 1, rng, top_positives=0)
    pairs = sample_pairs(mined, 1, rng)
    with pytest.raises(ValueError, match="hard_negatives = 0: choose at least 1"):
        add_negatives(pairs, embed(pairs.needed), hard_negatives=0, rng=rng)
    with pytest.raises(ValueError, match="negatives = 0: draw at least one for each anchor"):
        add_negatives(pairs, embed(pairs.needed), negatives=0, rng=rng)


def test_embeddings_of_other_images_are_refused() -> None:
    rng = np.random.default_rng(0)
    pairs = sample_pairs(pools([([2], [3, 4])]), 1, rng, hard_negatives=1)
    with pytest.raises(ValueError, match=r"embeddings \(2, 3\): need one row for each of 3 images"):
        add_negatives(pairs, embed(np.arange(2)), rng=rng)


@pytest.mark.parametrize("name", ["positives", "positive_similarity", "negatives"])
def test_pools_whose_lists_do_not_belong_together_are_refused(name: str) -> None:
    mined = pools([([2], [3]), ([4], [5])])
    object.__setattr__(mined, name, getattr(mined, name)[:1])
    with pytest.raises(ValueError, match=f"2 anchors, but 1 lists of {name}"):
        sample_pairs(mined, 1, np.random.default_rng(0))


def test_positives_without_a_similarity_each_are_refused() -> None:
    mined = pools([([2, 6], [3])])
    object.__setattr__(mined, "positive_similarity", (np.ones(1, np.float32),))
    with pytest.raises(ValueError, match="anchor 0: 2 positives, but 1 similarities"):
        sample_pairs(mined, 1, np.random.default_rng(0))


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
