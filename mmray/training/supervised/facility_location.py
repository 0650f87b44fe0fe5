"""Clustering loss by facility location: row "Clustering" of Table 2.

Source: Song, Jegelka, Rathod, Murphy, "Deep metric learning via facility location", CVPR 2017. The
score of medoids S is F(X, S) = -Σ_i min_{j in S} |f(x_i) - f(x_j)|. The loss compares the score of
the medoids that violate the labels most, F + γ (1 - NMI), with that of the labels' own clusters,
each with its best medoid.

b images of a batch, c classes in it, d dims.
"""

import numpy as np
import torch
from torch import Tensor, nn

from mmray.evaluation.clustering import normalized_mutual_information
from mmray.system.arrays import Floats, Ids

SWEEPS = 5  # most refinements of all medoids, as released


class FacilityLocationLoss(nn.Module):
    """The loss of a labelled batch, a scalar: [max_S (F(X, S) + γ (1 - NMI)) - F(labels)]_+.

    S has c medoids. They are found greedily, one after the other, and then exchanged, each for the
    member of its cluster that violates most; they are constants of the gradient.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings (b, d) with labels (b,) int64."""
        # Through products, copies would not be at distance 0.
        mode = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(embeddings, embeddings, compute_mode=mode)
        found, classes = distances.detach().cpu().double().numpy(), labels.cpu().numpy()
        medoids = violating_medoids(found, classes, self.gamma)
        violation = 1 - normalized_mutual_information(classes, _clusters(found, medoids))
        score = -distances[:, torch.from_numpy(medoids)].amin(1).sum()
        of_classes = [np.flatnonzero(classes == label) for label in np.unique(classes)]
        true_score = torch.stack(
            [-distances[ids][:, ids].sum(0).amin() for ids in map(torch.from_numpy, of_classes)]
        ).sum()
        return (score + self.gamma * violation - true_score).clamp(min=0)


def violating_medoids(distances: Floats, labels: Ids, gamma: float) -> Ids:
    """Search for the medoids of the largest F + γ (1 - NMI).

    Parameters
    ----------
    distances : (b, b) float64
    labels : (b,) of c classes
    gamma : not negative

    Returns
    -------
    (c,) int64, places in the batch, all different.
    """

    def worth(medoids: list[int]) -> float:
        chosen = np.array(medoids)
        similarity = normalized_mutual_information(labels, _clusters(distances, chosen))
        return float(-distances[:, chosen].min(axis=1).sum() + gamma * (1 - similarity))

    medoids: list[int] = []
    for _ in np.unique(labels):
        others = [place for place in range(len(labels)) if place not in medoids]
        medoids.append(max(others, key=lambda place: worth([*medoids, place])))
    for _ in range(SWEEPS):
        before = list(medoids)
        for turn in range(len(medoids)):
            members = np.flatnonzero(_clusters(distances, np.array(medoids)) == turn)
            free = [place for place in members.tolist() if place not in medoids]
            kept, rest = medoids[turn], (medoids[:turn], medoids[turn + 1 :])
            medoids[turn] = max([kept, *free], key=lambda place: worth([*rest[0], place, *rest[1]]))
        if medoids == before:
            break
    return np.array(medoids)


def _clusters(distances: Floats, medoids: Ids) -> Ids:
    """Assign each of b items to the nearest medoid, by its number; to the first of equally near."""
    nearest: Ids = distances[:, medoids].argmin(axis=1)
    return nearest
