import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray.mining.pool_lists import Pools
from mmray.system.errors import InputError
from mmray.training.tuples import (
    Tuples,
    add_negatives,
    sample_pairs,
)
from tests import oracles
from tests.made.pools import N, pools, random_pools, usable


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
    counts = {"positives": p, "top_positives": top_positives, "hard_negatives": hard_negatives}
    pairs = sample_pairs(mined, count, rng, **counts)
    return add_negatives(pairs, embed(pairs.needed), negatives=n, rng=rng)


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


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 8), st.integers(2, 20))
def test_no_more_images_are_ranked_than_are_allowed_and_as_many_as_fit(
    seed: int, count: int, hard: int, ranked: int
) -> None:
    mined = random_pools(seed)
    rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
    pairs = sample_pairs(mined, count, rng, hard_negatives=hard, ranked_images=ranked)
    every = sample_pairs(mined, count, again, hard_negatives=hard)
    most = ranked * len(pairs.anchors)
    assert len(pairs.needed) <= most
    same = pairs.needed.tolist() == every.needed.tolist()
    assert same == (len(every.needed) <= most)
    assert pairs.anchors.tolist() == every.anchors.tolist()
    assert pairs.positives.tolist() == every.positives.tolist()
    for r, ids, few in zip(pairs.anchors, pairs.candidates, pairs.hard, strict=True):
        pool = mined.negatives[r].tolist()
        assert set(ids.tolist()) <= set(pool)
        assert len(set(ids.tolist())) == len(ids) > 0
        assert few == (hard if same else math.ceil(hard * len(ids) / len(pool)))
    negatives = add_negatives(pairs, embed(pairs.needed), rng=rng).negatives[:, 0].tolist()
    rows = embed(np.arange(N))
    for r, x, ids, few in zip(pairs.anchors, negatives, pairs.candidates, pairs.hard, strict=True):
        assert x in oracles.hard_negatives(embed(r), rows, ids.tolist(), few)


def test_as_many_candidates_are_ranked_as_fit() -> None:
    mined = pools([([5], list(range(10 + 10 * i, 20 + 10 * i))) for i in range(3)])  # none shared
    lengths, hard = set(), set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pairs = sample_pairs(mined, 3, rng, hard_negatives=2, ranked_images=7)
        assert len(pairs.needed) == 21
        lengths |= {len(ids) for ids in pairs.candidates}
        hard |= set(pairs.hard.tolist())
    assert (lengths, hard) == ({6}, {2})  # and the anchor; a fifth of 6 is hard, rounded up


def test_anchors_share_the_images_that_they_draw() -> None:
    mined = pools([([5], list(range(10, 30)))] * 4)
    rng = np.random.default_rng(0)
    pairs = sample_pairs(mined, 4, rng, hard_negatives=2, ranked_images=4)
    assert {len(ids) for ids in pairs.candidates} == {12}  # 4 anchors and the same 12 images
    assert len({tuple(sorted(ids)) for ids in pairs.candidates}) == 1


def test_every_candidate_is_drawn_about_equally_often() -> None:
    mined = pools([([5], list(range(10, 20)))])
    counts = np.zeros(N)
    for seed in range(500):
        rng = np.random.default_rng(seed)
        pairs = sample_pairs(mined, 1, rng, hard_negatives=1, ranked_images=5)
        counts[pairs.candidates[0]] += 1
    assert (abs(counts[10:20] - 200) < 5 * np.sqrt(200)).all()
    assert counts.sum() == 500 * 4


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
    assert add_negatives(pairs, embeddings, rng=rng).negatives.item() == 2


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
    with pytest.raises(ValueError, match="hard_negatives = 0: choose at least 1"):
        sample_pairs(mined, 1, rng, hard_negatives=0)
    with pytest.raises(ValueError, match="ranked_images = 1: an anchor and a candidate are 2"):
        sample_pairs(mined, 1, rng, ranked_images=1)
    pairs = sample_pairs(mined, 1, rng)
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
