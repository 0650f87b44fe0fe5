"""The stages that describe labelled sets and samples."""

from dataclasses import dataclass

import numpy as np

from mmray.config.choices import Descriptor
from mmray.config.learning import FinegrainedConfig, RetrievalConfig
from mmray.config.run import RunConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import DescriptorSettings, Preprocessing
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.images.collection import Collection, sample
from mmray.images.sources import list_images
from mmray.pipeline.session import Session
from mmray.pipeline.stages.extraction import ExtractedDescriptors, extract_descriptors
from mmray.system.arrays import Features

PART = "evaluate"
MOST_BAD = 0.05  # fraction of distractors, or of images for whitening, that may be unreadable


def describe_sample(
    session: Session[RunConfig],
    folder: str,
    network: EmbeddingNet,
    settings: DescriptorSettings,
    *,
    images: int,
    stage_flag: str,
) -> ExtractedDescriptors:
    """Describe a random sample of independent images, to learn PCA whitening from.

    Parameters
    ----------
    session : the run; its seed draws the sample
    folder : of the images, a path or URI
    network : computes the descriptors
    settings : descriptors, preprocessing and precision
    images : size of the sample
    stage_flag : stage of --stages that this one belongs to
    """
    listed = sample(Collection.of(list_images(folder)), images, session.config.seed)
    return describe_images(
        session, listed, network, settings, stage_flag=stage_flag, most_bad=MOST_BAD
    )


@dataclass(frozen=True)
class SetFeatures:
    """Descriptors of a labelled set, and those of its distractors."""

    items: ExtractedDescriptors
    distractors: ExtractedDescriptors | None

    @property
    def others(self) -> int:
        """Return the number of readable distractors."""
        return 0 if self.distractors is None else len(self.distractors.items)

    @property
    def fingerprints(self) -> list[str]:
        others = [] if self.distractors is None else [self.distractors.stage.fingerprint]
        return [self.items.stage.fingerprint, *others]

    def parts(self, labelled: LabelledSet, pooling: Descriptor) -> tuple[Features, Features]:
        """Return descriptors of the database with distractors (n, d), and of queries (q, d)."""
        database, queries = labelled.split(self.items.features(pooling))
        if self.distractors is None:
            return database, queries
        return np.concatenate([database, self.distractors.features(pooling)]), queries


def describe_set(
    session: Session[RunConfig],
    network: EmbeddingNet,
    labelled: LabelledSet,
    settings: DescriptorSettings,
) -> SetFeatures:
    """Describe a labelled set; its distractors are a stage that benchmarks share."""
    items = Collection.of(labelled.items)
    of_items = describe_images(session, items, network, settings, stage_flag=PART)
    if not labelled.distractors:
        return SetFeatures(of_items, None)
    others = Collection.of(labelled.distractors)
    of_others = describe_images(
        session, others, network, settings, stage_flag=PART, most_bad=MOST_BAD
    )
    return SetFeatures(of_items, of_others)


def describe_images(
    session: Session[RunConfig],
    images: Collection,
    network: EmbeddingNet,
    settings: DescriptorSettings,
    *,
    stage_flag: str,
    most_bad: float = 0.0,
) -> ExtractedDescriptors:
    """Describe images, nearly all of which must be readable.

    Parameters
    ----------
    session : the run
    images : the images to describe
    network : computes the descriptors
    settings : descriptors, preprocessing and precision
    stage_flag : stage of --stages that this one belongs to
    most_bad : largest fraction of the images that may be unreadable
    """
    return extract_descriptors(
        session,
        images,
        network,
        settings=settings,
        stage_flag=stage_flag,
        max_bad_fraction=most_bad,
    )


def labelled_set_settings(config: RetrievalConfig) -> DescriptorSettings:
    """Return the retrieval job's settings for labelled sets and for images to learn whitening."""
    test = config.evaluation
    return DescriptorSettings.of(
        config.extraction,
        Preprocessing(test.longest_side, scales=test.scales),
        test.poolings,
        precision=test.precision,
    )


def class_set_settings(config: FinegrainedConfig) -> DescriptorSettings:
    """Return the fine-grained job's settings for test classes, the same as in training."""
    preprocessing = Preprocessing.in_training(config.training)
    return DescriptorSettings.of(config.extraction, preprocessing, ("embedding",))
