"""Groups of near-duplicates: pairs alike by descriptor and by perceptual hash, and their chains.

n items, d dims, c distinct hashes, p pieces.

Pairs within h bits are found without comparing all of them, by multi-index hashing (Norouzi,
Punjani and Fleet, "Fast exact search in Hamming space with multi-index hashing", 2014): of four
bands of 16 bits, one differs in at most h // 4 bits. Hashes are sorted by each band, and those of
values that differ by so few bits are compared. At h = 7 that is a share of 17 / 65,536 for each
band, at h = 11 of 137 / 65,536.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mmray.system.arrays import Features, Ids, read_only

HAMMING, COSINE = 6, 0.7  # chosen in docs/results/near-duplicates.md
PRODUCTS = 1000  # most inner products for each item, and for ten thousand items more
_BANDS, _BAND_BITS = 4, 16


def near_duplicate_groups(
    features: Features,
    hashes: NDArray[np.uint64],
    known: NDArray[np.bool_] | None = None,
    *,
    hamming: int = HAMMING,
    cosine: float = COSINE,
    products: int = PRODUCTS,
) -> tuple[Ids, bool]:
    """Find the connected components of pairs with near hashes and similar features.

    Memory is O(n) beside the features. Time grows with the pairs of hashes that are compared (see
    the module), which is cheap, and with the inner products. Items of equal hash that are alike,
    such as a million blank pages, take one product each. Thousands of items of equal hash and
    unlike one another would take all n² / 2; the search ends once it has taken `products` an item.

    Parameters
    ----------
    features : (n, d) float32
        Rows are l2-normalised, or zero: these are near-duplicates of none.
    hashes : (n,)
    known : (n,)
        Whether the hash of an item is known; others are near-duplicates of none. None: all are.
    hamming : the largest distance of two hashes, bits
    cosine : the least similarity of two rows, above 0
    products : the most inner products to take, for each of n + 10,000 items

    Returns
    -------
    groups : (n,) int64
        For each item the first item of its group: itself where it is alone.
    complete : bool
        Whether these products were enough; else groups may be missing, or in parts.

    Raises
    ------
    ValueError
        The shapes differ, or a limit is impossible.

    Examples
    --------
    >>> rows = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    >>> near_duplicate_groups(rows, np.array([0b0, 0b0, 0b111, 2**63 - 1], np.uint64))
    (array([0, 1, 0, 3]), True)
    """
    n = len(features)
    if hashes.shape != (n,) or (known is not None and known.shape != (n,)) or features.ndim != 2:
        shapes = features.shape, hashes.shape, None if known is None else known.shape
        raise ValueError(f"features, hashes and known have the shapes {shapes}: n differs")
    if not 0 <= hamming < _BANDS * _BAND_BITS or not 0 < cosine <= 1:
        raise ValueError(f"hamming = {hamming}, cosine = {cosine}: choose 0 to 63, and 0 to 1")
    items = np.arange(n) if known is None else np.flatnonzero(known)
    labels = np.arange(n, dtype=np.int64)
    left = np.full(1, products * (n + 10_000), np.int64)
    if len(items):
        items = items[np.argsort(hashes[items], kind="stable")]
        found, starts = np.unique(hashes[items], return_index=True)
        starts = np.append(starts, len(items)).astype(np.int64)
        _join(features, found, items, starts, hamming, np.float32(cosine), left, labels)
    return labels, bool(left[0] > 0)


def _join(
    features: Features,
    hashes: NDArray[np.uint64],
    items: Ids,
    starts: Ids,
    hamming: int,
    cosine: np.float32,
    left: Ids,
    labels: Ids,
) -> None:
    """Set the labels (n,) of the items of c distinct hashes; see `kernels` for the arrays."""
    from mmray.mining.near_duplicates import kernels  # takes a second: not for what is done before

    rows, n = read_only(features), len(labels)
    leaders, following, classes = (np.empty(n, np.int64) for _ in range(3))
    radii = np.empty(n)
    p = kernels.join_equal(rows, items, starts, cosine, left, leaders, following, radii, classes)
    first_pieces = np.searchsorted(classes[:p], np.arange(len(hashes) + 1))
    parents, masks = np.arange(p), _masks(hamming // _BANDS)
    for band in range(_BANDS):
        values = (hashes >> np.uint64(_BAND_BITS * band)).astype(np.uint16)
        order = np.argsort(values, kind="stable")
        ends = np.cumsum(np.bincount(values, minlength=1 << _BAND_BITS))
        kernels.join_near(
            *(rows, cosine, hamming, band, masks, hashes[order], order, np.append(0, ends)),
            *(first_pieces, left, leaders, following, radii, parents),
        )
    kernels.label(leaders[:p], following, parents, labels)


def _masks(bits: int) -> Ids:
    """List all numbers of 16 bits with at most so many set, those with fewer first."""
    chosen = (places for count in range(bits + 1) for places in combinations(range(16), count))
    return np.array([sum(1 << place for place in places) for places in chosen], np.int64)


def representatives(labels: Ids, pixels: Ids) -> Ids:
    """Choose the item with the most pixels of each group, the first of several.

    Parameters
    ----------
    labels : (n,) as `near_duplicate_groups` returns them
    pixels : (n,) of each original image

    Returns
    -------
    (n,) int64, for each item the representative of its group: itself where it is alone.
    """
    order = np.lexsort((np.arange(len(labels)), -pixels, labels))
    groups, first = np.unique(labels[order], return_index=True)
    return order[first][np.searchsorted(groups, labels)]
