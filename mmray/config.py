"""Every setting and its default; the command line is made from these classes.

Values are the paper's (Iscen et al., CVPR 2018, section in brackets) unless said otherwise.
"""

import dataclasses
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from mmray.system.errors import InputError

Network = Literal["vgg16", "googlenet", "resnet50", "resnet101", "efficientnet_lite0"]
Pooling = Literal["mac", "rmac", "gem", "avg"]
Descriptor = Literal["mac", "rmac", "gem", "avg", "embedding"]
Selection = Literal["walk", "filled", "all", "random"]
Loss = Literal["contrastive", "triplet"]
Precision = Literal["float32", "bfloat16"]
ApproximateSearch = Literal["ivf", "hnsw"]
Search = Literal["exact", "ivf", "hnsw"]
Positives = Literal["manifold", "euclidean", "cyclic"]
Negatives = Literal["manifold", "random", "geodesic"]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["step", "cosine", "constant"]
Augmentation = Literal["none", "crop"]
QuerySearch = Literal["plain", "aqe", "alpha-qe", "diffusion"]
BenchmarkName = Literal[
    "oxford5k",
    "paris6k",
    "oxford105k",
    "paris106k",
    "holidays",
    "holidays_upright",
    "instre",
    "roxford5k",
    "rparis6k",
]
Preset = Literal["demo", "retrieval"]
FinegrainedPreset = Literal["demo", "finegrained"]
Recipe = Literal["steady", "paper", "supervised"]
FinegrainedRecipe = Literal["steady", "paper"]
MinePreset = Literal["retrieval", "finegrained"]
HeadStart = Literal["pca", "random"]
Application = Literal["finegrained", "retrieval"]
Study = Literal["method", "features"]
IndexKind = Literal["auto", "flat", "ivf-pq"]
Oracle = Literal["positives", "negatives", "both"]
Rival = Literal[
    "triplet-semihard", "lifted-structure", "proxy-nca", "soft-triple", "distance-weighted"
]

