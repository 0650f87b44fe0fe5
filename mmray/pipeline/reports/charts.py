"""Layout of line and bar charts: the places of all marks, which a template draws.

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
    """A metric by epoch, or other values by a whole number.

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
    across : label of the horizontal axis
    kept : the epoch whose network is kept, marked by a vertical line
    """

    title: str
    series: tuple[Series, ...]
    unit: str = ""
    across: str = "epoch"
    kept: int | None = None


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A tick of an axis or a point of a line, with its text."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar that stands on the horizontal axis, with its text; `apart`: unlike the others."""

    x: float
    y: float
    width: float
    text: str
    apart: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A drawn series: an SVG path, and a dot for each of its values."""

    name: str
    path: str
    dots: tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A chart that is laid out: lines and bars between `left`, `top`, `right` and `bottom`.

    Without a finite value there are no lines and no marks. `kept` is the line of the kept
    epoch; its text stands at `kept_text`, moved inside the drawing.
    """

    title: str
    left: float
    unit: str = ""
    across: str = "epoch"
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    columns: tuple[Mark, ...] = ()  # ticks of the horizontal axis
    values: tuple[Mark, ...] = ()  # and of the vertical one
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
        return Plot(title=chart.title, left=0)
    values = _value_ticks([value for _, value in drawn if value is not None])
    labels = _labels(values)
    marked = [epoch for epoch, _ in drawn] + ([] if chart.kept is None else [chart.kept])
    first, last = min(marked), max(marked)
    left = _left(labels, chart.unit)
    # A single epoch is centred.
    low, high = (first, last) if first < last else (first - 0.5, last + 0.5)
    across = _Scale(low, high, left + 8, WIDTH - RIGHT - 8)
    down = _Scale(values[0], values[-1], HEIGHT - BOTTOM, TOP)
    kept = None if chart.kept is None else across(chart.kept)
    margin = _KEPT_LABEL
    return Plot(
        title=chart.title,
        left=left,
        unit=chart.unit,
        across=chart.across,
        lines=tuple(_line(series, chart.across, across, down) for series in chart.series),
        columns=tuple(
            Mark(x=across(epoch), y=HEIGHT - BOTTOM, text=_short(epoch))
            for epoch in _whole_ticks(first, last)
        ),
        values=_values(values, labels, left, down),
        kept=None if kept is None else Mark(x=kept, y=TOP, text=f"kept: epoch {chart.kept}"),
        kept_text=0 if kept is None else min(max(kept, left + margin), WIDTH - RIGHT - margin),
    )


def bar_plot(
    title: str,
    bars: Sequence[tuple[str, int, str]],
    *,
    unit: str,
    across: str,
    apart: int | None = None,
) -> Plot:
    """Lay out a bar chart of counts.

    Parameters
    ----------
    title : above the chart
    bars : (label, count, text) each, one at least; as many labels are drawn as have room
    unit, across : labels of the axes
    apart : place of the bar that is unlike the others
    """
    values = _value_ticks([0, max(1, *(count for _, count, _ in bars))], least_step=1)
    labels = [_short(value) for value in values]
    left = _left(labels, unit)
    wide = (WIDTH - RIGHT - left) / len(bars)
    down = _Scale(values[0], values[-1], HEIGHT - BOTTOM, TOP)
    room = max(1, max(len(label) for label, _, _ in bars)) * _LETTER + _LETTER
    every = max(1, math.ceil(room / wide))
    return Plot(
        title=title,
        left=left,
        unit=unit,
        across=across,
        bars=tuple(
            Bar(
                x=round(left + (place + 0.1) * wide, 1),
                y=down(count),
                width=round(0.8 * wide, 1),
                text=text,
                apart=place == apart,
            )
            for place, (_, count, text) in enumerate(bars)
        ),
        columns=tuple(
            Mark(x=round(left + (place + 0.5) * wide, 1), y=HEIGHT - BOTTOM, text=label)
            for place, (label, _, _) in enumerate(bars)
            if place % every == 0
        ),
        values=_values(values, labels, left, down),
    )


def _values(
    values: Sequence[float], labels: Sequence[str], left: float, down: "_Scale"
) -> tuple[Mark, ...]:
    return tuple(
        Mark(x=left, y=down(value), text=label) for value, label in zip(values, labels, strict=True)
    )


def _left(labels: Sequence[str], unit: str) -> float:
    return (34 if unit else 14) + _LETTER * max(map(len, labels))


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


def _line(series: Series, axis: str, across: _Scale, down: _Scale) -> Line:
    commands: list[str] = []
    dots: list[Mark] = []
    pen_down = False
    for epoch, value in sorted(series.points, key=lambda point: point[0]):
        if value is None or not _is_drawn(value):
            pen_down = False
            continue
        x, y = across(epoch), down(value)
        commands.append(f"{'L' if pen_down else 'M'}{x:g} {y:g}")
        dots.append(Mark(x=x, y=y, text=f"{series.name}, {axis} {epoch:,}: {value:.4g}"))
        pen_down = True
    return Line(name=series.name, path="".join(commands), dots=tuple(dots))


def _value_ticks(values: Iterable[float], *, least_step: float = 0) -> list[float]:
    """Choose round numbers at equal steps whose range includes all values."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1 / _BEYOND:  # one value, or none to tell apart
        room = 0.05 * size if size >= 1 / _BEYOND else 1.0
        low, high = low - room, high + room
    step = max(least_step, _round_step((high - low) / _INTERVALS))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(start, end + 1)]


def _whole_ticks(first: int, last: int) -> range:
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


def _short(number: float) -> str:
    """Abbreviate a number for an axis: 20k for 20,000."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
