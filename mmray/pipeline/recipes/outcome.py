"""Results of learning and of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from mmray.config.learning import LearningConfig
from mmray.evaluation.purity import (
    Purity,
    read_named_labels,
)
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


@dataclass(frozen=True, kw_only=True)
class UnlabelledImages:
    """The images to learn from.

    Attributes
    ----------
    sources, excluded : where they are, to be listed as a stage
    listed : the images themselves, where that has been done
    labels : of the images, by name, which measure how pure the pools are; None: there are none
    """

    sources: Sequence[str] = ()
    excluded: frozenset[str] = frozenset()
    listed: Collection | None = None
    labels: Mapping[str, str] | None = None

    def images(self, session: Session[LearningConfig]) -> Collection:
        """The list, made now if it was not before."""
        if self.listed is not None:
            return self.listed
        return list_stage(session, self.sources, self.excluded)

    @classmethod
    def given(cls, config: LearningConfig, labels: str | None) -> "UnlabelledImages":
        """What --images names; it is looked for only, not listed.

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
            sources=config.images,
            excluded=read_exclusion_list(config),
            labels=read_named_labels(labels) if labels else None,
        )


@dataclass(frozen=True, kw_only=True)
class LearningResult:
    """What the last round left.

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
        """What the last round left."""
        return self.trained[-1] if self.trained else None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What came of a run.

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
