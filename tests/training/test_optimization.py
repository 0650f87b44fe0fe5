"""Optimisers against literal loops, and learning rates against the paper's table."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from mmray.config.sections import TrainingConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.variant import Variant
from mmray.training.job import optimizer_of
from mmray.training.optimization import learning_rate, make_optimizer, set_learning_rate
from tests import oracles

INPUTS = [[1.0, -2.0, 0.5], [0.3, 0.8, -1.0], [2.0, 0.1, 0.7]]
TARGETS = [[1.0, 0.0], [-0.5, 2.0], [0.2, -1.0]]
START = [0.4, -0.3, 0.9, -1.2, 0.6, 0.1, 0.05, -0.7]  # weights (2, 3) row by row, then biases
RATES = [1e-2, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4]


def gradient(parameters: list[float]) -> list[float]:
    """Of the sum of |W x + c - y|^2 over the samples, by hand."""
    slopes = [0.0] * 8
    for x, y in zip(INPUTS, TARGETS, strict=True):
        for row in range(2):
            weights, bias = parameters[3 * row : 3 * row + 3], parameters[6 + row]
            error = sum(w * xi for w, xi in zip(weights, x, strict=True)) + bias - y[row]
            for column in range(3):
                slopes[3 * row + column] += 2 * error * x[column]
            slopes[6 + row] += 2 * error
    return slopes


def trained(name: str, weight_decay: float, rates=RATES, **options: float) -> list[float]:
    """The parameters after a step at each of some rates."""
    model = nn.Linear(3, 2, dtype=torch.float64)
    model.load_state_dict(
        {
            "weight": torch.tensor(START[:6], dtype=torch.float64).reshape(2, 3),
            "bias": torch.tensor(START[6:], dtype=torch.float64),
        }
    )
    optimizer = make_optimizer(
        model.parameters(),
        name=name,
        learning_rate=1.0,
        momentum=0.9,
        weight_decay=weight_decay,
        **options,
    )
    x, y = (torch.tensor(rows, dtype=torch.float64) for rows in (INPUTS, TARGETS))
    for rate in rates:
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad()
        (model(x) - y).square().sum().backward()
        optimizer.step()
    return [*model.weight.flatten().tolist(), *model.bias.tolist()]


@pytest.mark.parametrize("weight_decay", [5e-4, 0.3, 0.0])
def test_sgd_with_momentum_takes_the_papers_steps(weight_decay):
    expected = oracles.sgd(START, gradient, RATES, 0.9, weight_decay)
    np.testing.assert_allclose(trained("sgd", weight_decay), expected, rtol=1e-12)
    assert np.abs(np.array(expected) - START).max() > 0.1


def test_the_released_sgd_damps_by_its_momentum():
    """Ten steps by a literal loop; they go a fraction of the way of those that are not damped."""
    rates = [1e-2] * 10
    expected = oracles.sgd(START, gradient, rates, 0.9, 5e-4, dampening=0.9)
    found = trained("sgd", 5e-4, rates, dampening=0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.abs(np.array(found) - trained("sgd", 5e-4, rates)).max() > 0.1


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("weight_decay", [5e-4, 0.3, 0.0])
def test_adam_and_adamw_take_the_steps_of_their_papers(name, weight_decay):
    expected = oracles.adam(START, gradient, RATES, weight_decay, name == "adamw")
    np.testing.assert_allclose(trained(name, weight_decay), expected, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_exponent_of_gem_has_its_own_rate_no_weight_decay_and_stays_at_least_one(optimizer):
    network = EmbeddingNet("efficientnet_lite0", "gem", variant=Variant(p=1.5)).learn_p()
    config = {"pooling": "gem", "gem_rate": 10.0, "learning_rate": 1e-3, "weight_decay": 0.1}
    made = optimizer_of(network, TrainingConfig(optimizer=optimizer, **config))
    assert [group["lr"] for group in made.param_groups] == pytest.approx([1e-3, 1e-2])
    assert sum(len(group["params"]) for group in made.param_groups) == len([*network.parameters()])
    set_learning_rate(made, 2e-3)
    for slope in (0.5, 400.0):
        network.p.grad = torch.tensor(slope)
        before = network.p.item()
        made.step()
        if optimizer == "sgd":
            wanted = before - 2e-2 * slope if slope == 0.5 else 1.0
            assert network.p.item() == pytest.approx(wanted)
    network.p.grad = torch.tensor(-0.5)
    made.zero_grad()
    before = network.p.item()
    made.step()  # nothing is known of p, and nothing decays
    assert network.p.item() == before


def test_without_a_learned_exponent_there_is_one_group_of_parameters():
    network = EmbeddingNet("efficientnet_lite0", "gem")
    (group,) = optimizer_of(network, TrainingConfig(pooling="gem")).state_dict()["param_groups"]
    assert group["params"] == list(range(len([*network.parameters()])))
    assert "lr_scale" not in group


def rate(epochs_done: float, **changes: object) -> float:
    """The paper's schedule but for the changes."""
    paper = {
        "base": 1e-2,
        "schedule": "step",
        "epochs": 30,
        "decay": 0.1,
        "decay_epochs": 10,
        "warmup_epochs": 0.0,
    }
    return learning_rate(epochs_done, **paper | changes)


