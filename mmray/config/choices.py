"""Settings that are chosen by name, and the names allowed for each."""

from typing import Literal, TypeAlias

# One of NETWORKS, or timm:NAME or torchvision:NAME, of which the libraries have some thousand.
Network: TypeAlias = str
NETWORKS: tuple[Network, ...] = (
    *("vgg16", "googlenet", "bvlc_googlenet", "resnet50", "resnet101", "efficientnet_lite0"),
)
LIBRARIES = ("timm:", "torchvision:")
NETWORKS_TOLD = (
    f"{', '.join(NETWORKS)}, or write {' or '.join(f'{each}NAME' for each in LIBRARIES)}"
)
Pooling = Literal["mac", "rmac", "gem", "avg", "cls"]
Descriptor = Literal["mac", "rmac", "gem", "avg", "cls", "embedding"]
Interpolation = Literal["bilinear", "bicubic"]
Selection = Literal["walk", "filled", "all", "random"]
Loss = Literal["contrastive", "triplet", "infonce"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
TrainingPrecision = Literal["float32", "tf32", "bfloat16"]
ApproximateSearch = Literal["ivf", "hnsw"]
Search = Literal["exact", "ivf", "hnsw"]
Positives = Literal["manifold", "euclidean", "cyclic"]
Negatives = Literal["manifold", "random", "geodesic"]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["step", "cosine", "constant"]
Augmentation = Literal["none", "crop"]
QuerySearch = Literal["plain", "aqe", "alpha-qe", "dba", "diffusion", "truncated-diffusion"]
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
    "roxford5k_1m",
    "rparis6k_1m",
]
Preset = Literal["demo", "retrieval"]
FinegrainedPreset = Literal["demo", "finegrained"]
Recipe = Literal["auto", "steady", "paper", "supervised"]
FinegrainedRecipe = Literal["steady", "paper", "released"]
MinePreset = Literal["retrieval", "finegrained"]
HeadStart = Literal["pca", "random", "random-raw"]
Application = Literal["finegrained", "retrieval"]
Study = Literal["method", "features"]
NearDuplicates = Literal["keep", "one"]
IndexKind = Literal["auto", "flat", "ivf-pq"]
Oracle = Literal[
    "replace-positives",
    "replace-negatives",
    "replace-both",
    "filter-positives",
    "filter-negatives",
    "filter-both",
]
SupervisedBaseline = Literal[
    "triplet-semihard",
    "lifted-structure",
    "clustering",
    "proxy-nca",
    "soft-triple",
    "distance-weighted",
]


def network_and_weights(text: str) -> tuple[Network, str] | None:
    """Split NETWORK or NETWORK:FILE; return None for what names no network. FILE may be empty."""
    for library in LIBRARIES:
        if text.startswith(library):
            name, _, weights = text.removeprefix(library).partition(":")
            return library + name, weights
    name, _, weights = text.partition(":")
    return (name, weights) if name in NETWORKS else None
