"""Descriptors of images by a network, as a stage of a run.

n items, d dims.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mmray import artifacts, models
from mmray.arrays import Features
from mmray.artifacts import Stage
from mmray.collection import ImageFile
from mmray.config import Config, Pooling
from mmray.distributed import cluster
from mmray.distributed.extraction import extract
from mmray.models import EmbeddingNet
from mmray.session import Counts, Session


@dataclass(frozen=True)
class Described:
    """Images that could be read and their descriptors; an image's id is its place in `items`."""

    stage: Stage
    poolings: Sequence[Pooling]
    items: Sequence[ImageFile]

    def features(self, pooling: Pooling) -> Features:
        """(n, d) float32, a row an item."""
        return artifacts.read_features(self.stage, self.poolings, pooling)


def describe(
    session: Session[Config],
    items: Sequence[ImageFile],
    model: EmbeddingNet,
    *,
    longest_side: int,
    poolings: Sequence[Pooling],
    part_of: str,
    max_bad_fraction: float = 0.0,
) -> Described:
    """Descriptors of images by a network.

    Raises
    ------
    InputError
        More than the given fraction of the images cannot be read.
    """
    config = session.config.extraction

    def work(stage: Stage) -> Counts:
        extract(
            items,
            model,
            output=stage.folder / "features",
            longest_side=longest_side,
            poolings=poolings,
            shard_size=config.shard_size,
            batch_size=config.batch_size,
            pool=cluster.with_gpus(session.pool),
            label=part_of,
        )
        return artifacts.finish_features(stage, poolings, max_bad_fraction=max_bad_fraction)

    names = [(item.uri, item.size, item.box) for item in items]
    batches = (config.shard_size, config.batch_size, longest_side)
    digest = models.state_digest(model)
    stage = session.stage("extract", names, digest, poolings, batches, work=work, part_of=part_of)
    quarantine = stage.folder.read_table("quarantine.parquet", ["uri"])
    bad = set(quarantine["uri"].to_pylist())
    return Described(stage, poolings, [item for item in items if item.uri not in bad])
