"""The stage that draws what was mined: anchors, and the pools of some, beside a baseline's."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.config.run import MiningRunConfig
from mmray.images.collection import Collection
from mmray.images.decoding import load_image
from mmray.mining.baselines import euclidean_positives, random_negatives
from mmray.mining.batches import EUCLIDEAN_K
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.pool_lists import Pools
from mmray.pipeline.reports.galleries import Group, Strip, anchor_gallery, pool_gallery
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.mining import FeatureSource, MiningResult
from mmray.system.arrays import Floats, Ids, Pixels

STRIPS, ANCHORS = 12, 48  # anchors with their pools, and anchors alone
COLUMNS, SIDE = 5, 96
POOLS_PNG, ANCHORS_PNG = "pools.png", "anchors.png"


def gallery_stage(
    session: Session[MiningRunConfig],
    images: Collection,
    source: FeatureSource,
    graph: StageFolder,
    mined: MiningResult,
    labels: NDArray[Any] | None,
    *,
    max_pixels: int,
) -> None:
    """Draw the most important anchors (Fig. 3), and what was mined for some (Figs. 2 and 4).

    Parameters
    ----------
    images : n images, of the ids in the pools
    source : their features
    graph : the stage that mining followed
    labels : (n,), which frame the images and serve nothing else; None: there are none
    """

    def load(item: int) -> Pixels | None:
        image = images[item]
        return load_image(image, longest_side=2 * SIDE, max_pixels=max_pixels).pixels

    def work(stage: StageFolder) -> Counts:
        pools = mined.pools
        shown = shown_anchors(pools, STRIPS)
        strips = _strips(session, source, mined, shown)
        title = f"what was mined for {len(shown)} of {len(pools.anchors):,} anchors"
        png = pool_gallery(strips, load, labels=labels, columns=COLUMNS, side=SIDE, title=title)
        stage.folder.write(POOLS_PNG, png)
        first = pools.anchors[:ANCHORS]
        png = anchor_gallery(
            first,
            load,
            captions=[f"{value:.1f}" for value in importance(mined, graph)[:ANCHORS]],
            side=SIDE,
            title=f"the first {len(first)} of {len(pools.anchors):,} anchors, and their importance",
        )
        stage.folder.write(ANCHORS_PNG, png)
        return {"anchors": len(shown)}

    inputs = (mined.fingerprint, None if labels is None else labels.tolist())
    stage = session.run_stage("gallery", *inputs, work=work, stage_flag="mine")
    for file in (POOLS_PNG, ANCHORS_PNG):
        session.run.log_file(stage.folder, file, "galleries")


def shown_anchors(pools: Pools, count: int) -> Ids:
    """Rows of the pools to look at, (count,) or fewer: those with both positives and negatives.

    The first are the most important ones, and often alike: half of them, and others evenly.
    """
    both = zip(pools.positives, pools.negatives, strict=True)
    usable = [row for row, ids in enumerate(both) if all(map(len, ids))]
    half, rest = usable[: count // 2], usable[count // 2 :]
    return np.array(half + rest[:: max(1, -(-len(rest) // (count - count // 2)))], np.int64)


def _strips(
    session: Session[MiningRunConfig], source: FeatureSource, mined: MiningResult, rows: Ids
) -> list[Strip]:
    """The pools of some anchors, and beside them those of the baseline of Table 1."""
    pools, features = mined.pools, np.asarray(source.load())
    if not len(rows):
        return []
    anchors, index = pools.anchors[rows], ExactIndex.of(features)
    nearest = index.search(features[anchors], EUCLIDEAN_K).ids
    close = euclidean_positives(nearest, anchors, EUCLIDEAN_K)
    random = random_negatives(
        len(features), nearest, anchors, k=EUCLIDEAN_K, count=COLUMNS, seed=session.config.seed
    )
    return [
        Strip(
            anchor=int(anchor),
            groups=(
                Group(title="positives", ids=pools.positives[row]),
                Group(title="nearest neighbours", ids=close[place]),
                Group(title="negatives", ids=pools.negatives[row]),
                Group(title="any others", ids=random[place]),
            ),
        )
        for place, (row, anchor) in enumerate(zip(rows, anchors, strict=True))
    ]


def importance(mined: MiningResult, graph: StageFolder) -> Floats:
    """π of the anchors (a,) float64, as a multiple of that of an item on average."""
    found = mined.stage.folder.read_table("anchors.parquet")["importance"].to_numpy()
    scaled: Floats = found * graph.counts["kept"]
    return scaled
