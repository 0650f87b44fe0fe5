"""What a person reads after a run: the table of results."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmray.config import Pooling

DESCRIPTORS = {"mac": "MAC", "rmac": "R-MAC", "gem": "GeM"}


@dataclass(frozen=True)
class Score:
    """The mAP, in [0, 1], of a network's descriptor on a labelled set."""

    network: str
    descriptor: Pooling
    whitening: str
    map: float


def results_table(scores: Sequence[Score]) -> str:
    """Scores as a Markdown table, mAP in percent; MAC before R-MAC, networks in their order."""
    order = list(DESCRIPTORS)
    networks = list(dict.fromkeys(score.network for score in scores))
    ranked = sorted(scores, key=lambda s: (order.index(s.descriptor), networks.index(s.network)))
    rows = [("descriptor", "network", "whitening", "mAP")]
    rows += [
        (DESCRIPTORS[s.descriptor], s.network, s.whitening, f"{100 * s.map:.1f}") for s in ranked
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [
        [
            cell.rjust(width) if column == 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    rule = ["-" * width for width in widths[:3]] + ["-" * (widths[3] - 1) + ":"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])
