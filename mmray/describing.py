"""Descriptors of images by a network, as a stage of a run.

n items, d dims.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmray.artifacts import Stage
from mmray.config.choices import Descriptor
from mmray.config.run import RunConfig
from mmray.descriptors import shards
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import Description
from mmray.descriptors.weights import state_digest
from mmray.distributed import cluster
from mmray.distributed.extraction import extract
from mmray.images.collection import Collection
from mmray.session import Counts, Session
from mmray.system.arrays import Features
from mmray.system.progress import announce


@dataclass(frozen=True)
class Described:
    """Images that could be read and their descriptors; an image's id is its place in `items`."""

    stage: Stage
    poolings: Sequence[Descriptor]
    items: Collection

    def features(self, pooling: Descriptor) -> Features:
        """(n, d) float32, a row an item."""
        return shards.read_features(self.stage, self.poolings, pooling)


def describe(
    session: Session[RunConfig],
    images: Collection,
    model: EmbeddingNet,
    *,
    how: Description,
    shard_size: int,
    part_of: str,
    how_mark: Any = None,
    max_bad_fraction: float | None = 0.0,
    flag: str = "",
    deduplicate: bool = False,
) -> Described:
    """Descriptors of images by a network.

    Parameters
    ----------
    shard_size : images in a unit of work
    how_mark : JSON-like
        What of `how` does not show in its settings: where its whitening of regions comes from.
    max_bad_fraction : of the images, that may be unreadable; None: even all of them
    flag : that sets it, for the message
    deduplicate : of images with equal content, keep the first only

    Raises
    ------
    InputError
        More than the given fraction of the images cannot be read.
    """

    def work(stage: Stage) -> Counts:
        extract(
            images,
            model,
            how=how,
            output=stage.folder / "features",
            shard_size=shard_size,
            pool=cluster.with_gpus(session.pool),
            label=part_of,
            report=session.reporting(part_of),
            most_bad=int((1 if max_bad_fraction is None else max_bad_fraction) * len(images)),
        )
        return shards.finish_features(
            stage,
            how.poolings,
            total=len(images),
            max_bad_fraction=max_bad_fraction,
            flag=flag,
            deduplicate=deduplicate,
        )

    plain = dataclasses.replace(how.regions, whitening=None)
    options = dataclasses.asdict(dataclasses.replace(how, regions=plain))
    inputs = (images.digest(), state_digest(model), options, how_mark)
    stage = session.stage("extract", *inputs, shard_size, deduplicate, work=work, part_of=part_of)
    if "deviation" in stage.counts:
        announce(
            f"{part_of}: cosines of {how.precision} descriptors to those in float32 are 1 less "
            f"{stage.counts['deviation']:.2g} on average, {stage.counts['deviation_max']:.2g} at "
            "most (one image a shard)"
        )
    kept = stage.folder.read_table("images.parquet", ["item"])["item"].to_numpy()
    return Described(stage, how.poolings, images.take(kept))