@pytest.mark.parametrize("steps", [1, 3, 7, 200])
def test_30_epochs_take_the_papers_three_rates_in_every_step(steps):
    for epoch, expected in enumerate([1e-2] * 10 + [1e-3] * 10 + [1e-4] * 10):
        for step in range(steps):
            assert rate(epoch + (step + 1) / steps) == pytest.approx(expected, rel=1e-12)


def test_100_epochs_of_the_fine_grained_sets_fall_to_1e_11():
    expected = oracles.stepped_rates(1e-2, 0.1, 10, 100)
    assert expected[-1] == pytest.approx(1e-11)
    for epoch, value in enumerate(expected):
        for end in (epoch + 1 / 140, epoch + 0.5, epoch + 1):
            assert rate(end, epochs=100) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("decay_epochs", [1, 2, 3, 7])
def test_the_rate_drops_with_the_first_step_after_so_many_epochs(decay_epochs):
    for drops in range(1, 4):
        end = drops * decay_epochs
        last, first = (rate(done, decay_epochs=decay_epochs) for done in (end, end + 1e-6))
        assert last == pytest.approx(1e-2 * 0.1 ** (drops - 1), rel=1e-12)
        assert first == pytest.approx(1e-2 * 0.1**drops, rel=1e-12)


def test_the_cosine_falls_from_the_base_to_zero():
    table = {0: 1.0, 10: 0.75, 15: 0.5, 20: 0.25, 30: 0.0}  # cos 60 degrees is a half
    for done, share in table.items():
        assert rate(done, schedule="cosine") == pytest.approx(1e-2 * share, abs=1e-17)
    for done in np.linspace(0, 30, 50):
        expected = 1e-2 * math.cos(math.pi * done / 60) ** 2  # the formula of the half angle
        assert rate(done, schedule="cosine") == pytest.approx(expected, abs=1e-17)


def test_the_constant_rate_stays():
    assert {rate(done, schedule="constant") for done in (0.01, 10, 10.1, 30)} == {1e-2}


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.5, 2.0, 12.5])
def test_a_warm_up_rises_linearly_from_above_zero_to_the_schedule(schedule, warmup):
    for done in (1 / 200, 0.25, 0.5, 1.0, 2.0, 2.005, 10.0, 12.5, 20.0, 29.0):
        plain = rate(done, schedule=schedule)
        warm = rate(done, schedule=schedule, warmup_epochs=warmup)
        assert warm == pytest.approx(plain * min(1, done / warmup), rel=1e-12)
        assert warm > 0


@pytest.mark.parametrize("done", [-0.1, 30.01, float("nan")])
def test_progress_outside_the_epochs_is_refused(done):
    with pytest.raises(ValueError, match=f"epochs_done = {done}: choose a value from 0 to 30"):
        rate(done)


def test_a_rate_is_set_for_all_parameters_and_a_checkpoint_of_it_can_be_read():
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}, {"params": [nn.Parameter(torch.ones(1))]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_learning_rate(optimizer, np.float64(0.25))
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"][1]["lr"] == 0.25
