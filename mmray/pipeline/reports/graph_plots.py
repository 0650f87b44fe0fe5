"""Drawings of a graph for a page: edges of an image, components, importance of anchors.

a anchors.
"""

from collections.abc import Iterable

import numpy as np

from mmray.mining.graph_statistics import GraphReport, counted, percent
from mmray.pipeline.reports.charts import Chart, Plot, Series, bar_plot, plot
from mmray.system.arrays import Floats

_BARS, _POINTS = 40, 60  # drawn at most

Described = tuple[Plot, tuple[str, ...]]  # with the sentences beside it


def graph_plots(report: GraphReport, importance: Floats | None = None) -> tuple[Described, ...]:
    """Lay out degrees, sizes of components and, if given, the importance of anchors.

    Parameters
    ----------
    report : statistics of the graph
    importance : (a,) float64
        π of each anchor as a multiple of the mean, in any order (Sec. 3.2).

    Raises
    ------
    ValueError
        An importance is negative or not finite.
    """
    if importance is not None and not np.all(np.isfinite(importance) & (importance >= 0)):
        raise ValueError("importance must be finite and not negative")
    described = [_degrees(report), _components(report)]
    if importance is not None and len(importance):
        described.append(_importance(importance))
    return tuple(described)


def _degrees(report: GraphReport) -> Described:
    counts = report.degree_histogram
    wide = -(-len(counts) // _BARS)
    # Isolated images take no part in mining: they have a bar of their own.
    steps = [(0, 1), *((low, min(low + wide, len(counts))) for low in range(1, len(counts), wide))]
    bars = [
        (_span(low, high), number, f"{_span(low, high)}: {counted(number, 'image')}")
        for low, high, number in ((low, high, sum(counts[low:high])) for low, high in steps)
    ]
    isolated = percent(report.isolated, report.items)
    return (
        bar_plot(
            "Edges of an image", bars, unit="images", across="edges", apart=0 if counts[0] else None
        ),
        (
            f"{counted(report.items, 'image')}, {counted(report.edges, 'edge')}: an edge joins "
            "two images that are among the nearest of one another.",
            f"{report.degree_min:,} to {report.degree_max:,} edges an image, "
            f"{report.degree_median:g} in the median.",
            f"Without an edge: {report.isolated:,} ({isolated}), which nothing is learned from.",
        ),
    )


def _span(low: int, high: int) -> str:
    return f"{low:,}" if high - low == 1 else f"{low:,}\N{EN DASH}{high - 1:,}"


def _components(report: GraphReport) -> Described:
    largest, *others = report.largest_components
    rest = ", ".join(f"{size:,}" for size in others[:3])
    bars = [
        (span, images, f"components of {span}: {counted(images, 'image')}")
        for span, images in _by_size(report.component_histogram)
    ]
    return (
        bar_plot("Size of an image's component", bars, unit="images", across="images together"),
        (
            f"{counted(report.components, 'component')}: parts that no edge joins.",
            f"The largest holds {counted(largest, 'image')} ({percent(largest, report.items)})"
            + (f"; then {rest}." if rest else "."),
        ),
    )


def _by_size(histogram: Iterable[tuple[int, int]]) -> list[tuple[str, int]]:
    """Count the images in components of 1, 2, 3 to 4, 5 to 8 images, and so on."""
    images: dict[int, int] = {}
    for size, count in histogram:
        bits = (size - 1).bit_length()
        images[bits] = images.get(bits, 0) + size * count
    return [
        (_span((1 << bits) // 2 + 1, (1 << bits) + 1), images.get(bits, 0))
        for bits in range(max(images) + 1)
    ]


def _importance(importance: Floats) -> Described:
    ranked = np.sort(importance)[::-1]
    drawn = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), _POINTS)).astype(np.int64))
    points = tuple((int(place) + 1, float(ranked[place])) for place in drawn)
    chart = Chart(
        title="Importance of the anchors",
        series=(Series(name="importance", points=points),),
        unit="times the mean",
        across="anchor, by importance",
    )
    return (
        plot(chart),
        (
            f"{counted(len(ranked), 'anchor')}: the images that pools were mined for.",
            f"The most important is {ranked[0]:.2g} times as important in the random walk as an "
            f"image is on the mean, the least {ranked[-1]:.2g} times.",
        ),
    )
