"""Outlooks on the search of all pairs: how long it takes, and what an approximate one would find.

n items in the database, d dimensions, k neighbours.
"""

import time

import torch

from mmray.config.choices import ApproximateSearch
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.recall import recall
from mmray.system.arrays import Features

SAMPLE = 2**16  # items from which an outlook is taken
_QUERIES = 512


def exact_seconds(sample: Features, n: int, k: int) -> float:
    """Estimate the seconds that one CPU takes to search n items for the neighbours of each.

    Parameters
    ----------
    sample : (m, d) float32
        Some of the items. Searches of all and of a quarter are timed: the difference is what grows
        with the items, the rest what each query costs.
    n, k : int
    """
    asked, quarter = sample[:_QUERIES], len(sample) // 4
    k = min(k, quarter)
    few, many = (_seconds(sample[:size], asked, k) for size in (quarter, len(sample)))
    growing = max(many - few, 0.1 * many) / (len(sample) - quarter)
    return (many + growing * (n - len(sample))) * n / len(asked)


def _seconds(database: Features, queries: Features, k: int) -> float:
    """Time a search on one CPU: what it takes of the CPU, whatever else runs beside it."""
    index, threads = ExactIndex.of(database), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        index.search(queries, k)  # compiles, and warms the caches
        start = time.thread_time()
        index.search(queries, k)
        return time.thread_time() - start
    finally:
        torch.set_num_threads(threads)


def approximate_recall(
    sample: Features, n: int, k: int, *, method: ApproximateSearch, effort: int
) -> float:
    """Estimate which share of the k nearest of n items an approximate search would find.

    It is measured on the sample, with as much less effort as there are fewer lists, and as many
    fewer neighbours.

    Parameters
    ----------
    sample : (m, d) float32
    n, k : int
    method, effort
        See `ApproximateIndex`.
    """
    index = ApproximateIndex.of(sample, method)
    if method == "ivf":
        effort = max(1, round(effort * (len(sample) / n) ** 0.5))
    asked, k = sample[:_QUERIES], min(k, len(sample))
    found = index.search(asked, k, effort=effort)
    return recall(found, ExactIndex.of(sample).search(asked, k))
