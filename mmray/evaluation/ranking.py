"""Ranking of a database for queries, and its scores: mAP by the Oxford rule, mP@k, Recall@k.

n database items, q queries, d dimensions, p positives of a query.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmray.system.arrays import Box, Features, Floats, Ids

Difficulty = Literal["easy", "medium", "hard"]
_OF_DIFFICULTY: dict[Difficulty, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
_BLOCK = 1024  # rows of a similarity matrix held at a time
_PART = 65_536  # rows of the database held in double precision at a time


@dataclass(frozen=True)
class Query:
    """A query image with its ground truth.

    Attributes
    ----------
    name : str
        Name of the query in the benchmark.
    image : str
        Its image file, relative to the folder of images.
    box : (x1, y1, x2, y2) or None
        The part of the image to search with, in pixels of the file; None: all of it.
    positives : (p,) int64
        Database rows that show the same object.
    junk : int64
        Database rows that are removed from the ranking, as too little of the object is visible.
    itself : int or None
        The database row of the query image where the benchmark ignores it; it is junk too.
    """

    name: str
    image: str
    box: Box | None
    positives: Ids
    junk: Ids
    itself: int | None = None


def similarity_blocks(database: Features, queries: Features) -> Iterator[tuple[int, Features]]:
    """Compute the inner products of queries with a database, a block of queries at a time.

    Products are summed in double precision and rounded to single: two equal images then have equal
    similarities, wherever they stand in the matrix product, and the tie is decided by their ids.

    Yields
    ------
    (first, similarities) : index of the block's first query, and (b, n) float32 for its b queries.

    Raises
    ------
    ValueError
        The arrays do not have the same number of columns, or hold a value that is not finite.
    """
    if database.ndim != 2 or queries.ndim != 2 or database.shape[1] != queries.shape[1]:
        raise ValueError(
            f"database {database.shape} and queries {queries.shape} must be matrices with the same "
            "number of columns"
        )
    for name, rows in (("database", database), ("queries", queries)):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(f"{name}: row {bad[0]} is not finite ({bad.size} such rows)")
    n = len(database)
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK].astype(np.float64)
        similarities = np.empty((len(block), n), np.float32)
        for first in range(0, n, _PART):
            part = slice(first, first + _PART)
            similarities[:, part] = block @ database[part].astype(np.float64).T
        yield start, similarities


def rank(database: Features, queries: Features) -> Ids:
    """Rank the whole database for each query by inner product.

    Parameters
    ----------
    database : (n, d) float32
    queries : (q, d) float32

    Returns
    -------
    (n, q) int64: column j lists the database rows by descending inner product with query j; equal
    ones by ascending row.

    Raises
    ------
    ValueError
        The arrays do not have the same number of columns, or hold a value that is not finite.
    """
    ranks = np.empty((len(database), len(queries)), dtype=np.int64)
    for start, similarities in similarity_blocks(database, queries):
        order = np.argsort(-similarities, axis=1, kind="stable")
        ranks[:, start : start + len(order)] = order.T
    return ranks


def mean_average_precision(
    ranks: NDArray[Any],
    ground_truth: Sequence[Query | Mapping[str, Any]],
    *,
    difficulty: Difficulty = "medium",
) -> tuple[float, Floats]:
    """Return the mAP of a ranking, as the Oxford buildings benchmark computes it (Philbin 2007).

    Parameters
    ----------
    ranks : (n, q) of any integer type
        Column j lists every database row once, best first, as `rank` returns them.
    ground_truth : sequence of q queries
        `Query` objects, or the `gnd` list of a published pickle: dicts with the ids `ok` and
        `junk`, or with `easy`, `hard` and `junk` (Radenović et al. 2018); other entries are
        ignored. An id repeated in a list counts once; an id both positive and junk is taken out of
        the ranking but still counts as a positive to be found, as in the original program.
    difficulty : of dicts with `easy` and `hard`
        Positives are the easy ones, both, or the hard ones; the ids of the other list are junk.

    Returns
    -------
    (mean, precisions) : float and (q,) float64
        Average precisions in [0, 1]. A query without positives has NaN and is left out of the
        mean, which is NaN where all queries are such.

    Raises
    ------
    ValueError
        There is not one query per column, a column does not list every row once, an id of the
        ground truth is outside 0..n-1 or no integer, or a dict has another layout.

    Examples
    --------
    >>> ranks = np.array([[2], [0], [1]])
    >>> mean_average_precision(ranks, [{"ok": [0, 1], "junk": [2]}])
    (1.0, array([1.]))
    """
    queries = [
        entry if isinstance(entry, Query) else _query_of(entry, place, difficulty)
        for place, entry in enumerate(ground_truth)
    ]
    precisions = np.array(
        [_average_precision(found, query) for found, query in _each(ranks, queries)],
        dtype=np.float64,
    )
    return _mean(precisions), precisions


def _query_of(entry: Mapping[str, Any], place: int, difficulty: Difficulty) -> Query:
    """Convert an entry of a published `gnd` list into a query."""
    name = f"query {place}"
    if {"ok", "junk"} <= entry.keys():
        lists: tuple[tuple[str, ...], tuple[str, ...]] = (("ok",), ("junk",))
    elif {"easy", "hard", "junk"} <= entry.keys():
        lists = _OF_DIFFICULTY[difficulty]
    else:
        raise ValueError(
            f"{name}: has {', '.join(map(str, entry)) or 'nothing'}; the lists `ok` and `junk`, or "
            "`easy`, `hard` and `junk` are wanted"
        )

    positives, junk = (
        np.concatenate([_ids(entry[each], f"{name}: {each}") for each in part]) for part in lists
    )
    return Query(str(place), "", None, positives=positives, junk=junk)


def _ids(values: Any, name: str) -> Ids:
    """Convert ids to int64, an empty list of any type included (NumPy reads it as floats)."""
    array = np.asarray(values)
    if not array.size:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: a list of integers is wanted, not {array.dtype} {array.shape}")
    return array.astype(np.int64)


def mean_precision_at_k(ranks: Ids, ground_truth: Sequence[Query], k: int) -> float:
    """Return mP@k of the revisited Oxford and Paris benchmarks (Radenović et al., CVPR 2018).

    The precision of a query is that of its first k images, junk removed; where its last positive
    is ranked before place k, that of the images up to this positive.

    Parameters
    ----------
    ranks, ground_truth : as for `mean_average_precision`
    k : at least 1

    Returns
    -------
    Mean over the queries with a positive that is not junk, in [0, 1]; NaN if there is none.

    Raises
    ------
    ValueError
        As `mean_average_precision`, or k is below 1.
    """
    _check_k(k)
    return _mean(
        np.array(
            [
                (found < (last := min(k, found[-1] + 1))).sum() / last if found.size else np.nan
                for found, _ in _each(ranks, ground_truth)
            ]
        )
    )


def mean_recall_at_k(ranks: Ids, ground_truth: Sequence[Query], k: int) -> float:
    """Return the share of queries with a positive among their first k images, junk removed.

    Parameters
    ----------
    ranks, ground_truth : as for `mean_average_precision`
        A query without positives counts as a miss. Where every image searches for all others of
        its class, the result is that of `recall_at_k`.
    k : at least 1

    Raises
    ------
    ValueError
        As `mean_average_precision`, or k is below 1.
    """
    _check_k(k)
    hits = [bool(found.size) and found[0] < k for found, _ in _each(ranks, ground_truth)]
    return float(np.mean(hits)) if hits else float("nan")


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k = {k}: choose at least 1")


def _mean(values: Floats) -> float:
    """Return the mean of the values that are not NaN; NaN where all are."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else float("nan")


