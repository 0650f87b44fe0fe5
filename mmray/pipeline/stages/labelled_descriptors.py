"""The stages that describe labelled sets and samples."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmray.config.choices import Descriptor
from mmray.config.learning import FinegrainedConfig, RetrievalConfig
from mmray.config.run import RunConfig
from mmray.config.sections import LabelledSetsConfig, TrainingConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import DescriptorSettings
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.images.collection import Collection, sample
from mmray.images.sources import list_images
from mmray.pipeline.session import Session
from mmray.pipeline.stages.extraction import ExtractedDescriptors, extract_descriptors
from mmray.system.arrays import Features

PART = "evaluate"
MOST_BAD = 0.05  # of the distractors and of the images for whitening may be unreadable


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How labelled sets are described and searched; `config` is the user's part of it.

    Attributes
    ----------
    center_crop : pixels of a side of the centre that is described; None: all of an image
    """

    config: LabelledSetsConfig
    shard_size: int
    batch_size: int
    max_pixels: int
    center_crop: int | None = None

    @property
    def framing(self) -> dict[str, Any]:
        """How images are made ready for a network, as a model's folder keeps it."""
        return {
            "longest_side": self.config.longest_side,
            "crop": self.center_crop,
            "scales": list(self.config.scales),
        }

    @property
    def how(self) -> DescriptorSettings:
        return DescriptorSettings(
            longest_side=self.config.longest_side,
            crop=self.center_crop,
            scales=self.config.scales,
            poolings=self.config.poolings,
            precision=self.config.precision,
            batch_size=self.batch_size,
            max_pixels=self.max_pixels,
        )


def describe_sample(
    session: Session[RunConfig],
    folder: str,
    network: EmbeddingNet,
    measuring: Measuring,
    *,
    images: int,
    stage_flag: str,
) -> ExtractedDescriptors:
    """Descriptors of independent images, drawn at random, to learn PCA whitening from."""
    listed = sample(Collection.of(list_images(folder)), images, session.config.seed)
    return describe_images(
        session, listed, network, measuring, stage_flag=stage_flag, most_bad=MOST_BAD
    )


@dataclass(frozen=True)
class _SetFeatures:
    """Descriptors of a labelled set: its images, and its distractors."""

    items: ExtractedDescriptors
    distractors: ExtractedDescriptors | None

    @property
    def others(self) -> int:
        """Distractors that could be read."""
        return 0 if self.distractors is None else len(self.distractors.items)

    @property
    def fingerprints(self) -> list[str]:
        others = [] if self.distractors is None else [self.distractors.stage.fingerprint]
        return [self.items.stage.fingerprint, *others]

    def parts(self, labelled: LabelledSet, pooling: Descriptor) -> tuple[Features, Features]:
        """Of the database with its distractors (n, d), and of the queries (q, d)."""
        database, queries = labelled.split(self.items.features(pooling))
        if self.distractors is None:
            return database, queries
        return np.concatenate([database, self.distractors.features(pooling)]), queries


def _describe_set(
    session: Session[RunConfig], network: EmbeddingNet, labelled: LabelledSet, measuring: Measuring
) -> _SetFeatures:
    """Distractors are a stage of their own, which benchmarks that have the same ones share."""
    items = Collection.of(labelled.items)
    of_items = describe_images(session, items, network, measuring, stage_flag=PART)
    if not labelled.distractors:
        return _SetFeatures(of_items, None)
    others = Collection.of(labelled.distractors)
    of_others = describe_images(
        session, others, network, measuring, stage_flag=PART, most_bad=MOST_BAD
    )
    return _SetFeatures(of_items, of_others)


def describe_images(
    session: Session[RunConfig],
    images: Collection,
    network: EmbeddingNet,
    measuring: Measuring,
    *,
    stage_flag: str,
    most_bad: float = 0.0,
) -> ExtractedDescriptors:
    """Descriptors of images, all of which must be readable but for a fraction."""
    return extract_descriptors(
        session,
        images,
        network,
        how=measuring.how,
        shard_size=measuring.shard_size,
        stage_flag=stage_flag,
        max_bad_fraction=most_bad,
    )


def measuring(config: FinegrainedConfig) -> Measuring:
    """Test images are seen as training embeds them."""
    training, extraction = config.training, config.extraction
    return Measuring(
        config=LabelledSetsConfig(
            longest_side=training.longest_side,
            poolings=("embedding",),
            precision=extraction.precision,
            clusterings=config.test.clusterings,
        ),
        center_crop=embedded_crop(training),
        shard_size=extraction.shard_size,
        batch_size=extraction.batch_size,
        max_pixels=extraction.max_pixels,
    )


def embedded_crop(training: TrainingConfig) -> int | None:
    """Pixels of a side of the centre that is embedded; None: all of an image."""
    return training.crop_size if training.augmentation == "crop" else None


def _measuring(config: RetrievalConfig) -> Measuring:
    """How images are described for retrieval."""
    extraction = config.extraction
    return Measuring(
        config=config.evaluation,
        shard_size=extraction.shard_size,
        batch_size=extraction.batch_size,
        max_pixels=extraction.max_pixels,
    )
