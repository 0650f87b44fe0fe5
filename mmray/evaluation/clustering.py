"""Normalised mutual information (NMI) of clusters and classes, as fine-grained papers report it.

n items, d dims, k clusters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.mining.knn.faiss_library import faiss, faiss_threads
from mmray.mining.knn.results import finite_norms
from mmray.system.arrays import Features, Ids


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """NMI of several runs of k-means.

    Attributes
    ----------
    mean, spread : float
        Mean and standard deviation of the values; the deviation of a single run is 0.
    values : tuple of float
        The NMI of each run, in [0, 1].
    """

    mean: float
    spread: float
    values: tuple[float, ...]


def clustering_nmi(embeddings: Features, labels: NDArray[Any], *, seeds: int = 5) -> Clustering:
    """Cluster embeddings by k-means, k the number of classes, and measure NMI (Song et al., 2016).

    Parameters
    ----------
    embeddings : (n, d) float32
    labels : (n,) of integers or strings
        The class of each item.
    seeds : int
        Runs of k-means, with the seeds 0..seeds - 1: its start is random, and so is the NMI.

    Raises
    ------
    ValueError
        There is not one label for each row, there are no items or no runs, or a row is not finite.
    """
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"there must be one label for each of {len(embeddings)} embeddings, "
            f"got shape {labels.shape}"
        )
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    k = len(np.unique(labels))
    values = [
        normalized_mutual_information(labels, kmeans_clusters(embeddings, k, seed=seed))
        for seed in range(seeds)
    ]
    return Clustering(
        mean=float(np.mean(values)), spread=float(np.std(values)), values=tuple(values)
    )


def normalized_mutual_information(labels: NDArray[Any], clusters: NDArray[Any]) -> float:
    """Return the normalised mutual information of two groupings of the same items.

    It is 2 I(labels; clusters) / (H(labels) + H(clusters)), with the mutual information I and the
    entropy H.

    Parameters
    ----------
    labels, clusters : (n,) of integers or strings
        The group of each item in either grouping; the names of the groups do not matter.

    Returns
    -------
    float
        From 0 to 1: exactly 1 where the groupings are the same, even where each is a single group,
        as in scikit-learn.

    Raises
    ------
    ValueError
        They are not one-dimensional, not of the same length, or empty.

    Examples
    --------
    >>> species = np.array(["wren", "wren", "robin", "robin"])
    >>> normalized_mutual_information(species, np.array([1, 1, 0, 0]))
    1.0
    >>> normalized_mutual_information(species, np.array([0, 1, 0, 1]))
    0.0
    """
    if labels.shape != clusters.shape or labels.ndim != 1 or not labels.size:
        raise ValueError(
            "labels and clusters must be one-dimensional, of the same length and not empty, "
            f"got shapes {labels.shape} and {clusters.shape}"
        )
    _, rows = np.unique(labels, return_inverse=True)
    _, columns = np.unique(clusters, return_inverse=True)
    # The cells of the contingency table that are not 0, by number: there are n of them at most.
    cells = rows * (columns.max() + 1) + columns
    of_labels, of_clusters, joint = (_entropy(groups) for groups in (rows, columns, cells))
    if of_labels + of_clusters == 0:
        return 1.0
    information = of_labels + of_clusters - joint
    return float(np.clip(2 * information / (of_labels + of_clusters), 0, 1))


def _entropy(groups: Ids) -> float:
    """Return the entropy in nats of a grouping, given by the group (n,) of each item."""
    counts = np.unique(groups, return_counts=True)[1]
    shares = np.sort(counts) / len(groups)  # sorted: equal sizes, in any order, have equal sums
    return float(-np.sum(shares * np.log(shares)))


def kmeans_clusters(embeddings: Features, k: int, *, seed: int, iterations: int = 100) -> Ids:
    """Cluster rows by Lloyd's k-means on Euclidean distances, started by k-means++.

    It runs in one thread, so that equal seeds give equal clusters on any number of cores: 6,000
    items of 512 dims in 100 clusters take 0.1 s.

    Parameters
    ----------
    embeddings : (n, d) float32
    k : int
        1..n.
    seed : int
        Seed of the random start.
    iterations : int
        Most iterations, at least 1: k-means ends earlier where the sum of distances, in single
        precision, no longer falls.

    Returns
    -------
    (n,) int64 : clusters in 0..k-1, one or more of which are empty where items are equal.

    Raises
    ------
    ValueError
        k or iterations is outside its range, or the embeddings have another shape or dtype, or a
        row that is not finite.
    """
    finite_norms(embeddings, "embeddings")
    n, d = embeddings.shape
    if not 1 <= k <= n:
        raise ValueError(f"k must be in 1..{n}, the number of embeddings, got {k}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    kmeans = faiss.Kmeans(
        d,
        k,
        niter=iterations,
        seed=seed,
        # A start of k items at random often leaves two in one class and none in another.
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        # All items take part, and faiss does not warn that they are few.
        max_points_per_centroid=n,
        min_points_per_centroid=1,
    )
    with faiss_threads(1):
        kmeans.train(embeddings)
        clusters: Ids = kmeans.assign(embeddings)[1]
    return clusters