def _each(ranks: Ids, ground_truth: Sequence[Query]) -> Iterator[tuple[Ids, Query]]:
    """Yield each query with the places of its positives, see `_places_of_positives`."""
    if ranks.ndim != 2 or ranks.shape[1] != len(ground_truth):
        raise ValueError(
            f"ranks {ranks.shape} must have one column for each of {len(ground_truth)} queries"
        )
    for ranking, query in zip(ranks.T, ground_truth, strict=True):
        yield _places_of_positives(ranking, query), query


def _places_of_positives(ranking: Ids, query: Query) -> Ids:
    """Return the places, from 0, ascending, of the positives in the ranking without junk."""
    n, ranking = len(ranking), _ids(ranking, f"query {query.name}: ranking")
    positives = _ids(query.positives, f"query {query.name}: positives")
    junk = np.unique(_ids(query.junk, f"query {query.name}: junk"))
    for ids in (positives, junk):
        if len(ids) and not 0 <= np.min(ids) <= np.max(ids) < n:
            raise ValueError(f"query {query.name}: ground truth has ids outside 0..{n - 1}")
    place = np.full(n, -1, dtype=np.int64)
    if n and not 0 <= ranking.min() <= ranking.max() < n:
        raise ValueError(f"query {query.name}: ranking has ids outside 0..{n - 1}")
    place[ranking] = np.arange(n)
    if (place < 0).any():
        raise ValueError(f"query {query.name}: ranking does not list row {np.argmin(place)}")
    found = np.sort(place[np.setdiff1d(positives, junk)])
    found -= np.searchsorted(np.sort(place[junk]), found)
    return found


def _average_precision(found: Ids, query: Query) -> float:
    """Return the area under the precision-recall curve of one query, by trapezoids."""
    positives = len(np.unique(query.positives))
    if not positives:
        return float("nan")
    before = np.arange(len(found))
    # Precision just before each positive, 1 by convention at the first place, and just after it.
    left = np.where(found > 0, before / np.maximum(found, 1), 1.0)
    right = (before + 1) / (found + 1)
    return float((left + right).sum() / (2 * positives))
