"""How long a search of all pairs will take, and what an approximate one would find instead.

n items in the database, d dimensions, k neighbours.
"""

import time

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
        Some of the items: their search is timed, and grows as the pairs do.
    n, k : int
    """
    index, asked = ExactIndex.of(sample), sample[:_QUERIES]
    k = min(k, len(sample))
    index.search(asked[:32], k)  # compiles
    start = time.perf_counter()
    index.search(asked, k)
    seconds = time.perf_counter() - start
    return seconds * (n / len(sample)) * (n / len(asked))


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
