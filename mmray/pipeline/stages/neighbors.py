"""The stages that find the neighbours of all items, and choose how many of them mining compares."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from joblib import cpu_count

from mmray.config.choices import ApproximateSearch
from mmray.config.run import MiningRunConfig
from mmray.config.sections import SIZES
from mmray.mining.files import read_neighbors
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.recall import measured_recall
from mmray.mining.sizes import LARGEST_K, with_chosen_sizes
from mmray.pipeline import distributed
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.minable import need_items
from mmray.system.arrays import Device, Features
from mmray.system.formats import read_array, write_array
from mmray.system.progress import announce

Settings = TypeVar("Settings", bound=MiningRunConfig)


@dataclass(frozen=True)
class FeatureSource:
    """Features (n, d) to mine on, read when a stage needs them."""

    fingerprint: str
    count: int
    load: Callable[[], Features]
    what: str = "items"  # word for the items in messages


def neighbors_stages(
    session: Session[Settings], source: FeatureSource
) -> tuple[Session[Settings], StageFolder]:
    """Find the neighbours of all items, and choose the numbers of them that settings leave open.

    Returns
    -------
    session : the session with all numbers in its settings
    neighbors : the stage that found the neighbours: as many as the graph compares, or more
    """
    given, neighbors = session.config.mining, neighbors_stage(session, source)
    if None not in given.sizes:
        return session, neighbors

    def work(stage: StageFolder) -> Counts:
        found = read_neighbors(neighbors.folder, source.count, neighbors.counts["k"])
        filled, why = with_chosen_sizes(given, found)
        return dict(zip(SIZES, filled.sizes, strict=True)) | {"why": why}

    inputs = (neighbors.fingerprint, given.sizes, given.power, given.count_self)
    stage = session.run_stage("sizes", *inputs, work=work, stage_flag="graph")
    announce(f"mining: {stage.counts['why']}")
    mining = dataclasses.replace(given, **{name: stage.counts[name] for name in SIZES})
    return session.with_settings(dataclasses.replace(session.config, mining=mining)), neighbors


def neighbors_stage(session: Session[MiningRunConfig], source: FeatureSource) -> StageFolder:
    """Run the stage that finds the nearest neighbours of all items; graphs of equal k share it."""
    config = session.config.mining
    need_items(config, source.count, source.what)
    k = config.width(min(config.graph_k or LARGEST_K, source.count - 1))

    def work(stage: StageFolder) -> Counts:
        pool, device = workers(session)
        exact, counts = ExactIndex.of(np.asarray(source.load())), {"items": source.count, "k": k}
        shards: dict[str, Any] = {"block": config.query_block, "output": stage.folder / "neighbors"}
        if config.search == "exact":
            distributed.find_neighbors(exact, k, **shards, pool=pool, device=device)
            return counts
        index = _approximate(stage, exact, config.search, session.config.seed)
        effort = config.search_effort
        distributed.find_neighbors(index, k, **shards, pool=cpu_pool(session), effort=effort)
        found = measured_recall(index, exact, k, effort=effort)
        announce(f"knn: {config.search} finds {found:.1%} of the {k} nearest (1,000 sampled items)")
        return {**counts, "recall": found}

    how = None if config.search == "exact" else (config.search, config.search_effort)
    seed = None if config.search == "exact" else session.config.seed
    inputs = (source.fingerprint, k, config.query_block, how, seed)
    return session.run_stage("knn", *inputs, work=work, stage_flag="graph", internal=["index.npy"])


def _approximate(
    stage: StageFolder, exact: ExactIndex, method: ApproximateSearch, seed: int
) -> ApproximateIndex:
    """Build an approximate index, or read the one that an interrupted run built."""
    if stage.folder.has("index.npy"):
        trained = np.asarray(read_array(stage.folder, "index.npy"))
        return ApproximateIndex(
            database=exact.database, norm=exact.norm, trained=trained, method=method
        )
    announce(f"knn: building an index ({method})")
    # With several threads HNSW would build another graph each time.
    threads = 1 if method == "hnsw" else cpu_count()
    index = ApproximateIndex.of(exact.database, method, seed=seed, threads=threads)
    write_array(stage.folder, "index.npy", index.trained)
    return index


def workers(
    session: Session[MiningRunConfig], device: Device | None = None
) -> tuple["distributed.ActorPool", Device]:
    """Return the actor pool and the device of a mining stage; None: as --mining.device says."""
    pool = cpu_pool(session)
    if device is None:
        device = distributed.mining_device(session.config.mining.device, pool.capacity)
    return (distributed.with_gpus(pool) if device == "cuda" else pool), device


def cpu_pool(session: Session[MiningRunConfig]) -> "distributed.ActorPool":
    """Return the actor pool of a mining stage without GPUs."""
    return dataclasses.replace(session.pool, cpus=session.config.mining.threads)
