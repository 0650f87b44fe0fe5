"""Outlooks on a long search: they grow with the items, and foresee what is missed."""

import numpy as np
import pytest

from jobs.benchmarks.mining import manifold_features
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.forecast import approximate_recall, exact_seconds
from mmray.mining.knn.recall import measured_recall


def test_seconds_grow_with_the_pairs(monkeypatch):
    """A query costs 1 s, and 1 s more for each 1,000 items."""
    clock = iter([10.0, 10.0 + 512 * 2, 0.0, 512 * 5.0])
    monkeypatch.setattr("time.thread_time", lambda: next(clock))
    features = manifold_features(4000, 16)
    assert exact_seconds(features, 10_000, 10) == pytest.approx(10_000 * 11)


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_the_recall_of_a_sample_is_near_that_of_the_whole(method):
    features, effort = manifold_features(20_000, 16, intrinsic=6), 16
    sample = features[::5].copy()
    foreseen = approximate_recall(sample, len(features), 10, method=method, effort=effort)
    index = ApproximateIndex.of(features, method)
    measured = measured_recall(index, ExactIndex.of(features), 10, effort=effort)
    assert 0.3 < measured <= 1
    assert foreseen == pytest.approx(measured, abs=0.15)
    assert np.isfinite(foreseen)
