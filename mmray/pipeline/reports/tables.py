"""What a person reads after a run: the table of results, and a picture of the graph.

a anchors.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmray.config.choices import Descriptor, QuerySearch

if TYPE_CHECKING:
    pass
from mmray.evaluation.scores import Score

DESCRIPTORS: dict[Descriptor, str] = {
    "mac": "MAC",
    "rmac": "R-MAC",
    "gem": "GeM",
    "avg": "average",
    "embedding": "embedding",
}
SEARCHES: dict[QuerySearch, str] = {
    "plain": "plain",
    "aqe": "AQE",
    "alpha-qe": "alpha-QE",
    "diffusion": "diffusion",
}


Cells = tuple[tuple[str, ...], list[tuple[str, ...]], int]  # head, rows, how many are numbers


def results_table(scores: Sequence[Score]) -> str:
    """`results` as a Markdown table."""
    head, rows, numbers = results(scores)
    return table(head, rows, numbers=numbers)


def results(scores: Sequence[Score]) -> Cells:
    """Scores in percent as cells, a column for each benchmark and measure.

    Rows: MAC before R-MAC, networks and all else in their order.
    """
    order = list(DESCRIPTORS)
    networks = list(dict.fromkeys(score.network for score in scores))
    searches = list(dict.fromkeys(score.search for score in scores))
    columns = list(dict.fromkeys((score.benchmark, score.measure) for score in scores))
    cells: dict[tuple[str, ...], dict[tuple[str, str], str]] = {}
    for score in sorted(
        scores, key=lambda s: (order.index(s.descriptor), networks.index(s.network))
    ):
        head = (DESCRIPTORS[score.descriptor], score.network, score.whitening)
        row = cells.setdefault((*head, SEARCHES[score.search]), {})
        row[score.benchmark, score.measure] = f"{100 * score.value:.1f}"
    shown = slice(None if len(searches) > 1 else 3)
    return (
        (*("descriptor", "network", "whitening", "search")[shown], *map(_titled(columns), columns)),
        [
            (*head[shown], *(row.get(column, "") for column in columns))
            for head, row in cells.items()
        ],
        len(columns),
    )


def _titled(columns: Sequence[tuple[str, str]]) -> Callable[[tuple[str, str]], str]:
    """What stands above a column: only what tells it from the others, the benchmark first."""
    benchmarks = [benchmark for benchmark, _ in columns]

    def title(column: tuple[str, str]) -> str:
        benchmark, measure = column
        if len(set(benchmarks)) == 1:
            return measure
        return benchmark if benchmarks.count(benchmark) == 1 else f"{benchmark} {measure}"

    return title


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 1) -> str:
    """Cells as a Markdown table, its last columns, those of numbers, aligned to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    texts = len(head) - numbers
    lines = [
        [
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (head, *rows)
    ]
    rule = ["-" * width for width in widths[:texts]]
    lines.insert(1, rule + ["-" * (width - 1) + ":" for width in widths[texts:]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, the last columns of numbers of which the highest is best.

    Attributes
    ----------
    head : names of the columns
    rows : as many cells each; "" where something was not measured
    numbers : how many of the last columns are numbers
    unranked : names of those that are better neither high nor low
    note : stands below

    Raises
    ------
    ValueError
        A row has another number of cells than the head, or `numbers` is not a number of columns.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int = 1
    unranked: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for place, row in enumerate(self.rows):
            if len(row) != len(self.head):
                raise ValueError(f"row {place} has {len(row)} cells, the head {len(self.head)}")
        if not 0 <= self.numbers <= len(self.head):
            raise ValueError(f"numbers = {self.numbers} of {len(self.head)} columns")

    @property
    def best(self) -> frozenset[tuple[int, int]]:
        """(row, column) of the highest number of each column where numbers differ."""
        best: set[tuple[int, int]] = set()
        for column in range(len(self.head) - self.numbers, len(self.head)):
            if self.head[column] in self.unranked:
                continue
            read = [_number(row[column]) for row in self.rows]
            found = {value for value in read if value is not None}
            if len(found) > 1:
                best |= {(place, column) for place, v in enumerate(read) if v == max(found)}
        return frozenset(best)


def _number(cell: str) -> float | None:
    """What a cell begins with: 76.0 of "76.0 ± 0.3" or of "76.0%"; None where that is no number."""
    begin = (
        cell.partition("±")[0].strip().rstrip("%").replace(",", "").replace("\N{MINUS SIGN}", "-")
    )
    try:
        value = float(begin)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
