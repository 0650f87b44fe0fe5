"""Pools for the tests of training."""

import numpy as np

from mmray.mining.pool_lists import Pools

N = 40  # items


def pools(lists: list[tuple[list[int], list[int]]]) -> Pools:
    """Anchors 0, 1, ... with (positives, negatives); s_m(r, x) = r + x / 100."""
    a = len(lists)
    ids = [tuple(np.array(part, dtype=np.int64) for part in one) for one in lists]
    none = tuple(np.empty(0, np.int64) for _ in lists)
    return Pools(
        anchors=np.arange(a),
        positives=tuple(positives for positives, _ in ids),
        positive_similarity=tuple(
            (r + positives / 100).astype(np.float32) for r, (positives, _) in enumerate(ids)
        ),
        positive_rank_e=none,
        negatives=tuple(negatives for _, negatives in ids),
        negative_similarity=tuple(np.zeros(len(n), np.float32) for _, n in ids),
        negative_rank_m=none,
        manifold_neighbors=none,
        zero_positives=np.zeros(a, np.int64),
        residual=np.zeros(a),
        iterations=np.zeros(a, np.int64),
    )


def random_pools(seed: int, a: int = 12) -> Pools:
    """Disjoint positives and negatives, some of them empty."""
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(a):
        ids = rng.permutation(np.arange(a, N)).tolist()
        p, q = rng.integers(0, 5), rng.integers(0, 20)
        lists.append((ids[:p], ids[p : p + q]))
    lists[0] = (lists[0][0] or [a], [N - 1])
    return pools(lists)


def usable(mined: Pools) -> list[int]:
    return [
        i for i in range(len(mined.anchors)) if len(mined.positives[i]) * len(mined.negatives[i])
    ]
