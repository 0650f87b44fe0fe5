"""The rows of the comparison: Table 1 with its anchors, oracles, and the baselines of Table 2."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmray.config.choices import Oracle, Pooling, SupervisedBaseline
from mmray.config.presets import BASELINE, Changes
from mmray.pipeline.reports.tables import DESCRIPTORS
from mmray.training.supervised.losses import BASELINE_LABELS


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes
    ----------
    name : for --rows
    label : in the table; it says so where the row uses labels
    changes : to the settings
    anchors_of : another row; this one takes as many anchors as that has for the same seed
    """

    name: str
    label: str
    changes: Changes
    anchors_of: str | None = None


_WHOLE_POOL = 10**6  # hard negatives: more than any pool has


def _pools(positives: str, negatives: str) -> Changes:
    # A baseline's random negatives are purely random: none is chosen as near to the anchor.
    hard = {"hard_negatives": _WHOLE_POOL} if negatives == "random" else {}
    return {
        "mining": {"positives": positives, "negatives": negatives},
        "training": {"weighted": False} | hard,
    }


def _crossed(name: str, label: str, rows: Sequence[Row], selection: Changes) -> tuple[Row, ...]:
    """Return rows with other anchors; random ones are as many as the walk has for the same row."""
    return tuple(
        Row(
            name=f"{row.name}-{name}",
            label=f"{row.label}; {label}",
            changes={**row.changes, "mining": {**row.changes.get("mining", {}), **selection}},
            anchors_of=f"{row.name}-walk" if name == "random" else None,
        )
        for row in rows
    )


def _oracle(which: Oracle, label: str) -> Row:
    return Row(name=which, label=f"+W, {label} (uses labels)", changes={"oracle": which})


def _baseline(baseline: SupervisedBaseline) -> Row:
    return Row(
        name=baseline, label=BASELINE_LABELS[baseline], changes={"baseline": baseline, **BASELINE}
    )


POOLS: tuple[Row, ...] = (
    Row(name="nearest-random", label="NN^e_5 / X \\ NN^e_5", changes=_pools("euclidean", "random")),
    Row(name="hard-random", label="P+ / X \\ NN^e_5", changes=_pools("manifold", "random")),
    Row(name="nearest-hard", label="NN^e_5 / P-", changes=_pools("euclidean", "manifold")),
    Row(name="hard-hard", label="P+ / P-", changes=_pools("manifold", "manifold")),
    Row(name="weighted", label="P+ / P-, +W", changes={}),
)
ALL_ANCHORS = _crossed("all", "all linked items", POOLS, {"selection": "all", "anchors": None})
# Table 1 with the application's own anchors, with others, and with oracles that use labels.
METHOD: tuple[Row, ...] = (
    *POOLS,
    *ALL_ANCHORS,
    *_crossed("walk", "anchors by the walk", POOLS, {"selection": "walk"}),
    *_crossed("random", "as many at random", POOLS, {"selection": "random"}),
    _oracle("replace-positives", "P+ of the labels"),
    _oracle("replace-negatives", "P- of the labels"),
    _oracle("replace-both", "both of the labels"),
    _oracle("filter-positives", "P+ without false ones"),
    _oracle("filter-negatives", "P- without false ones"),
    _oracle("filter-both", "both without false ones"),
    Row(name="cyclic", label="cyclic match (Li et al. 2016)", changes=_pools("cyclic", "geodesic")),
)
BASELINES: tuple[Row, ...] = tuple(_baseline(baseline) for baseline in BASELINE_LABELS)


def _features(side: int, scales: tuple[float, ...], pooling: Pooling, pca: int | None) -> Row:
    whitening = "-" if pca is None else f"PCA {pca}"
    sizes = "1 scale" if len(scales) == 1 else f"{len(scales)} scales"
    label = f"{side} px, {sizes}, {DESCRIPTORS[pooling]}, {whitening}"
    values = {"longest_side": side, "scales": scales, "poolings": (pooling,), "pca": pca}
    name = f"{side}-{len(scales)}-{pooling}-{'raw' if pca is None else pca}"
    return Row(name=name, label=label, changes={"extraction": values})


MAC_AND_GEM: tuple[Pooling, ...] = ("mac", "gem")
ONE, THREE = (1.0,), (1.0, 2**-0.5, 0.5)
FEATURES: tuple[Row, ...] = (
    *(_features(224, ONE, "rmac", pca) for pca in (None, 64, 128, 256, 512)),
    *(_features(224, ONE, pooling, 128) for pooling in MAC_AND_GEM),
    *(_features(224, THREE, "rmac", pca) for pca in (None, 128)),
    *(_features(side, ONE, "rmac", 128) for side in (160, 112)),
    _features(160, THREE, "rmac", 128),
)
