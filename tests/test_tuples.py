import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray.errors import InputError
from mmray.pools import Pools
from mmray.tuples import Tuples, add_negatives, sample_pairs
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


def draw(mined: Pools, count: int, seed: int, hard_negatives: int = 10) -> Tuples:
    rng = np.random.default_rng(seed)
    pairs = sample_pairs(mined, count, rng)
    return add_negatives(pairs, embed(pairs.needed), hard_negatives=hard_negatives, rng=rng)


@given(st.integers(0, 1000), st.integers(1, 15), st.integers(1, 12))
def test_tuples_come_from_the_pools_of_their_anchor(seed: int, count: int, hard: int) -> None:
    mined = random_pools(seed)
    usable = [r for r in range(12) if len(mined.positives[r]) and len(mined.negatives[r])]
    drawn = draw(mined, count, seed, hard)
    assert len(drawn.anchors) == min(count, len(usable))
    assert len(set(drawn.anchors.tolist())) == len(drawn.anchors)
    for r, p, n, w in zip(
        drawn.anchors, drawn.positives, drawn.negatives, drawn.weights, strict=True
    ):
        assert r in usable
        assert p in mined.positives[r]
        nearest = oracles.order(embed(r), embed(np.arange(N)), mined.negatives[r].tolist())
        assert n in nearest[:hard]
        assert w == mined.positive_similarity[r][mined.positives[r].tolist().index(p)]
    for ids in (drawn.anchors, drawn.positives, drawn.negatives):
        assert ids.dtype == np.int64
    assert drawn.weights.dtype == np.float32


@pytest.mark.parametrize("seed", range(5))
def test_the_images_to_embed_are_the_anchors_and_their_negatives(seed: int) -> None:
    mined = random_pools(seed)
    pairs = sample_pairs(mined, 4, np.random.default_rng(seed))
    expected = set(pairs.anchors.tolist())
    for r in pairs.anchors:
        expected.update(mined.negatives[r].tolist())
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
            sorted(oracles.order(embed(1), embed(np.arange(N)), negatives)[:10]),
        ),
        (np.array([e.anchors[0] for e in epochs]), [0, 1, 2]),
    ):
        found, counts = np.unique(values, return_counts=True)
        assert found.tolist() == choices
        expected = len(values) / len(choices)
        assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_with_one_hard_negative_it_is_the_nearest_and_ties_go_to_the_lowest_id() -> None:
    mined = pools([([5], [33, 12, 30, 9])])  # all the same image, as is the anchor
    assert draw(mined, 1, 0, hard_negatives=1).negatives.tolist() == [9]


@pytest.mark.parametrize("d", [64, 100, 513, 2047])
@pytest.mark.parametrize("n", [5, 7, 9, 17, 33])
def test_equal_negatives_are_told_apart_by_id_alone(n: int, d: int) -> None:
    # At these sizes a matrix product sums the terms of some rows in another order.
    mined = pools([([1], list(range(2, n + 2)))])
    rng = np.random.default_rng(n)
    pairs = sample_pairs(mined, 1, rng)
    anchor, negative = rng.standard_normal((2, d)).astype(np.float32)
    embeddings = np.stack([anchor, *[negative] * n])
    assert add_negatives(pairs, embeddings, hard_negatives=1, rng=rng).negatives.tolist() == [2]


def test_all_anchors_are_drawn_in_random_order_if_there_are_no_more() -> None:
    mined = pools([([30], [31])] * 25)
    orders = [draw(mined, count, 1).anchors.tolist() for count in (25, 1000)]
    assert orders[0] == orders[1] != sorted(orders[0])
    assert sorted(orders[0]) == list(range(25))


def test_the_same_seed_draws_the_same_tuples_and_another_others() -> None:
    mined = random_pools(3)
    one, two, three = (draw(mined, 6, seed) for seed in (4, 4, 5))
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
    pairs = sample_pairs(mined, 1, rng)
    with pytest.raises(ValueError, match="hard_negatives = 0: choose at least 1"):
        add_negatives(pairs, embed(pairs.needed), hard_negatives=0, rng=rng)


def test_embeddings_of_other_images_are_refused() -> None:
    rng = np.random.default_rng(0)
    pairs = sample_pairs(pools([([2], [3, 4])]), 1, rng)
    with pytest.raises(ValueError, match=r"embeddings \(2, 3\): need one row for each of 3 images"):
        add_negatives(pairs, embed(np.arange(2)), rng=rng)
    embeddings = embed(pairs.needed)
    embeddings[1, 0] = np.inf
    with pytest.raises(ValueError, match=r"image 3 is not finite \(1 of 3 images\).*diverged"):
        add_negatives(pairs, embeddings, rng=rng)


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
