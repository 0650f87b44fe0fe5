"""Pictures of a run's page: anchors with their pools, searches with results, near-duplicates.

n items, q queries.
"""

from collections.abc import Sequence

import numpy as np

from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.ranking import Query
from mmray.images.collection import ImageFile
from mmray.mining.knn.exact import nearest_in_parts
from mmray.mining.pool_lists import Pools
from mmray.mining.pools import EUCLIDEAN_K
from mmray.pipeline.recipes.outcome import LearningResult
from mmray.pipeline.reports.run_page import (
    Chosen,
    Copies,
    Copy,
    CopyGroup,
    MinedAnchor,
    QueryGroup,
    Ranked,
    Searched,
)
from mmray.pipeline.reports.thumbnails import Kind, Picture, frame_kind, picture_of
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.evaluation import SearchExamples
from mmray.pipeline.stages.mining import MiningResult
from mmray.pipeline.stages.near_duplicates import NearDuplicates
from mmray.system.arrays import Features, Floats, Ids

ANCHORS, CHOSEN = 12, 5  # anchors to show, and images of each of their pools
IMPROVED, WORSENED, ANY = 4, 2, 4  # queries to show: of the largest changes, and at random
GROUPS, COPIES, PAIRS = 6, 8, 6  # of near-duplicates to show, images of a group, and single pairs
COMPARED = 10_000  # nearest neighbours of an anchor, among which its negatives have their places
HARDEST = 4  # queries to show where there is a single network
SIDE = 128  # pixels of a thumbnail

Ranks = Sequence[int | None]
ShownPool = tuple[Chosen, ...]


