"""Results of learning and of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from mmray.config.learning import LearningConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.purity import Purity, read_named_labels
from mmray.evaluation.scores import Score
from mmray.images.collection import Collection
from mmray.images.sources import probe
from mmray.pipeline.session import Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.evaluation import SearchExamples
from mmray.pipeline.stages.listing import list_stage, read_exclusion_list
from mmray.pipeline.stages.mining import FeatureSource, MiningResult
from mmray.pipeline.stages.training import FineTunedNetwork
from mmray.system.folder import Folder
from mmray.training.supervised.sfm_tuples import SfmTuples


@dataclass(frozen=True, kw_only=True)
class UnlabelledImages:
    """The images to learn from.

    Attributes
    ----------
    image_sources, excluded : where they are, to be listed as a stage
    images : the images themselves, where they have been listed
    labels : of the images, by name, which measure how pure the pools are; None: there are none
    """

    image_sources: Sequence[str] = ()
    excluded: frozenset[str] = frozenset()
    images: Collection | None = None
    labels: Mapping[str, str] | None = None

    def listed(self, session: Session[LearningConfig]) -> Collection:
        """Return the images, listed by a stage if they were not before."""
        if self.images is not None:
            return self.images
        return list_stage(session, self.image_sources, self.excluded)

    @classmethod
    def read(cls, config: LearningConfig, labels: str | None) -> "UnlabelledImages":
        """Read what --images names; it is looked for only, not listed.

        Parameters
        ----------
        labels : file of the images' labels, see `read_named_labels`

        Raises
        ------
        InputError
            One of the files cannot be read, or there are no images.
        """
        for source in config.images:
            probe(source, column=config.image_column)
        return cls(
            image_sources=config.images,
            excluded=read_exclusion_list(config),
            labels=read_named_labels(labels) if labels else None,
        )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run starts from.

    Attributes
    ----------
    sets : labelled, to measure on; the first of them also while training
    network : without a head
    tuples : pairs of a file to train on instead of mining, with labels
    """

    unlabelled: UnlabelledImages
    sets: Sequence[LabelledSet]
    network: EmbeddingNet
    tuples: SfmTuples | None = None

    @property
    def labelled(self) -> LabelledSet | None:
        """The set that is measured on while training."""
        return self.sets[0] if self.sets else None


@dataclass(frozen=True, kw_only=True)
class LearningResult:
    """What the last round of learning left.

    Attributes
    ----------
    images : n that could be read; the ids of the pools are places among them
    mined : the pools, or what stands in for them
    extracted : the stage that described the images, and set aside what could not be read; None
        where nothing was mined
    graph, source : that the pools were mined from; None where labels stand in for pools
    labels : (n,), where they are known, which measure and frame pictures and serve nothing else
    purity : of the pools that were trained on, where labels are known
    trained : what each round left; none where the last stage was to mine
    """

    images: Collection
    mined: MiningResult
    extracted: StageFolder | None = None
    graph: StageFolder | None = None
    source: FeatureSource | None = None
    labels: NDArray[Any] | None = None
    purity: Purity | None = None
    trained: Sequence[FineTunedNetwork] = ()

    @property
    def tuned(self) -> FineTunedNetwork | None:
        """The network of the last round."""
        return self.trained[-1] if self.trained else None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The outcome of a run: scores, the model, and what led to it.

    Attributes
    ----------
    scores : none where nothing was measured
    model : folder of the network that was kept, ready for use
    found : what the initial network finds for the queries of a labelled set, and what this one
        finds; none where nothing was measured
    """

    scores: list[Score] = field(default_factory=list)
    learned: LearningResult | None = None
    model: Folder | None = None
    found: Sequence[SearchExamples] = ()
