"""Clustering by facility location: by hand, and against an exhaustive search."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from mmray.training.supervised.facility_location import FacilityLocationLoss, violating_medoids


def batch(seed, classes, each, spread, d=4):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=generator)
    rows = centres.repeat_interleave(each, 0)
    rows = rows + spread * torch.randn(rows.shape, generator=generator)
    return nn_unit(rows), torch.arange(classes).repeat_interleave(each)


def nn_unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def worth(distances, labels, medoids, gamma):
    nearest = distances[:, list(medoids)].argmin(1)
    nmi = normalized_mutual_info_score(labels, nearest)
    return -distances[:, list(medoids)].min(1).sum() + gamma * (1 - nmi)


def literal_loss(rows, labels, gamma):
    """The definition, with the best of all sets of medoids."""
    rows, labels = rows.double().numpy(), labels.numpy()
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    sets = combinations(range(len(labels)), len(np.unique(labels)))
    most = max(worth(distances, labels, chosen, gamma) for chosen in sets)
    true = 0.0
    for label in np.unique(labels):
        ids = np.flatnonzero(labels == label)
        true += max(-distances[ids][:, [j]].sum() for j in ids)
    return max(most - true, 0.0)


@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_the_loss_is_that_of_the_most_violating_medoids(spread):
    """The search is greedy: it never exceeds the best set, and is near to it mostly."""
    near = 0
    for seed in range(6):
        rows, labels = batch(seed, 3, 4, spread)
        found = float(FacilityLocationLoss()(rows, labels))
        wanted = literal_loss(rows, labels, 1.0)
        assert found <= wanted + 1e-5
        near += found >= 0.9 * wanted - 1e-5
    assert near >= 4


def test_classes_far_apart_with_equal_members_cost_nothing():
    rows = torch.eye(3).repeat_interleave(4, 0)
    assert float(FacilityLocationLoss()(rows, torch.arange(3).repeat_interleave(4))) == 0


def test_medoids_are_those_of_the_scores_without_labels_where_gamma_is_zero():
    rows, labels = batch(3, 3, 4, 0.05)
    distances = torch.cdist(rows, rows).double().numpy()
    medoids = violating_medoids(distances, labels.numpy(), 0.0)
    assert sorted(labels[medoids].tolist()) == [0, 1, 2]


def test_a_step_down_the_gradient_lowers_the_loss_and_copies_keep_it_finite():
    rows, labels = batch(1, 3, 4, 2.0)
    rows[1] = rows[0]
    rows.requires_grad_()
    loss = FacilityLocationLoss()(rows, labels)
    loss.backward()
    value = float(loss.detach())
    assert torch.isfinite(rows.grad).all()
    assert rows.grad.abs().max() > 0
    with torch.no_grad():
        after = FacilityLocationLoss()(nn_unit(rows - 0.01 * rows.grad), labels)
    assert float(after) < value
