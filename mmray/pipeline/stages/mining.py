"""The mining stages of all jobs: from features to a graph, and on to anchors and pools.

n items, a anchors.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from mmray.config.run import MiningRunConfig
from mmray.evaluation.candidates import TUNED
from mmray.evaluation.purity import (
    NOT_MEASURED,
    Purity,
    coverage,
    percent,
    pool_purity,
)
from mmray.mining.anchors import select_anchors, stationary_distribution
from mmray.mining.batches import MiningInput
from mmray.mining.diffusion.solver import Solver
from mmray.mining.files import (
    read_manifold,
    read_neighbors,
    read_pools,
    write_anchors,
    write_manifold,
)
from mmray.mining.graph import largest_component
from mmray.mining.graph_files import read_graph, write_graph
from mmray.mining.graph_statistics import graph_report, summarize
from mmray.mining.manifold import ManifoldNeighbors, manifold_neighbors
from mmray.mining.pool_lists import Pools, summary
from mmray.mining.pools import MiningMethod
from mmray.mining.reciprocity import reciprocal_graph
from mmray.pipeline import distributed
from mmray.pipeline.metric_names import of_counts, of_pools
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.minable import (
    need_anchors,
    need_component,
    need_edges,
    need_no_cycles,
    need_pairs,
)
from mmray.pipeline.stages.neighbors import (
    PARTS,
    FeatureSource,
    find_in_parts,
    workers,
)
from mmray.pipeline.stages.room import check_room, sizes_of
from mmray.system.arrays import Device
from mmray.system.formats import write_json
from mmray.system.progress import announce
from mmray.training.supervised.labelled_tuples import LabelledPairs
from mmray.training.supervised.losses import LabelledImages


@dataclass(frozen=True)
class MiningResult:
    """The pools of the mining stage, by image id, or labels that stand in for them.

    Attributes
    ----------
    stage : the stage that mined, or that read the labels
    pools : by image id
    supervision : labels to train on instead of the pools; None: training is on the pools
    label : of a network that is trained on this, in tables
    oracle : the stage that removed false pairs from the pools by labels; None: none were removed
    """

    stage: StageFolder
    pools: Pools
    supervision: LabelledPairs | LabelledImages | None = None
    label: str = TUNED
    oracle: StageFolder | None = None

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the stage that determines the pools."""
        return (self.oracle or self.stage).fingerprint


def graph_stage(
    session: Session[MiningRunConfig], source: FeatureSource, neighbors: StageFolder
) -> StageFolder:
    """Run the stage that builds the reciprocal k-NN graph of the items, eq. (1).

    Parameters
    ----------
    session : the run
    source : the features
    neighbors : the stage that found the neighbours of all items, at least as many as are compared
    """
    config = session.config.mining
    k = config.width(config.chosen_sizes[0])

    def work(stage: StageFolder) -> Counts:
        found = read_neighbors(neighbors.folder, source.count, neighbors.counts["k"]).first(k)
        whole = reciprocal_graph(found, power=config.power)
        need_edges(config, whole, found, source.what)
        report = graph_report(whole, source.rows.mapped())
        counts = dataclasses.asdict(report)
        write_json(stage.folder, "report.json", counts)
        only_largest = config.component == "largest"
        announce(f"graph: {summarize(report, only_largest=only_largest)}")
        items = largest_component(whole) if only_largest else np.arange(source.count)
        need_component(config, len(items), source.count, source.what)
        write_graph(stage.folder, whole, items)
        numbers = {name: value for name, value in counts.items() if not isinstance(value, tuple)}
        return {"kept": len(items), "recall": neighbors.counts.get("recall", 1.0), **numbers}

    fewer = () if k == neighbors.counts["k"] else (k,)
    inputs = (neighbors.fingerprint, config.power, config.component, *fewer)
    stage = session.run_stage("graph", *inputs, work=work, stale=_stale)
    session.run.log_file(stage.folder, "report.json", "graph")
    return stage


def _stale(stage: StageFolder) -> str:
    # The graph is the same, so that what was mined on it stays.
    return "its file is of an earlier version" if stage.folder.has("graph.npz") else ""


