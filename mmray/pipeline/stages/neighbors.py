"""The stages that find the neighbours of all items, and choose how many of them mining compares."""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from joblib import cpu_count

from mmray.config.choices import ApproximateSearch
from mmray.config.run import MiningRunConfig
from mmray.config.sections import SIZES, MiningConfig
from mmray.mining.files import read_neighbors
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.forecast import SAMPLE, approximate_recall, exact_seconds
from mmray.mining.knn.recall import measured_recall
from mmray.mining.sizes import LARGEST_K, with_chosen_sizes
from mmray.pipeline import distributed
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.minable import need_items
from mmray.pipeline.stages.room import check_room, mining_threads, sizes_of
from mmray.system.arrays import Device
from mmray.system.folder import Folder
from mmray.system.formats import read_array
from mmray.system.progress import announce
from mmray.system.rows import Rows

_LARGE = 500_000  # items from which an exact search on CPUs may be long
_LONG = 1.0  # hours
INDEX = "index.npy"  # file of an approximate index in the folder of its stage
PARTS = "parts"  # folder of a stage that searches part by part, while it does

Settings = TypeVar("Settings", bound=MiningRunConfig)


@dataclass(frozen=True)
class FeatureSource:
    """Features (n, d) to mine on, read when a stage needs them, and in parts where they are large.

    Attributes
    ----------
    fingerprint : of their content
    count : n
    rows : the features
    what : word for the items in messages
    """

    fingerprint: str
    count: int
    rows: Rows
    what: str = "items"


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
        pool, device = workers(session, source.count)
        counts, output = {"items": source.count, "k": k}, stage.folder / "neighbors"
        sizes = sizes_of(source.rows, config, device)
        memory = check_room("knn", sizes, config).worker
        pool = dataclasses.replace(pool, memory=memory)
        parts = sizes.parts
        if config.search == "exact" and device == "cpu":
            _say_how_long(source, k, config, cpus=pool.size() * pool.cpus)
        if config.search == "exact" and parts > 1:
            units = distributed.query_units(np.arange(source.count), config.query_block)
            find_in_parts(stage, source.rows, units, k, parts, output, pool=pool, device=device)
            (stage.folder / PARTS).remove()
            return counts
        block = config.query_block
        if config.search == "exact":
            distributed.find_neighbors(  # which frees the index once it is shared
                ExactIndex.of(np.asarray(source.rows.read()), device=device),
                k,
                block=block,
                output=output,
                pool=pool,
                device=device,
            )
            return counts
        exact = ExactIndex.of(np.asarray(source.rows.read()), half=False)
        pool, on_gpus = cpu_pool(session, source.count), device == "cuda" and config.search == "ivf"
        pool, device = distributed.faiss_pool(pool, "knn") if on_gpus else (pool, "cpu")
        pool = dataclasses.replace(pool, memory=memory)
        index = _approximate(stage, exact, config.search, session.config.seed, pool, device)
        effort = config.search_effort
        distributed.find_neighbors(
            *(index, k), block=block, output=output, pool=pool, effort=effort, device=device
        )
        found = measured_recall(index, exact, k, effort=effort)
        announce(f"knn: {config.search} finds {found:.1%} of the {k} nearest (1,000 sampled items)")
        return {**counts, "recall": found}

    how = None if config.search == "exact" else (config.search, config.search_effort)
    seed = None if config.search == "exact" else session.config.seed
    inputs = (source.fingerprint, k, config.query_block, how, seed)
    internal = [INDEX, PARTS]
    return session.run_stage("knn", *inputs, work=work, stage_flag="graph", internal=internal)


def _say_how_long(source: FeatureSource, k: int, config: MiningConfig, *, cpus: int) -> None:
    """Say how long an exact search takes, where that is long, and what another would find."""
    if source.count < _LARGE:
        return
    sample = np.asarray(source.rows.read(0, SAMPLE))
    hours = exact_seconds(sample, source.count, k) / cpus / 3600
    if hours < _LONG:
        return
    found = approximate_recall(sample, source.count, k, method="ivf", effort=config.search_effort)
    announce(
        f"knn: to compare all {source.count:,} {source.what} with one another will take about "
        f"{hours:.1f} h on {cpus} CPUs; --mining.search ivf would find about {found:.0%} of the "
        "neighbours in a small part of the time, with a larger --mining.search-effort more"
    )


def find_in_parts(
    stage: StageFolder, rows: Rows, units: pa.Table, k: int, parts: int, output: Folder, **how: Any
) -> Rows:
    """Find the k nearest rows of some rows, part by part, with the folder PARTS of a stage.

    Parameters
    ----------
    stage : that searches
    rows : the database
    units : table of work, see `distributed.query_units`
    k, parts, output, how : see `distributed.find_neighbors_in_parts`

    Returns
    -------
    The rows as every machine can read them.
    """
    scratch = stage.folder / PARTS
    rows = rows.stored(scratch, "rows.npy")
    distributed.find_neighbors_in_parts(
        rows, units, k, parts=parts, scratch=scratch, output=output, **how
    )
    return rows


def _approximate(
    stage: StageFolder,
    exact: ExactIndex,
    method: ApproximateSearch,
    seed: int,
    pool: "distributed.ActorPool",
    device: Device,
) -> ApproximateIndex:
    """Build an approximate index, or read the one that an interrupted run built."""
    if not stage.folder.has(INDEX):
        announce(f"knn: building an index ({method}){' on a GPU' if device == 'cuda' else ''}")
        what = (exact.database, method, stage.folder, INDEX, seed, device)
        if device == "cuda":  # the job's own machine may have none
            distributed.run_once(distributed.write_index, *what, pool.cpus, pool=pool, label="knn")
        else:
            distributed.write_index(*what, cpu_count())
    trained = np.asarray(read_array(stage.folder, INDEX))
    return ApproximateIndex(
        database=exact.database, norm=exact.norm, trained=trained, method=method
    )


def workers(
    session: Session[MiningRunConfig], items: int, device: Device | None = None
) -> tuple["distributed.ActorPool", Device]:
    """Return the actor pool and the device of a mining stage; None: as --mining.device says."""
    pool = cpu_pool(session, items)
    if device is None:
        device = distributed.mining_device(session.config.mining.device, pool.capacity)
    return distributed.with_gpus_and_cpus(pool) if device == "cuda" else pool, device


def cpu_pool(session: Session[MiningRunConfig], items: int) -> "distributed.ActorPool":
    """Return the actor pool of a mining stage on so many items, without GPUs."""
    pool, config = session.pool, session.config.mining
    threads = config.threads
    if threads is None:
        there = distributed.working_machines("mine", pool.capacity.timeout)
        threads = mining_threads(items, config, there)
    return dataclasses.replace(pool, cpus=threads)
