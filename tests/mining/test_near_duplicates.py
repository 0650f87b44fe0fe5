"""Near-duplicates are the components of pairs with near hashes and similar features."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from mmray.mining.near_duplicates.groups import near_duplicate_groups, representatives


def oracle(features, hashes, known, hamming, cosine):
    """All pairs, in double precision."""
    rows = features.astype(np.float64)
    joined = np.bitwise_count(hashes[:, None] ^ hashes) <= hamming
    joined &= (rows @ rows.T >= cosine) & known & known[:, None]
    _, components = connected_components(joined)
    return np.array([np.flatnonzero(components == each)[0] for each in components], np.int64)


def unit(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0).astype(np.float32)


def hashes_near(rng, n, centres, flips):
    """Hashes some bits away from a few centres, in any of the four bands."""
    found = rng.choice(rng.integers(0, 2**64, centres, dtype=np.uint64), n)
    for _ in range(flips):
        flipped = np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64)
        found ^= np.where(rng.random(n) < 0.7, flipped, np.uint64(0))
    return found


@pytest.mark.parametrize("hamming", [0, 3, 4, 6, 7, 8, 11, 16])
@pytest.mark.parametrize("dims", [2, 3, 40])
def test_groups_are_those_of_comparing_all_pairs(hamming, dims):
    seen = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        n = 300
        rows = unit(rng.standard_normal((12, dims))[rng.integers(0, 12, n)])
        noise = rng.standard_normal((n, dims)) / dims**0.5
        rows = unit(rows + (0, 0.1, 0.2)[seed % 3] * noise)
        rows[rng.integers(0, n, 10)] = 0
        hashes = hashes_near(rng, n, centres=8, flips=(0, 1, 3, 8)[seed % 4])
        known = rng.random(n) < 0.95
        found, complete = near_duplicate_groups(rows, hashes, known, hamming=hamming, cosine=0.95)
        np.testing.assert_array_equal(found, oracle(rows, hashes, known, hamming, np.float32(0.95)))
        assert complete
        seen.add(len(np.unique(found)))
    assert len(seen) > 2
    assert min(seen) < 200, "or nothing was joined"


@hypothesis.settings(max_examples=300)
@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(0, 8))
def test_groups_of_few_items_are_those_of_comparing_all_pairs(seed, n, hamming):
    """Chains through unlike items of equal hash, too: on a line of angles nearly all happen."""
    rng = np.random.default_rng(seed)
    angles = rng.integers(0, 62, n) * 0.1
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    hashes = rng.choice(np.array([0, 1, 2**63 + 5, 0x7F000F00], np.uint64), n)
    cosine = np.cos(0.25)
    found, complete = near_duplicate_groups(rows, hashes, hamming=hamming, cosine=cosine)
    expected = oracle(rows, hashes, np.ones(n, bool), hamming, cosine) if n else np.arange(0)
    np.testing.assert_array_equal(found, expected)
    assert complete


def test_a_piece_that_moves_keeps_its_radius():
    """Angles: 0.2 joins 0 and 0.4, so that the piece from 2.0 to 2.4, which 2.6 is near, moves."""
    angles = np.array([0, 0.4, 2.0, 2.2, 2.4, 0.2, 2.6])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found, _ = near_duplicate_groups(rows, np.zeros(7, np.uint64), cosine=np.cos(0.25))
    assert found.tolist() == [0, 0, 2, 2, 2, 0, 2]


def test_permuted_items_have_the_same_groups():
    rng = np.random.default_rng(3)
    rows, hashes = unit(rng.standard_normal((200, 3))), hashes_near(rng, 200, 5, 3)
    order = rng.permutation(200)
    found, _ = near_duplicate_groups(rows, hashes, cosine=0.9)
    permuted, _ = near_duplicate_groups(rows[order], hashes[order], cosine=0.9)
    np.testing.assert_array_equal(
        found[order][:, None] == found[order], permuted[:, None] == permuted
    )


def test_zero_vectors_and_unknown_hashes_are_near_duplicates_of_none():
    rows = np.array([[0, 0], [0, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    known = np.array([True, True, True, True, False])
    found, _ = near_duplicate_groups(rows, np.zeros(5, np.uint64), known)
    assert found.tolist() == [0, 1, 2, 2, 4]


def test_alike_items_of_equal_hash_take_a_product_each():
    """A hundred thousand blank pages are no matter; all pairs would be five thousand million."""
    n = 100_000
    rows = np.tile(np.array([[0.6, 0.8]], np.float32), (n, 1))
    found, complete = near_duplicate_groups(rows, np.full(n, 77, np.uint64), products=1)
    assert complete
    assert not found.any()


def test_the_search_ends_when_its_products_are_spent():
    rows = unit(np.random.default_rng(0).standard_normal((3000, 64)))
    found, complete = near_duplicate_groups(rows, np.zeros(3000, np.uint64), products=10)
    assert not complete
    np.testing.assert_array_equal(found, np.arange(3000))
    assert near_duplicate_groups(rows, np.zeros(3000, np.uint64))[1]


def test_what_cannot_be_compared_is_refused():
    rows, hashes = np.eye(3, dtype=np.float32), np.zeros(3, np.uint64)
    with pytest.raises(ValueError, match=r"\(3, 3\), \(2,\), None"):
        near_duplicate_groups(rows, hashes[:2])
    with pytest.raises(ValueError, match="hamming = 64"):
        near_duplicate_groups(rows, hashes, hamming=64)
    with pytest.raises(ValueError, match="cosine = 0"):
        near_duplicate_groups(rows, hashes, cosine=0)


def test_the_largest_of_a_group_represents_it_and_the_first_of_equal_ones():
    groups = np.array([0, 1, 0, 1, 4, 1, 0])
    pixels = np.array([9, 5, 12, 7, 1, 7, 12])
    assert representatives(groups, pixels).tolist() == [2, 3, 2, 3, 4, 3, 2]
    assert representatives(groups[:0], pixels[:0]).tolist() == []
