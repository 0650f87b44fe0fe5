"""The check that chooses an epoch: does a network see in a part of a photo what it sees in all?

`view_agreement`: how many of an image's nearest neighbours are also those of a part of it among
parts of all images, of half their area, at random places. What a network recognises it recognises
in a part too; what it confuses changes. No ground truth of the initial network is needed, which a
better one would contradict. docs/results/recipe-study.md shows how well it agrees with labels, and
which checks agreed less.

m images, d dims, q of the images.
"""

import numpy as np

from mmray.images.cropping import random_part
from mmray.system.arrays import Features, Floats, Ids
from mmray.training.image_source import ImageSource

VIEW_AGREEMENT = "view_agreement"
ERROR = "_error"  # ends the names of standard errors
VIEWED = 2000  # most images whose neighbours are compared
VIEW_NEIGHBORS = 10  # nearest neighbours that are compared


def parts_of(source: ImageSource, seed: int) -> ImageSource:
    """Return a source of a part of each image; the same part for every network and any rank."""
    whole = source.view
    return source.seen_as(
        lambda pixels, key: random_part(whole(pixels, key), np.random.default_rng([seed, key]))
    )


def shared_neighbors(one: Features, two: Features) -> Floats:
    """Return the share of nearest neighbours that two views of an image have in common.

    Parameters
    ----------
    one, two : (m, d) float32, l2-normalised
        Of all images in one view each.

    Returns
    -------
    (q,) float64, of VIEWED images at most; (0,) of fewer than three.
    """
    m = len(one)
    if m < 3:
        return np.empty(0)
    k = min(VIEW_NEIGHBORS, (m - 1) // 2)
    places = np.unique(np.linspace(0, m - 1, min(m, VIEWED)).astype(np.int64))
    first, second = (_nearest(rows, places, k) for rows in (one, two))
    common = [len(np.intersect1d(*pair)) for pair in zip(first, second, strict=True)]
    return np.array(common) / k


def _nearest(rows: Features, places: Ids, k: int) -> Ids:
    """Return the k nearest neighbours (q, k) of the images at some places (q,)."""
    cosines = rows[places] @ rows.T
    cosines[np.arange(len(places)), places] = -np.inf
    nearest: Ids = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    return nearest


def agreement(shared: Floats, initially: Floats) -> dict[str, float]:
    """Return the mean share of neighbours (q,), and how sure its rise is, as metrics.

    Parameters
    ----------
    shared : of a network
    initially : of the initial network, on the same images

    Returns
    -------
    view_agreement, and view_agreement_error: the standard error of its difference from the initial
    network, 0 of that itself. Nothing where no images were compared, or none by the initial
    network, as in a checkpoint of an earlier version.
    """
    if not 0 < len(shared) == len(initially):
        return {}
    error = np.std(shared - initially) / len(shared) ** 0.5
    return {VIEW_AGREEMENT: float(np.mean(shared)), VIEW_AGREEMENT + ERROR: float(error)}
