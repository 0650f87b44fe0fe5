"""Second searches that use the results of a first: query expansion, diffusion at query time.

n database items, q queries, d dimensions. Where a benchmark ignores the query's own image in the
database, that image takes no part in the expansion.

Sources: average query expansion (AQE), Chum et al., ICCV 2007; weighted by similarity (αQE),
Radenović et al., TPAMI 2018; diffusion, Iscen et al., "Efficient diffusion on region manifolds",
CVPR 2017, for global descriptors.
"""

from typing import get_args

import numpy as np
from scipy.sparse import csr_array

from mmray.config.choices import QuerySearch
from mmray.evaluation.ranking import rank, similarity_blocks
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.diffusion.solver import Diffuser, Solver
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import ExactIndex
from mmray.system.arrays import Features, Floats, Ids

AQE_ITEMS = 10
ALPHA_QE_ITEMS, ALPHA_QE_POWER = 50, 3.0
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
    search : "plain" (by inner product), "aqe", "alpha-qe" or "diffusion"
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
    if search == "diffusion":
        return rank_by_diffusion(database, queries, own, threads=threads)
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
    norms = np.linalg.norm(totals, axis=1, keepdims=True)
    expanded: Features = np.divide(totals, norms, out=totals, where=norms > 0).astype(np.float32)
    return expanded


def rank_by_diffusion(database: Features, queries: Features, own: Ids, *, threads: int = 1) -> Ids:
    """Rank by diffusion: f = (I − αÂ)⁻¹ y, with y = [qᵀx]₊³ at the ten items nearest to the query.

    f is the weighted sum of the diffusions from these items, each solved once for all queries.
    Items that they do not reach, f = 0, follow the rest, ordered by inner product.

    Parameters
    ----------
    database, queries, own : as for `ranked`
        The graph has all items of the database; diffusion never starts at a query's own row.

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
    manifold = np.zeros((len(queries), n))
    solver = Solver(rtol=DIFFUSION_RTOL, max_iter=DIFFUSION_STEPS)
    diffuser = Diffuser(reorder(normalize_graph(graph)), solver, threads=threads)
    for rows, block in diffuser.blocks(sources):
        manifold += y[:, rows] @ block.similarity
    ranks = np.empty((n, len(queries)), np.int64)
    for start, euclidean in similarity_blocks(database, queries):
        for place, similarity in enumerate(euclidean, start):
            ranks[:, place] = np.lexsort((-similarity, -np.maximum(manifold[place], 0)))
    return ranks


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
