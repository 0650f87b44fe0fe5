"""Tables of figures, as text, and which figures of them are best."""

import math
from dataclasses import dataclass


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
