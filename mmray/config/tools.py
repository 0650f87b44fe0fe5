"""Settings of the jobs that do not train: mine, evaluate, index, search, export, figure."""

from dataclasses import dataclass
from typing import Annotated

from mmray.config.bounds import MAY_BE_EMPTY, Between
from mmray.config.choices import IndexKind, MinePreset
from mmray.config.describing import DescribingConfig
from mmray.config.run import EXPERIMENT, ListingConfig, MiningRunConfig, RunConfig, owned_name
from mmray.config.sections import LabelledSetsConfig


@dataclass(frozen=True, kw_only=True)
class MineConfig(MiningRunConfig):
    """Mine anchors and pools on features that were computed elsewhere."""

    preset: MinePreset = "retrieval"
    """Where the defaults come from: the paper's retrieval, or its fine-grained setting."""
    features: Annotated[str, MAY_BE_EMPTY] = ""  # not given, which is refused with what to name
    """File .npy (n x d), folder of Parquet (column embedding), or MATLAB .mat (V, d x n)."""
    labels: str | None = None
    """A label for each item (.npy, or text with one a line), to measure the purity of the pools."""


@dataclass(frozen=True, kw_only=True)
class EvaluateJobConfig(LabelledSetsConfig, DescribingConfig, RunConfig):
    """Measure networks on labelled sets: mAP, and the further measures of a set's own rules."""

    model: tuple[str, ...] = ()
    """Networks, a row of the table each: folders `model` that a run left, MLflow's URIs of models,
    names such as vgg16 or timm:NAME for the published weights, or vgg16:FILE for weights from a
    file, or files of cirtorch and dirtorch; NAME= before one is its name in the table."""
    pca_sample: Annotated[int, Between(2, 10**9)] = 5000
    """Most images to draw at random from those for PCA whitening."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig(ListingConfig, DescribingConfig):
    """Describe images by a model, so that they can be searched.

    The same command run again, or with other --images, brings the index up to date: known images
    are not described again, and images that are gone from a named folder are removed.
    """

    model: str | None = None
    """Folder `model` that a run left, MLflow's URI of a model, or the name of a network, such as
    efficientnet_lite0 or timm:NAME, with :FILE for its weights; by default the newest model that
    was learned in this storage, of --experiment if it has one."""
    name: str | None = None
    """Name of the index below --storage; by default that of --experiment."""
    kind: IndexKind = "auto"
    """flat compares every image; ivf-pq compares those of near cells by 64 bytes each, and the best
    of them exactly, for sets too large for memory; auto: flat up to a million images."""
    longest_side: Annotated[int | None, Between(32, 16_384)] = None
    """Longest side that images are reduced to, pixels; by default that of the model."""

    @property
    def index_name(self) -> str:
        return self.name or owned_name(self.experiment)


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """Search an index with images: a table, and a page of what was found."""

    query: tuple[str, ...]
    """Image files to search with."""
    storage: str = "mmray-runs"
    """Folder or URI where the index was made."""
    experiment: str = EXPERIMENT
    """MLflow experiment of the index."""
    name: str | None = None
    """Name of the index; by default that of --experiment."""
    top: Annotated[int, Between(1, 10**9)] = 20
    """Images to find."""
    box: tuple[float, float, float, float] | None = None
    """Search with a part of the image: left, top, right and bottom, pixels of the upright image."""
    probes: Annotated[int, Between(1, 10**9)] = 256
    """Cells of an ivf-pq index to search: more find more, in more time."""
    page: str = "search.html"
    """HTML file to write the page to."""

    @property
    def index_name(self) -> str:
        return self.name or owned_name(self.experiment)


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Remove from a storage what no run and no index needs any more."""

    storage: str = "mmray-runs"
    """Folder or URI where everything that runs produce is kept."""
    tracking_uri: str | None = None
    """MLflow server; by default the database under the storage folder. Runs that were deleted in
    MLflow do not count."""
    dry_run: bool = False
    """Only say what would be removed."""


@dataclass(frozen=True, kw_only=True)
class FigureConfig:
    """Draw what the method does on points of the plane; the defaults are those of Figure 1."""

    output: str = "figure1.png"
    """File or URI of the picture; the ending says whether PNG, SVG or PDF."""
    points: int = 600
    """Points in total, on all curves."""
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

    model: str | None = None
    """Folder `model` that a run left, MLflow's URI of a model, or the name of a network, as for
    `search index`; by default the newest model that was learned in this storage, of --experiment
    if it has one."""
    experiment: str = EXPERIMENT
    """MLflow experiment whose models go before others of the storage."""
    storage: str = "mmray-runs"
    """Folder or URI where the run was made."""
    tracking_uri: str | None = None
    """MLflow server; by default the database under the storage folder."""
    output: str = "model.onnx"
    """File to write."""
    dims: int | None = None
    """Number of leading dimensions of a descriptor to keep; by default all."""
