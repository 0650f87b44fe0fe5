"""Pictures of a run's page: anchors with their pools, and near-duplicates.

n items.
"""

from collections.abc import Sequence

import numpy as np

from mmray.mining.knn.exact import nearest_in_parts
from mmray.mining.pool_lists import Pools
from mmray.mining.pools import EUCLIDEAN_K
from mmray.pipeline.recipes.outcome import LearningResult
from mmray.pipeline.reports.examples import Chosen, Copies, Copy, CopyGroup, MinedAnchor
from mmray.pipeline.reports.thumbnails import Thumbnails, frame_kind
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.near_duplicates import NearDuplicates
from mmray.system.arrays import Floats, Ids

ANCHORS, CHOSEN = 12, 8  # anchors to show, and images of each of their pools
GROUPS, COPIES, PAIRS = 6, 8, 6  # of near-duplicates to show, images of a group, and single pairs
COMPARED = 10_000  # nearest neighbours of an anchor, among which its negatives have their places
SIDE = 96  # pixels of a thumbnail

Ranks = Sequence[int | None]
ShownPool = tuple[Chosen, ...]


def mined_anchors(learned: LearningResult, picture: Thumbnails) -> tuple[MinedAnchor, ...]:
    """Choose anchors to show, with the first images of their pools and their nearest neighbours.

    Parameters
    ----------
    learned : images, pools and features
    picture : makes thumbnails
    """
    if learned.source is None or learned.graph is None:
        return ()
    pools, features = learned.mined.pools, learned.source.rows
    rows = _shown_anchors(pools, ANCHORS)
    if not len(rows):
        return ()
    anchors = pools.anchors[rows]
    ascending, back = np.unique(anchors, return_inverse=True)
    queries, compared = features.take(ascending)[back], min(COMPARED, len(features))
    nearest = nearest_in_parts(features, queries, compared)
    others = [
        np.flatnonzero(ids != anchor)[:EUCLIDEAN_K]
        for ids, anchor in zip(nearest.ids, anchors, strict=True)
    ]
    positives, negatives = (
        [side[row][:CHOSEN] for row in rows.tolist()] for side in (pools.positives, pools.negatives)
    )
    near = [ids[places] for ids, places in zip(nearest.ids, others, strict=True)]
    shown = np.unique(np.concatenate([*positives, *negatives, *near]))
    vectors = features.take(shown)  # at once, as the features may lie elsewhere
    weights = relative_importance(learned.mined.stage, learned.graph)

    def chosen(
        place: int,
        items: Ids,
        *,
        same: bool,
        manifold: Ranks,
        cosine: Ranks,
        s: Sequence[float] = (),
    ) -> ShownPool:
        """Return the shown images of a pool.

        Parameters
        ----------
        place : of the anchor among those that are shown
        items : ids of the images
        same : whether they are to show what the anchor shows
        manifold, cosine : their ranks
        s : their similarities on the manifold, if they are known
        """
        anchor = int(anchors[place])
        cosines = vectors[np.searchsorted(shown, items)] @ queries[place]
        return tuple(
            Chosen(
                picture=picture(
                    learned.images[item], frame_kind(learned.labels, anchor, item, same=same)
                ),
                cosine=float(cosines[i]),
                cosine_rank=cosine[i],
                manifold=float(s[i]) if len(s) else None,
                manifold_rank=manifold[i],
            )
            for i, item in enumerate(items.tolist())
        )

    def mined(place: int, row: int) -> MinedAnchor:
        manifold = pools.manifold_neighbors[row]
        return MinedAnchor(
            anchor=picture(learned.images[int(anchors[place])], "anchor"),
            caption=f"{weights[row]:.1f} times as important as an image is on the mean",
            positives=chosen(
                place,
                positives[place],
                same=True,
                manifold=[_manifold_rank(manifold, item) for item in positives[place]],
                cosine=pools.positive_rank_e[row].tolist(),
                s=pools.positive_similarity[row].tolist(),
            ),
            negatives=chosen(
                place,
                negatives[place],
                same=False,
                manifold=pools.negative_rank_m[row].tolist(),
                cosine=nearest.places(place, negatives[place]).tolist(),
            ),
            nearest=chosen(
                place,
                near[place],
                same=True,
                manifold=[_manifold_rank(manifold, item) for item in near[place]],
                cosine=(others[place] + 1).tolist(),
            ),
        )

    return tuple(mined(place, row) for place, row in enumerate(rows.tolist()))


def _manifold_rank(neighbors: Ids, item: int) -> int | None:
    """Return the rank of an item in NN^m, in which the anchor is first; None if it is not there."""
    found = np.flatnonzero(neighbors == item)
    return int(found[0]) + 2 if len(found) else None


# -- near-duplicates ------------------------------------------------------------------------------


def near_duplicates(near: NearDuplicates | None, picture: Thumbnails) -> Copies | None:
    """Choose near-duplicates to show: the largest groups, and pairs that are the least alike.

    Parameters
    ----------
    near : the near-duplicates; None: they were not looked for
    picture : makes thumbnails
    """
    if near is None or not near.stage.counts["near_duplicates"]:
        return None
    table = near.table()
    ids, of = table["image_id"].to_numpy(), table["of_id"].to_numpy()
    cosines, distances = table["cosine"].to_numpy(), table["hamming"].to_numpy()

    def group(rows: Ids) -> CopyGroup:
        shown = rows[:COPIES]
        return CopyGroup(
            representative=picture(near.items[int(of[rows[0]])]),
            caption=f"and {len(rows):,} like it" if len(rows) > 1 else "",
            copies=tuple(
                Copy(
                    picture=picture(near.items[int(ids[row])]),
                    cosine=float(cosines[row]),
                    distance=int(distances[row]),
                )
                for row in shown.tolist()
            ),
            more=len(rows) - len(shown),
        )

    groups, sizes = np.unique(of, return_counts=True)
    largest = groups[np.argsort(-sizes, kind="stable")][:GROUPS]
    chosen = {"Largest groups": [np.flatnonzero(of == each) for each in largest]}
    others = np.flatnonzero(~np.isin(of, largest))
    least = others[np.argsort(cosines[others], kind="stable")][:PAIRS]
    chosen["Least alike of the others"] = list(least[:, None])
    kept = "All but the one with the most pixels of each group were left out."
    if not near.left_out:
        kept = "They were kept; --near-duplicates one leaves out all but one of each group."
    return Copies(
        text=f"{near.summary}: images that look the same, by their descriptors and by a hash of "
        f"64 bits. {kept}",
        groups=tuple((title, tuple(map(group, each))) for title, each in chosen.items() if each),
    )


def _shown_anchors(pools: Pools, count: int) -> Ids:
    """Choose rows of the pools to show, (count,) or fewer, with both positives and negatives.

    The most important anchors come first and are often alike: half of the rows are the first ones,
    the others are spread evenly over the rest.
    """
    both = zip(pools.positives, pools.negatives, strict=True)
    usable = [row for row, ids in enumerate(both) if all(map(len, ids))]
    half, rest = usable[: count // 2], usable[count // 2 :]
    return np.array(half + rest[:: max(1, -(-len(rest) // (count - count // 2)))], np.int64)


def relative_importance(mined: StageFolder, graph: StageFolder) -> Floats:
    """Return π of the anchors (a,) float64, as a multiple of the mean over all items."""
    found = mined.folder.read_table("anchors.parquet")["importance"].to_numpy()
    scaled: Floats = found * graph.counts["kept"]
    return scaled
