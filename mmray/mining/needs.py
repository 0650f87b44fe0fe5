"""What mining needs of memory, disk and time, told from sizes before it begins.

n items, d dimensions, k neighbours of an item.

The numbers of bytes follow from the arrays that are held; what processes take beside them was
measured (docs/results/mining-memory.md). Files that are mapped to memory are not counted: the system
takes their pages back where it needs room.
"""

from dataclasses import dataclass

from mmray.config.sections import MiningConfig

GB = 1e9

RAY = 0.9 * GB  # Ray's own processes on a machine
JOB = 0.75 * GB  # the process of the job, with all that it imports
WORKER = 0.6 * GB  # a process of a worker

RECIPROCAL = 0.8  # share of the pairs (i, j) of a k-NN graph that have a (j, i); 0.76 to 0.79 seen
COLUMNS = 32  # anchors for which a worker diffuses at a time
_ITEM = 60  # bytes for each item in the job's process, while the graph is looked at
_JOIN = 0.35 * GB  # while pairs are joined with their reverse


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a stage needs, in bytes and seconds of CPUs.

    Attributes
    ----------
    stage : name
    job : bytes of the job's own process
    shared : bytes of shared objects on each machine with a worker, and on that of the job
    worker : bytes of each worker beside these; 0: the stage has none
    disk : bytes that are written to the storage, those that are removed at its end included
    seconds : of one CPU, for all of the stage; 0: not known
    """

    stage: str
    job: float
    shared: float = 0.0
    worker: float = 0.0
    disk: float = 0.0
    seconds: float = 0.0

    def machine(self, workers: int) -> float:
        """Return the bytes of a machine that runs the job and so many workers."""
        return RAY + self.job + self.shared + workers * self.worker


def feature_bytes(n: int, d: int, *, half: bool) -> int:
    """Return the bytes of an index for exact search: float32, and bfloat16 beside it if `half`."""
    return n * d * (6 if half else 4)


def search_needs(
    n: int, d: int, k: int, config: MiningConfig, *, half: bool, parts: int, seconds: float
) -> Needs:
    """Tell what the search for the neighbours of all items needs.

    Parameters
    ----------
    half : whether an index has bfloat16 too
    parts : of the database, which are searched one after the other
    seconds : of one CPU for an exact search
    """
    found = 12.0 * n * k
    if config.search == "exact":
        shared = feature_bytes(n, d, half=half) / parts
        # A copy of what is shared, but for the features themselves, which are mapped.
        job = JOB + (shared / 3 if half else 0)
        disk = found if parts == 1 else (parts + 1) * found
        return Needs(
            stage="knn", job=job, shared=shared, worker=WORKER, disk=disk, seconds=seconds
        )
    lifted = 2 * (d // 16 + 1) * 16
    trained = n * (lifted + (8 if config.search == "ivf" else 272))
    own = 12 * n if config.search == "hnsw" else 0  # of each worker
    return Needs(
        stage=f"knn, {config.search}",
        job=JOB + 4 * trained,  # while it is built
        shared=4.0 * n * d + trained,
        worker=WORKER + own,
        disk=found + trained,
    )


def graph_needs(n: int, k: int) -> Needs:
    """Tell what the graph of n items with k neighbours each needs."""
    entries = RECIPROCAL * n * k
    return Needs(
        stage="graph",
        job=JOB + _JOIN + _ITEM * n,
        disk=16 * entries + 12 * n * k + 8 * entries,
        seconds=3.4e-7 * n * k,
    )


def mining_needs(
    n: int, d: int, k: int, config: MiningConfig, *, half: bool, parts: int, anchors: int
) -> Needs:
    """Tell what the pools of some anchors need: the graph in its order, and work arrays."""
    entries = RECIPROCAL * n * k
    compared = min(n, max(config.positive_k or 0, config.negative_k or 0))
    features = 0 if parts > 1 else feature_bytes(n, d, half=half)
    return Needs(
        stage="mine",
        job=JOB + _ITEM * n + (features / 3 if half else 0),
        shared=features + 8 * entries + 12 * n,
        worker=WORKER + worker_bytes(n),
        disk=(anchors * compared * 12.0 * (parts + 1) if parts > 1 else 0) + 4000.0 * anchors,
        seconds=anchors * config.max_iter * entries * 4e-9 / 2,
    )


def worker_bytes(n: int) -> float:
    """Return the bytes of the arrays in which a worker diffuses: five blocks and their result."""
    return 6 * 4.0 * COLUMNS * n
