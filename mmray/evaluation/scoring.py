"""Measures of retrieval and clustering on a labelled set, by its own rules."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.clustering import clustering_nmi
from mmray.evaluation.ranking import (
    Query,
    mean_average_precision,
    mean_precision_at_k,
    mean_recall_at_k,
)
from mmray.system.arrays import Features, Ids

PRECISION_AT = 10
RECALL_AT = (1, 2, 4, 8)
DEVIATION = " sd"  # suffix of the name of a standard deviation


def figures(labelled: LabelledSet, ranks: Ids) -> dict[str, float]:
    """Compute the measures that are customary for a labelled set.

    Parameters
    ----------
    ranks : (n, q) int64
        Ranking of the database with its distractors, as `ranking.rank` returns it.

    Returns
    -------
    Measure -> value in [0, 1]: mAP; for the revisited benchmarks mAP and mP@10 of each protocol;
    for images in classes mAP and Recall@k.
    """
    if labelled.protocols:
        return _under_protocols(labelled.protocols, ranks)
    found = {"mAP": mean_average_precision(ranks, labelled.ground_truth)[0]}
    if labelled.labels is not None:
        recall = {f"R@{k}": mean_recall_at_k(ranks, labelled.ground_truth, k) for k in RECALL_AT}
        return found | recall
    return found


def clustered(descriptors: Features, labels: Sequence[str], seeds: int) -> dict[str, float]:
    """Measure how well k-means recovers the classes: the mean NMI and its standard deviation.

    Parameters
    ----------
    descriptors : (n, d) float32
    labels : n classes; their number is k
    seeds : runs of k-means, each with another seed
    """
    found = clustering_nmi(descriptors, np.array(labels), seeds=seeds)
    return {"NMI": found.mean, f"NMI{DEVIATION}": found.spread}


def _under_protocols(protocols: Mapping[str, Sequence[Query]], ranks: Ids) -> dict[str, float]:
    average = {f"mAP {p}": mean_average_precision(ranks, q)[0] for p, q in protocols.items()}
    precision = {
        f"mP@{PRECISION_AT} {protocol}": mean_precision_at_k(ranks, queries, PRECISION_AT)
        for protocol, queries in protocols.items()
    }
    return average | precision
