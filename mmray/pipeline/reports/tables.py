"""Tables of results, in Markdown and for pages."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmray.config.choices import Descriptor, QuerySearch
from mmray.evaluation.scores import Score
from mmray.system.errors import printable

DESCRIPTORS: dict[Descriptor, str] = {
    "mac": "MAC",
    "rmac": "R-MAC",
    "gem": "GeM",
    "avg": "average",
    "cls": "CLS",
    "embedding": "embedding",
}
SEARCHES: dict[QuerySearch, str] = {
    "plain": "plain",
    "aqe": "AQE",
    "alpha-qe": "alpha-QE",
    "dba": "DBA",
    "diffusion": "diffusion",
    "truncated-diffusion": "truncated diffusion",
}


Cells = tuple[tuple[str, ...], list[tuple[str, ...]], int]  # head, rows, how many are numbers


def results_table(scores: Sequence[Score]) -> str:
    """Format scores as a Markdown table, see `results`."""
    head, rows, numbers = results(scores)
    return table(head, rows, numbers=numbers)


def results(scores: Sequence[Score]) -> Cells:
    """Lay out scores as cells, in percent, with a column for each benchmark and measure.

    Rows are sorted by descriptor, MAC before R-MAC, then by network in the order of the scores.
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
    """Return a function that titles columns by benchmark and measure, as far as these differ."""
    benchmarks = [benchmark for benchmark, _ in columns]

    def title(column: tuple[str, str]) -> str:
        benchmark, measure = column
        if len(set(benchmarks)) == 1:
            return measure
        return benchmark if benchmarks.count(benchmark) == 1 else f"{benchmark} {measure}"

    return title


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 1) -> str:
    """Format cells as a Markdown table; the last columns are numbers, aligned to the right.

    Cells are made `printable`, and their bars too, so that they stay in their columns.
    """
    head, *rows = ([printable(cell).replace("|", r"\x7c") for cell in row] for row in (head, *rows))
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
    """A table of text cells whose last columns are numbers, the highest of which is the best.

    Attributes
    ----------
    head : names of the columns
    rows : cells of each row; "" where a value was not measured
    numbers : number of the last columns that hold numbers
    unranked : names of columns without a best value, such as standard deviations
    note : text below the table

    Raises
    ------
    ValueError
        A row has another number of cells than the head, or `numbers` exceeds the columns.
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
        """Return (row, column) of the highest number of each column whose numbers differ."""
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
    """Parse the number that a cell begins with: 76.0 of "76.0 ± 0.3" or "76.0%"; None if none."""
    begin = (
        cell.partition("±")[0].strip().rstrip("%").replace(",", "").replace("\N{MINUS SIGN}", "-")
    )
    try:
        value = float(begin)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
