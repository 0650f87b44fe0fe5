"""Layout of line charts of metrics by epoch: the places of all marks, which a template draws.

Places are in the units of the drawing, about a pixel each, x to the right and y down.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 232
TOP, BOTTOM, RIGHT = 28, 42, 14  # margins around the lines; the epochs stand below
_LETTER = 7  # width of a digit at an axis
_KEPT_LABEL = 42  # half the width of "kept: epoch 12"
_INTERVALS, _EPOCHS = 4, 8  # approximate numbers of intervals at the axes
_BEYOND = 1e100  # larger values are not drawn: their span may not be finite


@dataclass(frozen=True, kw_only=True)
class Series:
    """A metric by epoch.

    Attributes
    ----------
    name : its entry in the legend
    points : (epoch, value) each, in any order
        An epoch that is left out is passed over; a value that is None or not finite, of a training
        that diverged, interrupts the line.
    """

    name: str
    points: tuple[tuple[int, float | None], ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Series on the same axes.

    Attributes
    ----------
    title : above the chart
    series : drawn in their order
    unit : label of the vertical axis, with room for some 25 letters
    kept : the epoch whose network is kept, marked by a vertical line
    """

    title: str
    series: tuple[Series, ...]
    unit: str = ""
    kept: int | None = None


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A tick of an axis or a point of a line, with its text."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A drawn series: an SVG path, and a dot for each of its values."""

    name: str
    path: str
    dots: tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A laid-out chart: lines between `left`, `top`, `right` and `bottom`.

    Without a finite value there are no lines and no marks. `kept` is the line of the kept
    epoch; its text stands at `kept_text`, moved inside the drawing.
    """

    chart: Chart
    left: float
    lines: tuple[Line, ...] = ()
    epochs: tuple[Mark, ...] = ()
    values: tuple[Mark, ...] = ()
    kept: Mark | None = None
    kept_text: float = 0
    width: int = WIDTH
    height: int = HEIGHT
    top: int = TOP
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def plot(chart: Chart) -> Plot:
    """Lay out the lines and ticks of a chart."""
    drawn = [
        (epoch, value)
        for series in chart.series
        for epoch, value in series.points
        if _is_drawn(value)
    ]
    if not drawn:
        return Plot(chart=chart, left=0)
    values = _value_ticks([value for _, value in drawn if value is not None])
    labels = _labels(values)
    marked = [epoch for epoch, _ in drawn] + ([] if chart.kept is None else [chart.kept])
    first, last = min(marked), max(marked)
    left = (34 if chart.unit else 14) + _LETTER * max(map(len, labels))
    # A single epoch is centred.
    low, high = (first, last) if first < last else (first - 0.5, last + 0.5)
    across = _Scale(low, high, left + 8, WIDTH - RIGHT - 8)
    down = _Scale(values[0], values[-1], HEIGHT - BOTTOM, TOP)
    kept = None if chart.kept is None else across(chart.kept)
    margin = _KEPT_LABEL
    return Plot(
        chart=chart,
        left=left,
        lines=tuple(_line(series, across, down) for series in chart.series),
        epochs=tuple(
            Mark(x=across(epoch), y=HEIGHT - BOTTOM, text=f"{epoch}")
            for epoch in _epoch_ticks(first, last)
        ),
        values=tuple(
            Mark(x=left, y=down(value), text=label)
            for value, label in zip(values, labels, strict=True)
        ),
        kept=None if kept is None else Mark(x=kept, y=TOP, text=f"kept: epoch {chart.kept}"),
        kept_text=0 if kept is None else min(max(kept, left + margin), WIDTH - RIGHT - margin),
    )


@dataclass(frozen=True)
class _Scale:
    """Linear map from values low..high to places start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def _is_drawn(value: float | None) -> bool:
    return value is not None and abs(value) < _BEYOND  # False for NaN too


def _line(series: Series, across: _Scale, down: _Scale) -> Line:
    commands: list[str] = []
    dots: list[Mark] = []
    pen_down = False
    for epoch, value in sorted(series.points, key=lambda point: point[0]):
        if value is None or not _is_drawn(value):
            pen_down = False
            continue
        x, y = across(epoch), down(value)
        commands.append(f"{'L' if pen_down else 'M'}{x:g} {y:g}")
        dots.append(Mark(x=x, y=y, text=f"{series.name}, epoch {epoch}: {value:.4g}"))
        pen_down = True
    return Line(name=series.name, path="".join(commands), dots=tuple(dots))


def _value_ticks(values: Iterable[float]) -> list[float]:
    """Choose round numbers at equal steps whose range includes all values."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1 / _BEYOND:  # one value, or none to tell apart
        room = 0.05 * size if size >= 1 / _BEYOND else 1.0
        low, high = low - room, high + room
    step = _round_step((high - low) / _INTERVALS)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(start, end + 1)]


def _epoch_ticks(first: int, last: int) -> range:
    step = max(1, round(_round_step((last - first) / _EPOCHS))) if last > first else 1
    return range(-(-first // step) * step, last + 1, step)


def _round_step(least: float) -> float:
    """Return the least 1, 2 or 5 times a power of ten that is at least `least`."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= least * (1 - 1e-9))


def _labels(ticks: Sequence[float]) -> list[str]:
    step = ticks[1] - ticks[0]
    if step < 1e-4 or max(map(abs, ticks)) >= 1e6:
        return [f"{tick:.3g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
