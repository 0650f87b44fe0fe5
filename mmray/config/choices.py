"""Settings that are chosen by name, and the names allowed for each."""

from typing import Literal

Network = Literal[
    "vgg16", "googlenet", "bvlc_googlenet", "resnet50", "resnet101", "efficientnet_lite0"
]
Pooling = Literal["mac", "rmac", "gem", "avg"]
Descriptor = Literal["mac", "rmac", "gem", "avg", "embedding"]
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
