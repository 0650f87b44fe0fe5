import math
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmray.evaluation import ranking
from mmray.evaluation.ranking import (
    Query,
    mean_average_precision,
    mean_precision_at_k,
    mean_recall_at_k,
    rank,
)
from mmray.evaluation.recall import recall_at_k
from tests import oracles


def query(positives=(), junk=(), name: str = "q") -> Query:
    ids = (np.array(sorted(part), dtype=np.int64) for part in (positives, junk))
    return Query(name, f"{name}.jpg", None, *ids)


def score(order, positives, junk=()) -> float:
    """Average precision of one ranking."""
    mean, each = mean_average_precision(np.array(order)[:, None], [query(positives, junk)])
    assert mean == each[0] or math.isnan(mean)
    return mean


def unit_rows(seed: int, n: int, d: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@st.composite
def rankings(draw):
    """A ranking of some items, positives among them (at least one), junk among the others."""
    n = draw(st.integers(1, 25))
    order = draw(st.permutations(range(n)))
    kinds = draw(st.lists(st.sampled_from(["positive", "junk", "other"]), min_size=n, max_size=n))
    positives = {i for i in range(n) if kinds[i] == "positive"}
    assume(positives)
    return order, positives, {i for i in range(n) if kinds[i] == "junk"}


# rank


@pytest.mark.parametrize("d", [1, 3, 64])
def test_rank_sorts_by_similarity_then_by_row(d: int) -> None:
    database, queries = unit_rows(0, 60, d), unit_rows(1, 7, d)
    database[[11, 40, 59]] = database[3]  # duplicates; at d = 1 nearly all are
    ranks = rank(database, queries)
    assert ranks.shape == (60, 7)
    assert ranks.dtype == np.int64
    for j in range(7):
        assert ranks[:, j].tolist() == oracles.order(queries[j], database, list(range(60)))


@pytest.mark.parametrize("d", [64, 100, 513, 2047])
@pytest.mark.parametrize("n", [5, 7, 9, 17, 33, 1537])
def test_equal_images_are_ranked_by_row_wherever_they_stand_in_the_product(n: int, d: int) -> None:
    # At these sizes a matrix product sums the terms of some rows in another order.
    database = np.repeat(unit_rows(2, 1, d), n, axis=0)
    for q in (1, 2, 3):
        ranks = rank(database, unit_rows(3, q, d))
        np.testing.assert_array_equal(ranks, np.tile(np.arange(n)[:, None], q))


def test_many_queries_are_ranked_as_each_alone(monkeypatch) -> None:
    database, queries = unit_rows(4, 50, 8), unit_rows(5, 23, 8)
    whole = rank(database, queries)
    monkeypatch.setattr(ranking, "_BLOCK", 5)
    np.testing.assert_array_equal(rank(database, queries), whole)


def test_a_database_in_parts_is_ranked_as_in_one(monkeypatch) -> None:
    database, queries = unit_rows(4, 50, 8), unit_rows(5, 23, 8)
    whole = rank(database, queries)
    monkeypatch.setattr(ranking, "_PART", 7)
    np.testing.assert_array_equal(rank(database, queries), whole)


def test_ranking_nothing_gives_nothing() -> None:
    rows = unit_rows(6, 4, 3)
    assert rank(rows, rows[:0]).shape == (4, 0)
    assert rank(rows[:0], rows).shape == (0, 4)


def test_rank_refuses_what_it_cannot_compare() -> None:
    rows = unit_rows(7, 4, 3)
    with pytest.raises(ValueError, match=r"database \(4, 3\) and queries \(4, 2\).*same number"):
        rank(rows, rows[:, :2])
    with pytest.raises(ValueError, match="must be matrices"):
        rank(rows, rows[0])
    broken = rows.copy()
    broken[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"queries: row 2 is not finite \(1 such rows\)"):
        rank(rows, broken)
    with pytest.raises(ValueError, match="database: row 2 is not finite"):
        rank(broken, rows)


# mean average precision


@pytest.mark.parametrize(
    ("order", "positives", "junk", "expected"),
    [
        ([0, 1, 2, 3], {0}, set(), 1),
        ([1, 0, 2, 3], {0}, set(), (0 + 1 / 2) / 2),
        ([1, 2, 3, 0], {0}, set(), (0 + 1 / 4) / 2),
        ([0, 2, 1, 3], {0, 1}, set(), (1 + (1 / 2 + 2 / 3) / 2) / 2),
        ([2, 0, 3, 1], {0, 1}, set(), ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2),
        ([2, 0, 3, 1], {0, 1}, {2}, (1 + (1 / 2 + 2 / 3) / 2) / 2),
        ([2, 0, 3, 1], {0, 1}, {2, 3}, 1),
        ([0, 1], {0, 1}, {1}, 1 / 2),  # asked for, but taken out of the ranking
    ],
)
def test_average_precision_by_hand(order, positives, junk, expected: float) -> None:
    assert score(order, positives, junk) == pytest.approx(expected, abs=1e-15)


@given(rankings())
def test_average_precision_is_what_the_oxford_program_computes(case) -> None:
    order, positives, junk = case
    expected = oracles.average_precision(order, positives, junk)
    assert score(order, positives, junk) == pytest.approx(expected, abs=1e-12)


@given(rankings())
def test_a_perfect_ranking_scores_1_and_no_other_does(case) -> None:
    order, positives, junk = case
    rest = [i for i in order if i not in positives]
    assert score([*(i for i in order if i in positives), *rest], positives, junk) == 1
    others = [i for i in order if i not in junk]
    perfect = set(others[: len(positives)]) == positives
    assert (score(order, positives, junk) == 1) == perfect


@given(rankings(), st.randoms(use_true_random=False))
def test_places_of_junk_do_not_matter(case, random) -> None:
    order, positives, junk = case
    moved = [i for i in order if i not in junk]
    for item in junk:
        moved.insert(random.randint(0, len(moved)), item)
    assert score(moved, positives, junk) == score(order, positives, junk)


@given(rankings(), st.data())
def test_moving_a_positive_up_never_lowers_the_score(case, data) -> None:
    order, positives, junk = case
    place = data.draw(st.sampled_from([p for p, i in enumerate(order) if i in positives]))
    to = data.draw(st.integers(0, place))
    moved = [*order[:place], *order[place + 1 :]]
    moved.insert(to, order[place])
    assert score(moved, positives, junk) >= score(order, positives, junk) - 1e-12


@given(rankings(), st.randoms(use_true_random=False))
def test_names_of_the_items_do_not_matter(case, random) -> None:
    order, positives, junk = case
    new = list(range(len(order)))
    random.shuffle(new)
    renamed = score([new[i] for i in order], {new[i] for i in positives}, {new[i] for i in junk})
    assert renamed == score(order, positives, junk)


def test_queries_without_positives_are_left_out_of_the_mean() -> None:
    ranks = np.array([[0, 0, 1], [1, 1, 0], [2, 2, 2]])
    mean, each = mean_average_precision(ranks, [query({0}), query((), {1}), query({0})])
    assert each.dtype == np.float64
    np.testing.assert_allclose(each, [1, np.nan, 0.25])
    assert mean == pytest.approx(0.625)


def test_without_any_positive_the_mean_is_nan() -> None:
    mean, each = mean_average_precision(np.array([[0], [1]]), [query()])
    assert math.isnan(mean)
    assert np.isnan(each).all()
    mean, each = mean_average_precision(np.empty((5, 0), np.int64), [])
    assert math.isnan(mean)
    assert each.shape == (0,)


def test_an_id_repeated_in_the_ground_truth_counts_once() -> None:
    repeated = Query("q", "q.jpg", None, np.array([0, 2, 2, 0]), np.array([1, 1]))
    ranks = np.array([[3], [1], [0], [2]])
    assert mean_average_precision(ranks, [repeated])[0] == score(ranks[:, 0], {0, 2}, {1})


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([[0, 1], [1, 0]], r"ranks \(2, 2\) must have one column for each of 1 queries"),
        ([0, 1], r"ranks \(2,\) must have one column"),
        ([[0], [0], [1]], "query q: ranking does not list row 2"),
        ([[0], [3], [1]], r"query q: ranking has ids outside 0\.\.2"),
        ([[0], [-1], [1]], r"query q: ranking has ids outside 0\.\.2"),
    ],
)
def test_rankings_that_are_not_of_the_whole_database_are_refused(ranks, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_average_precision(np.array(ranks), [query({0})])


@pytest.mark.parametrize("truth", [query({2}), query({0}, {5}), query({-1})])
def test_ground_truth_of_another_database_is_refused(truth: Query) -> None:
    with pytest.raises(ValueError, match=r"query q: ground truth has ids outside 0\.\.1"):
        mean_average_precision(np.array([[0], [1]]), [truth])


# precision at k, and recall of rankings


@pytest.mark.parametrize(
    ("order", "positives", "junk", "k", "expected"),
    [
        ([0, 1, 2, 3], {0}, set(), 1, 1),
        ([1, 0, 2, 3], {0}, set(), 1, 0),
        ([1, 0, 2, 3], {0}, set(), 4, 1 / 2),  # the last positive is second: precision at 2
        ([0, 2, 1, 3], {0, 1}, set(), 2, 1 / 2),
        ([2, 0, 3, 1], {0, 1}, {2}, 2, 1 / 2),
        ([2, 0, 3, 1], {0, 1}, {2, 3}, 10, 1),
    ],
)
def test_precision_at_k_by_hand(order, positives, junk, k: int, expected: float) -> None:
    found = mean_precision_at_k(np.array(order)[:, None], [query(positives, junk)], k)
    assert found == pytest.approx(expected, abs=1e-15)


@given(rankings(), st.integers(1, 30))
def test_precision_at_k_is_what_the_revisited_program_computes(case, k: int) -> None:
    order, positives, junk = case
    found = mean_precision_at_k(np.array(order)[:, None], [query(positives, junk)], k)
    assert found == pytest.approx(oracles.precision_at_k(order, positives, junk, k), abs=1e-15)


def test_queries_without_positives_do_not_count_for_precision_and_miss_for_recall() -> None:
    ranks = np.array([[0, 1, 2], [1, 0, 1], [2, 2, 0]])
    truth = [query({0}), query(), query({1}, {1})]
    assert mean_precision_at_k(ranks, truth, 1) == 1
    assert mean_recall_at_k(ranks, truth, 3) == pytest.approx(1 / 3)
    assert math.isnan(mean_precision_at_k(ranks[:, 1:], truth[1:], 1))


@given(rankings(), st.integers(1, 30))
def test_recall_of_a_ranking_asks_for_a_positive_among_the_first(case, k: int) -> None:
    order, positives, junk = case
    found = mean_recall_at_k(np.array(order)[:, None], [query(positives, junk)], k)
    assert found == oracles.hit_at_k(order, positives, junk, k)


def test_recall_of_rankings_is_that_of_embeddings() -> None:
    embeddings, labels = unit_rows(13, 60, 3), np.random.default_rng(14).integers(0, 9, 60)
    ranks, rows = rank(embeddings, embeddings), np.arange(60)
    truth = [query(np.setdiff1d(rows[labels == labels[i]], [i]), {i}) for i in rows]
    wanted = recall_at_k(embeddings, labels, [1, 2, 4, 8])
    assert {k: mean_recall_at_k(ranks, truth, k) for k in wanted} == pytest.approx(wanted)
    assert 0 < wanted[1] < wanted[8] < 1


@pytest.mark.parametrize("figure", [mean_precision_at_k, mean_recall_at_k])
def test_figures_at_no_place_are_refused(figure) -> None:
    with pytest.raises(ValueError, match="k = 0: choose at least 1"):
        figure(np.array([[0]]), [query({0})], 0)


# recall


@pytest.mark.parametrize("d", [2, 16])
def test_recall_is_the_share_of_items_with_their_label_among_k_neighbours(d: int) -> None:
    rng = np.random.default_rng(8)
    embeddings, labels = unit_rows(9, 70, d), rng.integers(0, 12, 70)
    embeddings[rng.integers(0, 70, 30)] = embeddings[rng.integers(0, 70, 30)]  # duplicates: ties
    recall = recall_at_k(embeddings, labels, [1, 2, 4, 8, 69, 1000])
    assert list(recall) == [1, 2, 4, 8, 69, 1000]
    for k, value in recall.items():
        assert value == pytest.approx(oracles.recall_at_k(embeddings, labels, k), abs=1e-15)
    assert 0.05 < recall[1] < recall[8] < recall[69]


def test_equal_neighbours_are_ranked_by_row() -> None:
    embeddings = np.ones((4, 2), np.float32)
    # Every item sees the others by row: 0 finds 2 second, 1 finds 3 third, 2 finds 0 first.
    labels = np.array(["a", "b", "a", "b"])
    assert recall_at_k(embeddings, labels, [1, 2, 3]) == {1: 0.25, 2: 0.75, 3: 1.0}


def test_an_item_does_not_find_itself_and_alone_with_its_label_it_misses() -> None:
    embeddings = unit_rows(10, 5, 3)
    assert recall_at_k(embeddings, np.arange(5), [1, 5, 50]) == {1: 0.0, 5: 0.0, 50: 0.0}
    assert recall_at_k(embeddings, np.array([7, 7, 7, 7, 1]), [5]) == {5: 0.8}


def test_recall_is_the_same_in_any_blocks(monkeypatch) -> None:
    embeddings, labels = unit_rows(11, 50, 4), np.arange(50) % 9
    whole = recall_at_k(embeddings, labels, [1, 2, 4, 8])
    monkeypatch.setattr(ranking, "_BLOCK", 7)
    assert recall_at_k(embeddings, labels, [1, 2, 4, 8]) == whole


def test_recall_refuses_what_has_no_answer() -> None:
    embeddings, labels = unit_rows(12, 5, 3), np.arange(5)
    with pytest.raises(ValueError, match=r"labels \(4,\): need at least two items and one label"):
        recall_at_k(embeddings, labels[:4], [1])
    with pytest.raises(ValueError, match="at least two items"):
        recall_at_k(embeddings[:1], labels[:1], [1])
    for ks in ([], [0], [2, -1]):
        with pytest.raises(ValueError, match="each at least 1"):
            recall_at_k(embeddings, labels, ks)


# -- published ground truth -----------------------------------------------------------------------


def shuffled(n, q, dtype=np.int64):
    rng = np.random.default_rng(n)
    return np.stack([rng.permutation(n) for _ in range(q)], axis=1).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64])
