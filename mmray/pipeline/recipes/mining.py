"""The recipe of `jobs/mine.py`: anchors and pools from features that were computed elsewhere."""

import dataclasses
from pathlib import Path

from mmray.config.tools import MineConfig
from mmray.descriptors.files.reading import read_feature_set
from mmray.evaluation.purity import Purity, percent, read_labels
from mmray.pipeline.opening import running, usable_storage
from mmray.pipeline.recipes.planning import plan_mining
from mmray.pipeline.recipes.publishing import write_report
from mmray.pipeline.recipes.result import JobResult, places_of
from mmray.pipeline.recipes.run_report import graph_drawing
from mmray.pipeline.recipes.steps import mining_steps
from mmray.pipeline.reports.run_page import Report
from mmray.pipeline.reports.tables import Table
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.mining import MiningResult, graph_stage, measure_purity, mine_stage
from mmray.pipeline.stages.neighbors import FeatureSource, neighbors_stages
from mmray.system.progress import announce
from mmray.system.rows import Rows


def run(config: MineConfig) -> JobResult:
    """Mine anchors and pools, skipping stages that are done; or only tell what that needs.

    Returns
    -------
    What was mined, or the needs.

    Raises
    ------
    InputError
        A setting, an input or the cluster cannot be used. Stages that are done are kept.
    """
    if config.dry_run:  # which leaves no folder
        return JobResult.of_table(plan_mining(config))
    storage = usable_storage(config)
    given = read_feature_set(config.features)
    labels = read_labels(config.labels, len(given.features)) if config.labels else None
    if given.normalized:
        announce(f"{config.features}: rows are not of unit length; they are l2-normalised")
    source = FeatureSource(given.fingerprint, len(given.features), Rows(lambda: given.features))
    with running(config, storage, ("graph", "mine"), mining_steps(config)) as session:
        session, neighbors = neighbors_stages(session, source)
        graph = graph_stage(session, source, neighbors)
        mined = mine_stage(session, source, graph)
        purity = None if labels is None else measure_purity(session, mined, labels)
        found = _found(graph, mined, purity)
        rows = tuple((name, text) for name, text, _ in found)
        results = Table(head=("", "mined"), rows=rows, numbers=1)
        write_report(
            session,
            Report(
                title=f"Mined from {Path(config.features).name}",
                summary=(f"Anchors and pools: {mined.stage.folder.uri}",),
                results=dataclasses.replace(results, numbers=0),
                graph=graph_drawing(
                    graph, mined.stage, only_largest=config.mining.component == "largest"
                ),
            ),
        )
    announce(f"anchors: {mined.stage.folder.location('anchors.parquet')}")
    announce(f"pools: {mined.stage.folder.location('pools')}")
    return JobResult(
        text=JobResult.of_table(results).text,
        values={
            "table": [{"name": name, "value": value} for name, _, value in found],
            "pools": mined.stage.folder.uri,
            **places_of(session),
        },
    )


def _found(
    graph: StageFolder, mined: MiningResult, purity: Purity | None
) -> list[tuple[str, str, float]]:
    """Return what was mined: names, values as text, and values."""
    counted, counts = mined.stage.counts, graph.counts
    shown = [
        ("items", counts["items"], "{:,}"),
        ("items kept", counts["kept"], "{:,}"),
        ("nearest neighbours found", counts["recall"], "{:.1%}"),
        ("edges", counts["edges"], "{:,}"),
        ("anchors", counted["anchors"], "{:,}"),
        ("positives", counted["positives"], "{:,}"),
        ("negatives", counted["negatives"], "{:,}"),
        ("anchors without positives", counted["without_positives"], "{:,}"),
        ("positives dropped, of similarity 0", counted["zero_positives"], "{:,}"),
        ("largest residual", counted["largest_residual"], "{:.1e}"),
    ]
    rows = [(name, form.format(value), value) for name, value, form in shown]
    if purity is not None:
        own, other = purity.positives, purity.negatives
        rows.append(("positives of the anchor's label", percent(own), own))
        rows.append(("negatives of another label", percent(other), other))
    return rows
