"""NMI against scikit-learn's, and k-means that finds what there is, by its seed alone."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from mmray.evaluation.clustering import (
    clustering_nmi,
    kmeans_clusters,
    normalized_mutual_information,
)
from mmray.mining.knn.faiss_library import faiss

FEW = 2  # groups at most, so that one group and equal groups are met often
KINDS = {
    "int64": lambda ids: ids,
    "int8": lambda ids: ids.astype(np.int8),
    "negative": lambda ids: -ids,
    "strings": lambda ids: np.array([f"bird {i}" for i in ids]),
    "objects": lambda ids: np.array([f"bird {i}" for i in ids], object),
}


def unit_rows(seed, n, d):
    rows = np.random.default_rng(seed).standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blobs(seed, *, classes=12, each=20, d=16):
    """Well separated clouds: rows, and the class of each, as a string."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), each))
    centres = 10 * rng.standard_normal((classes, d))
    rows = centres[labels] + 0.1 * rng.standard_normal((len(labels), d))
    return rows.astype(np.float32), np.array([f"class {i}" for i in labels])


def inertia(rows, clusters):
    """Sum of squared distances from the mean of one's cluster."""
    rows = rows.astype(np.float64)
    return sum(
        np.sum((rows[clusters == j] - rows[clusters == j].mean(axis=0)) ** 2)
        for j in np.unique(clusters)
    )


# NMI


def reference(labels, clusters):
    with warnings.catch_warnings():  # that there are as many classes as items
        warnings.simplefilter("ignore", UserWarning)
        return normalized_mutual_info_score(labels, clusters, average_method="arithmetic")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 60),
    classes=st.integers(1, 60),
    clusters=st.integers(1, 60) | st.integers(1, FEW),
)
@example(seed=0, n=1, classes=1, clusters=1)
@example(seed=0, n=30, classes=5, clusters=1)
@example(seed=0, n=30, classes=1, clusters=5)
def test_nmi_is_that_of_scikit_learn(kind, seed, n, classes, clusters):
    rng = np.random.default_rng(seed)
    labels, found = rng.integers(0, classes, n), rng.integers(0, clusters, n)
    value = normalized_mutual_information(KINDS[kind](labels), found)
    assert value == pytest.approx(reference(labels, found), abs=1e-12)
    assert normalized_mutual_information(found, KINDS[kind](labels)) == pytest.approx(value)
    assert 0 <= value <= 1


def test_nmi_of_a_table_worked_by_hand():
    """Two classes of two, one of them split: I = H(labels) = log 2, H(clusters) = 3/2 log 2."""
    value = normalized_mutual_information(np.array(["a", "a", "b", "b"]), np.array([0, 0, 1, 2]))
    assert value == pytest.approx(2 / (1 + 1.5))


@pytest.mark.parametrize("groups", [1, 2, 7, 100, 900])
def test_equal_groups_by_any_names_have_nmi_exactly_1(groups):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, groups, 1000)
        assert normalized_mutual_information(labels, rng.permutation(groups)[labels]) == 1


def test_one_cluster_tells_nothing_and_single_items_tell_too_much():
    labels = np.repeat([0, 1], 4)
    assert normalized_mutual_information(labels, np.zeros(8, int)) == 0
    single = normalized_mutual_information(labels, np.arange(8))
    assert single == pytest.approx(2 / (1 + 3))
    assert single == pytest.approx(reference(labels, np.arange(8)))


def test_independent_groups_have_nmi_0_and_never_less():
    for rows, columns in itertools.product(range(2, 15), repeat=2):
        labels = np.repeat(np.arange(rows), columns)
        value = normalized_mutual_information(labels, np.tile(np.arange(columns), rows))
        assert 0 <= value < 1e-14


@pytest.mark.parametrize(("labels", "clusters"), [((3,), (4,)), ((2, 2), (2, 2)), ((0,), (0,))])
def test_groupings_of_other_items_are_refused(labels, clusters):
    with pytest.raises(ValueError, match=r"same length and not empty, got shapes \(.*\) and \("):
        normalized_mutual_information(np.zeros(labels, int), np.zeros(clusters, int))


# k-means


@pytest.mark.parametrize("seed", range(5))
def test_separated_classes_are_found_from_every_seed(seed):
    rows, labels = blobs(seed)
    clusters = kmeans_clusters(rows, 12, seed=seed)
    assert (clusters.dtype, clusters.shape) == (np.int64, (240,))
    assert normalized_mutual_information(labels, clusters) == 1


@pytest.mark.parametrize(("n", "d", "k"), [(400, 8, 10), (1000, 32, 40), (300, 16, 1)])
def test_clusters_of_a_cloud_are_as_tight_as_those_of_scikit_learn(n, d, k):
    rows = unit_rows(n, n, d)
    best = KMeans(k, n_init=5, random_state=0).fit(rows).inertia_
    for seed in range(3):
        clusters = kmeans_clusters(rows, k, seed=seed)
        assert 0 <= clusters.min() <= clusters.max() < k
        assert inertia(rows, clusters) < 1.03 * best


