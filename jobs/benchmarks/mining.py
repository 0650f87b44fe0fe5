"""Mining against what one would call instead, on the same input in the same process.

n items, d dims, k neighbours, a anchors.
"""

import importlib.util
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import get_args

import faiss
import numpy as np
import torch
from scipy.sparse import csr_array, eye_array
from scipy.sparse.linalg import cg

from mmray.config.choices import QuerySearch
from mmray.evaluation.expansion import ranked
from mmray.evaluation.ranking import Query, mean_average_precision
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.diffusion.solver import diffuse
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import ExactIndex
from mmray.system.arrays import Features, Graph, Ids

from .block_solvers import COLUMNS, as_tensor, solve_by_scipy, solve_by_torch

_BLOCK = 65_536  # items made at a time
FIRST = 50  # items of a ranking that are compared
_SMOOTHNESS = 2.0  # the larger, the more the manifold is folded


def manifold_features(n: int, d: int, *, intrinsic: int = 8, seed: int = 0) -> Features:
    """Points of a curved manifold, in no order, as the features of many photos may lie.

    Random Fourier features of points spread evenly in a cube: nearby points of the cube are
    similar, and similarity falls off smoothly.

    Parameters
    ----------
    d : int
        Even.
    intrinsic : int
        Dimensions of the cube.

    Returns
    -------
    (n, d) float32, l2-normalised.
    """
    rng = np.random.default_rng(seed)
    frequencies = rng.standard_normal((intrinsic, d // 2), np.float32) * np.float32(_SMOOTHNESS)
    features = np.empty((n, d), np.float32)
    for start in range(0, n, _BLOCK):
        block = features[start : start + _BLOCK]
        phases = rng.random((len(block), intrinsic), np.float32) @ frequencies
        np.cos(phases, out=block[:, : d // 2])
        np.sin(phases, out=block[:, d // 2 :])
    # cos² + sin² of each of d/2 phases: all rows have the same length.
    features *= np.float32((2 / d) ** 0.5)
    return features


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Seconds for the same work, the best of several times on both sides."""

    part: str
    baseline: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """Return how many times faster ours is."""
        return self.theirs / self.ours


def compare_knn(
    features: Features, k: int, *, queries: int, threads: int, repeats: int
) -> list[Comparison]:
    """Exact k nearest of the first rows, against every library that is there, on as many threads.

    What ours prepares once for all queries counts in proportion to the queries asked here.
    """
    asked = features[:queries]
    start = time.perf_counter()
    index = ExactIndex.of(features)
    preparing = (time.perf_counter() - start) * len(asked) / len(features)
    index.search(asked[:64], k)  # compiles
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: index.search(asked, k, threads=threads),
        f"faiss.knn ({faiss.get_compile_options().strip()})": lambda: faiss.knn(
            asked, features, k, metric=faiss.METRIC_INNER_PRODUCT
        ),
        "torch, product and topk of 1,024 queries": lambda: _torch_knn(features, asked, k),
    }
    if importlib.util.find_spec("usearch"):
        ways["usearch, exact"] = lambda: _usearch_knn(features, asked, k, threads)
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    best = _in_turns(ways, repeats)
    ours = best.pop("ours") + preparing
    part = f"exact k-NN, {len(asked):,} of {len(features):,} x {features.shape[1]}, k = {k}"
    return [
        Comparison(part=part, baseline=name, ours=ours, theirs=theirs)
        for name, theirs in best.items()
    ]


def _torch_knn(features: Features, asked: Features, k: int) -> None:
    rows = torch.from_numpy(features)
    for block in torch.from_numpy(asked).split(1024):
        (block @ rows.T).topk(k, dim=1)


def _usearch_knn(features: Features, asked: Features, k: int, threads: int) -> None:
    usearch = importlib.import_module("usearch.index")
    usearch.search(features, asked, k, usearch.MetricKind.IP, exact=True, threads=threads)


def compare_diffusion(
    features: Features, k: int, *, anchors: int, solved: int, threads: int, repeats: int
) -> list[Comparison]:
    """Diffusion from anchors, against scipy anchor by anchor and against blocks of 16 anchors.

    The same graph, rtol and iterations. Ours includes the work arrays and, in proportion to 1,000
    anchors, the reordering of the graph, which the blocks of the others are given.

    Parameters
    ----------
    features : (n, d) float32, l2-normalised
    k : neighbours of an item in the graph
    anchors : drawn at random
    solved : anchors that `scipy.sparse.linalg.cg` solves for; its time is scaled to all
    threads : CPU threads of all that can use them
    repeats : times each is measured; the best counts
    """
    found = ExactIndex.of(features).search(features, k, threads=threads)
    graph = normalize_graph(reciprocal_knn_graph(found.ids, found.similarities))
    chosen = np.random.default_rng(0).choice(len(features), anchors, replace=False)
    start = time.perf_counter()
    reordered = reorder(graph)
    reordering = (time.perf_counter() - start) * anchors / 1000
    diffuse(reordered, chosen[:1], max_iter=1)  # compiles
    torch.set_num_threads(threads)
    plain, system = _system(graph), _system(reordered.graph)
    tensor, positions = as_tensor(system), reordered.positions
    rows = positions[chosen]
    ways: dict[str, Callable[[], object]] = {
        "ours": partial(diffuse, reordered, chosen, threads=threads),
        "scipy.sparse.linalg.cg": partial(_one_by_one, plain, chosen[:solved].tolist()),
        f"blocks of {COLUMNS}, scipy's product": partial(solve_by_scipy, system, rows, positions),
        f"blocks of {COLUMNS}, torch's product": partial(solve_by_torch, tensor, rows, positions),
    }
    best = _in_turns(ways, repeats)
    ours = best.pop("ours") + reordering
    best["scipy.sparse.linalg.cg"] *= anchors / solved
    part = f"diffusion, {anchors} anchors, {len(features):,} items, {graph.nnz:,} entries"
    return [
        Comparison(part=part, baseline=baseline, ours=ours, theirs=theirs)
        for baseline, theirs in best.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One way to search a database.

    Attributes
    ----------
    seconds : for all queries, what is done for the database included
    peak : MB that the process has held at most so far
    shared : share of the first `FIRST` items that are among those of diffusion
    """

    search: QuerySearch
    seconds: float
    peak: float
    shared: float


def time_ranking(features: Features, *, queries: int, threads: int) -> list[Timed]:
    """Rank all rows for the first ones in every way there is, and score the rankings.

    As in an evaluation with distractors; what is to be found, ten rows at random, does not matter.
    """
    rng, n = np.random.default_rng(0), len(features)
    truth = [
        Query("", "", None, rng.choice(n, min(10, n), replace=False), np.empty(0, np.int64))
        for _ in range(queries)
    ]
    searches: tuple[QuerySearch, ...] = get_args(QuerySearch)
    for search in searches:
        ranked(features[:64], features[:1], search)  # compiles

    first: dict[QuerySearch, Ids] = {}

    def search_all(search: QuerySearch) -> None:
        ranks = ranked(features, features[:queries], search, threads=threads)
        mean_average_precision(ranks, truth)
        first[search] = ranks[:FIRST].copy()

    def shared(found: Ids) -> float:
        pairs = zip(found.T, first["diffusion"].T, strict=True)
        return float(np.mean([np.isin(*pair).mean() for pair in pairs]))

    spent = {
        search: (
            seconds(partial(search_all, search)),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        )
        for search in searches
    }
    return [
        Timed(search=search, seconds=taken, peak=peak, shared=shared(first[search]))
        for search, (taken, peak) in spent.items()
    ]


def _system(graph: Graph) -> Graph:
    """I − αÂ, rows sorted."""
    system = csr_array(eye_array(graph.shape[0], dtype=np.float32) - np.float32(0.99) * graph)
    system.sort_indices()
    return system


def _one_by_one(system: Graph, anchors: list[int]) -> None:
    for anchor in anchors:
        right = np.zeros(system.shape[0], np.float32)
        right[anchor] = 1
        cg(system, right, rtol=1e-10, maxiter=20)


def _in_turns(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The best time of each way, in turns: what disturbs the machine disturbs all of them."""
    times = [{name: seconds(call) for name, call in ways.items()} for _ in range(repeats)]
    return {name: min(turn[name] for turn in times) for name in ways}


def seconds(call: Callable[[], object]) -> float:
    """Measure the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
