"""Pictures of searches on a run's page: which of them are shown, before and after training.

q queries.
"""

from collections.abc import Sequence

import numpy as np

from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.ranking import Query
from mmray.images.collection import ImageFile
from mmray.pipeline.reports.examples import QueryGroup, Ranked, Searched
from mmray.pipeline.reports.thumbnails import Kind, Picture, Thumbnails
from mmray.pipeline.stages.evaluation import SearchExamples
from mmray.system.arrays import Floats, Ids

IMPROVED, WORSENED, ANY = 4, 2, 4  # queries to show: of the largest changes, and at random
HARDEST = 4  # queries to show where there is a single network
CHANGED = 20  # queries to show where there are no labels


def searches(
    found: Sequence[SearchExamples], picture: Thumbnails, *, seed: int
) -> tuple[QueryGroup, ...]:
    """Choose queries to show: those that changed most, or the hardest, and others at random.

    Parameters
    ----------
    found : search results of each network for the same queries; the first and the last network
        are compared
    picture : makes thumbnails
    seed : of the random choice
    """
    if not found:
        return ()
    if without_labels(found):
        changed = most_changed(found)
        heading = f"The {len(changed)} searches that changed most"
        chosen = {heading if len(changed) > 1 else "The search that changed": changed}
        drawn_from = np.empty(0, np.int64)
    else:
        chosen, drawn_from = _by_precision(found[0].precision, found[-1].precision, len(found))
    rest = np.setdiff1d(drawn_from, [query for group in chosen.values() for query in group])
    drawn = np.random.default_rng(seed).permutation(rest)[:ANY]
    chosen["Others, drawn at random"] = drawn.tolist()
    return tuple(
        QueryGroup(
            heading=heading,
            queries=tuple(_searched(found, query, picture) for query in queries),
        )
        for heading, queries in chosen.items()
    )


def without_labels(found: Sequence[SearchExamples]) -> bool:
    """Tell whether several networks searched without labels: nothing tells better from worse."""
    return len(found) > 1 and not np.isfinite(found[-1].precision).any()


def most_changed(found: Sequence[SearchExamples]) -> list[int]:
    """Return the searches whose first results have the fewest images in common before and after.

    There are `CHANGED` of them at most, none of which has all in common.
    """
    new = _new(found)
    return [query for query in np.argsort(-new, kind="stable")[:CHANGED].tolist() if new[query]]


def _new(found: Sequence[SearchExamples]) -> Ids:
    """Count the results (q,) of the last network that the first one does not have."""
    pairs = zip(found[0].first, found[-1].first, strict=True)
    return np.array([len(np.setdiff1d(after, before)) for before, after in pairs], np.int64)


def _by_precision(first: Floats, last: Floats, networks: int) -> tuple[dict[str, list[int]], Ids]:
    """Choose queries by their average precision (q,); return them, and all that have one."""
    measured = np.flatnonzero(np.isfinite(first) & np.isfinite(last))
    if networks == 1:
        order = measured[np.argsort(last[measured], kind="stable")]
        return {"Hardest": order[:HARDEST].tolist()}, measured
    change = last - first
    order = measured[np.argsort(-change[measured], kind="stable")]
    return {
        "Most improved": [query for query in order[:IMPROVED].tolist() if change[query] > 0],
        "Most worsened": [query for query in order[::-1][:WORSENED].tolist() if change[query] < 0],
    }, measured


def _searched(found: Sequence[SearchExamples], query: int, picture: Thumbnails) -> Searched:
    unjudged = without_labels(found)
    caption = ""
    if unjudged:
        shown = len(found[-1].first[query])
        caption = f"{_new(found)[query]} of the first {shown} are new"
    return Searched(
        query=picture(found[0].labelled.queries[query], "anchor"),
        rankings=tuple(
            Ranked(
                network=each.network,
                pictures=_changes(found, place, query, picture)
                if unjudged
                else _judged(each, query, picture),
                average_precision=_finite(each.precision[query]),
            )
            for place, each in enumerate(found)
        ),
        caption=caption,
    )


def _finite(precision: float) -> float | None:
    return None if np.isnan(precision) else float(precision)


def _judged(found: SearchExamples, query: int, picture: Thumbnails) -> tuple[Picture, ...]:
    labelled, truth = found.labelled, found.labelled.ground_truth[query]
    return tuple(
        picture(_row(labelled, row), _verdict(truth, row)) for row in found.first[query].tolist()
    )


def _changes(
    found: Sequence[SearchExamples], place: int, query: int, picture: Thumbnails
) -> tuple[Picture, ...]:
    """Mark the results that only the first or only the last network finds."""
    ends: dict[int, tuple[int, Kind]] = {0: (-1, "dropped"), len(found) - 1: (0, "added")}
    other, kind = ends.get(place, (place, "plain"))
    shared = set(found[other].first[query].tolist())
    return tuple(
        picture(_row(found[place].labelled, row), "plain" if row in shared else kind)
        for row in found[place].first[query].tolist()
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
    return "right" if row in truth.positives else "wrong"
