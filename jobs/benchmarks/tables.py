"""Tables of what is compared, as `jobs/benchmark.py` prints them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import torch
    from benchmarks.extraction import Rate
    from benchmarks.mining import Comparison

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def of_comparisons(found: "Sequence[Comparison]") -> Table:
    """A table with a row for each comparison: both sides, and their ratio."""
    head = ("part", "against", "its seconds", "ours", "times faster")
    return head, [
        (
            each.part,
            each.baseline,
            f"{each.theirs:.2f}",
            f"{each.ours:.2f}",
            f"{each.ratio:.1f}",
        )
        for each in found
    ]


def of_rates(rates: "Sequence[Rate]", deviation: str) -> Table:
    """A table of the ways, each beside the first one."""
    base = rates[0].images_per_second
    head = ("way", "start-up, s", deviation, "images/s", "times one at a time", "with the start")
    return head, [
        (
            rate.way,
            f"{rate.startup:.1f}",
            f"{rate.deviation:.1e}",
            f"{rate.images_per_second:.1f}",
            f"{rate.images_per_second / base:.2f}",
            "" if rate.whole is None else f"{rate.whole:.1f}",
        )
        for rate in rates
    ]
