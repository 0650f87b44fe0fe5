"""The losses of eqs. (7) and (8)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.losses import contrastive_loss, triplet_loss
from tests import oracles

LOSSES = {
    "contrastive": (contrastive_loss, oracles.contrastive_loss),
    "triplet": (triplet_loss, oracles.triplet_loss),
}
both = pytest.mark.parametrize(("loss", "oracle"), LOSSES.values(), ids=LOSSES)


def random_tuples(count: int = 40, dims: int = 6, seed: int = 0) -> list[torch.Tensor]:
    """Unit rows; negatives from very near to opposite, so that both sides of a hinge occur."""
    rng = np.random.default_rng([count, dims, seed])
    anchor = rng.normal(size=(count, dims))
    spread = np.linspace(0.01, 3, count)[:, None]
    positive = anchor + rng.normal(size=anchor.shape) * 0.3
    negative = anchor + rng.normal(size=anchor.shape) * spread
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (anchor, positive, negative)]
    return [torch.from_numpy(x) for x in rows]


@both
@pytest.mark.parametrize("margin", [0.0, 0.5, 0.7, 3.0])
def test_losses_match_the_equations(loss, oracle, margin):
    tuples = random_tuples()
    expected = oracle(*(x.numpy() for x in tuples), margin)
    np.testing.assert_allclose(loss(*tuples, margin=margin), expected, rtol=1e-12, atol=1e-15)


@both
def test_both_sides_of_the_hinge_occur_in_these_tests(loss, oracle):
    anchor, positive, negative = random_tuples()
    gradients = torch.autograd.grad(
        loss(anchor, positive, negative.requires_grad_(), margin=0.6).sum(), negative
    )[0]
    pushed = (gradients != 0).any(dim=1)
    assert 5 < pushed.sum() < 35


def test_values_by_hand():
    # Distances 3-4-5: |r - p| = 5, |r - n| = 0.4.
    anchor, positive = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    negative = torch.tensor([[0.4, 0.0]])
    torch.testing.assert_close(
        contrastive_loss(anchor, positive, negative, margin=0.7), torch.tensor([25 + 0.3**2])
    )
    torch.testing.assert_close(
        triplet_loss(anchor, positive, negative, margin=0.5), torch.tensor([0.5 + 25 - 0.16])
    )


@both
def test_the_weight_multiplies_each_tuple(loss, oracle):
    tuples = random_tuples()
    weight = torch.linspace(0, 20, 40, dtype=torch.float64)
    plain = loss(*tuples, margin=0.7)
    torch.testing.assert_close(loss(*tuples, margin=0.7, weight=weight), plain * weight)


@both
@given(seed=st.integers(0, 10_000), margin=st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_losses_do_not_change_when_space_is_rotated(loss, oracle, seed, margin):
    tuples = random_tuples(seed=seed)
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0])
    rotated = loss(*(x @ rotation for x in tuples), margin=margin)
    torch.testing.assert_close(rotated, loss(*tuples, margin=margin))
    assert (rotated >= 0).all()


@both
def test_gradients_are_the_derivatives(loss, oracle):
    tuples = [x.requires_grad_() for x in random_tuples(count=12)]
    assert torch.autograd.gradcheck(lambda *rows: loss(*rows, margin=0.7), tuples)


@both
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_gradients_are_finite_where_all_three_are_equal(loss, oracle, margin):
    rows = [x.clone().requires_grad_() for x in [random_tuples()[0]] * 3]
    values = loss(*rows, margin=margin)
    values.sum().backward()
    expected = margin**2 if loss is contrastive_loss else margin
    np.testing.assert_allclose(values.detach(), expected)
    assert all(x.grad is not None and x.grad.isfinite().all() for x in rows)


@both
def test_an_empty_batch_has_no_losses(loss, oracle):
    empty = torch.empty(0, 6)
    assert loss(empty, empty, empty, margin=0.7, weight=torch.empty(0)).shape == (0,)


@both
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 3), (4, 2), (4, 3)], r"one shape \(b, d\), not \(4, 3\), \(4, 2\) and \(4, 3\)"),
        ([(4, 3), (4, 3), (1, 3)], r"one shape \(b, d\), not \(4, 3\), \(4, 3\) and \(1, 3\)"),
        ([(4,), (4,), (4,)], r"one shape \(b, d\), not \(4,\), \(4,\) and \(4,\)"),
    ],
)
def test_shapes_that_differ_are_refused(loss, oracle, shapes, message):
    with pytest.raises(ValueError, match=message):
        loss(*(torch.zeros(shape) for shape in shapes), margin=0.7)


@both
@pytest.mark.parametrize("shape", [(4, 1), (1,), ()])
def test_a_weight_of_another_shape_is_refused(loss, oracle, shape):
    rows = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"weight has the shape .*, not \(4,\)"):
        loss(rows, rows, rows, margin=0.7, weight=torch.ones(shape))


@both
@pytest.mark.parametrize("margin", [-0.1, float("nan")])
def test_a_negative_margin_is_refused(loss, oracle, margin):
    rows = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"margin is .*, it must be at least 0"):
        loss(rows, rows, rows, margin=margin)
