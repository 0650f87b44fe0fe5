"""Second searches that use the results of a first: query expansion, augmentation, diffusion.

n database items, q queries, d dimensions. Where a benchmark ignores the query's own image in the
database, that image takes no part in the expansion.

Sources: average query expansion (AQE), Chum et al., ICCV 2007; weighted by similarity (αQE),
Radenović et al., TPAMI 2018; database-side augmentation (DBA), weighted by rank, Gordo et al., IJCV
2017; diffusion, Iscen et al., "Efficient diffusion on region manifolds", CVPR 2017, for global
descriptors; truncated to the nearest items of each item, Yang et al., "Efficient image retrieval
via decoupling diffusion into online and offline processing", AAAI 2019.
"""

from typing import Any, get_args

import numpy as np
from scipy.sparse import csr_array

from mmray.config.choices import QuerySearch
from mmray.evaluation.ranking import rank, similarity_blocks
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.diffusion.solver import Diffuser, Solver, diffuse
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import ExactIndex
from mmray.system.arrays import Features, Floats, Ids

_ROWS = 65_536  # of a database that are summed in double precision at a time

AQE_ITEMS = 10
ALPHA_QE_ITEMS, ALPHA_QE_POWER = 50, 3.0
DBA_ITEMS = 20
TRUNCATED = 1000  # items on which the diffusion from an item is solved
DIFFUSION_K, DIFFUSION_QUERY_K, DIFFUSION_POWER = 50, 10, 3.0
DIFFUSION_RTOL, DIFFUSION_STEPS = 1e-6, 200  # the released code stops after 20 steps


def ranked(
    database: Features,
    queries: Features,
    search: QuerySearch,
    *,
    own: Ids | None = None,
    threads: int = 1,
) -> Ids:
    """Rank the database for each query, plainly or by a second search.

    Parameters
    ----------
    database : (n, d) float32, l2-normalised
    queries : (q, d) float32, l2-normalised
    search : "plain" (by inner product), "aqe", "alpha-qe", "dba", "diffusion" or
        "truncated-diffusion"
    own : (q,) int64
        Row of each query itself in the database, -1 if it is not there; None: no query is there.
    threads : int
        CPU threads; the result does not depend on them.

    Returns
    -------
    (n, q) int64, as `rank`.

    Raises
    ------
    ValueError
        As `rank`, or there is no such search.
    """
    own = np.full(len(queries), -1) if own is None else own
    if search == "plain":
        return rank(database, queries)
    if search == "aqe":
        expanded = expand(database, queries, own, items=AQE_ITEMS, power=0, threads=threads)
        return rank(database, expanded)
    if search == "alpha-qe":
        items, power = ALPHA_QE_ITEMS, ALPHA_QE_POWER
        expanded = expand(database, queries, own, items=items, power=power, threads=threads)
        return rank(database, expanded)
    if search == "dba":
        return rank(augmented(database, items=DBA_ITEMS, threads=threads), queries)
    if search in ("diffusion", "truncated-diffusion"):
        truncated = TRUNCATED if search == "truncated-diffusion" else None
        return rank_by_diffusion(database, queries, own, truncated=truncated, threads=threads)
    raise ValueError(f"search {search!r}: choose from {', '.join(get_args(QuerySearch))}")


def expand(
    database: Features, queries: Features, own: Ids, *, items: int, power: float, threads: int = 1
) -> Features:
    """Move each query towards its nearest items: q + Σ [qᵀx]₊^power x over the first of them.

    Parameters
    ----------
    database, queries, own : as for `ranked`
    items : int
        Nearest items to sum over, fewer where the database is smaller.
    power : float
        0 weights each item like the query itself (AQE); larger values weight it by its similarity
        (αQE).
    threads : int
        CPU threads; the result does not depend on them.

    Returns
    -------
    (q, d) float32, l2-normalised
    """
    ids, weights = _nearest_for_expansion(
        ExactIndex.of(database), queries, own, items, power, threads
    )
    totals = queries.astype(np.float64)
    for column in range(ids.shape[1]):  # one found item of every query at a time: (q, d) numbers
        totals += weights[:, column, None] * database[ids[:, column]]
    return _unit(totals).astype(np.float32)


