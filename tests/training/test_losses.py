"""The losses of eqs. (7) and (8)."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.training.losses import MARGINS, contrastive_loss, triplet_loss, tuple_loss
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
@settings(max_examples=30)
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


either = pytest.mark.parametrize("name", LOSSES)


def grouped_tuples(
    b: int = 15, p: int = 3, n: int = 4, dims: int = 6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Anchors (b, d), positives (b, p, d), negatives (b, n, d), weights (b, p); float64."""
    rng = np.random.default_rng([b, p, n, dims])
    anchor = rng.normal(size=(b, dims))
    positives = anchor[:, None] + rng.normal(size=(b, p, dims)) * rng.uniform(0, 1, (b, p, 1))
    negatives = anchor[:, None] + rng.normal(size=(b, n, dims)) * rng.uniform(0, 1.5, (b, n, 1))
    rows = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (anchor, positives, negatives)]
    a, x, y, w = (torch.from_numpy(x) for x in (*rows, rng.uniform(0, 5, (b, p))))
    return a, x, y, w


@either
@pytest.mark.parametrize("margin", [0.0, 0.5, 0.7, 3.0])
@pytest.mark.parametrize(("p", "n"), [(1, 1), (1, 4), (3, 1), (3, 4), (2, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_a_tuple_is_the_mean_over_its_pairs(name, margin, p, n, weighted):
    anchor, positives, negatives, weights = grouped_tuples(p=p, n=n)
    chosen = weights if weighted else None
    values = tuple_loss(anchor, positives, negatives, loss=name, margin=margin, weights=chosen)
    expected = oracles.tuple_loss(
        anchor.numpy(),
        positives.numpy(),
        negatives.numpy(),
        name,
        margin,
        weights.numpy() if weighted else None,
    )
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("margin", "n"), [(0.7, 5), (0.7, 1), (3.0, 2)])
def test_the_mean_of_pairs_is_the_loss_of_cnn_from_bow(margin, n):
    anchor, positives, negatives, _ = grouped_tuples(p=1, n=n)
    values = tuple_loss(
        anchor, positives, negatives, loss="contrastive", margin=margin, mean_of_pairs=True
    )
    rows = zip(anchor.numpy(), positives.numpy()[:, 0], negatives.numpy(), strict=True)
    expected = [oracles.siamese_loss(*row, margin) for row in rows]
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_all_pairs_count_equally_where_there_are_several_positives():
    anchor, positives, negatives, _ = grouped_tuples(p=3, n=4)
    values = tuple_loss(anchor, positives, negatives, loss="contrastive", mean_of_pairs=True)
    for place, row in enumerate(anchor):
        near = ((positives[place] - row) ** 2).sum(1)
        far = (0.7 - ((negatives[place] - row) ** 2).sum(1).sqrt()).clamp(min=0) ** 2
        torch.testing.assert_close(values[place], torch.cat([near, far]).mean() / 2)


def test_triplets_have_no_pairs_to_average():
    with pytest.raises(ValueError, match="triplet: its terms are not of pairs"):
        tuple_loss(*grouped_tuples(p=1, n=2)[:3], loss="triplet", mean_of_pairs=True)


@either
def test_with_one_positive_and_one_negative_it_is_the_plain_loss(name):
    anchor, positive, negative = random_tuples()
    weight = torch.linspace(0, 20, 40, dtype=torch.float64)
    for chosen in (None, weight):
        plain = LOSSES[name][0](anchor, positive, negative, margin=0.6, weight=chosen)
        weights = None if chosen is None else chosen[:, None]
        values = tuple_loss(
            anchor, positive[:, None], negative[:, None], loss=name, margin=0.6, weights=weights
        )
        assert torch.equal(values, plain)


@pytest.mark.parametrize(("name", "margin"), [("contrastive", 0.7), ("triplet", 0.5)])
def test_the_margin_is_the_papers_unless_given(name, margin):
    anchor, positives, negatives, _ = grouped_tuples()
    default = tuple_loss(anchor, positives, negatives, loss=name)
    assert torch.equal(default, tuple_loss(anchor, positives, negatives, loss=name, margin=margin))
    assert MARGINS[name] == margin


@either
def test_the_order_of_positives_and_negatives_does_not_matter(name):
    anchor, positives, negatives, weights = grouped_tuples()
    values = tuple_loss(anchor, positives, negatives, loss=name, weights=weights)
    turned = tuple_loss(
        anchor, positives.flip(1), negatives.flip(1), loss=name, weights=weights.flip(1)
    )
    torch.testing.assert_close(turned, values)


@either
def test_repeats_change_nothing_where_all_are_repeated_equally_often(name):
    anchor, positives, negatives, weights = grouped_tuples()
    values = tuple_loss(anchor, positives, negatives, loss=name, weights=weights)
    repeated = tuple_loss(
        anchor,
        positives.tile(1, 2, 1),
        negatives.tile(1, 3, 1),
        loss=name,
        weights=weights.tile(1, 2),
    )
    torch.testing.assert_close(repeated, values)


@either
def test_gradients_of_several_pairs_are_the_derivatives(name):
    rows = [x.requires_grad_() for x in grouped_tuples(b=5)[:3]]
    weights = grouped_tuples(b=5)[3]
    assert torch.autograd.gradcheck(lambda *x: tuple_loss(*x, loss=name, weights=weights), rows)


@either
def test_gradients_are_finite_where_all_of_a_tuple_are_equal(name):
    anchor = random_tuples()[0].requires_grad_()
    values = tuple_loss(anchor, anchor[:, None].tile(1, 2, 1), anchor[:, None], loss=name)
    values.sum().backward()
    assert anchor.grad.isfinite().all()


@either
def test_an_empty_batch_of_tuples_has_no_losses(name):
    anchor, positives, negatives, weights = (x[:0] for x in grouped_tuples())
    assert tuple_loss(anchor, positives, negatives, loss=name, weights=weights).shape == (0,)


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 3), (4, 3), (4, 2, 3)],
        [(4, 3), (4, 2, 3), (4, 3)],
        [(4, 1, 3), (4, 2, 3), (4, 2, 3)],
        [(4, 3), (1, 2, 3), (4, 2, 3)],
        [(4, 3), (4, 2, 3), (1, 2, 3)],
        [(4, 3), (4, 2, 1), (4, 2, 3)],
        [(4, 3), (4, 2, 3), (4, 2, 1)],
    ],
)
def test_tuples_whose_shapes_do_not_belong_together_are_refused(shapes):
    message = r"shapes \(b, d\), \(b, p, d\) and \(b, n, d\), not " + ".*".join(
        re.escape(str(shape)) for shape in shapes
    )
    with pytest.raises(ValueError, match=message):
        tuple_loss(*(torch.zeros(shape) for shape in shapes), loss="contrastive")


@pytest.mark.parametrize(("p", "n"), [(0, 2), (2, 0)])
def test_tuples_without_a_positive_or_a_negative_are_refused(p, n):
    rows = torch.zeros(4, 3), torch.zeros(4, p, 3), torch.zeros(4, n, 3)
    with pytest.raises(ValueError, match=f"{p} positives and {n} negatives: a tuple has at least"):
        tuple_loss(*rows, loss="triplet")


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 2), (4, 2, 1)])
def test_weights_of_another_shape_than_the_positives_are_refused(shape):
    rows = torch.zeros(4, 3), torch.zeros(4, 2, 3), torch.zeros(4, 5, 3)
    with pytest.raises(ValueError, match=r"weights have the shape \(.*\), not \(4, 2\)"):
        tuple_loss(*rows, loss="triplet", weights=torch.ones(shape))


@pytest.mark.parametrize("margin", [-0.1, float("nan")])
def test_a_negative_margin_of_tuples_is_refused(margin):
    rows = torch.zeros(4, 3), torch.zeros(4, 2, 3), torch.zeros(4, 5, 3)
    with pytest.raises(ValueError, match=r"margin is .*, it must be at least 0"):
        tuple_loss(*rows, loss="triplet", margin=margin)