def mined_anchors(learned: LearningResult, *, max_pixels: int) -> tuple[MinedAnchor, ...]:
    """Choose anchors to show, with the first images of their pools and their nearest neighbours.

    Parameters
    ----------
    learned : images, pools and features
    max_pixels : images with more are shown as unreadable
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
    weights = _importance(learned.mined, learned.graph)

    def chosen(
        anchor: int, items: Ids, manifold: Ranks, euclidean: Ranks, s: Features
    ) -> ShownPool:
        pictures = (
            picture_of(
                learned.images[item],
                SIDE,
                frame_kind(learned.labels, anchor, item),
                max_pixels=max_pixels,
            )
            for item in items.tolist()
        )
        return tuple(
            Chosen(picture=each, manifold_rank=m, euclidean_rank=e, similarity=float(similarity))
            for each, m, e, similarity in zip(pictures, manifold, euclidean, s, strict=True)
        )

    def mined(place: int, row: int) -> MinedAnchor:
        anchor, part = int(pools.anchors[row]), slice(CHOSEN)
        others = np.flatnonzero(nearest.ids[place] != anchor)[:EUCLIDEAN_K]
        positives = pools.positives[row][part]
        near = pools.manifold_neighbors[row]
        return MinedAnchor(
            anchor=picture_of(learned.images[anchor], SIDE, "anchor", max_pixels=max_pixels),
            caption=f"importance {weights[row]:.1f}",
            positives=chosen(
                anchor,
                positives,
                [_manifold_rank(near, item) for item in positives],
                pools.positive_rank_e[row][part].tolist(),
                pools.positive_similarity[row][part],
            ),
            negatives=chosen(
                anchor,
                pools.negatives[row][part],
                pools.negative_rank_m[row][part].tolist(),
                nearest.places(place, pools.negatives[row][part]).tolist(),
                pools.negative_similarity[row][part],
            ),
            nearest=chosen(
                anchor,
                nearest.ids[place][others],
                [_manifold_rank(near, item) for item in nearest.ids[place][others]],
                (others + 1).tolist(),
                nearest.similarities[place][others],
            ),
        )

    return tuple(mined(place, row) for place, row in enumerate(rows.tolist()))


def _manifold_rank(neighbors: Ids, item: int) -> int | None:
    """Return the rank of an item in NN^m, in which the anchor is first; None if it is not there."""
    found = np.flatnonzero(neighbors == item)
    return int(found[0]) + 2 if len(found) else None


# -- searches -------------------------------------------------------------------------------------


def searches(
    found: Sequence[SearchExamples], *, seed: int, max_pixels: int
) -> tuple[QueryGroup, ...]:
    """Choose queries to show: those that changed most, or the hardest, and others at random.

    Without labels nothing tells better from worse: those changed most whose first results have the
    fewest images in common.

    Parameters
    ----------
    found : search results of each network for the same queries; the first and the last network
        are compared
    seed : of the random choice
    max_pixels : images with more are shown as unreadable
    """
    if not found:
        return ()
    first, last = found[0].precision, found[-1].precision
    measured = np.flatnonzero(np.isfinite(first) & np.isfinite(last))
    if len(found) > 1 and not len(measured):
        measured = np.arange(len(first))
        pairs = zip(found[0].first, found[-1].first, strict=True)
        common = np.array([len(np.intersect1d(*pair)) for pair in pairs])
        order = np.argsort(common, kind="stable")
        chosen = {"Most changed": order[: IMPROVED + WORSENED].tolist()}
    elif len(found) > 1:
        change = last - first
        order = measured[np.argsort(-change[measured], kind="stable")]
        chosen = {
            "Most improved": [query for query in order[:IMPROVED].tolist() if change[query] > 0],
            "Most worsened": [q for q in order[::-1][:WORSENED].tolist() if change[q] < 0],
        }
    else:
        order = measured[np.argsort(last[measured], kind="stable")]
        chosen = {"Hardest": order[:HARDEST].tolist()}
    rest = np.setdiff1d(measured, [query for group in chosen.values() for query in group])
    drawn = np.random.default_rng(seed).permutation(rest)[:ANY]
    chosen["Others, drawn at random"] = drawn.tolist()
    return tuple(
        QueryGroup(
            heading=heading,
            queries=tuple(_searched(found, query, max_pixels) for query in queries),
        )
        for heading, queries in chosen.items()
    )


def _searched(found: Sequence[SearchExamples], query: int, max_pixels: int) -> Searched:
    image = found[0].labelled.queries[query]
    return Searched(
        query=picture_of(image, SIDE, "anchor", max_pixels=max_pixels),
        rankings=tuple(_ranked(each, query, max_pixels) for each in found),
    )


def _ranked(found: SearchExamples, query: int, max_pixels: int) -> Ranked:
    labelled, truth = found.labelled, found.labelled.ground_truth[query]
    precision = float(found.precision[query])
    return Ranked(
        network=found.network,
        pictures=tuple(
            picture_of(_row(labelled, row), SIDE, _verdict(truth, row), max_pixels=max_pixels)
            for row in found.first[query].tolist()
        ),
        average_precision=None if np.isnan(precision) else precision,
    )


def _row(labelled: LabelledSet, row: int) -> ImageFile:
    """Return the image of a row of a ranking; distractors follow the database."""
    beyond = row - len(labelled.database)
    return labelled.database[row] if beyond < 0 else labelled.distractors[beyond]


def _verdict(truth: Query, row: int) -> Kind:
    if not len(truth.positives):
        return "plain"
    if row in truth.junk:
        return "unlabelled"
    return "same" if row in truth.positives else "other"


# -- near-duplicates ------------------------------------------------------------------------------


def near_duplicates(near: NearDuplicates | None, *, max_pixels: int) -> Copies | None:
    """Choose near-duplicates to show: the largest groups, and pairs that are the least alike.

    Parameters
    ----------
    near : the near-duplicates; None: they were not looked for
    max_pixels : images with more are shown as unreadable
    """
    if near is None or not near.stage.counts["near_duplicates"]:
        return None
    table = near.table()
    ids, of = table["image_id"].to_numpy(), table["of_id"].to_numpy()
    cosines, distances = table["cosine"].to_numpy(), table["hamming"].to_numpy()

    def group(rows: Ids) -> CopyGroup:
        shown = rows[:COPIES]
        return CopyGroup(
            representative=_picture(near.items[int(of[rows[0]])], max_pixels),
            caption=f"and {len(rows):,} like it" if len(rows) > 1 else "",
            copies=tuple(
                Copy(
                    picture=_picture(near.items[int(ids[row])], max_pixels),
                    similarity=float(cosines[row]),
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


def _picture(image: ImageFile, max_pixels: int) -> Picture:
    return picture_of(image, SIDE, max_pixels=max_pixels)


def _shown_anchors(pools: Pools, count: int) -> Ids:
    """Choose rows of the pools to show, (count,) or fewer, with both positives and negatives.

    The most important anchors come first and are often alike: half of the rows are the first ones,
    the others are spread evenly over the rest.
    """
    both = zip(pools.positives, pools.negatives, strict=True)
    usable = [row for row, ids in enumerate(both) if all(map(len, ids))]
    half, rest = usable[: count // 2], usable[count // 2 :]
    return np.array(half + rest[:: max(1, -(-len(rest) // (count - count // 2)))], np.int64)


def _importance(mined: MiningResult, graph: StageFolder) -> Floats:
    """Return π of the anchors (a,) float64, as a multiple of the mean over all items."""
    found = mined.stage.folder.read_table("anchors.parquet")["importance"].to_numpy()
    scaled: Floats = found * graph.counts["kept"]
    return scaled