def augmented(database: Features, *, items: int, threads: int = 1) -> Features:
    """Move each item of a database towards its nearest ones: Σ (1 − r/items) x, r its rank from 0.

    The item itself, which is its own nearest, has rank 0; of the others the nearest has rank 1.

    Parameters
    ----------
    database, threads : as for `ranked`
    items : int
        Items to sum over, the item itself included; fewer where the database is smaller.

    Returns
    -------
    (n, d) float32, l2-normalised
    """
    near = ExactIndex.of(database).search(database, min(items, len(database)), threads=threads)
    moved = np.empty_like(database)
    for start in range(0, len(database), _ROWS):
        rows = slice(start, start + _ROWS)
        total = database[rows].astype(np.float64)
        ids, itself = near.ids[rows], np.arange(start, start + len(total))
        rank_of = np.zeros(len(total))
        for column in ids.T:
            other = column != itself  # where copies fill its first places, it may not be listed
            rank_of += other
            weights = np.where(other, np.maximum(1 - rank_of / items, 0), 0)
            total += weights[:, None] * database[column]
        moved[rows] = _unit(total)
    return moved


def rank_by_diffusion(
    database: Features,
    queries: Features,
    own: Ids,
    *,
    truncated: int | None = None,
    threads: int = 1,
) -> Ids:
    """Rank by diffusion: f = (I − αÂ)⁻¹ y, with y = [qᵀx]₊³ at the ten items nearest to the query.

    f is the weighted sum of the diffusions from these items, each solved once for all queries.
    Items that they do not reach, f = 0, follow the rest, ordered by inner product.

    Parameters
    ----------
    database, queries, own : as for `ranked`
        The graph has all items of the database; diffusion never starts at a query's own row.
    truncated : int or None
        Solve from an item on this many items nearest to it alone, as if there were no others: what
        Yang et al. keep of every item before any query comes. None: on the whole graph.
    threads : int
        CPU threads.

    Returns
    -------
    (n, q) int64, as `rank`.
    """
    n = len(database)
    index = ExactIndex.of(database)
    near = index.search(database, min(DIFFUSION_K, n), threads=threads)
    graph = reciprocal_knn_graph(near.ids, near.similarities, power=DIFFUSION_POWER)
    ids, weights = _nearest_for_expansion(
        index, queries, own, DIFFUSION_QUERY_K, DIFFUSION_POWER, threads
    )
    asking, places = np.nonzero(weights)
    sources, columns = np.unique(ids[asking, places], return_inverse=True)
    y = csr_array((weights[asking, places], (asking, columns)), shape=(len(queries), len(sources)))
    normalized, manifold = normalize_graph(graph), np.zeros((len(queries), n))
    steps: Any = {"rtol": DIFFUSION_RTOL, "max_iter": DIFFUSION_STEPS}
    if truncated is None:
        diffuser = Diffuser(reorder(normalized), Solver(**steps), threads=threads)
        for rows, block in diffuser.blocks(sources):
            manifold += y[:, rows] @ block.similarity
    else:
        nearest = index.search(database[sources], min(truncated, n), threads=threads)
        for column, source, ids in zip(y.toarray().T, sources, nearest.ids, strict=True):
            reached = np.union1d(ids, source)
            itself = np.searchsorted(reached, [source])
            f = diffuse(
                normalized[reached][:, reached], itself, **steps, threads=threads
            ).similarity
            manifold[:, reached] += np.outer(column, f)
    ranks = np.empty((n, len(queries)), np.int64)
    for start, euclidean in similarity_blocks(database, queries):
        for place, similarity in enumerate(euclidean, start):
            ranks[:, place] = np.lexsort((-similarity, -np.maximum(manifold[place], 0)))
    return ranks


def _unit(totals: Floats) -> Floats:
    """Normalise rows (m, d) in place; a row of zeros stays."""
    norms = np.linalg.norm(totals, axis=1, keepdims=True)
    np.divide(totals, norms, out=totals, where=norms > 0)
    return totals


def _nearest_for_expansion(
    index: ExactIndex, queries: Features, own: Ids, items: int, power: float, threads: int
) -> tuple[Ids, Floats]:
    """Find the nearest items of each query, (q, m); weights beyond the first `items` are 0."""
    count = min(items + 1, len(index.database))
    near = index.search(queries, count, threads=threads)
    others = near.ids != own[:, None]
    counted = others & (np.cumsum(others, axis=1) <= items)
    weights = np.maximum(near.similarities.astype(np.float64), 0) ** power
    return near.ids, np.where(counted, weights, 0)
