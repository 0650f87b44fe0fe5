"""Test data with structure: features on closed curves of the sphere, and graphs of every shape."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import csr_array

from mmray.arrays import Features, Graph, Ids


def unit_rows(rows: np.ndarray) -> Features:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def curves(
    seed: int, *, clusters: int = 4, per_cluster: int = 30, d: int = 16, noise: float = 0.05
) -> Features:
    """l2-normalised features (clusters * per_cluster, d), shuffled: noisy closed curves.

    Each cluster goes round a circle that is wide enough for its two ends to lie farther apart than
    items of different clusters may: neighbours along the curve are not those in space.
    """
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, per_cluster, endpoint=False)
    parts = []
    for _ in range(clusters):
        axes, _ = np.linalg.qr(rng.standard_normal((d, 3)))
        circle = np.cos(angles)[:, None] * axes[:, 0] + np.sin(angles)[:, None] * axes[:, 1]
        parts.append(0.7 * axes[:, 2] + circle + noise * rng.standard_normal((per_cluster, d)))
    return unit_rows(rng.permutation(np.concatenate(parts)))


def clouds(seed: int, n: int, d: int = 16) -> Features:
    """l2-normalised features (n, d) without structure."""
    return unit_rows(np.random.default_rng(seed).standard_normal((n, d)))


def graph_of(edges: list[tuple[int, int, float]], n: int, dtype: type = np.float32) -> Graph:
    """Symmetric CSR with the given undirected, weighted edges."""
    dense = np.zeros((n, n), dtype)
    for i, j, weight in edges:
        dense[i, j] = dense[j, i] = weight
    return csr_array(dense)


def random_graph(seed: int, n: int, density: float = 0.1, dtype: type = np.float32) -> Graph:
    """Symmetric (n, n) CSR, weights in (0, 1), zero diagonal; isolated items and parts happen."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.uniform(0.01, 1, (n, n)) * (rng.random((n, n)) < density), 1)
    return csr_array((upper + upper.T).astype(dtype))


def save_noise(folder: Path, count: int, shapes: list[tuple[int, int]]) -> None:
    """Write 00.png, 01.png, ...: noise over a colour each, of the shapes (h, w) in turn."""
    rng = np.random.default_rng(0)
    for index in range(count):
        height, width = shapes[index % len(shapes)]
        noise = rng.integers(0, 60, (height, width, 3)) + rng.integers(0, 190, (1, 1, 3))
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{index:02d}.png")


def permuted(graph: Graph, order: Ids) -> Graph:
    """The graph of the same items, item order[i] written as i."""
    result = graph[order][:, order]
    result.sort_indices()
    return result
