"""The options of each benchmark, without what it runs: `--help` does not wait for torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmray.config.choices import Loss, Network, Precision, TrainingPrecision

GpuPart = Literal["env", "net", "shapes", "extract", "train", "knn", "ivf", "mine", "stage", "demo"]
Scale = Literal["small", "full"]


@dataclass(frozen=True, kw_only=True)
class SyntheticFeatures:
    """Features to search: points of a curved manifold, see `mining.manifold_features`."""

    items: int = 100_000
    dims: int = 64
    """Even."""
    intrinsic: int = 8
    """Dimensions of the manifold that the features lie on."""


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions(SyntheticFeatures):
    """Write the synthetic features into a file, for `jobs/mine.py`."""

    output: Path = Path("features.npy")


@dataclass(frozen=True, kw_only=True)
class Threads:
    """The share of the machine that both sides of a comparison get."""

    threads: int = 0
    """CPU threads on both sides; 0: all."""


@dataclass(frozen=True, kw_only=True)
class KnnOptions(SyntheticFeatures, Threads):
    """Compare the exact k-NN search with `faiss.knn`."""

    k: int = 30
    queries: int = 8192
    """Rows, the first ones, that neighbours are searched for."""
    repeats: int = 3
    """Times that each side is measured; the best counts."""


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(SyntheticFeatures, Threads):
    """Compare diffusion with scipy anchor by anchor, and with blocks of 16 by scipy and torch."""

    k: int = 30
    """Neighbours of an item in the graph."""
    anchors: int = 64
    """Anchors diffused from."""
    solved: int = 4
    """How many of these scipy solves one by one; its time is scaled to all."""
    repeats: int = 3
    """Times that each side is measured; the best counts."""


@dataclass(frozen=True, kw_only=True)
class RankingOptions(SyntheticFeatures, Threads):
    """Compare the ways to rank a whole database, as an evaluation does."""

    queries: int = 8192
    """Rows, the first ones, that all rows are ranked for."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(SyntheticFeatures, Threads):
    """Compare the ways to search an index, as `jobs/search.py query` does."""

    queries: int = 50
    """Vectors beside the items, searched for one after the other and all at once."""
    top: int = 20
    """Items to find."""
    probes: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Cells that an ivf-pq index looks into."""


@dataclass(frozen=True, kw_only=True)
class TenMillionOptions:
    """Measure the driver's way from a list to descriptors, for growing simulated collections.

    Ten million take 4 GB of disk and up to 8 GB of memory.
    """

    items: int = 10_000_000
    """Images in the largest collection."""
    shares: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1)
    """Sizes of the collections as shares of this number, ascending, at least two."""
    described_every: int = 1000
    """One of so many units of 256 images is described; the shards of the others are made up."""


@dataclass(frozen=True, kw_only=True)
class Photos(Threads):
    """Photos of mixed shapes, and the network that embeds them."""

    images: tuple[str, ...] = ()
    """Photos, as for jobs/retrieval.py; none: rendered ones."""
    sample: int = 1000
    """Photos at most."""
    network: Network = "efficientnet_lite0"
    weights: str | None = None
    longest_side: int = 362


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Ask `mmray serve` for similar photos as several clients at once; needs Linux."""

    images: tuple[str, ...] = ()
    """Photos to search with, as for jobs/retrieval.py; none: rendered ones."""
    items: int = 100_000
    """Random vectors in the index, of 1280 dimensions."""
    longest_side: int = 192
    """Pixels to which the network's preprocessing reduces the photos."""
    clients: tuple[int, ...] = (1, 50)
    """Numbers of clients, one after the other."""
    seconds: float = 60.0
    """Measure each number of clients, by photos and by rows of the index."""


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions(Photos):
    """Compare extraction with loops over a DataLoader."""

    precision: Precision = "float32"
    """bfloat16 is measured besides float32."""
    shard_size: int = 64
    """Images in a unit of work, and in a chunk of the loops."""
    batch_size: int = 32
    """Images of one shape in a forward pass, at most."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Decode and reduce JPEG files on one thread, beside libraries that are installed."""

    images: tuple[str, ...] = ()
    """Photos of which mosaics are made, as for jobs/retrieval.py; none: rendered ones."""
    megapixels: tuple[float, ...] = (0.5, 2, 12)
    longest_side: int = 362
    sample: int = 100
    repeats: int = 5


@dataclass(frozen=True, kw_only=True)
class StreamOptions(Photos):
    """Stream photos through a double of a GPU, and see for how long it waits."""

    rate: float = 200.0
    """Images a second that the double describes."""
    cpus: int = 4
    """Tasks that decode; more than the machine has share what there is."""
    shard_size: int = 256


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Photos):
    """Compare training steps with loops over a DataLoader, alone and distributed."""

    precision: TrainingPrecision = "float32"
    loss: Loss = "contrastive"
    steps: int = 20
    """In an epoch of 5 tuples each, 15 images."""
    workers: int = 2
    """Processes that share the threads, where training is distributed."""
    storage: str | None = None
    """Folder or URI of the resized images, as s3://bucket/cache; what is there is taken. By default
    a temporary folder."""


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """Measure what a GPU could do and what mmray gets out of it: a line of JSON a measurement.

    Under nine minutes on an H100, and what `ivf` takes, which was not timed. Each part catches its
    own failure, so that one does not hide the others; the exit status is 1 if any failed.
    """

    parts: tuple[GpuPart, ...] = (
        *("env", "net", "shapes", "extract", "train"),
        *("knn", "ivf", "mine", "stage", "demo"),
    )
    """The machine, the network alone, new shapes, a unit of extraction, training steps, k-NN
    of a million, exact and in inverted lists, mining, the extraction stage from JPEG files, the
    demonstration."""
    scale: Scale | None = None
    """How much is measured; by default full on a GPU, and small on a CPU, which is a test of this
    benchmark and no measurement."""
