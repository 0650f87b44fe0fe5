"""Figure of a graph: degrees, components, importance of anchors.

a anchors.
"""

import io
from typing import TYPE_CHECKING

import numpy as np

from mmray.mining.graph_statistics import GraphReport, counted, percent
from mmray.system.arrays import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_PANEL = (4.6, 3.6)  # inches, wide and high
_DPI = 120
_COLOR, _ALERT = "#4477aa", "#cc3311"


def graph_figure(report: GraphReport, importance: Floats | None = None) -> bytes:
    """Draw degrees, sizes of components and, if given, the importance of anchors as a PNG.

    Parameters
    ----------
    report : statistics of the graph
    importance : (a,) float64
        π of each anchor, in any order (Sec. 3.2).

    Raises
    ------
    ValueError
        An importance is negative or not finite.
    """
    if importance is not None and not np.all(np.isfinite(importance) & (importance >= 0)):
        raise ValueError("importance must be finite and not negative")
    png = io.BytesIO()
    _drawn(report, importance).savefig(png, format="png")
    return png.getvalue()


def _drawn(report: GraphReport, importance: Floats | None) -> "Figure":
    # Imported only here, as it takes half a second. The canvas is made without pyplot, which would
    # keep every figure and look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 2 if importance is None else 3
    figure = Figure((panels * _PANEL[0], _PANEL[1]), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)  # sets the canvas of the figure
    axes = figure.subplots(1, panels)
    _draw_degrees(axes[0], report)
    _draw_components(axes[1], report)
    if importance is not None:
        _draw_importance(axes[2], importance)
    return figure


def _draw_degrees(axes: "Axes", report: GraphReport) -> None:
    counts = report.degree_histogram
    edges = np.arange(len(counts) + 1) - 0.5
    axes.stairs(counts, edges, fill=True, color=_COLOR)
    # Isolated items take no part in mining, so they have another colour.
    axes.stairs(counts[:1], edges[:2], fill=True, color=_ALERT)
    _title(
        axes,
        f"{counted(report.items, 'item')}, {counted(report.edges, 'edge')}",
        f"degree {report.degree_min:,} to {report.degree_max:,}, median {report.degree_median:g}, "
        f"mean {report.degree_mean:.1f}",
        f"isolated (red): {report.isolated:,} ({percent(report.isolated, report.items)})",
    )
    axes.set(xlabel="edges of an item", ylabel="items", xlim=(-0.7, max(1, edges[-1]) + 0.2))
    axes.locator_params(integer=True)
    axes.xaxis.set_major_formatter(_short)
    axes.yaxis.set_major_formatter(_short)


def _draw_components(axes: "Axes", report: GraphReport) -> None:
    sizes, counts = zip(*report.component_histogram, strict=True)
    axes.plot(sizes, counts, "o", color=_COLOR, markersize=5)
    largest, *others = report.largest_components
    _title(
        axes,
        counted(report.components, "component"),
        f"largest: {counted(largest, 'item')} ({percent(largest, report.items)})",
        "next: " + (", ".join(f"{size:,}" for size in others[:3]) or "none"),
    )
    axes.set(xscale="log", yscale="log", xlabel="items of a component", ylabel="components")
    # At least a decade each way: a graph in one piece is one point.
    axes.set(xlim=(0.7, max(15, 1.5 * sizes[-1])), ylim=(0.7, max(15, 1.5 * max(counts))))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_short)
        axis.set_minor_formatter("")


def _draw_importance(axes: "Axes", importance: Floats) -> None:
    ranked = np.sort(importance)[::-1]
    axes.plot(np.arange(1, len(ranked) + 1), ranked, ".-", color=_COLOR, markersize=4)
    span = f"π from {ranked[0]:.2g} down to {ranked[-1]:.2g}" if len(ranked) else "no importance"
    _title(axes, counted(len(ranked), "anchor"), span)
    axes.set(xlabel="rank of the anchor", ylabel="importance π", xlim=(0, len(ranked) + 1))
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter(_short)


def _title(axes: "Axes", *lines: str) -> None:
    axes.set_title("\n".join(lines), fontsize="medium")


def _short(number: float, _: float = 0) -> str:
    """Abbreviate a number for an axis: 20k for 20,000."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
