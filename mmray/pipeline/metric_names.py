"""Names of metrics in MLflow, which sorts them by what stands before a slash.

Without a slash is what a person looks at; further results are below train/ and evaluate/. Counts,
times, rates and bytes are below system/, which MLflow shows on a page of its own: each would be a
chart among the others. docs/reports.md lists them.
"""

from collections.abc import Mapping

from mmray.training.agreement import VIEW_AGREEMENT
from mmray.training.validation import MANIFOLD_MAP

CHECKS = (VIEW_AGREEMENT, MANIFOLD_MAP)  # without labels, the one that chooses first
CURVES = (*CHECKS, "loss", "held_out_loss")  # of training, at the top level


def of_epoch(name: str) -> str:
    """Return the name of a metric of an epoch, by its name in the history of training.

    >>> of_epoch("loss"), of_epoch("spread"), of_epoch("map"), of_epoch("train_seconds")
    ('loss', 'train/spread', 'train/mAP', 'system/train/train_seconds')
    """
    if name in CURVES:
        return name
    if name.endswith("_seconds"):
        return f"system/train/{name}"
    return "train/mAP" if name == "map" else f"train/{name}"


def of_measure(measure: str) -> str:
    """Return the name of a measure of a table of results.

    >>> of_measure("mAP"), of_measure("R@1"), of_measure("mP@10 medium")
    ('mAP', 'recall_at_1', 'mP_at_10_medium')
    """
    return measure.replace("R@", "recall_at_").replace("@", "_at_").replace(" ", "_")


def initial(name: str) -> str:
    """Return the name of a metric of the initial network, by that of the same metric after."""
    return f"{name}_initial"


def of_change(name: str, before: float, after: float) -> dict[str, float]:
    """Return a metric of the network after training, before it, and what it gained."""
    return {name: after, initial(name): before, f"{name}_gain": after - before}


def of_counts(step: str, counts: Mapping[str, float]) -> dict[str, float]:
    """Return what a stage counted under its names; what `evaluate` measured is no bookkeeping."""
    place = step if step == "evaluate" else f"system/{step}"
    return {f"{place}/{name}": value for name, value in counts.items()}


def of_progress(label: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of the progress of a stage under their names; `done` is their step."""
    return {f"system/{label}/{name}": value for name, value in figures.items() if name != "done"}


def of_pools(positives: float, negatives: float) -> dict[str, float]:
    """Return how pure pools are, by labels, under their names; what is not known is left out."""
    rates = {"pool_true_positives": positives, "pool_true_negatives": negatives}
    return {name: rate for name, rate in rates.items() if rate == rate}
