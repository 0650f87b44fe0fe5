"""Statistics of a graph for a check by eye: its size, degrees and components, and odd features.

n items, d dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmray.mining.graph import component_labels
from mmray.system.arrays import Features, Graph, Ids

_LISTED_COMPONENTS = 5
_BLOCK_BYTES = 1 << 20  # of features compared at a time: few enough to stay in a cache
_HASH_SEED = 0  # the report is exact whatever the hashes are


@dataclass(frozen=True, kw_only=True)
class GraphReport:
    """Counts of a graph's items, edges, components and duplicates.

    `dataclasses.asdict` makes it JSON-like.

    Attributes
    ----------
    items : int
    edges : int
        Undirected: each pair once.
    isolated : int
        Items without an edge.
    components : int
        Isolated items included.
    largest_components : tuple of int
        Items of the first five, descending.
    degree_min, degree_median, degree_max, degree_mean
        Of the number of edges of an item, whatever their weights.
    duplicates : int
        Items whose features equal those of an earlier item bit for bit: 0.0 and -0.0 differ, and a
        NaN equals one of the same bits.
    duplicate_groups, largest_duplicate_group : int
        Groups of two or more items with equal features, and the items of the largest (0: none).
    zero_vectors : int
        Items whose features are all 0, of either sign.
    degree_histogram : tuple of int
        Entry i counts the items with i edges; the last is that of degree_max.
    component_histogram : tuple of (size, count)
        Number of components of each size that occurs, ascending by size.
    """

    items: int
    edges: int
    isolated: int
    components: int
    largest_components: tuple[int, ...]
    degree_min: int
    degree_median: float
    degree_max: int
    degree_mean: float
    duplicates: int
    duplicate_groups: int
    largest_duplicate_group: int
    zero_vectors: int
    degree_histogram: tuple[int, ...]
    component_histogram: tuple[tuple[int, int], ...]


def graph_report(graph: Graph, features: Features) -> GraphReport:
    """Count the edges and components of a graph, and duplicates and zeros among its features.

    Parameters
    ----------
    graph : (n, n) CSR
        A of eq. (1), n >= 1: symmetric, zero diagonal, no stored zeros.
    features : (n, d) float32
        Normalised or not; read in blocks, so a memory-mapped array is never loaded whole.

    Raises
    ------
    ValueError
        There are no items, or graph and features differ in their number.
    """
    n = graph.shape[0]
    if n == 0 or graph.shape != (n, n) or features.ndim != 2 or len(features) != n:
        raise ValueError(
            f"a report needs a graph (n, n) and features (n, d) of the same n >= 1 items, "
            f"got {graph.shape} and {features.shape}"
        )
    _, component_sizes = component_labels(graph)
    sizes, counts = np.unique(component_sizes, return_counts=True)
    degrees = np.diff(graph.indptr)
    hashes, zero_vectors = _scan(features)
    copies = np.bincount(_groups(features, hashes))
    copies = copies[copies > 1]
    return GraphReport(
        items=n,
        edges=graph.nnz // 2,
        isolated=int(np.count_nonzero(degrees == 0)),
        components=len(component_sizes),
        largest_components=tuple(np.sort(component_sizes)[::-1][:_LISTED_COMPONENTS].tolist()),
        degree_min=int(degrees.min()),
        degree_median=float(np.median(degrees)),
        degree_max=int(degrees.max()),
        degree_mean=graph.nnz / n,
        duplicates=int((copies - 1).sum()),
        duplicate_groups=len(copies),
        largest_duplicate_group=int(copies.max(initial=0)),
        zero_vectors=zero_vectors,
        degree_histogram=tuple(np.bincount(degrees).tolist()),
        component_histogram=tuple(zip(sizes.tolist(), counts.tolist(), strict=True)),
    )


def summarize(report: GraphReport, *, only_largest: bool) -> str:
    """Summarise a report in one paragraph: the graph's size, then its problems.

    Parameters
    ----------
    report : as made by `graph_report`
    only_largest : True if only the largest component will be mined
    """
    n, largest = report.items, report.largest_components[0]
    sentences = [
        f"The graph has {counted(n, 'item')} and {counted(report.edges, 'edge')}: "
        f"{report.degree_min:,} to {report.degree_max:,} an item, {report.degree_median:g} in the "
        f"median."
    ]
    worries = []
    alone = ": only these will be mined (--mining.component all: every one)" if only_largest else ""
    if report.edges == 0:
        worries.append("Without an edge nothing can be mined.")
    elif largest < n:
        worries.append(
            f"The largest of {report.components:,} components holds {percent(largest, n)} of the "
            f"items{alone}."
        )
    if 0 < report.isolated < n:
        worries.append(
            f"{counted(report.isolated, 'isolated item')} ({percent(report.isolated, n)}) will be "
            f"neither anchor nor positive."
        )
    if report.duplicates:
        worries.append(
            f"{counted(report.duplicates, 'exact duplicate')} in "
            f"{counted(report.duplicate_groups, 'group')}, the largest of "
            f"{report.largest_duplicate_group:,} items: remove them before mining."
        )
    if report.zero_vectors:
        worries.append(
            f"{counted(report.zero_vectors, 'item')} with all features 0, similar to nothing: look "
            f"at the images."
        )
    fine = ["All items are connected, and no two have equal features."]
    return " ".join(sentences + (worries or fine))


def percent(part: int, whole: int) -> str:
    """Format a share to a tenth of a percent; only none is shown as 0%, and only all as 100%."""
    share = part / whole
    if 0 < share < 0.001:
        return "less than 0.1%"
    if 0.999 < share < 1:
        return "more than 99.9%"
    return f"{share:.1%}"


def counted(number: int, noun: str) -> str:
    """Format a number with its noun: 1 item, 2 items, 3,000 items."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _scan(features: Features) -> tuple[NDArray[np.uint64], int]:
    """Return hashes (n,) of the rows, equal for equal bits, and the number of rows of zeros."""
    hashes = np.empty(len(features), np.uint64)
    # Multilinear: Σ mᵢ wᵢ mod 2⁶⁴ over the words of a row. An odd m has an inverse, so rows that
    # differ in one word never collide.
    rng = np.random.default_rng(_HASH_SEED)
    multipliers = rng.integers(0, 2**64, _words(features[:1]).shape[1], np.uint64) | np.uint64(1)
    zero_vectors = 0
    for rows in _blocks(features, len(features)):
        block = features[rows]
        hashes[rows] = _words(block).astype(np.uint64) @ multipliers
        zero_vectors += int(np.count_nonzero(~block.any(axis=1)))
    return hashes, zero_vectors


