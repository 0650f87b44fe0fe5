"""Figure 1 of the paper, drawn for a mined example in the plane."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from mmray.pipeline.reports.plane import PlaneExample
from mmray.system.arrays import Ids
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import absolute, error_line

# Dates and random identifiers are switched off, so that files are reproducible.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
_STYLE: dict[Any, Any] = {"font.size": 11, "svg.hashsalt": "mmray", "pdf.fonttype": 42}
_DPI = 200  # dots an inch
_PANEL, _GAP, _ABOVE, _BELOW = 4.3, 0.15, 0.75, 1.05  # inches: panels are square
_SCALE = "viridis_r"  # of similarities: the most similar are the darkest
# Okabe and Ito's colours, which the colour-blind can tell apart; the shapes tell too.
_NEAREST, _POSITIVE, _NEGATIVE = "#e69f00", "#0072b2", "#d55e00"
_OWN, _OTHER, _EDGE = "#7f7f7f", "#c6c6c6", "#9a9a9a"


def image_format(output: str) -> str:
    """Return the image format of a file name: png, svg or pdf.

    Raises
    ------
    InputError
        The name has another ending.
    """
    suffix = Path(output).suffix.lower().removeprefix(".")
    if suffix not in _METADATA:
        raise InputError(f"--output {output}: the name must end with .png, .svg or .pdf")
    return suffix


def save(output: str, data: bytes) -> str:
    """Write a file, creating its folder if need be, and return its absolute path or URI.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    location = absolute(output)
    folder, _, name = location.rpartition("/")
    try:
        Folder(folder or "/").write(name, data)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"--output {output}: cannot be written ({error_line(error)}); choose a place to write "
            "to"
        ) from error
    return location


def counts(toy: PlaneExample) -> tuple[Sequence[str], Sequence[str]]:
    """Count the points of each set, and the true ones, as the head and the row of a table.

    A positive is true on the anchor's curve, a negative on another curve.
    """
    sets = {
        "anchor": toy.anchor,
        "NN^e": len(toy.euclidean(toy.positive_k)),
        "NN^m": len(toy.manifold),
        "P+": len(toy.positives),
        "true P+": toy.on_curve(toy.positives),
        "P-": len(toy.negatives),
        "true P-": len(toy.negatives) - toy.on_curve(toy.negatives),
    }
    return tuple(sets), tuple(map(str, sets.values()))


def draw(toy: PlaneExample, kind: str) -> bytes:
    """Draw the three panels as a file of a format; equal points give equal bytes."""
    width, height = 3 * _PANEL + 4 * _GAP, _PANEL + _ABOVE + _BELOW
    image = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        # The canvas is made without pyplot, which would keep the figure and look for a screen.
        figure = Figure((width, height), dpi=_DPI)
        FigureCanvasAgg(figure)
        for place, draw_panel in enumerate((_draw_euclidean, _draw_manifold, _draw_pools)):
            left = _GAP + place * (_PANEL + _GAP)
            box = (left / width, _BELOW / height, _PANEL / width, _PANEL / height)
            draw_panel(figure.add_axes(box), toy)
        figure.savefig(image, format=kind, metadata=_METADATA[kind])
    return image.getvalue()


def _draw_euclidean(axes: Axes, toy: PlaneExample) -> None:
    near = toy.euclidean(toy.positive_k)
    _background(axes, toy)
    _points(axes, toy, near, "o", _NEAREST, _named("e", toy.positive_k))
    _circle(axes, toy, toy.positive_k)
    _finish(axes, toy, "(a) Euclidean neighbours", _of_own(toy, near))


def _draw_manifold(axes: Axes, toy: PlaneExample) -> None:
    edges = toy.graph.tocoo()
    pairs = np.stack(edges.coords, axis=1)[edges.coords[0] < edges.coords[1]]
    lines = LineCollection(list(toy.places[pairs]), colors=_EDGE, lw=0.5, zorder=0.5, label="graph")
    _background(axes, toy)
    axes.add_collection(lines)
    similar = toy.manifold[::-1]  # the most similar are drawn last
    drawn = _scatter(axes, toy, similar, c=toy.similarity[similar], cmap=_SCALE, s=36, zorder=3)
    _circle(axes, toy, toy.positive_k)
    beside = axes.inset_axes((0.36, -0.055, 0.62, 0.03))
    axes.figure.colorbar(drawn, cax=beside, orientation="horizontal")
    beside.locator_params(nbins=5)
    beside.tick_params(labelsize="small", pad=2)
    axes.text(
        0.34,
        -0.04,
        f"{_named('m', toy.positive_k)} by $s_m$",
        transform=axes.transAxes,
        ha="right",
        va="center",
    )
    _finish(axes, toy, "(b) Manifold neighbours", _of_own(toy, toy.manifold), below=0.125)