def mine_stage(
    session: Session[MiningRunConfig], source: FeatureSource, graph: StageFolder
) -> MiningResult:
    """Run the stage that selects anchors and mines their pools, eqs. (2)-(6)."""
    config, seed = session.config.mining, session.config.seed
    method = MiningMethod.of(config, seed)

    def work(stage: StageFolder) -> Counts:
        stored = read_graph(graph.folder)
        count = len(stored.items) if config.anchors is None else config.anchors
        anchors = select_anchors(stored.raw, count, selection=config.selection, seed=seed)
        need_anchors(config, anchors, stored.raw, source.what)
        importance = stationary_distribution(stored.raw)[anchors]
        write_anchors(stage.folder, stored.items[anchors], importance)
        every = len(stored.items) == source.count
        rows = source.rows if every else source.rows.only(stored.items)
        sizes, block, nearest = sizes_of(rows, config, device), config.anchor_block, None
        memory = check_room("mine", sizes, config).worker
        pool = dataclasses.replace(workers(session, len(rows), device)[0], memory=memory)
        parts = sizes.parts
        if parts > 1:
            need_no_cycles(config)
            nearest, k = stage.folder / f"{PARTS}/nearest", method.compared(len(rows))
            units = distributed.query_units(anchors, block)
            rows = find_in_parts(stage, rows, units, k, parts, nearest, pool=pool, device=device)
        distributed.mine(  # which frees what it is given once that is shared
            MiningInput.of(
                rows if parts > 1 else np.asarray(rows.read()),
                stored.raw,
                stored.normalized,
                stored.items,
                power=config.power,
                positives=config.positives,
                negatives=config.negatives,
                device=device,
                threads=cpu_count(),
            ),
            anchors,
            method,
            block=block,
            output=stage.folder / "pools",
            pool=pool,
            device=device,
            nearest=nearest,
        )
        (stage.folder / PARTS).remove()
        return summary(read_pools(stage.folder))

    random = config.selection in ("random", "filled") or config.negatives == "random"
    drawn = seed if random else None
    anchors = (config.anchors, config.selection, config.anchor_block, drawn)
    inputs = (graph.fingerprint, anchors, method.stored())
    devices: tuple[Device, ...] = ("cuda", "cpu")
    if config.device != "auto":
        devices = (config.device,)
    # Pools that are there are taken wherever they were mined: they differ by rounding.
    done = (each for each in devices if StageFolder.of(session.storage, "mine", *inputs, each).done)
    device = next(done, None) or workers(session, source.count)[1]
    stage = session.run_stage("mine", *inputs, device, work=work, internal=[PARTS])
    pools = read_pools(stage.folder)
    need_pairs(config, pools)
    share = len(pools.members) / source.count
    announce(
        f"pools: those of {len(pools.anchors):,} anchors hold {share:.0%} of the {source.count:,} "
        f"{source.what}"
    )
    session.run.log_metrics(of_counts("mine", {"share": share}))
    return MiningResult(stage, pools)


def check_stage(
    session: Session[MiningRunConfig],
    source: FeatureSource,
    graph: StageFolder,
    *,
    items: int,
    neighbors: int,
) -> ManifoldNeighbors:
    """Find the manifold neighbours of random items, the ground truth of the check without labels.

    The items have edges in the graph. They are few, so this process finds their neighbours itself.

    Parameters
    ----------
    session : the run
    source : the features
    graph : the stage of their graph
    items : most items to draw; 0: none
    neighbors : most neighbours of each item
    """
    config, seed = session.config.mining, session.config.seed
    limit = () if config.hops is None else (config.hops,)
    solver = (config.alpha, config.rtol, config.max_iter, *limit)

    def work(stage: StageFolder) -> Counts:
        stored = read_graph(graph.folder)
        drawn = select_anchors(stored.raw, max(items, 1), selection="random", seed=seed)[:items]
        near = manifold_neighbors(
            stored.normalized,
            drawn,
            neighbors,
            Solver(*solver),
            threads=cpu_count(),
        )
        write_manifold(stage.folder, near.renamed(stored.items))
        return {"items": len(drawn)}

    inputs = (graph.fingerprint, items, neighbors, solver, seed)
    stage = session.run_stage("check", *inputs, work=work, stage_flag="train")
    return read_manifold(stage.folder)


def measure_purity(
    session: Session[MiningRunConfig], mined: MiningResult, labels: NDArray[Any]
) -> Purity:
    """Measure the purity of the mined pools by labels (n,), which are used for nothing else.

    It is NaN where the labels cannot tell: 0% would say that all pairs are false.
    """
    (covered, tells), purity = coverage(mined.pools, labels), pool_purity(mined.pools, labels)
    if not tells:
        announce(f"pools: their purity is {NOT_MEASURED}, as {covered}")
        return dataclasses.replace(purity, positives=np.nan, negatives=np.nan)
    session.run.log_metrics(of_pools(purity.positives, purity.negatives))
    announce(
        f"pools: {percent(purity.positives)} of the positives show the anchor's label, "
        f"{percent(purity.negatives)} of the negatives another one ({covered})"
    )
    return purity