def test_the_gnd_list_of_a_published_pickle_is_ground_truth(dtype):
    ranks = shuffled(12, 3, dtype)
    gnd = [
        {"bbx": [0, 0, 1, 1], "ok": [1, 5], "junk": np.array([2], dtype)},
        {"ok": np.array([0], dtype), "junk": []},
        {"ok": [], "junk": np.array([], np.float64)},
    ]
    queries = [
        query(positives=[1, 5], junk=[2]),
        query(positives=[0], junk=[]),
        query(positives=[], junk=[]),
    ]
    mean, precisions = mean_average_precision(ranks, gnd)
    wanted, each = mean_average_precision(ranks.astype(np.int64), queries)
    assert mean == wanted
    np.testing.assert_array_equal(precisions, each)
    assert np.isnan(precisions[2])


@pytest.mark.parametrize(
    ("difficulty", "positives", "junk"),
    [("easy", [1, 5], [2, 7, 3]), ("medium", [1, 5, 7, 3], [2]), ("hard", [7, 3], [2, 1, 5])],
)
def test_easy_and_hard_ids_are_positives_or_junk_by_the_difficulty(difficulty, positives, junk):
    ranks = shuffled(12, 1)
    gnd = [{"easy": [1, 5], "hard": [7, 3], "junk": [2]}]
    found = mean_average_precision(ranks, gnd, difficulty=difficulty)
    assert found == mean_average_precision(ranks, [query(positives=positives, junk=junk)])
    assert mean_average_precision(ranks, gnd) == mean_average_precision(
        ranks, gnd, difficulty="medium"
    )


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"positives": [1]}, "query 0: has positives; the lists `ok` and `junk`"),
        ({"ok": [1.5], "junk": []}, "query 0: ok: a list of integers is wanted, not float64"),
        ({"ok": [12], "junk": []}, "query 0: ground truth has ids outside 0..11"),
    ],
)
def test_ground_truth_of_another_layout_is_refused(entry, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        mean_average_precision(shuffled(12, 1), [entry])