STAGES = ("extract", "graph", "mine", "train", "whiten", "evaluate")
ALIAS = "newest"  # in MLflow's registry, of the version that was registered last
RETRIEVAL_MODEL, FINEGRAINED_MODEL = "mmray-retrieval", "mmray-finegrained"
NEWEST = f"models:/{RETRIEVAL_MODEL}@{ALIAS}"
FINEGRAINED_STAGES = ("extract", "graph", "mine", "train", "evaluate")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The rendered demonstration set, used where no images are given."""

    objects: int = 24
    """Objects in each of the two parts: one trains without labels, the other tests."""
    photos: int = 13
    """Photos of each object."""
    distractors: int = 40
    """Photos of none of the objects, in each part."""
    longest_side: int = 256
    """Longest side of a photo, pixels."""
    seed: int = 0
    """Another seed renders other objects."""


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """Features Y for mining (Sec. 4.3)."""

    longest_side: int | None = 362
    """Longest side images are reduced to, pixels (never enlarged); None: as they are."""
    scales: tuple[float, ...] = (1.0,)
    """Each image is described at these multiples of its size, and the descriptors are summed."""
    poolings: tuple[Pooling, ...] = ("rmac", "mac")
    """Descriptors taken from one forward pass; mining uses the first."""
    rmac_whole: bool = True
    """R-MAC includes the MAC of the whole map; both variants are in the literature."""
    region_whitening: bool = False
    """R-MAC whitens each region by a PCA learned from regions, as in Tolias et al. 2016."""
    pca: int | None = None
    """Dimensions left by a PCA whitening of the features, learned from them; None: no whitening."""
    precision: Precision = "float32"
    """bfloat16 is several times as fast where the hardware has it; the deviation is reported."""
    shard_size: int = 256
    """Images in a shard, the unit of work that is computed again after a kill."""
    batch_size: int = 32
    """Images of one shape in a forward pass, at most."""
    max_bad_fraction: float = 0.5
    """More unreadable images than this stop the job."""
    max_pixels: int = 178_956_970
    """Images with more pixels are not decoded: a file of a few bytes can claim to be huge."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Graph, anchors, diffusion and pools (Sec. 3.1-3.3; values of Sec. 4.3)."""

    graph_k: int = 30
    """Neighbours of an item in the graph, eq. (1)."""
    count_self: bool = True
    """The item is one of its own graph_k neighbours, as in the authors' released code."""
    search: Search = "exact"
    """k-NN of all items: exact, or approximate by faiss's inverted lists or navigable graph."""
    search_effort: int = 64
    """Lists probed (ivf) or items kept while walking (hnsw): more find more, in more time."""
    power: float = 3.0
    """Exponent of the similarities, eq. (1)."""
    component: Literal["largest", "all"] = "largest"
    """Keep the graph's largest connected component only, or every item."""
    selection: Selection = "walk"
    """Anchors: the random walk's local maxima; these, filled up by others drawn at random; every
    linked item; or some drawn at random."""
    anchors: int | None = 1500
    """Anchors kept, by importance in the random walk (as released); None: all that are selected."""
    positives: Positives = "manifold"
    """P+ of eq. (5), or of a rival: the 5 nearest, or those on a cycle of 4 (Li et al. 2016)."""
    negatives: Negatives = "manifold"
    """P- of eq. (6), or of a rival: at random past the 5 nearest, or far along the graph (Li)."""
    alpha: float = 0.99
    """Teleport parameter of the diffusion, eq. (2), in [0, 1)."""
    rtol: float = 1e-10
    """Relative residual at which conjugate gradients stop (as released)."""
    max_iter: int = 20
    """Iterations of conjugate gradients at most (as released)."""
    positive_k: int = 50
    """Neighbours compared for the positives, eq. (5)."""
    positive_cut: float = 0.0
    """Positives below this share of the anchor's highest similarity on the manifold are dropped."""
    negative_k: int = 10_000
    """Neighbours compared for the negatives, eq. (6); capped at half of the items."""
    max_negatives: int = 50
    """Negatives kept for an anchor (as released)."""
    geodesic_far: float = 0.5
    """Geodesic negatives are farther along the graph than this share of all items."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the k-NN search and the diffusion run; auto: on GPUs if the cluster has any."""
    threads: int = 1
    """CPUs of an actor that searches or diffuses; more save memory on machines with many."""
    query_block: int = 4096
    """Rows of the k-NN search in a shard."""
    anchor_block: int = 32
    """Anchors whose diffusions are solved together, a shard."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Fine-tuning on the mined tuples (Sec. 3.4; values of Sec. 4.3, which STEADY changes)."""

    pooling: Pooling = "mac"
    loss: Loss = "contrastive"
    """Eq. (7) or eq. (8)."""
    margin: float | None = None
    """Margin m; by default 0.7 (contrastive) or 0.5 (triplet)."""
    weighted: bool = True
    """Multiply a tuple's loss by the manifold similarity of its positive (+W)."""
    normalized_weights: bool = False
    """Divide the weights by their mean: their scale depends on the graph, and acts as a rate."""
    epochs: int = 30
    anchors_per_epoch: int = 1000
    """Tuples drawn anew in each epoch, one an anchor."""
    batch_size: int = 5
    """Tuples in an optimiser step, over all workers together."""
    positives: int = 1
    """Positives of a tuple; its loss is the mean over all pairs of a positive and a negative."""
    negatives: int = 1
    """Negatives of a tuple."""
    top_positives: int | None = None
    """Positives are drawn among so many of their pool, the most similar on the manifold."""
    hard_negatives: int = 10
    """Negatives are drawn among so many of their pool, the nearest to the anchor (as released)."""
    negative_pool: int = 20_000
    """With --tuples: images drawn anew in each epoch, the pool of all its anchors' negatives."""
    sum_negatives: bool = False
    """The loss of a tuple has the sum over its negatives, not their mean."""
    augmentation: Augmentation = "none"
    """crop: random resized crops and flips, for fine-grained learning."""
    crop_size: int = 224
    """Pixels of a side of a crop."""
    optimizer: Optimizer = "sgd"
    learning_rate: float = 1e-2
    schedule: Schedule = "step"
    """The learning rate falls in steps, along half a cosine to 0, or not at all."""
    decay: float = 0.1
    """Factor on the learning rate every `decay_epochs` epochs (step)."""
    decay_epochs: int = 10
    warmup_epochs: float = 0.0
    """The learning rate rises from 0 during so many epochs."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    """Largest norm of a step's gradient; None: any."""
    precision: Precision = "float32"
    """bfloat16: of the passes through the network; weights and losses stay in float32."""
    longest_side: int = 362
    """Longest side of training images, pixels."""
    embed_batch_size: int = 32
    """Images of one shape in a forward pass without gradients, at most."""
    held_out: float = 0.0
    """Share of the anchors that never train: their loss is logged."""
    check_items: int = 300
    """Items drawn at random whose manifold neighbours a healthy network finds; 0: no check."""
    average: bool = False
    """Measure and keep the mean of the networks after all epochs so far and before the first."""
    keep: Literal["best", "last"] = "last"
    """The network that is kept: the healthiest, the initial one included, or the last."""
    patience: int | None = None
    """Training ends after so many epochs without a healthier network; None: never early."""
    monitor_every: int = 1
    """Epochs between two measurements of mAP during training, where labels exist; 0: never."""
    workers: int | None = None
    """Workers of distributed data parallel at most; by default one a GPU, or one."""


