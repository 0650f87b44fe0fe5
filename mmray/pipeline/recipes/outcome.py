"""Inputs and results of a run that learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.config.choices import network_and_weights
from mmray.config.learning import LearningConfig
from mmray.config.sections import MiningConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import build
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.purity import Purity, labels_of_images, read_named_labels
from mmray.evaluation.scores import Score
from mmray.images.collection import Collection
from mmray.images.sources import probe
from mmray.pipeline.session import Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.evaluation import SearchExamples
from mmray.pipeline.stages.listing import list_stage, read_exclusion_list
from mmray.pipeline.stages.mining import MiningResult
from mmray.pipeline.stages.near_duplicates import NearDuplicates
from mmray.pipeline.stages.neighbors import FeatureSource
from mmray.pipeline.stages.training import FineTunedNetwork
from mmray.system.folder import Folder
from mmray.system.progress import announce
from mmray.training.supervised.sfm_tuples import SfmTuples


@dataclass(frozen=True, kw_only=True)
class UnlabelledImages:
    """The images to learn from.

    Attributes
    ----------
    image_sources, excluded : sources to list, and names to leave out
    images : the images, where they have been listed already
    labels : of the images by name, to measure the purity of the pools; None: there are none
    labels_source : the flag and the file of the labels; None: the labels are of all `images`
    """

    image_sources: Sequence[str] = ()
    excluded: frozenset[str] = frozenset()
    images: Collection | None = None
    labels: Mapping[str, str] | None = None
    labels_source: str | None = None

    def listed(self, session: Session[LearningConfig]) -> Collection:
        """Return the images, listed by a stage unless they were listed before."""
        if self.images is not None:
            return self.images
        return list_stage(session, self.image_sources, self.excluded)

    def labels_of(self, images: Collection) -> NDArray[np.str_] | None:
        """Return the labels (n,) of the listed images, "" where one has none; None without labels.

        Raises
        ------
        InputError
            No name in the file of labels fits an image, or one fits two.
        """
        if self.labels is None:
            return None
        if self.labels_source is None:
            return np.array([self.labels[name] for name in images.table["name"].to_pylist()])
        found, fitting = labels_of_images(images, self.labels, self.labels_source)
        announce(f"labels: {fitting}")
        return found

    @classmethod
    def read(cls, config: LearningConfig, flag: str, labels: str | None) -> "UnlabelledImages":
        """Look for the images of --images without listing them, and read their labels.

        Parameters
        ----------
        config : settings of the job
        flag : of the file of labels
        labels : file of the labels, see `read_named_labels`; None: there is none

        Raises
        ------
        InputError
            A file cannot be read, or there are no images.
        """
        for source in config.images:
            probe(source, column=config.image_column)
        return cls(
            image_sources=config.images,
            excluded=read_exclusion_list(config),
            labels=read_named_labels(labels) if labels else None,
            labels_source=f"{flag} {labels}",
        )


def build_networks(config: LearningConfig) -> tuple[EmbeddingNet, EmbeddingNet]:
    """Build the networks that the settings name: the one to train, and the one to mine with.

    Raises
    ------
    InputError
        One cannot be had, or lacks what is to be pooled from it.
    """
    network = build(config.network, pooling=config.training.pooling, weights=config.weights)
    features, poolings = network, config.extraction.poolings
    if config.feature_network is not None:
        known = network_and_weights(config.feature_network)
        assert known is not None, "settings are validated"
        pooling = config.training.pooling if poolings[0] == "embedding" else poolings[0]
        features = build(known[0], pooling=pooling, weights=known[1] or None)
    features.check_poolings(poolings)
    features.check_dims("--extraction.pca", config.extraction.pca, poolings[:1])
    return network, features


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of a run: images, labelled sets, and the initial network.

    Attributes
    ----------
    unlabelled : the images to learn from
    sets : labelled sets to measure on; the first one also during training
    network : the initial network, without a head
    feature_network : the network whose features are mined on in the first round
    tuples : labelled pairs of a file to train on instead of mining; None: mine
    """

    unlabelled: UnlabelledImages
    sets: Sequence[LabelledSet]
    network: EmbeddingNet
    feature_network: EmbeddingNet
    tuples: SfmTuples | None = None

    @property
    def labelled(self) -> LabelledSet | None:
        """Return the set to measure on during training, if any."""
        return self.sets[0] if self.sets else None


@dataclass(frozen=True, kw_only=True)
class LearningResult:
    """Result of the last round of learning, with the networks of all rounds.

    Attributes
    ----------
    images : n readable images; ids in the pools are places among them
    mined : the pools, or the labels that stand in for them
    extracted : the stage that described the images and listed the unreadable ones; None where
        nothing was mined
    near : the near-duplicates among the images; None where they were not looked for
    graph, source : graph and features that the pools were mined from; None where labels stand in
        for pools
    mining : settings of mining, with all sizes; None where labels stand in for pools
    labels : (n,) where known, used only to measure purity and to frame pictures
    purity : of the pools that were trained on, where labels are known
    trained : the network of each round; empty where the run ends with mining
    """

    images: Collection
    mined: MiningResult
    extracted: StageFolder | None = None
    near: NearDuplicates | None = None
    graph: StageFolder | None = None
    source: FeatureSource | None = None
    mining: MiningConfig | None = None
    labels: NDArray[Any] | None = None
    purity: Purity | None = None
    trained: Sequence[FineTunedNetwork] = ()

    @property
    def tuned(self) -> FineTunedNetwork | None:
        """Return the network of the last round, if any."""
        return self.trained[-1] if self.trained else None

    @property
    def kept_round(self) -> int:
        """Return the number, from 1, of the last round that gained; of the first if none did."""
        gained = [number for number, tuned in enumerate(self.trained, start=1) if tuned.epoch]
        return gained[-1] if gained else 1

    @property
    def kept(self) -> FineTunedNetwork | None:
        """Return the network of that round, if any: the initial one where its epoch is 0."""
        return self.trained[self.kept_round - 1] if self.trained else None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Result of a run: scores, the model, and the result of learning.

    Attributes
    ----------
    scores : empty where nothing was measured
    learned : None where the run ends before mining
    model : folder of the network that was kept, ready for use
    found : search results of the initial and of the kept network for the queries of a labelled
        set; empty where nothing was measured
    """

    scores: list[Score] = field(default_factory=list)
    learned: LearningResult | None = None
    model: Folder | None = None
    found: Sequence[SearchExamples] = ()
