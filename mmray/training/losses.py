"""The two losses of the paper, and InfoNCE, one value per tuple (anchor, positives, negatives).

b tuples, p positives and n negatives in each (1 and 1 in the paper), d dimensions. Embeddings are
l2-normalised rows, though the paper's losses do not depend on it. As in eqs. (7) and (8), there are
no factors 1/2.
"""

import torch
from torch import Tensor

from mmray.config.choices import Loss
from mmray.config.sections import TrainingConfig

MARGINS: dict[Loss, float] = {"contrastive": 0.7, "triplet": 0.5}  # m of eqs. (7) and (8)
TEMPERATURE = TrainingConfig.temperature  # of InfoNCE, as in MoCo (He et al. 2020)


def contrastive_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Contrastive loss of each tuple, eq. (7): |z_r - z_+|^2 + [m - |z_r - z_-|]_+^2.

    The hinge is on the distance and then squared.

    Parameters
    ----------
    anchor, positive, negative : (b, d) float
    margin : m, at least 0
    weight : (b,) float, multiplies the loss of each tuple: s_m(x_r, x_+) in the variant +W

    Returns
    -------
    (b,) float
        Not averaged. Where an anchor equals its negative the distance has no derivative: its
        gradient is taken as 0.

    Raises
    ------
    ValueError
        The shapes differ, or the margin is negative.

    Examples
    --------
    >>> anchor, positive = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]])
    >>> negative = torch.tensor([[1.0, 0.5]])
    >>> contrastive_loss(anchor, positive, negative, margin=1.0)  # 0.5^2 + (1 - 0.5)^2
    tensor([0.5000])
    """
    _check(anchor, positive, negative, margin, weight)
    loss = _contrastive(anchor, positive, negative, margin)
    return loss if weight is None else loss * weight


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Triplet loss of each tuple, eq. (8): [m + |z_r - z_+|^2 - |z_r - z_-|^2]_+.

    Both distances are squared and the hinge is not, as in the authors' released code.

    Parameters, result and errors are those of `contrastive_loss`.

    Examples
    --------
    >>> anchor, positive = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]])
    >>> negative = torch.tensor([[1.0, 0.5]])
    >>> triplet_loss(anchor, positive, negative, margin=0.5)  # 0.5 + 0.5^2 - 0.5^2
    tensor([0.5000])
    """
    _check(anchor, positive, negative, margin, weight)
    loss = _triplet(anchor, positive, negative, margin)
    return loss if weight is None else loss * weight