@dataclass(frozen=True, kw_only=True)
class WhiteningConfig:
    """PCA whitening for the initial network, LDA for the fine-tuned one (Sec. 4.3)."""

    images: int = 5000
    """Unlabelled images from which PCA whitening is learned."""
    pairs: int = 10_000
    """Matching pairs (anchor, manifold neighbour) from which LDA whitening is learned."""


@dataclass(frozen=True, kw_only=True)
class MeasuringConfig:
    """Labelled sets, how their images are described, and how they are searched (Sec. 4.3)."""

    benchmark: tuple[BenchmarkName, ...] = ()
    """Published benchmarks, whose files are found below `data`."""
    data: str | None = None
    """Folder that holds the benchmarks, each in a folder of its own or one alone."""
    distractors: str | None = None
    """Folder of the 100k distractors of oxford105k and paris106k; by default found below `data`."""
    images: str | None = None
    """Folder of a labelled set of your own."""
    ground_truth: str | None = None
    """A gnd_*.pkl file or a folder of *_query.txt, *_good.txt, *_ok.txt, *_junk.txt; None: the
    images of a class lie in a folder of its own."""
    longest_side: int = 1024
    """Longest side of test images, pixels; a query's box is cut before."""
    scales: tuple[float, ...] = (1.0,)
    """Each image is described at these multiples of its size, and the descriptors are summed."""
    poolings: tuple[Descriptor, ...] = ("rmac", "mac")
    """Descriptors that are measured; embedding: what the network learned, a head included."""
    crop: bool = True
    """Search with the box of a query, where it has one; else with the whole image."""
    precision: Precision = "float32"
    """bfloat16 is several times as fast where the hardware has it; the deviation is reported."""
    pca_images: str | None = None
    """Folder of independent images from which PCA whitening is learned."""
    dims: int | None = None
    """Dimensions that whitened descriptors are reduced to; None: all."""
    search: tuple[QuerySearch, ...] = ("plain",)
    """Also by expanded queries, averaged or weighted by similarity, or by diffusion."""
    clusterings: int = 5
    """Where images are in classes: runs of k-means, of as many seeds, that NMI is the mean of."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(MeasuringConfig):
    """Measuring the networks before and after training."""

    pool_labels: str | None = None
    """CSV of the unlabelled images' name,label: measures how pure the pools are, nothing else."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every job that leaves artifacts has."""

    storage: str = "mmray-runs"
    """Folder or URI where everything a run makes is kept."""
    seed: int = 0
    """Seed of every random choice."""
    tracking_uri: str | None = None
    """MLflow server; by default a database under the storage folder."""
    experiment: str = "mmray"
    """MLflow experiment."""
    min_workers: int = 1
    """Actors of a stage at least, where they must share GPUs; training goes on with as few."""
    max_workers: int | None = None
    """Actors of a stage at most; by default as many as the cluster has CPUs or GPUs for."""
    num_cpus: int | None = None
    """CPUs to count on, where an autoscaler adds machines; by default those that are there."""
    num_gpus: int | None = None
    """GPUs to count on, where an autoscaler adds machines; by default those that are there."""
    resource_timeout: float = 1800.0
    """Seconds that a stage waits for machines, while it has no worker, until it gives up."""

    @property
    def title(self) -> str:
        """What its MLflow run is called."""
        return type(self).__name__.removesuffix("Config").lower()