def _draw_pools(axes: Axes, toy: PlaneExample) -> None:
    own = toy.curve == toy.curve[toy.anchor]
    true = toy.positives[own[toy.positives]], toy.negatives[~own[toy.negatives]]
    false = np.concatenate([toy.positives[~own[toy.positives]], toy.negatives[own[toy.negatives]]])
    _background(axes, toy)
    _points(axes, toy, toy.positives, "^", _POSITIVE, "positives $P^+$")
    _points(axes, toy, toy.negatives, "X", _NEGATIVE, "negatives $P^-$")
    _circle(axes, toy, toy.positive_k)
    if toy.negative_k != toy.positive_k:
        _circle(axes, toy, toy.negative_k, style=":")
    if len(false):
        ring = {"facecolor": "none", "edgecolor": "black", "s": 100, "lw": 0.9}
        _scatter(axes, toy, false, **ring, zorder=4, label="false")
    _finish(
        axes,
        toy,
        "(c) Positives and hard negatives",
        f"{_share(len(true[0]), len(toy.positives))} positives and "
        f"{_share(len(true[1]), len(toy.negatives))} negatives are true",
    )


def _background(axes: Axes, toy: PlaneExample) -> None:
    own = toy.curve == toy.curve[toy.anchor]
    star = {"marker": "*", "s": 230, "color": "black", "edgecolor": "white", "lw": 0.8}
    _scatter(axes, toy, np.array([toy.anchor]), **star, zorder=5, label="anchor")
    _scatter(axes, toy, np.flatnonzero(own), s=13, color=_OWN, label="its curve")
    _scatter(axes, toy, np.flatnonzero(~own), s=13, color=_OTHER, label="other curves")


def _circle(axes: Axes, toy: PlaneExample, k: int, style: str = "--") -> None:
    """Draw the circle around the anchor that contains NN^e of k places."""
    centre = toy.places[toy.anchor]
    radius = np.linalg.norm(toy.places[toy.euclidean(k)] - centre, axis=1).max(initial=0)
    angle = np.linspace(0, 2 * np.pi, 361)
    x, y = centre[:, None] + radius * np.stack([np.cos(angle), np.sin(angle)])
    axes.plot(x, y, style, color="black", lw=1, zorder=2, label=f"reach of {_named('e', k)}")


def _points(axes: Axes, toy: PlaneExample, ids: Ids, marker: str, color: str, label: str) -> None:
    _scatter(axes, toy, ids, marker=marker, color=color, s=36, zorder=3, label=label)


def _scatter(axes: Axes, toy: PlaneExample, ids: Ids, **style: Any) -> PathCollection:
    x, y = toy.places[ids].T
    return axes.scatter(x, y, **{"lw": 0} | style)


def _finish(axes: Axes, toy: PlaneExample, title: str, caption: str, below: float = 0.025) -> None:
    axes.set_title(f"{title}\n", fontsize="large", fontweight="bold", linespacing=1.6)
    axes.text(0.5, 1.03, caption, transform=axes.transAxes, ha="center")
    reach = 1.04 * np.abs(toy.places).max()
    axes.set(aspect="equal", xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach))
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -below),
        ncols=3,
        frameon=False,
        borderpad=0,
        handlelength=1.5,
        handletextpad=0.4,
        columnspacing=1.2,
        fontsize="medium",
    )


def _named(space: str, k: int) -> str:
    return rf"$\mathrm{{NN}}^{space}_{{{k}}}$"


def _of_own(toy: PlaneExample, ids: Ids) -> str:
    return f"{_share(toy.on_curve(ids), len(ids))} on the anchor's curve"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}"
