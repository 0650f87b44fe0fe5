"""Slow, literal, float64 readings of whitening, ranking, its scores and the draw of tuples."""

import math

import numpy as np


def similarity(x: np.ndarray, y: np.ndarray) -> np.float32:
    """Inner product, exactly rounded."""
    return np.float32(math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True)))


def order(query: np.ndarray, rows: np.ndarray, ids: list[int]) -> list[int]:
    """Ids: similarity descending, then id ascending."""
    return sorted(ids, key=lambda i: (-similarity(query, rows[i]), i))


def average_precision(ranking: list[int], positives: set[int], junk: set[int]) -> float:
    """compute_ap of the Oxford buildings page, line by line."""
    old_recall, old_precision = 0.0, 1.0
    area, found, seen = 0.0, 0, 0
    for item in ranking:
        if item in junk:
            continue
        if item in positives:
            found += 1
        recall = found / len(positives)
        precision = found / (seen + 1.0)
        area += (recall - old_recall) * ((old_precision + precision) / 2.0)
        old_recall, old_precision = recall, precision
        seen += 1
    return area


def recall_at_k(embeddings: np.ndarray, labels: np.ndarray, k: int) -> float:
    hits = 0
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        hits += any(labels[j] == labels[i] for j in order(embeddings[i], embeddings, others)[:k])
    return hits / len(labels)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(math.fsum(vector**2))


def positive_largest(projection: np.ndarray) -> np.ndarray:
    """Rows with the sign that makes their largest entry positive."""
    return np.array([row if row[np.argmax(abs(row))] > 0 else -row for row in projection])


def pca_whitening(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and projection, from singular values; n > d and nothing degenerate."""
    x = features.astype(np.float64)
    mean = np.array([math.fsum(column) / len(x) for column in x.T])
    _, singular, directions = np.linalg.svd(x - mean, full_matrices=False)
    return mean, positive_largest((directions.T / (singular / math.sqrt(len(x)))).T)


def lda_whitening(
    features: np.ndarray, queries: np.ndarray, positives: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and projection by Cholesky's square root, as in the code of Radenovic et al."""
    x = features.astype(np.float64)
    mean = sum(x[q] for q in queries) / len(queries)
    pairs = zip(queries, positives, strict=True)
    within = sum(np.outer(x[q] - x[p], x[q] - x[p]) for q, p in pairs) / len(queries)
    root = np.linalg.inv(np.linalg.cholesky(within))
    total = sum(np.outer(root @ (row - mean), root @ (row - mean)) for row in x)
    values, vectors = np.linalg.eigh(total)
    rotation = vectors[:, np.argsort(-values)].T
    return mean, positive_largest(rotation @ root)


def supported(variances: list[float], samples: int) -> list[float]:
    """Variances with those of the directions beyond samples / 4 raised; descending."""
    kept = max(samples // 4, 1)
    smallest = variances[min(kept, len(variances)) - 1]
    return [max(v, smallest, 1e-6 * variances[0]) for v in variances]
