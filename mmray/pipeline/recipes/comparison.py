"""Results of a comparison of runs, and their table of means and deviations over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from mmray.evaluation.candidates import INITIAL, LDA, PLAIN
from mmray.evaluation.scores import Score
from mmray.evaluation.scoring import DEVIATION
from mmray.pipeline.metric_names import of_measure, of_pools
from mmray.pipeline.recipes.outcome import RunResult
from mmray.pipeline.reports.tables import DESCRIPTORS, Cells, table

MEASURES = ("mAP", "R@1", "R@2", "R@4", "R@8", "NMI")


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """Result of a row for one seed; rates and measures are in [0, 1], None where unknown.

    Attributes
    ----------
    anchors : number of anchors
    positives, negatives : share of the pools' positive and negative pairs that are true
    epoch, epochs : epoch of the network that was kept, and number of epochs trained
    initial, tuned : measures of the initial and the fine-tuned network, by column
    """

    name: str
    label: str
    seed: int
    anchors: int
    positives: float | None
    negatives: float | None
    epoch: int | None
    epochs: int | None
    initial: Mapping[str, float]
    tuned: Mapping[str, float]

    @classmethod
    def of(cls, name: str, label: str, seed: int, outcome: RunResult) -> Self:
        learned = outcome.learned
        assert learned is not None, "a row ends with mining or later"
        purity, tuned = learned.purity, learned.tuned
        return cls(
            name=name,
            label=label,
            seed=seed,
            anchors=len(learned.mined.pools.anchors),
            positives=None if purity is None else _known(purity.positives),
            negatives=None if purity is None else _known(purity.negatives),
            epoch=None if tuned is None else tuned.epoch,
            epochs=None if tuned is None else tuned.epochs,
            initial=_figures(outcome.scores, initial=True),
            tuned=_figures(outcome.scores, initial=False),
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(**stored)

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log with the MLflow run of the comparison."""
        rates = (np.nan if rate is None else rate for rate in (self.positives, self.negatives))
        figures = {of_measure(column): value for column, value in self.tuned.items()}
        return {f"{self.name}/{key}": value for key, value in (of_pools(*rates) | figures).items()}


def _known(rate: float) -> float | None:
    return None if np.isnan(rate) else rate


def _figures(scores: Sequence[Score], *, initial: bool) -> dict[str, float]:
    """Return the measures of a network by column.

    The column "whitened" is, as in the paper, of PCA for the initial network and else of LDA.
    """
    found, several = {}, len({score.benchmark for score in scores}) > 1
    for score in scores:
        of_this = (score.network == INITIAL) == initial and score.search == "plain"
        if of_this and not (initial and score.whitening == LDA):
            parts = [score.benchmark] if several else []
            parts += [] if score.descriptor == "embedding" else [DESCRIPTORS[score.descriptor]]
            parts += [score.measure, *(["whitened"] if score.whitening != PLAIN else [])]
            found[" ".join(parts)] = score.value
    return found


def comparison_table(results: Sequence[RowResult]) -> str:
    """Format results as a Markdown table, see `comparison`."""
    head, rows, _ = comparison(results)
    return table(head, rows, numbers=len(head) - 1)


def comparison(results: Sequence[RowResult]) -> Cells:
    """Lay out results as cells, in percent: mining, and mean ± standard deviation over the seeds.

    The standard deviation is that of the population of seeds; a single seed has none. The last
    columns are the measures by which rows are compared.
    """
    columns = sorted({name for result in results for name in result.tuned}, key=_place)
    columns = [name for name in columns if not name.endswith(DEVIATION)]
    rows, names = list[tuple[str, ...]](), list(dict.fromkeys(result.name for result in results))
    if columns:
        of_seeds = {result.seed: result.initial for result in results}
        shown = [_shown([figures.get(c) for figures in of_seeds.values()]) for c in columns]
        rows.append((INITIAL, "", "", "", "", *shown))
    for name in names:
        seeds = [result for result in results if result.name == name]
        rows.append(
            (
                seeds[0].label,
                _shown([result.anchors or None for result in seeds], percent=False),
                _shown([result.positives for result in seeds]),
                _shown([result.negatives for result in seeds]),
                " ".join("-" if r.epoch is None else str(r.epoch) for r in seeds),
                *(_shown([result.tuned.get(c) for result in seeds]) for c in columns),
            )
        )
    head = ("row", "anchors", "true P+", "true P-", "epochs kept", *columns)
    if not columns:
        return head[:4], [row[:4] for row in rows], 2
    return head, rows, len(columns)


def _place(column: str) -> tuple[int, str]:
    """Return the sort key of a column: measures in the order of fine-grained papers."""
    found = [place for place, measure in enumerate(MEASURES) if measure in column.split()]
    return found[0] if found else len(MEASURES), column


def _shown(values: Sequence[float | None], *, percent: bool = True) -> str:
    known = np.array([value for value in values if value is not None], np.float64)
    if not len(known):
        return ""
    if not percent:
        return f"{known.mean():,.0f}"
    mean = f"{100 * known.mean():.1f}"
    return mean if len(known) == 1 else f"{mean} ± {100 * known.std():.1f}"
