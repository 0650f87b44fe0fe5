"""Outlooks on a long search: they grow with the items, and foresee what is missed."""

import numpy as np
import pytest

from jobs.benchmarks.mining import manifold_features
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.forecast import approximate_recall, exact_seconds
from mmray.mining.knn.recall import measured_recall


def test_seconds_grow_with_the_pairs(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 22.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    features = manifold_features(2000, 16)
    one = exact_seconds(features, 10_000, 10)
    assert one == pytest.approx(2 * 5 * 10_000 / 512)
    assert exact_seconds(features, 40_000, 10) == pytest.approx(16 * one)


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
