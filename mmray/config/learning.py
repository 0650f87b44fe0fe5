"""Settings of the jobs that learn: retrieval, fine-grained, ablation."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import tyro

from mmray.config.bounds import EXECUTION, Between
from mmray.config.choices import (
    Application,
    FinegrainedPreset,
    FinegrainedRecipe,
    HeadStart,
    Network,
    Oracle,
    Preset,
    Recipe,
    Study,
    SupervisedBaseline,
)
from mmray.config.run import FINEGRAINED_MODEL, RETRIEVAL_MODEL, ListingConfig, MiningRunConfig
from mmray.config.sections import (
    ClassesConfig,
    DemoConfig,
    EvaluationConfig,
    ExtractionConfig,
    TrainingConfig,
    WhiteningConfig,
)
from mmray.system.errors import InputError

STAGES = ("extract", "graph", "mine", "train", "whiten", "evaluate")
FINEGRAINED_STAGES = ("extract", "graph", "mine", "train", "evaluate")


@dataclass(frozen=True, kw_only=True)
class LearningConfig(MiningRunConfig, ListingConfig):
    """What every job that learns from images has."""

    kind: ClassVar[Application]
    all_stages: ClassVar[tuple[str, ...]] = STAGES

    rounds: Annotated[int, Between(1, 1000)] = 1
    """Each further round mines anew, with the network of the one before (Sec. 3.4)."""
    images: tuple[str, ...] = ()
    """Folders, tar shards, Parquet files or lists of images; none: a rendered demonstration set."""
    deduplicate: bool = True
    """Of files with equal content only the first is used."""
    network: Network = "vgg16"
    weights: str | None = None
    """File with the initial weights (.pth or .safetensors); by default the published ones."""
    oracle: Oracle | None = None
    """Uses labels: false positives, or false negatives, are taken out of the mined pools, by the
    labels that otherwise measure their purity. How much purer pools would help."""
    registered_model: Annotated[str, EXECUTION] = RETRIEVAL_MODEL
    """Name in MLflow's registry of which the model becomes the newest version; "": none."""
    stages: Annotated[str, EXECUTION] = ",".join(STAGES)
    """Stages to run, by commas; the others must have been done before."""
    demo: DemoConfig = field(default_factory=DemoConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def title(self) -> str:
        return self.network

    @property
    def has_demo(self) -> bool:
        """Whether the rendered photos stand in for images that are not given."""
        raise NotImplementedError("of an application")

    @property
    def labels_flag(self) -> str | None:
        """The flag that would name the labels of the images; None where they are known."""
        raise NotImplementedError("of an application")


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(LearningConfig):
    """Learn image embeddings without labels: mine on manifolds, fine-tune, whiten, measure."""

    kind: ClassVar[Application] = "retrieval"

    preset: Preset = "demo"
    """Where the defaults come from: rendered photos on one machine, or the paper's retrieval."""
    recipe: Recipe = "steady"
    """How to train by default: steadily on any collection, with the paper's own values, or (only
    with --tuples, which takes it by itself) as its supervised peer."""
    tuples: str | None = None
    """File of retrieval-SfM tuples to train from instead of mining: a supervised baseline, which
    uses labels. --images names the folder `ims` of its images."""
    whitening: WhiteningConfig = field(default_factory=WhiteningConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def has_demo(self) -> bool:
        return self.preset == "demo" and self.evaluation.images is None

    @property
    def labels_flag(self) -> str | None:
        known = not self.images or self.evaluation.pool_labels is not None
        return None if known else "--evaluation.pool-labels"


@dataclass(frozen=True, kw_only=True)
class FinegrainedConfig(LearningConfig):
    """Learn to tell classes apart without labels, as bird species: mine, fine-tune, measure."""

    kind: ClassVar[Application] = "finegrained"
    all_stages: ClassVar[tuple[str, ...]] = FINEGRAINED_STAGES

    preset: FinegrainedPreset = "demo"
    """Where the defaults come from: rendered photos on one machine, or the paper's CUB-200-2011."""
    recipe: FinegrainedRecipe = "steady"
    """How to train by default: steadily on any collection, or with the paper's own values."""
    registered_model: Annotated[str, EXECUTION] = FINEGRAINED_MODEL
    stages: Annotated[str, EXECUTION] = ",".join(FINEGRAINED_STAGES)
    dim: Annotated[int, Between(1, 100_000)] = 64
    """Dimensions of the embedding: of a fully connected layer behind the pooling (Sec. 4.2)."""
    head: HeadStart = "pca"
    """How that layer starts: as the first principal components of the unlabelled images, or at
    random."""
    pool_labels: str | None = None
    """CSV of the unlabelled images' name,label: measures how pure the pools are, nothing else."""
    baseline: Annotated[SupervisedBaseline | None, tyro.conf.arg(aliases=["--rival"])] = None
    """Train with labels by a method of Table 2 instead of mining: a supervised baseline."""
    per_class: Annotated[int, Between(2, 10_000)] = 4
    """With --baseline: images of a class in a batch."""
    test: ClassesConfig = field(default_factory=ClassesConfig)

    @property
    def has_demo(self) -> bool:
        return self.preset == "demo" and self.test.images is None

    @property
    def labels_flag(self) -> str | None:
        split = self.test.images is None and self.test.split
        known = not self.images or self.pool_labels is not None or split
        return None if known else "--pool-labels"


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """Which rows of a comparison to fill."""

    application: Application = "finegrained"
    """Classes of birds and the like, or retrieval; either with all flags of its own job."""
    study: Study = "method"
    """What is compared: the method with its rivals (Tables 1 and 2), or features to mine on."""
    rows: Annotated[tuple[str, ...], EXECUTION] = ()
    """Rows by their names, which a wrong one shows; by default all."""
    seeds: Annotated[tuple[int, ...], EXECUTION] = (0, 1, 2)
    """Each row is filled once for each; the table has means and standard deviations."""


@dataclass(frozen=True, kw_only=True)
class FinegrainedAblationConfig(AblationOptions, FinegrainedConfig):
    """Compare the method with its rivals, each change by itself: fine-grained learning."""

    @property
    def title(self) -> str:
        return "ablation"


@dataclass(frozen=True, kw_only=True)
class RetrievalAblationConfig(AblationOptions, RetrievalConfig):
    """Compare the method with its rivals, each change by itself: retrieval."""

    application: Application = "retrieval"

    @property
    def title(self) -> str:
        return "ablation"


def chosen_stages(config: LearningConfig) -> tuple[str, ...]:
    """Names of --stages, in the order of the pipeline; InputError names one that does not exist."""
    stages = config.all_stages
    chosen = [name.strip() for name in config.stages.split(",") if name.strip()]
    for name in chosen:
        if name not in stages:
            raise InputError(f"--stages: no stage {name!r}; choose from {','.join(stages)}")
    if not chosen:
        raise InputError(f"--stages is empty: choose from {','.join(stages)}")
    return tuple(name for name in stages if name in chosen)
