"""The rivals' losses follow their formulas, learn, and depend on seeds and steps alone."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmray.system.errors import InputError
from mmray.training.supervised.losses import (
    BASELINE_LABELS,
    LabelledImages,
    baseline_loss,
    class_batches,
)

BASELINES = list(BASELINE_LABELS)
WITH_CENTRES = ["proxy-nca", "soft-triple"]


def rows(count, dim=8, seed=0):
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values).requires_grad_()


def squared(x, y):
    return float(((x - y) ** 2).sum())


LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])


def test_semi_hard_triplets_are_those_farther_than_the_positive_within_the_margin():
    x = rows(8).detach().double().numpy()
    losses = []
    for a, p, n in permutations(range(8), 3):
        if LABELS[a] == LABELS[p] != LABELS[n]:
            positive, negative = squared(x[a], x[p]), squared(x[a], x[n])
            if positive < negative <= positive + 0.5:
                losses.append(0.5 + positive - negative)
    assert 3 < len(losses) < 60
    value = baseline_loss("triplet-semihard", classes=3, dim=8, seed=0)(rows(8), LABELS, 0)
    assert float(value.detach()) == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_lifted_structure_takes_all_negatives_of_both_ends_of_a_pair():
    x = rows(8).detach().double().numpy()
    losses = []
    for i, j in permutations(range(8), 2):
        if LABELS[i] == LABELS[j]:
            sums = sum(
                np.exp(1 - np.sqrt(squared(x[end], x[k])))
                for end in (i, j)
                for k in range(8)
                if LABELS[k] != LABELS[end]
            )
            losses.append(max(0, np.log(sums) + np.sqrt(squared(x[i], x[j]))) ** 2 / 2)
    value = baseline_loss("lifted-structure", classes=3, dim=8, seed=0)(rows(8), LABELS, 0)
    assert float(value.detach()) == pytest.approx(np.mean(losses), rel=1e-4)


def test_proxies_attract_their_own_class_by_a_softmax_over_all():
    loss = baseline_loss("proxy-nca", classes=3, dim=8, seed=0)
    x = rows(8).detach().double().numpy()
    (proxies,) = (p.detach().double().numpy() for p in loss.parameters())
    proxies = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)
    distances = ((x[:, None] - proxies) ** 2).sum(2)
    own = distances[np.arange(8), LABELS]
    wanted = (own + np.log(np.exp(-distances).sum(1))).mean()
    assert float(loss(rows(8), LABELS, 0).detach()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", BASELINES)
def test_steps_along_the_gradient_tell_classes_apart(name):
    loss = baseline_loss(name, classes=3, dim=8, seed=0)
    # A dimension tells the classes apart; it is drowned in noise to begin with.
    labels = torch.arange(24) % 3
    x = rows(24, seed=1).detach() + torch.nn.functional.one_hot(labels, 8) * 0.3
    layer = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam([*layer.parameters(), *loss.parameters()], lr=0.03)

    def embedded():
        return torch.nn.functional.normalize(layer(x))

    def found():
        y = embedded().detach()
        similar = y @ y.T - 9 * torch.eye(24)
        return float((labels[similar.argmax(1)] == labels).float().mean())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer.reset_parameters()
    before = found()
    for step in range(200):
        optimizer.zero_grad()
        loss(embedded(), labels, step).backward()
        optimizer.step()
    assert found() > before + 0.15, before


@pytest.mark.parametrize("name", BASELINES)
def test_the_gradient_reaches_the_embeddings_and_what_a_loss_learns(name):
    loss, x = baseline_loss(name, classes=5, dim=8, seed=0), rows(40, seed=3)
    loss(x, torch.arange(40) % 5, 0).backward()
    learned = list(loss.parameters())
    assert len(learned) == (name in WITH_CENTRES)
    for values in (x, *learned):
        assert torch.isfinite(values.grad).all()
        assert values.grad.abs().max() > 0


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in WITH_CENTRES])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2], [0]])
def test_a_batch_without_tuples_costs_nothing(name, labels):
    x = rows(len(labels))
    value = baseline_loss(name, classes=3, dim=8, seed=0)(x, torch.tensor(labels), 0)
    value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", BASELINES)
def test_a_batch_without_pairs_has_a_gradient_that_is_finite(name):
    loss = baseline_loss(name, classes=3, dim=8, seed=0)
    for labels in (torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 2, 0])[:3]):
        x = rows(len(labels))
        value = loss(x, labels, 0)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", WITH_CENTRES)
def test_what_a_loss_learns_starts_from_its_seed_alone(name):
    torch.manual_seed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    losses = [baseline_loss(name, classes=3, dim=8, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), first)  # the global generator is where it was
    starts = [torch.cat([p.ravel() for p in loss.parameters()]) for loss in losses]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_what_is_drawn_at_random_follows_from_seed_and_step():
    x, labels = rows(40, seed=3), torch.arange(40) % 5
    torch.manual_seed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (
        baseline_loss("distance-weighted", classes=5, dim=8, seed=seed) for seed in (0, 0, 1)
    )
    values = [
        float(loss(x, labels, step).detach()) for loss, step in ((one, 7), (same, 7), (one, 8))
    ]
    assert torch.equal(torch.rand(3), first)
    assert values[0] == values[1] != values[2]
    assert float(other(x, labels, 7).detach()) != values[0]


@pytest.mark.parametrize("dim", [128, 512, 1280])
def test_one_near_pair_of_classes_leaves_no_other_anchor_without_a_negative(dim):
    labels, rng = torch.arange(96) // 4, torch.Generator().manual_seed(0)
    centres = torch.randn(24, dim, generator=rng)
    centres[1] = centres[0] + 0.3 * torch.randn(dim, generator=rng)
    x = torch.randn(dim, generator=rng) + 0.6 * centres[labels]
    x = torch.nn.functional.normalize(x + 0.25 * torch.randn(96, dim, generator=rng))
    x.requires_grad_()
    baseline_loss("distance-weighted", classes=24, dim=dim, seed=0)(x, labels, 0).backward()
    assert (x.grad != 0).any(dim=1).all()


@pytest.mark.parametrize("name", BASELINES)
def test_no_gpu_is_seeded_that_a_loss_does_not_draw_on(name, monkeypatch):
    def refuse(seed):
        raise AssertionError(f"all GPUs are seeded with {seed}")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    baseline_loss(name, classes=5, dim=8, seed=0)(rows(40), torch.arange(40) % 5, 0)


@given(
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=12),
    per_class=st.integers(2, 4),
    parts=st.integers(1, 6),
    batches=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_batches_have_whole_classes(sizes, per_class, parts, batches, seed):
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)
    usable = {3 * i for i, size in enumerate(sizes) if size > 1}
    options = {"batches": batches, "batch_size": parts * per_class, "per_class": per_class}
    if len(usable) < 2:
        with pytest.raises(InputError, match=f"{len(usable)} of {len(sizes)} classes have two"):
            class_batches(labels, **options, rng=np.random.default_rng(seed))
        return
    found = class_batches(labels, **options, rng=np.random.default_rng(seed))
    assert found.shape == (batches, parts * per_class)
    assert found.dtype == np.int64
    again = class_batches(labels, **options, rng=np.random.default_rng(seed))
    assert np.array_equal(found, again)
    for batch in found:
        groups = batch.reshape(parts, per_class)
        classes = labels[groups]
        assert np.all(classes == classes[:, :1])
        assert set(classes[:, 0]) <= usable
        assert len(set(classes[:, 0])) == min(parts, len(usable))
        for group in groups:
            of_class = np.count_nonzero(labels == labels[group[0]])
            assert len(set(group)) == min(per_class, of_class)


@given(
    sizes=st.lists(st.integers(4, 9), min_size=2, max_size=9),
    parts=st.integers(1, 9),
    batches=st.integers(1, 30),
)
def test_no_image_is_drawn_twice_more_than_another_of_its_class(sizes, parts, batches):
    parts = min(parts, len(sizes))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    found = class_batches(
        labels, batches=batches, batch_size=4 * parts, per_class=4, rng=np.random.default_rng(0)
    )
    counts = np.bincount(found.ravel(), minlength=len(labels))
    assert all(np.ptp(counts[labels == label]) <= 1 for label in labels)
    assert np.ptp(np.bincount(labels[found].ravel(), minlength=len(sizes))) <= 4  # one draw


@pytest.mark.parametrize("batches", [1, 7])
@pytest.mark.parametrize(("size", "different"), [(9, 8), (8, 8), (5, 5)])
def test_a_batch_of_few_classes_repeats_no_image_while_there_are_others(size, different, batches):
    labels = np.repeat([0, 1], size)
    found = class_batches(
        labels, batches=batches, batch_size=16, per_class=4, rng=np.random.default_rng(0)
    )
    for batch in found:
        assert [len(set(batch[labels[batch] == label])) for label in (0, 1)] == [different] * 2
        assert np.bincount(labels[batch]).tolist() == [8, 8]


@pytest.mark.parametrize(
    "change", [{"batches": 0}, {"per_class": 1, "batch_size": 3}, {"batch_size": 7}]
)
def test_batches_that_cannot_be_are_refused(change):
    options = {"batches": 1, "batch_size": 4, "per_class": 2} | change
    with pytest.raises(ValueError, match="at least one batch, at least two images a class"):
        class_batches(np.array([0, 0, 1, 1]), **options, rng=np.random.default_rng(0))


def test_an_epoch_has_as_many_images_as_triplets_would():
    given = LabelledImages(classes=np.arange(60) % 6, baseline="proxy-nca", per_class=4)
    batches = given.batches(tuples=40, batch_size=8, rng=np.random.default_rng(0))
    assert batches.shape == (5, 24)  # 120 images, 24 a step
    small = given.batches(tuples=1, batch_size=1, rng=np.random.default_rng(0))
    assert small.shape == (1, 8)  # two classes at least
