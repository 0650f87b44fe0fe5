"""Needs of describing and mining, in memory, disk and time, told from sizes before they begin.

n items, d dimensions, k neighbours of an item.

Bytes follow from the arrays that are held; what processes take beside them was measured
(docs/results/mining-speed.md). Files that are mapped to memory are not counted: the system takes
their pages back where it needs room.
"""

import math
from dataclasses import dataclass

from mmray.config.sections import MiningConfig
from mmray.mining.diffusion.kernels import COLUMNS
from mmray.mining.pools import MiningMethod

GB = 1e9

RAY = 0.9 * GB  # Ray's own processes on a machine
JOB = 0.75 * GB  # the process of the job, with all that it imports
WORKER = 0.6 * GB  # a process of a worker

RECIPROCAL = 0.8  # share of the pairs (i, j) of a k-NN graph that have a (j, i); 0.76 to 0.79 seen
DESCRIBER = 1.2 * GB  # a process that decodes and describes
_LISTED, _ROW = 700, 300  # bytes for each image: in the job's process, and in a row of its shard
_RANKED = 25  # bytes for each item: its number, place and similarity, and these sorted
_ITEM = 60  # bytes for each item in the job's process, while the graph is looked at
_JOIN = 0.35 * GB  # while pairs are joined with their reverse
# Seconds of a CPU: for a pair that is joined; for an entry of the graph, a step and an anchor.
_JOINED, _GATHERED = 3.4e-7, 3e-10


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a collection and of a share of memory, from which all needs follow.

    Attributes
    ----------
    n, d : items, dimensions
    half : whether an index has bfloat16 beside float32
    share : bytes of a machine's shared objects that features may take
    """

    n: int
    d: int
    half: bool
    share: float

    @property
    def index(self) -> int:
        """Return the bytes of an index for exact search."""
        return self.n * self.d * (6 if self.half else 4)

    @property
    def parts(self) -> int:
        """Return the number of parts in which the features are searched."""
        return max(1, min(self.n, math.ceil(self.index / self.share)))


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The needs of a stage, in bytes and in seconds of CPUs.

    Attributes
    ----------
    stage : name
    job : bytes of the job's own process
    shared : bytes of shared objects on each machine with a worker, and on that of the job
    worker : bytes of each worker beside these; 0: the stage has none
    disk : bytes that are written to the storage, those that are removed at its end included
    seconds : of one CPU, for all of the stage; None: not known
    """

    stage: str
    job: float
    shared: float = 0.0
    worker: float = 0.0
    disk: float = 0.0
    seconds: float | None = None

    def machine(self, workers: int) -> float:
        """Return the bytes of a machine that runs the job and so many workers."""
        return RAY + self.job + self.shared + workers * self.worker


def needs(
    sizes: Sizes, config: MiningConfig, *, seconds: float | None = None
) -> tuple[Needs, Needs, Needs]:
    """Tell what the stages knn, graph and mine need.

    Parameters
    ----------
    sizes : of the collection
    config : settings, in which all numbers of neighbours are known
    seconds : of one CPU for an exact search of all pairs; None: not known
    """
    k = config.width(config.chosen_sizes[0])
    exact = config.search == "exact"
    search = _exact(sizes, k, seconds) if exact else _approximate(sizes, k, config)
    return search, _graph(sizes.n, k), _mining(sizes, k, config)


def description_needs(n: int, width: int, seconds: float) -> Needs:
    """Tell what describing n images needs, by `width` numbers each, in so many seconds of a CPU."""
    return Needs(
        stage="extract",
        job=JOB + _LISTED * n,
        worker=DESCRIBER,
        disk=n * (2 * 4.0 * width + _ROW),  # shards, and rows in one file
        seconds=seconds,
    )


def check_needs(n: int, config: MiningConfig) -> Needs:
    """Tell what the check without labels needs: the job itself diffuses, by all its CPUs."""
    return Needs(stage="check", job=JOB + _ITEM * n + worker_bytes(n, config))


def pool_images(n: int, config: MiningConfig) -> int:
    """Return the most images that can be in pools: anchors with all positives and negatives."""
    anchors = config.anchors or n
    return min(n, anchors * (config.chosen_sizes[1] + config.max_negatives))


def worker_bytes(n: int, config: MiningConfig) -> float:
    """Return the bytes of the arrays in which a worker diffuses.

    Five blocks of columns, or, where it goes but so many hops, a ranking of all items, and the
    part of the graph within the hops, which is not counted.
    """
    return (5 * 4.0 * COLUMNS if config.hops is None else _RANKED) * n


def _exact(sizes: Sizes, k: int, seconds: float | None) -> Needs:
    shared, found = sizes.index / sizes.parts, 12.0 * sizes.n * k
    return Needs(
        stage="knn",
        # A copy of what is shared, but for the features themselves, which are mapped.
        job=JOB + (shared / 3 if sizes.half else 0),
        shared=shared,
        worker=WORKER,
        disk=_kept(sizes.parts) * found,
        seconds=seconds,
    )


def _kept(parts: int) -> int:
    """Return how often what is found is on the disk: up to the last part, and the one before."""
    return 1 if parts == 1 else 2


def _approximate(sizes: Sizes, k: int, config: MiningConfig) -> Needs:
    n, d, links = sizes.n, sizes.d, 8 if config.search == "ivf" else 272
    trained = n * (2 * (d // 16 + 1) * 16 + links)
    return Needs(
        stage="knn",
        job=JOB + 4.0 * trained,  # while it is built
        shared=4.0 * n * d + trained,
        worker=WORKER + (12.0 * n if config.search == "hnsw" else 0),
        disk=12.0 * n * k + trained,
    )


def _graph(n: int, k: int) -> Needs:
    entries = RECIPROCAL * n * k
    return Needs(
        stage="graph",
        job=JOB + _JOIN + _ITEM * n,
        disk=(16 + 8) * entries + 12 * n * k,
        seconds=_JOINED * n * k,
    )


def _mining(sizes: Sizes, k: int, config: MiningConfig) -> Needs:
    n, entries = sizes.n, RECIPROCAL * sizes.n * k
    method, anchors = MiningMethod.of(config, seed=0), config.anchors or n
    whole = sizes.parts == 1
    found = 0.0 if whole else 12.0 * anchors * method.compared(n) * _kept(sizes.parts)
    return Needs(
        stage="mine",
        job=JOB + _ITEM * n + (sizes.index if whole else 0),
        shared=(sizes.index if whole else 0) + 8 * entries + 12 * n,
        worker=WORKER + worker_bytes(n, config),
        disk=found + 20.0 * anchors * (method.positive_k + method.max_negatives),
        seconds=anchors * config.max_iter * entries * _GATHERED,
    )