@dataclass(frozen=True, kw_only=True)
class MiningRunConfig(RunConfig):
    """What every job that mines has."""

    mining: MiningConfig = field(default_factory=MiningConfig)


@dataclass(frozen=True, kw_only=True)
class ListingConfig(RunConfig):
    """What every job that lists images has."""

    images: tuple[str, ...] = ()
    """Folders, tar shards, Parquet files or lists of images."""
    image_column: str | None = None
    """Column of Parquet files that holds the images; by default found."""
    exclude: str | None = None
    """Text file of names of images to leave out, one a line (the paper removes test landmarks)."""
    sample: int | None = None
    """So many images, drawn at random by --seed; None: all."""
    relist: bool = False
    """Look for images again, where a rerun would go by the list that it kept."""


@dataclass(frozen=True, kw_only=True)
class LearningConfig(MiningRunConfig, ListingConfig):
    """What every job that learns from images has."""

    rounds: int = 1
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
    registered_model: str = RETRIEVAL_MODEL
    """Name in MLflow's registry of which the model becomes the newest version; "": none."""
    stages: str = ",".join(STAGES)
    """Stages to run, by commas; the others must have been done before."""
    demo: DemoConfig = field(default_factory=DemoConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def title(self) -> str:
        return self.network


@dataclass(frozen=True, kw_only=True)
class Config(LearningConfig):
    """Learn image embeddings without labels: mine on manifolds, fine-tune, whiten, measure."""

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


@dataclass(frozen=True, kw_only=True)
class ClassesConfig:
    """The classes that Recall@k and NMI are measured on; nothing is learned from them."""

    images: str | None = None
    """Folder of images in classes: a folder of each, or CUB-200-2011's own layout; by default the
    second half of the classes of --images, which then trains on the first half alone."""
    split: bool = True
    """Whether --images is split so where no test images are given; else nothing is measured."""
    labels: str | None = None
    """CSV of these images' name,label, where they do not lie in folders of their classes."""
    clusterings: int = 5
    """Runs of k-means, of as many seeds, that NMI is the mean of."""


@dataclass(frozen=True, kw_only=True)
class FinegrainedConfig(LearningConfig):
    """Learn to tell classes apart without labels, as bird species: mine, fine-tune, measure."""

    preset: FinegrainedPreset = "demo"
    """Where the defaults come from: rendered photos on one machine, or the paper's CUB-200-2011."""
    recipe: FinegrainedRecipe = "steady"
    """How to train by default: steadily on any collection, or with the paper's own values."""
    registered_model: str = FINEGRAINED_MODEL
    stages: str = ",".join(FINEGRAINED_STAGES)
    dim: int = 64
    """Dimensions of the embedding: of a fully connected layer behind the pooling (Sec. 4.2)."""
    head: HeadStart = "pca"
    """How that layer starts: as the first principal components of the unlabelled images, or at
    random."""
    pool_labels: str | None = None
    """CSV of the unlabelled images' name,label: measures how pure the pools are, nothing else."""
    rival: Rival | None = None
    """Train with labels by a method of Table 2 instead of mining: a supervised baseline."""
    per_class: int = 4
    """With --rival: images of a class in a batch."""
    test: ClassesConfig = field(default_factory=ClassesConfig)


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """Which rows of a comparison to fill."""

    application: Application = "finegrained"
    """Classes of birds and the like, or retrieval; either with all flags of its own job."""
    study: Study = "method"
    """What is compared: the method with its rivals (Tables 1 and 2), or features to mine on."""
    rows: tuple[str, ...] = ()
    """Rows by their names, which a wrong one shows; by default all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each row is filled once for each; the table has means and standard deviations."""


@dataclass(frozen=True, kw_only=True)
class FinegrainedAblationConfig(AblationOptions, FinegrainedConfig):
    """Compare the method with its rivals, each change by itself: fine-grained learning."""

    @property
    def title(self) -> str:
        return "ablation"


@dataclass(frozen=True, kw_only=True)
class RetrievalAblationConfig(AblationOptions, Config):
    """Compare the method with its rivals, each change by itself: retrieval."""

    application: Application = "retrieval"

    @property
    def title(self) -> str:
        return "ablation"


@dataclass(frozen=True, kw_only=True)
class MineConfig(MiningRunConfig):
    """Mine anchors and pools on features that were computed elsewhere."""

    preset: MinePreset = "retrieval"
    """Where the defaults come from: the paper's retrieval, or its fine-grained setting."""
    features: str = ""
    """File .npy (n x d), folder of Parquet (column embedding), or MATLAB .mat (V, d x n)."""
    labels: str | None = None
    """A label for each item (.npy, or text with one a line), to measure the purity of the pools."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(MeasuringConfig, RunConfig):
    """Measure networks on labelled sets: mAP, and what else a set's own rules ask for."""

    model: tuple[str, ...] = ()
    """Networks, a row of the table each: folders `model` that a run left, MLflow's URIs of models,
    or names such as vgg16 for the published weights, or vgg16:FILE for weights from a file."""
    shard_size: int = 256
    """Images in a shard, the unit of work that is computed again after a kill."""
    batch_size: int = 32
    """Images of one shape in a forward pass, at most."""
    max_pixels: int = 178_956_970
    """Images with more pixels are not decoded: a file of a few bytes can claim to be huge."""
    pca_sample: int = 5000
    """Of the images for PCA whitening so many are drawn at random, at most."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig(ListingConfig):
    """Describe images by a model, so that they can be searched.

    The same command again, or with other --images, brings the index up to date: what is known
    already is not described again, and what is gone from a folder that is named goes.
    """

    model: str = NEWEST
    """Folder `model` that a run left, or MLflow's URI of a model; by default the last one that a
    run registered."""
    name: str = "images"
    """What the index is called below --storage."""
    kind: IndexKind = "auto"
    """flat: every image is compared; ivf-pq: those of near cells, by 64 bytes each, and the best
    exactly, for sets too large for memory; auto: flat up to a million images."""
    longest_side: int | None = None
    """Longest side that images are reduced to, pixels; by default that of the model."""
    precision: Precision = "float32"
    """bfloat16 is several times as fast where the hardware has it; the deviation is reported."""
    shard_size: int = 256
    """Images in a shard, the unit of work that is computed again after a kill."""
    batch_size: int = 32
    """Images of one shape in a forward pass, at most."""
    max_pixels: int = 178_956_970
    """Images with more pixels are not decoded: a file of a few bytes can claim to be huge."""


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """Search an index with images: a table, and a page of what was found."""

    query: tuple[str, ...]
    """Image files to search with."""
    storage: str = "mmray-runs"
    """Folder or URI where the index was made."""
    name: str = "images"
    """What the index is called."""
    top: int = 20
    """Images to find."""
    box: tuple[float, float, float, float] | None = None
    """Search with a part of the image: left, top, right and bottom, pixels of the upright file."""
    probes: int = 256
    """Cells that an ivf-pq index looks into: more find more, in more time."""
    page: str = "search.html"
    """File for the page."""


@dataclass(frozen=True, kw_only=True)
class FigureConfig:
    """Draw what the method does on points of the plane (Figure 1); the values are for that."""

    output: str = "figure1.png"
    """File or URI of the picture; the ending says whether PNG, SVG or PDF."""
    points: int = 600
    """Points, on all curves together."""
    curves: int = 3
    """Interleaved spirals that the points lie on."""
    noise: float = 0.03
    """Standard deviation of a point about its curve; the spirals end at radius 1."""
    seed: int = 0
    """Another seed draws other points."""
    anchor: int | None = None
    """Point to mine for, from 0; by default the most important in the random walk."""
    graph_k: int = 12
    """Neighbours of a point in the graph, itself among them, eq. (1)."""
    alpha: float = 0.99
    """Teleport parameter of the diffusion, eq. (2), in [0, 1)."""
    positive_k: int = 80
    """Neighbours compared for the positives, eq. (5)."""
    negative_k: int = 80
    """Neighbours compared for the negatives, eq. (6): at most half of the points."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a model as an ONNX file, which runs without PyTorch."""

    model: str = NEWEST
    """Folder `model` that a run left, or MLflow's URI of a model; by default the last one that a
    run registered."""
    storage: str = "mmray-runs"
    """Folder or URI where the run was made."""
    tracking_uri: str | None = None
    """MLflow server; by default the database under the storage folder."""
    output: str = "model.onnx"
    """The file."""
    dims: int | None = None
    """Only the first so many dimensions of a descriptor; by default all."""


Changed = TypeVar("Changed", bound=LearningConfig)
Changes = dict[str, Any]  # of fields; those of a section in a dict of their own

# The paper's values suit a million photos of landmarks. With these, smaller and less pure
# collections gain too, and none loses: RESULTS.md, "Steady training".
STEADY: Changes = {
    "mining": {"graph_k": 10, "positive_k": 20, "selection": "filled"},
    "training": {
        # The contrastive loss attracts until all distances are below its margin: it contracts.
        "loss": "triplet",
        "normalized_weights": True,
        "learning_rate": 3e-4,
        "anchors_per_epoch": 200,
        "held_out": 0.1,
        "average": True,
        "keep": "best",
        "patience": 5,
    },
}
# The peer of Table 3 that learns from labels: Radenović, Tolias, Chum, "CNN image retrieval learns
# from BoW", ECCV 2016, with VGG16. Its loss has a factor of 1/2 that ours has not.
SUPERVISED: Changes = {
    "training": {
        "loss": "contrastive",
        "margin": 0.7,
        "weighted": False,
        "anchors_per_epoch": 2000,
        "negatives": 5,
        "hard_negatives": 5,
        "sum_negatives": True,
        "learning_rate": 1e-3,
        "decay": math.exp(-0.1),
        "decay_epochs": 1,
        "check_items": 0,
    },
}
# A rival of Table 2 learns from labels: there is no graph to check a network by.
RIVAL: Changes = {
    "training": {"held_out": 0.0, "check_items": 0, "keep": "last", "patience": None},
}
RECIPES: dict[Recipe, Changes] = {"steady": STEADY, "paper": {}, "supervised": SUPERVISED}
FINEGRAINED_MINING: Changes = {
    "component": "all",
    "selection": "all",
    "anchors": None,
    "negative_k": 100,
}
SIZES: dict[Preset, Changes] = {
    "demo": {
        "network": "efficientnet_lite0",
        "extraction": {"longest_side": 192, "shard_size": 64},
        # Some 13 photos of an object: fewer neighbours than the paper's.
        "mining": {
            "component": "all",
            "graph_k": 5,
            "positive_k": 8,
            "negative_k": 100,
            "anchor_block": 64,
        },
        "training": {"longest_side": 192, "epochs": 4, "anchors_per_epoch": 60},
        "evaluation": {"longest_side": 192},
    },
    "retrieval": {},
}


# The paper's second application, where it differs from the first (Sec. 4.2 and 4.3).
FINEGRAINED: Changes = {
    "network": "googlenet",
    "extraction": {
        "longest_side": 512,
        "scales": (1.0, 2**-0.5, 0.5),
        "poolings": ("rmac",),
        "pca": 512,
    },
    "mining": FINEGRAINED_MINING,
    "training": {
        "pooling": "avg",
        "loss": "triplet",
        "epochs": 100,
        "anchors_per_epoch": 10**6,  # all of them
        "batch_size": 42,
        "augmentation": "crop",
        "longest_side": 256,
    },
}
FINEGRAINED_RECIPES: dict[FinegrainedRecipe, Changes] = {
    "steady": {
        "mining": {"graph_k": 10, "positive_k": 20},
        "training": {
            "normalized_weights": True,
            "learning_rate": 3e-4,
            "held_out": 0.1,
            "average": True,
            "keep": "best",
            "patience": 5,
        },
    },
    "paper": {},
}
FINEGRAINED_SIZES: dict[FinegrainedPreset, Changes] = {
    "demo": {
        "network": "efficientnet_lite0",
        "demo": {"distractors": 0},
        "extraction": {"longest_side": 224, "scales": (1.0,), "shard_size": 64, "pca": 128},
        # Some 13 photos of an object.
        "mining": {"positive_k": 10, "anchor_block": 64},
        "training": {
            "longest_side": 160,
            "crop_size": 128,
            "epochs": 4,
            "anchors_per_epoch": 300,
            "batch_size": 15,
        },
    },
    "finegrained": {},
}


def preset(name: Preset, recipe: Recipe = "steady") -> Config:
    """The paper's values, as changed by a recipe, then by the sizes of a preset."""
    return with_defaults(Config(preset=name, recipe=recipe))


def with_defaults(config: Changed) -> Changed:
    """The settings of the preset and the recipe that a config names."""
    if isinstance(config, FinegrainedConfig):
        recipe, sizes = FINEGRAINED_RECIPES[config.recipe], FINEGRAINED_SIZES[config.preset]
        return changed(config, FINEGRAINED, recipe, sizes)
    assert isinstance(config, Config), "there are two applications"
    return changed(config, RECIPES[config.recipe], SIZES[config.preset])


def changed(config: Changed, *changes: Changes) -> Changed:
    """A config with some fields changed, one set of changes after the other."""
    for each in changes:
        new = {
            field: replace(getattr(config, field), **value) if isinstance(value, dict) else value
            for field, value in each.items()
        }
        config = replace(config, **new)
    return config


DEMO, RETRIEVAL = preset("demo"), preset("retrieval")
PRESETS: dict[Preset, Config] = {"demo": DEMO, "retrieval": RETRIEVAL}
FINEGRAINED_PRESETS: dict[FinegrainedPreset, FinegrainedConfig] = {
    "demo": with_defaults(FinegrainedConfig(preset="demo")),
    "finegrained": with_defaults(FinegrainedConfig(preset="finegrained")),
}
FINEGRAINED_ABLATIONS: dict[FinegrainedPreset, FinegrainedAblationConfig] = {
    "demo": with_defaults(FinegrainedAblationConfig(preset="demo")),
    "finegrained": with_defaults(FinegrainedAblationConfig(preset="finegrained")),
}
RETRIEVAL_ABLATIONS: dict[Preset, RetrievalAblationConfig] = {
    "demo": with_defaults(RetrievalAblationConfig(preset="demo")),
    "retrieval": with_defaults(RetrievalAblationConfig(preset="retrieval")),
}
MINE_PRESETS: dict[MinePreset, MineConfig] = {
    "retrieval": MineConfig(),
    "finegrained": MineConfig(
        preset="finegrained",
        mining=MiningConfig(**FINEGRAINED_MINING),
    ),
}

EVALUATE = EvaluateConfig()


def chosen_stages(config: LearningConfig) -> tuple[str, ...]:
    """Names of --stages, in the order of the pipeline; InputError names one that does not exist."""
    stages = all_stages(config)
    chosen = [name.strip() for name in config.stages.split(",") if name.strip()]
    for name in chosen:
        if name not in stages:
            raise InputError(f"--stages: no stage {name!r}; choose from {','.join(stages)}")
    if not chosen:
        raise InputError(f"--stages is empty: choose from {','.join(stages)}")
    return tuple(name for name in stages if name in chosen)


def all_stages(config: LearningConfig) -> tuple[str, ...]:
    """Those of the application, in the order of the pipeline."""
    return FINEGRAINED_STAGES if isinstance(config, FinegrainedConfig) else STAGES


def settings(config: Any) -> dict[str, Any]:
    """A config as plain values by flag name ("mining.alpha"), as MLflow lists them."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            flat[name] = value
    return flat