def test_no_item_is_nearer_to_the_mean_of_another_cluster():
    rows = unit_rows(0, 500, 8)
    clusters = kmeans_clusters(rows, 9, seed=0)
    means = np.stack([rows[clusters == j].mean(axis=0) for j in range(9)])
    nearest = ((rows[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(clusters, nearest)
    assert (kmeans_clusters(rows, 9, seed=0, iterations=1) != nearest).any()


def test_each_item_is_a_cluster_where_there_are_as_many():
    assert sorted(kmeans_clusters(unit_rows(0, 30, 8), 30, seed=0)) == list(range(30))


def test_equal_items_are_in_one_cluster():
    rows = np.repeat(unit_rows(0, 3, 4), 5, axis=0)
    clusters = kmeans_clusters(rows, 6, seed=0)
    assert normalized_mutual_information(np.repeat([0, 1, 2], 5), clusters) == 1


def test_all_items_take_part_however_many_or_few(capfd):
    """By default faiss would learn from 256 items a cluster, and warn below 39."""
    rows = np.repeat(unit_rows(0, 3, 4), [3000, 3000, 1], axis=0)
    for seed in range(5):
        clusters = kmeans_clusters(rows, 3, seed=seed)
        assert len({clusters[0], clusters[3000], clusters[6000]}) == 3
    kmeans_clusters(unit_rows(0, 20, 4), 10, seed=0)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def threads():
    before = faiss.omp_get_max_threads()
    yield faiss.omp_set_num_threads
    faiss.omp_set_num_threads(before)


def test_a_seed_gives_the_same_clusters_by_any_number_of_threads(threads, monkeypatch):
    rows, used, train = unit_rows(1, 3000, 64), [], faiss.Kmeans.train

    def noted(self, *args):
        used.append(faiss.omp_get_max_threads())
        return train(self, *args)

    monkeypatch.setattr(faiss.Kmeans, "train", noted)
    found = []
    for count in (1, 2, 2):
        threads(count)
        found.append(kmeans_clusters(rows, 40, seed=7))
        assert faiss.omp_get_max_threads() == count
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert used == [1, 1, 1]
    assert (kmeans_clusters(rows, 40, seed=8) != found[0]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 11}, r"k must be in 1\.\.10, the number of embeddings, got 11"),
        ({"k": 0}, r"k must be in 1\.\.10, the number of embeddings, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"embeddings": np.zeros((10, 2))}, "embeddings must be float32, got float64"),
        ({"embeddings": np.zeros(10, np.float32)}, r"embeddings must be two-dimensional.*\(10,\)"),
        (
            {"embeddings": np.array([[0], [np.nan], [np.inf]], np.float32)},
            "embeddings: row 1 holds NaN, infinity or .*2 of 3 rows do",
        ),
    ],
)
def test_kmeans_refuses_what_it_cannot_cluster(changes, message):
    arguments = {"embeddings": np.zeros((10, 2), np.float32), "k": 2, "seed": 0} | changes
    with pytest.raises(ValueError, match=message):
        kmeans_clusters(**arguments)


# Both


def test_separated_classes_have_nmi_1_without_spread():
    found = clustering_nmi(*blobs(9))
    assert (found.mean, found.spread, found.values) == (1, 0, (1.0,) * 5)


def test_the_mean_and_the_spread_are_those_of_the_seeds():
    rows, labels = unit_rows(2, 200, 8), np.arange(200) % 10
    found = clustering_nmi(rows, labels, seeds=3)
    assert found.values == tuple(
        normalized_mutual_information(labels, kmeans_clusters(rows, 10, seed=seed))
        for seed in range(3)
    )
    assert len(set(found.values)) == 3
    assert found.mean == pytest.approx(sum(found.values) / 3)
    assert found.spread == pytest.approx(
        (sum((value - found.mean) ** 2 for value in found.values) / 3) ** 0.5
    )
    assert clustering_nmi(rows, labels, seeds=1).spread == 0


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [
        (np.zeros(9, int), 5, r"one label for each of 10 embeddings, got shape \(9,\)"),
        (np.zeros((10, 1), int), 5, r"one label for each of 10 embeddings, got shape \(10, 1\)"),
        (np.zeros(10, int), 0, "seeds must be at least 1, got 0"),
    ],
)
def test_labels_of_other_items_and_no_seeds_are_refused(labels, seeds, message):
    with pytest.raises(ValueError, match=message):
        clustering_nmi(unit_rows(0, 10, 4), labels, seeds=seeds)