def _groups(features: Features, hashes: NDArray[np.uint64]) -> Ids:
    """Return for each item one item (n,) int64 that represents all with equal features.

    Within a run of equal hashes, every item is compared with the first one. Those that differ form
    shorter runs, which are treated in the same way; with good hashes there are hardly any.
    """
    group = np.arange(len(features))
    items = np.argsort(hashes)
    while len(items):
        keys = hashes[items]
        leads = np.ones(len(items), bool)
        leads[1:] = keys[1:] != keys[:-1]
        leaders = items[np.maximum.accumulate(np.where(leads, np.arange(len(items)), 0))]
        items, leaders = items[~leads], leaders[~leads]
        equal = np.empty(len(items), bool)
        for rows in _blocks(features, len(items)):
            left, right = _words(features[items[rows]]), _words(features[leaders[rows]])
            equal[rows] = (left == right).all(axis=1)
        group[items[equal]] = leaders[equal]
        items = items[~equal]
    return group


def _words(rows: Features) -> NDArray[np.uint32]:
    """View the bits of rows (m, d), without a copy where they are contiguous."""
    return np.ascontiguousarray(rows).view(np.uint32)


def _blocks(features: Features, count: int) -> Iterator[slice]:
    """Yield slices of 0..count-1, each of as many rows of the features as fit a block."""
    step = max(1, _BLOCK_BYTES // max(1, features.shape[1] * features.itemsize))
    for start in range(0, count, step):
        yield slice(start, start + step)
