"""The two losses of the paper, one value per tuple (anchor, positive, negative), no factors 1/2.

b tuples, d dimensions. Embeddings are l2-normalised rows, though nothing here depends on it.
"""

import torch
from torch import Tensor


def contrastive_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Eq. (7): |z_r - z_+|^2 + [m - |z_r - z_-|]_+^2. The hinge is on the distance, then squared.

    Parameters
    ----------
    anchor, positive, negative : (b, d) float
    margin : m, at least 0
    weight : (b,) float, multiplies the loss of each tuple: s_m(x_r, x_+) in the variant +W

    Returns
    -------
    (b,): not averaged. Where the anchor equals its negative the distance has no derivative: its
    gradient there is taken as 0.

    Raises
    ------
    ValueError
        The shapes differ, or the margin is negative.
    """
    _check(anchor, positive, negative, margin, weight)
    # vector_norm has the subgradient 0 at 0, where sqrt(sum of squares) would give NaN.
    distance: Tensor = torch.linalg.vector_norm(anchor - negative, dim=1)
    hinge = (margin - distance).clamp(min=0)
    loss = _squared_distance(anchor, positive) + hinge.square()
    return loss if weight is None else loss * weight


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Eq. (8): [m + |z_r - z_+|^2 - |z_r - z_-|^2]_+.

    As released: both distances are squared, the hinge is not.

    Parameters, result and errors are those of `contrastive_loss`.
    """
    _check(anchor, positive, negative, margin, weight)
    difference = _squared_distance(anchor, positive) - _squared_distance(anchor, negative)
    loss = (margin + difference).clamp(min=0)
    return loss if weight is None else loss * weight


def _squared_distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum(1)


def _check(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, weight: Tensor | None
) -> None:
    if anchor.ndim != 2 or not anchor.shape == positive.shape == negative.shape:
        raise ValueError(
            "anchor, positive and negative must have one shape (b, d), not "
            f"{tuple(anchor.shape)}, {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    # A (b, 1) weight would broadcast to (b, b) without a word.
    if weight is not None and weight.shape != anchor.shape[:1]:
        raise ValueError(f"weight has the shape {tuple(weight.shape)}, not ({anchor.shape[0]},)")
    if not margin >= 0:
        raise ValueError(f"margin is {margin}, it must be at least 0")
