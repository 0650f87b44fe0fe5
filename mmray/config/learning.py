"""Settings of the jobs that learn: retrieval, fine-grained, ablation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import tyro

from mmray.config.bounds import EXECUTION, MAY_BE_EMPTY, Between
from mmray.config.choices import (
    Application,
    FinegrainedPreset,
    FinegrainedRecipe,
    HeadStart,
    NearDuplicates,
    Network,
    Oracle,
    Preset,
    Recipe,
    Study,
    SupervisedBaseline,
)
from mmray.config.describing import ExtractionConfig
from mmray.config.run import ListingConfig, MiningRunConfig, owned_name
from mmray.config.sections import (
    ClassesConfig,
    DemoConfig,
    EvaluationConfig,
    TrainingConfig,
    WhiteningConfig,
)
from mmray.system.errors import InputError

STAGES = ("extract", "graph", "mine", "train", "whiten", "evaluate")
FINEGRAINED_STAGES = ("extract", "graph", "mine", "train", "evaluate")


@dataclass(frozen=True, kw_only=True)
class LearningConfig(MiningRunConfig, ListingConfig, ABC):
    """Settings shared by all jobs that learn from images."""

    kind: ClassVar[Application]
    all_stages: ClassVar[tuple[str, ...]] = STAGES

    rounds: Annotated[int, Between(1, 1000)] = 1
    """Most rounds of mining and training; each further one mines with the network of the one before
    (Sec. 3.4). A round that gains nothing by the check without labels is the last."""
    budget: str | None = None
    """Time to learn in, such as 30m or 8h: training ends with the last epoch that fits, one at
    least, and a round for which too little is left does not begin."""
    images: tuple[str, ...] = ()
    """Folders, tar shards, Parquet files or lists of images; none: a rendered demonstration set."""
    deduplicate: bool = True
    """Use only the first of several files with equal content."""
    near_duplicates: NearDuplicates = "keep"
    """Images that look the same, such as a photo encoded anew, made smaller or cut a little: keep
    all of them, or only the one with the most pixels of each group."""
    network: Network = "vgg16"
    """Network to start from: vgg16, googlenet, bvlc_googlenet, resnet50, resnet101,
    efficientnet_lite0; timm:NAME or torchvision:NAME for one of these libraries, with a tag or not
    (timm:vit_small_patch14_dinov2.lvd142m)."""
    weights: str | None = None
    """File with the initial weights (.pth or .safetensors), or a published network of cirtorch or
    dirtorch (its --network and --training.pooling); by default those of ImageNet."""
    feature_network: str | None = None
    """Network whose features are mined on, in every round, while --network is trained: NETWORK or
    NETWORK:FILE; by default --network itself, and then what it has learned."""
    oracle: Oracle | None = None
    """Uses labels, those that otherwise measure the purity of pools, to see how much purer pools
    would help: replace the mined pools by what labels say (as in the paper), or filter false
    positives or false negatives out of them."""
    registered_model: Annotated[str | None, EXECUTION, MAY_BE_EMPTY] = None
    """Name in MLflow's registry under which the model becomes the newest version; by default the
    name of --experiment; "": do not register it."""
    stages: Annotated[str, EXECUTION] = ",".join(STAGES)
    """Stages to run, separated by commas; the others must have been run before."""
    demo: DemoConfig = field(default_factory=DemoConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def title(self) -> str:
        return self.network

    @property
    def model_name(self) -> str | None:
        """Name under which the model is registered; None: it is not."""
        named = self.registered_model
        return owned_name(self.experiment) if named is None else named or None

    @property
    @abstractmethod
    def has_demo(self) -> bool:
        """True if the rendered photos stand in for images that are not given."""

    @property
    @abstractmethod
    def labels_flag(self) -> str | None:
        """The flag by which to name the labels of the images; None if they are known."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(LearningConfig):
    """Learn image embeddings without labels: mine on manifolds, fine-tune, whiten, measure."""

    kind: ClassVar[Application] = "retrieval"

    preset: Preset = "demo"
    """Where the defaults come from: rendered photos on one machine, or the paper's retrieval."""
    recipe: Recipe = "auto"
    """Where the other defaults come from: the collection itself, one steady choice for any
    collection, the paper's own values, or (only with --tuples, which takes it by itself) those of
    its supervised peer."""
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
    """Learn to tell classes such as bird species apart without labels: mine, fine-tune, measure."""

    kind: ClassVar[Application] = "finegrained"
    all_stages: ClassVar[tuple[str, ...]] = FINEGRAINED_STAGES

    preset: FinegrainedPreset = "demo"
    """Where the defaults come from: rendered photos on one machine, or the paper's CUB-200-2011."""
    recipe: FinegrainedRecipe = "steady"
    """How to train by default: steadily on any collection, with the paper's own values, or with
    those of the authors' released code where it has others."""
    stages: Annotated[str, EXECUTION] = ",".join(FINEGRAINED_STAGES)
    dim: Annotated[int, Between(1, 100_000)] = 64
    """Dimensions of the embedding, the output of a fully connected layer after the pooling
    (Sec. 4.2)."""
    head: HeadStart = "pca"
    """Initial weights of that layer: the first principal components of the unlabelled images, or
    random ones; random-raw: random ones, applied without l2-normalisation before (as released)."""
    pool_labels: str | None = None
    """CSV file of name,label of the unlabelled images, used only to measure how pure the pools
    are."""
    baseline: Annotated[SupervisedBaseline | None, tyro.conf.arg(aliases=["--rival"])] = None
    """Train with labels by a method of Table 2 instead of mining: a supervised baseline."""
    per_class: Annotated[int, Between(2, 10_000)] = 4
    """With --baseline: images of each class in a batch."""
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
    """Choice of a comparison, of its rows and of the seeds."""

    application: Application = "finegrained"
    """Fine-grained learning or retrieval; each takes all flags of its own job."""
    study: Study = "method"
    """Subject of the comparison: the method with its baselines (Tables 1 and 2), or features to
    mine on."""
    rows: Annotated[tuple[str, ...], EXECUTION] = ()
    """Names of the rows to fill (a wrong name lists them); by default all."""
    seeds: Annotated[tuple[int, ...], EXECUTION] = (0, 1, 2)
    """Seeds with which each row is run; the table has means and standard deviations over them."""


@dataclass(frozen=True, kw_only=True)
class FinegrainedAblationConfig(AblationOptions, FinegrainedConfig):
    """Compare the method with its baselines, one change at a time: fine-grained learning."""

    @property
    def title(self) -> str:
        return "ablation"


@dataclass(frozen=True, kw_only=True)
class RetrievalAblationConfig(AblationOptions, RetrievalConfig):
    """Compare the method with its baselines, one change at a time: retrieval."""

    application: Application = "retrieval"
    recipe: Recipe = "steady"
    """Where the other defaults come from. `auto` would choose other sizes for each row."""

    @property
    def title(self) -> str:
        return "ablation"


def chosen_stages(config: LearningConfig) -> tuple[str, ...]:
    """Return the stages named by --stages, in the order of the pipeline.

    Raises
    ------
    InputError
        No stage is named, or one that does not exist.
    """
    stages = config.all_stages
    chosen = [name.strip() for name in config.stages.split(",") if name.strip()]
    for name in chosen:
        if name not in stages:
            raise InputError(f"--stages: no stage {name!r}; choose from {','.join(stages)}")
    if not chosen:
        raise InputError(f"--stages is empty: choose from {','.join(stages)}")
    return tuple(name for name in stages if name in chosen)