def tuple_loss(
    anchor: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    loss: Loss,
    margin: float | None = None,
    weights: Tensor | None = None,
    mean_of_pairs: bool = False,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Mean of eq. (7) or (8) over the p x n pairs (positive, negative) of each anchor.

    With one positive and one negative it is the loss of the paper. InfoNCE compares each positive
    with all n negatives at once.

    Parameters
    ----------
    anchor : (b, d) float
    positives : (b, p, d) float, p at least 1
    negatives : (b, n, d) float, n at least 1
    loss : "contrastive", eq. (7), "triplet", eq. (8), or "infonce", see `info_nce_loss`
    margin : m, at least 0; 0.7 (contrastive) or 0.5 (triplet) where None
    weights : (b, p) float, multiply the loss of every pair of a positive: s_m(x_r, x_+) in +W
    mean_of_pairs : the contrastive loss of Radenović et al. (ECCV 2016): half the squares, averaged
        over the p + n pairs of an anchor, of a positive or a negative
    temperature : of InfoNCE

    Returns
    -------
    (b,) float, not averaged over the tuples. Gradients are as for `contrastive_loss`.

    Raises
    ------
    ValueError
        The shapes do not match, there is no positive or no negative, the margin is negative, or
        another loss than "contrastive" is to be a mean of pairs.
    """
    if mean_of_pairs and loss != "contrastive":
        raise ValueError(f"{loss}: its terms are not of pairs, mean_of_pairs is for contrastive")
    margin = MARGINS.get(loss, 0.0) if margin is None else margin
    _check_tuples(anchor, positives, negatives, margin, weights)
    if loss == "infonce":
        to_negatives = (anchor[:, None] * negatives).sum(-1)
        return info_nce_loss(
            anchor, positives, to_negatives, weights=weights, temperature=temperature
        )
    p, n = positives.shape[1], negatives.shape[1]
    # Distances take shapes (b, p, 1) and (b, 1, n); no embedding is copied for each pair.
    terms = LOSSES[loss](
        anchor[:, None, None],
        positives[:, :, None],
        negatives[:, None],
        margin,
        share=n / p if mean_of_pairs else 1,
    )
    mean = (terms if weights is None else terms * weights[:, :, None]).mean((1, 2))
    return mean * p / (2 * (p + n)) if mean_of_pairs else mean


def info_nce_loss(
    anchor: Tensor,
    positives: Tensor,
    to_negatives: Tensor,
    *,
    weights: Tensor | None = None,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) of each anchor: the mean over its positives of
    -log(exp(s_+ / t) / (exp(s_+ / t) + sum of exp(s_- / t) over the negatives)).

    Parameters
    ----------
    anchor : (b, d) float, l2-normalised
    positives : (b, p, d) float, l2-normalised
    to_negatives : (b, m) float, inner products of the anchors with negatives; -inf: it is none
    weights : (b, p) float, multiply the loss of each positive
    temperature : t, above 0

    Returns
    -------
    (b,) float, not averaged.

    Examples
    --------
    >>> anchor, positives = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0]]])
    >>> info_nce_loss(anchor, positives, torch.tensor([[1.0, -torch.inf]]))  # log 2
    tensor([0.6931])
    """
    near = (anchor[:, None] * positives).sum(-1) / temperature
    far = torch.logsumexp(to_negatives / temperature, 1, keepdim=True)
    losses = torch.logaddexp(near, far) - near
    return (losses if weights is None else losses * weights).mean(1)


def _contrastive(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, share: float = 1
) -> Tensor:
    # vector_norm has the subgradient 0 at 0, where sqrt(sum of squares) would give NaN.
    distance: Tensor = torch.linalg.vector_norm(anchor - negative, dim=-1)
    hinge = (margin - distance).clamp(min=0)
    return _squared_distance(anchor, positive) + share * hinge.square()


def _triplet(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, share: float = 1
) -> Tensor:
    difference = _squared_distance(anchor, positive) - _squared_distance(anchor, negative)
    return share * (margin + difference).clamp(min=0)


# (anchor, positive, negative, margin) -> (...), for rows (..., d) whose leading axes broadcast; the
# term of the negative is multiplied by `share`.
LOSSES = {"contrastive": _contrastive, "triplet": _triplet}


def _squared_distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum(-1)


def _check(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, weight: Tensor | None
) -> None:
    if anchor.ndim != 2 or not anchor.shape == positive.shape == negative.shape:
        raise ValueError(
            "anchor, positive and negative must have one shape (b, d), not "
            f"{tuple(anchor.shape)}, {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    # A (b, 1) weight would broadcast silently to (b, b).
    if weight is not None and weight.shape != anchor.shape[:1]:
        raise ValueError(f"weight has the shape {tuple(weight.shape)}, not ({anchor.shape[0]},)")
    _check_margin(margin)


def _check_tuples(
    anchor: Tensor, positives: Tensor, negatives: Tensor, margin: float, weights: Tensor | None
) -> None:
    shapes = [tuple(x.shape) for x in (anchor, positives, negatives)]
    if [len(shape) for shape in shapes] != [2, 3, 3] or any(
        (shape[0], shape[-1]) != shapes[0] for shape in shapes
    ):
        raise ValueError(
            "anchor, positives and negatives must have the shapes (b, d), (b, p, d) and "
            f"(b, n, d), not {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    p, n = positives.shape[1], negatives.shape[1]
    if not p or not n:
        raise ValueError(f"{p} positives and {n} negatives: a tuple has at least one of each")
    if weights is not None and weights.shape != positives.shape[:2]:
        raise ValueError(
            f"weights have the shape {tuple(weights.shape)}, not ({anchor.shape[0]}, {p})"
        )
    _check_margin(margin)


def _check_margin(margin: float) -> None:
    if not margin >= 0:
        raise ValueError(f"margin is {margin}, it must be at least 0")
