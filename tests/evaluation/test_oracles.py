"""Pools of labels, by hand."""

from dataclasses import replace

import numpy as np

from mmray.evaluation.oracles import filtered_pools, replaced_pools
from mmray.evaluation.purity import pool_purity
from tests.evaluation.test_purity import pools_with
from tests.made.synthetic import ragged


def test_an_oracle_leaves_the_true_pairs_in_their_order():
    pools = pools_with([0, 3], [[2, 1, 4], [5]], [[5, 1, 3], [0, 4]])
    weights = (np.array([3, 2, 1], np.float32), np.array([9], np.float32))
    pools = replace(
        pools,
        positive_similarity=weights,
        positive_rank_e=ragged([7, 8, 9], [6]),
        negative_similarity=tuple(np.arange(len(ids), dtype=np.float32) for ids in pools.negatives),
        negative_rank_m=ragged([4, 5, 6], [1, 2]),
    )
    labels = np.array(["a", "a", "", "b", "a", "c"])

    def lists(values):
        return [row.tolist() for row in values]

    left = filtered_pools(pools, labels, "positives")
    assert lists(left.positives) == [[1, 4], []]
    assert lists(left.positive_similarity) == [[2, 1], []]
    assert lists(left.positive_rank_e) == [[8, 9], []]
    assert lists(left.negatives) == lists(pools.negatives)
    left = filtered_pools(pools, labels, "negatives")
    assert lists(left.positives) == lists(pools.positives)
    assert lists(left.negatives) == [[5, 3], [0, 4]]
    assert lists(left.negative_similarity) == [[0, 2], [0, 1]]
    assert lists(left.negative_rank_m) == [[4, 6], [1, 2]]
    both = filtered_pools(pools, labels, "both")
    assert lists(both.positives) + lists(both.negatives) == [[1, 4], [], [5, 3], [0, 4]]
    assert both.anchors.tolist() == [0, 3]
    found = pool_purity(both, labels)
    assert (found.positives, found.negatives) == (1, 1)
    none = pools_with([], [], [])
    left = filtered_pools(none, labels, "both")
    assert left.anchors.tolist() == []


def test_an_oracle_takes_all_of_a_label_and_the_nearest_of_the_others():
    """Items on a line by their cosine with item 0; 3 has no label and so is nobody's positive."""
    cosines = np.array([1, 0.9, 0.8, 0.7, 0.6, 0.5])
    features = np.c_[cosines, np.sqrt(1 - cosines**2)].astype(np.float32)
    labels = np.array(["a", "b", "a", "", "b", "a"])
    pools = pools_with([0, 3], [[1], [2]], [[2], [4]])
    both = replaced_pools(pools, labels, "both", features, negatives=2)
    assert [ids.tolist() for ids in both.positives] == [[2, 5], []]
    assert [values.tolist() for values in both.positive_similarity] == [[1, 1], []]
    assert [ids.tolist() for ids in both.negatives] == [[1, 3], [4, 2]]
    np.testing.assert_allclose(both.negative_similarity[0], [0.9, 0.7], atol=1e-6)
    assert [values.tolist() for values in both.positive_rank_e] == [[0, 0], []]
    assert [values.tolist() for values in both.negative_rank_m] == [[0, 0], [0, 0]]
    one = replaced_pools(pools, labels, "positives", features, negatives=2)
    assert [ids.tolist() for ids in one.positives] == [[2, 5], []]
    assert one.negatives == pools.negatives
    other = replaced_pools(pools, labels, "negatives", features, negatives=9)
    assert [ids.tolist() for ids in other.negatives] == [[1, 3, 4], [4, 2, 5, 1, 0]]
    assert other.positives == pools.positives
