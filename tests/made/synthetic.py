"""Test data with structure: features on closed curves of the sphere, and graphs of every shape."""

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.sparse import csr_array

from mmray.config.choices import SupervisedBaseline
from mmray.config.sections import TrainingConfig
from mmray.descriptors.shards import HASH, features_table
from mmray.descriptors.weights import build, with_head
from mmray.images.sources import find
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import Pools
from mmray.system.arrays import Features, Graph, Ids
from mmray.training.job import TrainingJob
from mmray.training.supervised.labelled_tuples import NO_POOLS, LabelledPairs
from mmray.training.supervised.losses import LabelledImages


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


def save_noise(folder: Path, count: int, shapes: list[tuple[int, int]], *, digits: int = 2) -> None:
    """Write 00.png, 01.png, ...: noise over a colour each, of the shapes (h, w) in turn."""
    rng = np.random.default_rng(0)
    for index in range(count):
        height, width = shapes[index % len(shapes)]
        noise = rng.integers(0, 60, (height, width, 3)) + rng.integers(0, 190, (1, 1, 3))
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{index:0{digits}d}.png")


def save_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar shard of named contents."""
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def feature_shard(
    descriptors: np.ndarray,
    poolings: Sequence[str],
    *,
    items: Sequence[int] | None = None,
    errors: Mapping[int, str] | None = None,
    digests: Sequence[bytes | None] | None = None,
) -> pa.Table:
    """A shard as extraction leaves it, of images i.jpg; errors by item."""
    places = list(range(len(descriptors)) if items is None else items)
    errors = errors or {}
    if digests is None:
        digests = [f"{i:032}".encode() for i in places]
    about = {
        "item": pa.array(places, pa.int64()),
        "uri": pa.array([f"{i}.jpg" for i in places], pa.string()),
        "width": pa.array([0 if i in errors else 10 * i for i in places], pa.int32()),
        "height": pa.array([0 if i in errors else 7 for i in places], pa.int32()),
        "digest": pa.array(digests, pa.binary(32)),
        HASH: pa.array([None if i in errors else i for i in places], pa.uint64()),
        "error": pa.array([errors.get(i) for i in places], pa.string()),
    }
    return features_table(
        pa.table(about),
        deviation=[None] * len(places),
        poolings=poolings,
        descriptors=descriptors.astype(np.float32),
    )


class SilentRun:
    """Takes the place of an MLflow run."""

    identity, finished_before = "silent", False

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        pass


def permuted(graph: Graph, order: Ids) -> Graph:
    """The graph of the same items, item order[i] written as i."""
    result = graph[order][:, order]
    result.sort_indices()
    return result


def ragged(*rows: Sequence[float], dtype: type = np.int64) -> tuple[np.ndarray, ...]:
    return tuple(np.array(row, dtype) for row in rows)


def training_job(folder: Path, config: TrainingConfig) -> TrainingJob:
    """Five anchors in twelve photos of three shapes, written into the folder if it has none."""
    if not any(folder.iterdir()):
        save_noise(folder, 12, [(48, 64), (64, 48), (64, 64)])
    positives = [[5, 6], [7], [8, 9, 10], [11, 0], [1]]
    empty = ragged([], [], [], [], [])
    pools = Pools(
        anchors=np.arange(5),
        positives=ragged(*positives),
        positive_similarity=ragged(*[[1.5] * len(row) for row in positives], dtype=np.float32),
        positive_rank_e=empty,
        negatives=ragged([7, 8, 9, 10, 11], [0, 9, 10], [0, 1], [6, 7, 8], [2, 3, 9]),
        negative_similarity=empty,
        negative_rank_m=empty,
        manifold_neighbors=empty,
        zero_positives=np.zeros(5, np.int64),
        residual=np.zeros(5),
        iterations=np.zeros(5, np.int64),
    )
    return TrainingJob(
        model=build("efficientnet_lite0", pooling="mac"),
        images=find(str(folder)).images,
        max_pixels=10**6,
        pools=pools,
        validation_neighbors=ManifoldNeighbors(
            items=np.array([3, 8]),
            neighbors=ragged([11, 0], [2, 4, 9]),
            similarity=ragged([2, 1], [3, 1, 0.5], dtype=np.float32),
        ),
        config=config,
        seed=3,
        labelled=None,
    )


def class_job(job: TrainingJob, baseline: SupervisedBaseline) -> TrainingJob:
    """The same with a head, and classes of three in place of what was mined and is checked."""
    weight = np.random.default_rng(0).standard_normal((8, job.model.channels)) / 36
    return replace(
        job,
        model=with_head(job.model, weight.astype(np.float32), np.zeros(8, np.float32)),
        pools=NO_POOLS,
        validation_neighbors=ManifoldNeighbors.none(),
        supervision=LabelledImages(classes=np.arange(12) // 3, baseline=baseline, per_class=2),
    )


def labelled_job(job: TrainingJob, clusters: Ids, pairs: Sequence[tuple[int, int]]) -> TrainingJob:
    """The same with pairs and clusters of its images in place of what was mined and is checked."""
    queries, positives = np.array(pairs).T
    return replace(
        job,
        pools=NO_POOLS,
        validation_neighbors=ManifoldNeighbors.none(),
        supervision=LabelledPairs(queries=queries, positives=positives, clusters=clusters),
    )
