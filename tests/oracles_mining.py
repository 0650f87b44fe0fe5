"""Slow, literal, float64 readings of the equations of mining; dense arrays and plain loops.

n items, k neighbours.
"""

import numpy as np


def dot(x: np.ndarray, y: np.ndarray) -> np.float32:
    return np.float32(sum(float(a) * float(b) for a, b in zip(x, y, strict=True)))


def ranking(values: np.ndarray) -> list[int]:
    """All items: value descending, then id ascending."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def similarities(database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(q, n) float32, from a product in float64."""
    return (queries.astype(np.float64) @ database.astype(np.float64).T).astype(np.float32)


def nearest(database: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Ids (q, k)."""
    return np.array([ranking(row)[:k] for row in similarities(database, queries)])


def adjacency(neighbors: np.ndarray, values: np.ndarray, power: float) -> np.ndarray:
    """A of eq. (1)."""
    n = len(neighbors)
    weight = [dict(zip(neighbors[i].tolist(), values[i].tolist(), strict=True)) for i in range(n)]
    A = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j and j in weight[i] and i in weight[j]:
                A[i, j] = max(min(weight[i][j], weight[j][i]), 0.0) ** power
    return A


def normalized(A: np.ndarray) -> np.ndarray:
    """D^-½ A D^-½, rows of isolated items 0."""
    degrees = A.sum(axis=1)
    result = np.zeros_like(A, dtype=np.float64)
    for i, j in zip(*np.nonzero(A), strict=True):
        result[i, j] = A[i, j] / np.sqrt(degrees[i] * degrees[j])
    return result


def components(A: np.ndarray) -> list[list[int]]:
    """Connected components by search from each item in turn, members ascending."""
    found: list[list[int]] = []
    seen: set[int] = set()
    for start in range(len(A)):
        if start in seen:
            continue
        part, frontier = {start}, [start]
        while frontier:
            for j in np.flatnonzero(A[frontier.pop()]).tolist():
                if j not in part:
                    part.add(j)
                    frontier.append(j)
        seen |= part
        found.append(sorted(part))
    return found


def stationary_by_iteration(A: np.ndarray) -> np.ndarray:
    """The lazy walk (I + P) / 2 after 2^40 steps, from an equal chance at each linked item."""
    degrees = A.sum(axis=1)
    linked = degrees > 0
    P = np.divide(A, degrees[:, None], out=np.zeros_like(A), where=linked[:, None])
    lazy = (np.diag(linked.astype(np.float64)) + P) / 2
    for _ in range(40):
        lazy = lazy @ lazy
        lazy[linked] /= lazy[linked].sum(axis=1, keepdims=True)  # rounding must not add up
    return linked / max(linked.sum(), 1) @ lazy


def local_maxima(A: np.ndarray, importance: np.ndarray, count: int) -> list[int]:
    """Items above each direct neighbour, the `count` most important."""
    maxima = []
    for i in range(len(A)):
        around = np.flatnonzero(A[i])
        if len(around) and all(importance[i] > importance[j] for j in around):
            maxima.append(i)
    return sorted(maxima, key=lambda i: (-importance[i], i))[:count]


def diffusion(A_hat: np.ndarray, anchor: int, alpha: float) -> np.ndarray:
    """(I − αÂ)⁻¹ e_i, eq. (3)."""
    n = len(A_hat)
    return np.linalg.solve(np.eye(n) - alpha * A_hat.astype(np.float64), np.eye(n)[anchor])


def conjugate_gradient(
    A_hat: np.ndarray, anchor: int, alpha: float, rtol: float, max_iter: int
) -> tuple[np.ndarray, int]:
    """The iterate of smallest residual of the textbook method, and the steps taken."""
    L = np.eye(len(A_hat)) - alpha * A_hat.astype(np.float64)
    x = np.zeros(len(L))
    r = np.eye(len(L))[anchor]
    p, best, smallest, steps = r.copy(), x, np.inf, 0
    while steps < max_iter:
        steps += 1
        squared = r @ r
        step = squared / (p @ L @ p)
        x = x + step * p
        r = r - step * (L @ p)
        if r @ r < smallest:
            best, smallest = x, r @ r
        if np.sqrt(r @ r) <= rtol:
            break
        p = r + (r @ r) / squared * p
    return best, steps


def pools(
    s_m: np.ndarray,
    s_e: np.ndarray,
    anchor: int,
    *,
    positive_k: int,
    negative_k: int,
    max_negatives: int,
) -> dict[str, list[int]]:
    """P⁺ and P⁻ of one anchor, eqs. (5) and (6), from its similarities (n,) to all items."""
    K = min(negative_k, int(np.ceil(len(s_m) / 2)))
    by_m, by_e = ranking(s_m), ranking(s_e)
    named = [i for i in by_m[:positive_k] if i not in by_e[:positive_k] and i != anchor]
    negatives = [i for i in by_e[:K] if i not in by_m[:K] and i != anchor][:max_negatives]
    positives = [i for i in named if s_m[i] > 0]
    return {
        "positives": positives,
        "positive_rank_e": [by_e.index(i) + 1 for i in positives],
        "negatives": negatives,
        "negative_rank_m": [by_m.index(i) + 1 for i in negatives],
        "manifold_neighbors": [i for i in by_m[:positive_k] if s_m[i] > 0 and i != anchor],
        "zero_positives": [i for i in named if s_m[i] <= 0],
    }
