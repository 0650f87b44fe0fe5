"""Tuples under labels follow the rule of the authors of retrieval-SfM, on any machine alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray.mining.pool_lists import matching_pairs
from mmray.system.errors import InputError
from mmray.training.supervised import labelled_tuples
from mmray.training.supervised.labelled_tuples import (
    LabelledPairs,
    add_labelled_negatives,
    sample_labelled_pairs,
)
from mmray.training.tuples import Pairs, Tuples
from tests import oracles

N = 40  # images


def embed(ids: np.ndarray, d: int = 3) -> np.ndarray:
    """Embeddings that depend on the image alone; every third image is one and the same."""
    rows = np.random.default_rng(99).standard_normal((N, d))
    rows[::3] = rows[0]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)[ids]


def of(queries: list[int], positives: list[int], images: int) -> LabelledPairs:
    """Every image is a cluster of its own."""
    return LabelledPairs(
        queries=np.array(queries), positives=np.array(positives), clusters=np.arange(images)
    )


def random_pairs(seed: int, m: int = 25) -> LabelledPairs:
    """Clusters of some three images, and queries, some of them twice, with positives."""
    rng = np.random.default_rng(seed)
    clusters = rng.integers(-2, 12, N)
    clusters[:2] = 100, 101
    queries, positives = rng.integers(0, N, (2, m))
    return LabelledPairs(queries=queries, positives=positives, clusters=clusters)


def draw(
    seed: int, count: int, pool: int, negatives: int = 5, hard: int | None = None
) -> tuple[Pairs, Tuples]:
    labelled, rng = random_pairs(seed), np.random.default_rng(seed)
    pairs = sample_labelled_pairs(
        labelled, count, rng, hard_negatives=hard or negatives, negative_pool=pool
    )
    rows = embed(pairs.needed)
    drawn = add_labelled_negatives(pairs, rows, labelled.clusters, negatives=negatives, rng=rng)
    return pairs, drawn


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(25, 50), st.integers(1, 6))
def test_negatives_follow_the_authors_rule(seed: int, count: int, pool: int, n: int) -> None:
    pairs, drawn = draw(seed, count, pool, n)
    clusters = random_pairs(seed).clusters.tolist()
    images = pairs.candidates[0].tolist()
    assert drawn.negatives.shape == (min(count, 25), n)
    for query, negatives in zip(drawn.anchors.tolist(), drawn.negatives.tolist(), strict=True):
        wanted = oracles.labelled_negatives(query, embed(np.arange(N)), images, clusters, n)
        assert negatives == [wanted[i % len(wanted)] for i in range(n)]
    assert drawn.negatives.dtype == drawn.positives.dtype == np.int64


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(25, 50))
def test_an_epoch_draws_pairs_and_one_pool_without_replacement(
    seed: int, count: int, pool: int
) -> None:
    labelled = random_pairs(seed)
    pairs, drawn = draw(seed, count, pool)
    columns = (labelled.queries.tolist(), labelled.positives.tolist())
    given_pairs = list(zip(*columns, strict=True))
    found = sorted(zip(drawn.anchors.tolist(), drawn.positives[:, 0].tolist(), strict=True))
    for pair in set(found):
        assert found.count(pair) <= given_pairs.count(pair)
    assert len(found) == min(count, 25)
    images = pairs.candidates[0].tolist()
    assert len(set(images)) == len(images) == min(pool, N)
    assert all(candidates is pairs.candidates[0] for candidates in pairs.candidates)
    assert pairs.needed.tolist() == sorted({*images, *drawn.anchors.tolist()})
    assert (drawn.weights == 1).all()
    assert drawn.weights.shape == drawn.positives.shape


# Similarities to the query 0 fall with the id: 1 is of its own cluster, 3 of that of 2.
CLUSTERS = np.array([7, 7, 1, 1, 2, 3, 7, 4])
ANGLES = np.linspace(0, 1.5, 8)
ROWS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def by_hand(negatives: int, hard: int, pool: list[int], seed: int = 0) -> list[int]:
    pairs = Pairs(
        anchors=np.array([0]),
        positives=np.array([[1]]),
        weights=np.ones((1, 1), np.float32),
        candidates=(np.array(pool),),
        hard=np.array([hard]),
        related=(np.array([0, 1]),),
        needed=np.union1d([0], pool),
    )
    drawn = add_labelled_negatives(
        pairs,
        ROWS[pairs.needed],
        CLUSTERS,
        negatives=negatives,
        rng=np.random.default_rng(seed),
    )
    return drawn.negatives[0].tolist()


def test_each_cluster_gives_its_nearest_image_and_the_query_s_none() -> None:
    everything = list(range(8))
    assert by_hand(3, 3, everything) == [2, 4, 5]
    assert by_hand(4, 9, everything) == [2, 4, 5, 7]
    assert by_hand(2, 2, [1, 3, 6, 7]) == [3, 7]


def test_fewer_clusters_than_negatives_are_repeated_the_nearest_first() -> None:
    assert by_hand(5, 5, [2, 3, 4, 6]) == [2, 4, 2, 4, 2]


def test_of_more_hard_negatives_some_are_drawn() -> None:
    drawn = [by_hand(2, 3, list(range(8)), seed) for seed in range(300)]
    pairs, counts = np.unique(np.array(drawn), axis=0, return_counts=True)
    assert pairs.tolist() == sorted([x, y] for x in (2, 4, 5) for y in (2, 4, 5) if x != y)
    assert (abs(counts - 50) < 5 * np.sqrt(50)).all()


def test_the_query_may_be_in_the_pool_or_not() -> None:
    assert by_hand(2, 2, [0, 5, 7]) == by_hand(2, 2, [5, 7]) == [5, 7]


def test_a_pool_of_the_query_s_cluster_alone_says_what_to_raise() -> None:
    with pytest.raises(InputError, match=r"none of the 3 images.*than image 0.*--training.negativ"):
        by_hand(2, 2, [0, 1, 6])


@pytest.mark.parametrize("block", [1, 2, 3, 256])
def test_the_blocks_in_which_queries_are_compared_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    whole = draw(3, 7, 30)[1]
    monkeypatch.setattr(labelled_tuples, "_BLOCK", block)
    np.testing.assert_array_equal(draw(3, 7, 30)[1].negatives, whole.negatives)


@pytest.mark.parametrize("d", [64, 100, 513, 2047])
@pytest.mark.parametrize("n", [5, 7, 9, 17, 33])
def test_equal_images_are_told_apart_by_id_alone(n: int, d: int) -> None:
    # At these sizes a matrix product sums the terms of some rows in another order.
    rng = np.random.default_rng(n)
    labelled = of([0], [1], n + 1)
    pairs = sample_labelled_pairs(labelled, 1, rng, hard_negatives=3, negative_pool=n + 1)
    query, other = rng.standard_normal((2, d)).astype(np.float32)
    rows = np.stack([query, *[other] * n])
    drawn = add_labelled_negatives(pairs, rows, np.arange(n + 1), negatives=3, rng=rng)
    assert drawn.negatives.tolist() == [[1, 2, 3]]


def test_every_pair_and_every_image_is_drawn_about_equally_often() -> None:
    labelled = of([0, 0, 1, 2], [3, 4, 3, 3], N)
    counts, in_pool = np.zeros(4), np.zeros(N)
    for seed in range(600):
        rng = np.random.default_rng(seed)
        pairs = sample_labelled_pairs(labelled, 2, rng, negative_pool=10)
        for pair in zip(pairs.anchors.tolist(), pairs.positives[:, 0].tolist(), strict=True):
            counts[[(0, 3), (0, 4), (1, 3), (2, 3)].index(pair)] += 1
        in_pool[pairs.candidates[0]] += 1
    assert (abs(counts - 300) < 5 * np.sqrt(300)).all()
    assert (abs(in_pool - 150) < 5 * np.sqrt(150)).all()


def test_the_same_seed_draws_the_same_tuples_and_another_others() -> None:
    one, two, three = (draw(seed, 6, 30)[1] for seed in (4, 4, 5))
    for name in ("anchors", "positives", "negatives", "weights"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.anchors.tolist() != three.anchors.tolist()


def test_the_pairs_are_what_the_whitening_learns_from() -> None:
    pools = of([3, 3, 5], [4, 6, 7], 8).as_pools()
    pairs = matching_pairs(pools, 10, np.random.default_rng(0))
    assert pairs.tolist() == [[3, 3, 5], [4, 6, 7]]


def test_impossible_arguments_are_refused() -> None:
    labelled, rng = of([0], [1], 5), np.random.default_rng(0)
    for count, pool in ((0, 5), (1, 0)):
        with pytest.raises(ValueError, match=f"count = {count}, negative_pool = {pool}: draw at"):
            sample_labelled_pairs(labelled, count, rng, negative_pool=pool)
    with pytest.raises(ValueError, match="hard_negatives = 0: choose at least 1"):
        sample_labelled_pairs(labelled, 1, rng, hard_negatives=0, negative_pool=5)
    pairs = sample_labelled_pairs(labelled, 1, rng, negative_pool=5)
    rows = embed(pairs.needed)
    options = {"clusters": np.arange(5), "rng": rng}
    with pytest.raises(ValueError, match=r"need one row for each of 5 images"):
        add_labelled_negatives(pairs, rows[1:], **options)
    with pytest.raises(ValueError, match="negatives = 0: draw at least one"):
        add_labelled_negatives(pairs, rows, negatives=0, **options)
