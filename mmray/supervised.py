"""Losses that learn from labels: the supervised rivals of Table 2, by pytorch-metric-learning.

They train the same network on the same images as the method does, but on batches of labelled images
instead of mined tuples. Two rows of the table have no implementation in the library; the nearest it
has stands for them, and its label says what it is:

* "Triplet + semi-hard", Schroff et al., CVPR 2015: triplet-semihard. Margin and distance are those
  of eq. (8), so that only the tuples differ from ours.
* "Lifted-Structure", Song et al., CVPR 2016: lifted-structure, margin 1.
* "Clustering", Song et al., CVPR 2017: not in the library. soft-triple (Qian et al., ICCV 2019), of
  several centres a class: 10, λ = 20, γ = 0.1, δ = 0.01.
* "Smart mining", Harwood et al., ICCV 2017: not in the library. distance-weighted (Wu et al., ICCV
  2017), whose negatives are drawn evenly over all distances: cut-off 0.5, margin 0.2, β = 1.2.
* proxy-nca, Movshovitz-Attias et al., ICCV 2017, of the same year, is not in the table.

b images of a batch, n images, c classes, d dims.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from mmray.arrays import Ids
from mmray.config import Rival
from mmray.errors import InputError
from mmray.losses import MARGINS

RIVAL_LABELS: dict[Rival, str] = {
    "triplet-semihard": "triplet, semi-hard negatives (uses labels)",
    "lifted-structure": "lifted structure (uses labels)",
    "proxy-nca": "proxy NCA (uses labels)",
    "soft-triple": "SoftTriple, in place of clustering (uses labels)",
    "distance-weighted": "distance-weighted, in place of smart mining (uses labels)",
}


class RivalLoss(nn.Module):
    """A loss of a batch, and the choice of its tuples where there is one.

    What it learns, proxies or centres, are its parameters.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None, seed: int) -> None:
        super().__init__()
        self.loss, self.miner, self.seed = loss, miner, seed

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> Tensor:
        """The loss, a scalar; 0 with a gradient of 0 where a batch has no tuple.

        Parameters
        ----------
        embeddings : (b, d) float32, l2-normalised
        labels : (b,) int64, 0..c-1
        step : what is drawn at random in a step follows from its number and the seed
        """
        if self.miner is None:
            value: Tensor = self.loss(embeddings, labels)
            return value
        devices = [embeddings.device] if embeddings.is_cuda else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0]))
            chosen = self.miner(embeddings, labels)
        found: Tensor = self.loss(embeddings, labels, chosen)
        return found


def rival_loss(name: Rival, *, classes: int, dim: int, seed: int) -> RivalLoss:
    """The loss of a rival; see the module for its values.

    Parameters
    ----------
    classes, dim : c and d
    seed : of what it learns and of what it draws; torch's own generator stays as it is
    """
    loss, miner = _parts(name, classes, dim, seed)
    return RivalLoss(loss, miner, seed)


def _parts(name: Rival, classes: int, dim: int, seed: int) -> tuple[nn.Module, nn.Module | None]:
    # Only now: it takes seconds, for which nobody should wait who learns without labels.
    from pytorch_metric_learning import losses, miners
    from pytorch_metric_learning.distances import LpDistance

    if name == "triplet-semihard":
        margin, squared = MARGINS["triplet"], LpDistance(power=2)
        miner = miners.TripletMarginMiner(
            margin=margin, type_of_triplets="semihard", distance=squared
        )
        return losses.TripletMarginLoss(margin=margin, distance=squared), miner
    if name == "lifted-structure":
        return losses.LiftedStructureLoss(neg_margin=1, pos_margin=0), None
    if name == "distance-weighted":
        miner = miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)
        return losses.MarginLoss(margin=0.2, beta=1.2), miner
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if name == "proxy-nca":
            return losses.ProxyNCALoss(classes, dim), None
        return losses.SoftTripleLoss(
            classes, dim, centers_per_class=10, la=20, gamma=0.1, margin=0.01
        ), None


def class_batches(
    labels: Ids, *, batches: int, batch_size: int, per_class: int, rng: np.random.Generator
) -> Ids:
    """Batches of images of a few classes each, so that every image has others of its class.

    Classes are dealt from a shuffled pack, images of a class from one too; a pack that is empty is
    shuffled anew. So all are drawn about equally often.

    Parameters
    ----------
    labels : (n,) int64
        A class of a single image is never drawn.
    batches : from 1
    batch_size : a multiple of per_class
        A batch has batch_size / per_class different classes. Where there are fewer, all of them,
        and more images of each, at most one part of per_class more in the first than in the last.
    per_class : from 2
        Different images of a class in a batch; where it has fewer, some of them again.

    Returns
    -------
    (batches, batch_size) int64

    Raises
    ------
    InputError
        There are fewer than two classes of two images or more.
    ValueError
        A number is out of its range.
    """
    if batches < 1 or per_class < 2 or batch_size < per_class or batch_size % per_class:
        raise ValueError(
            f"batches = {batches}, batch_size = {batch_size}, per_class = {per_class}: draw at "
            "least one batch, at least two images a class, and whole classes"
        )
    found, counts = np.unique(labels, return_counts=True)
    usable = found[counts > 1]
    if len(usable) < 2:
        raise InputError(
            f"{len(usable)} of {len(found)} classes have two images or more: give images of at "
            "least two such classes"
        )
    members = {label: np.flatnonzero(labels == label) for label in usable}
    of_class = {label: _deal(ids, rng) for label, ids in members.items()}
    deck, parts = _deal(usable, rng), batch_size // per_class
    chosen = []
    for _ in range(batches):
        classes = _different(deck, min(parts, len(usable)))
        shares = np.resize(classes, parts)
        drawn = (_different(of_class[label], per_class, members[label]) for label in shares)
        chosen.append(list(chain.from_iterable(drawn)))
    return np.array(chosen, np.int64)


def _deal(values: Ids, rng: np.random.Generator) -> Iterator[int]:
    """The values in random order, then all again in another, and so on."""
    while True:
        yield from rng.permutation(values).tolist()


def _different(deck: Iterator[int], count: int, of: Ids | None = None) -> list[int]:
    """The next `count` values of a deck that differ, or all of `of` and some again."""
    most = count if of is None else min(count, len(of))
    taken: dict[int, None] = {}
    while len(taken) < most:
        taken[next(deck)] = None
    return [*np.resize(list(taken), count).tolist()]


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImages:
    """The class of every image, and which rival learns from it.

    Attributes
    ----------
    classes : (n,) int64, 0..c-1
    per_class : images of a class in a batch
    """

    classes: Ids
    rival: Rival
    per_class: int

    def loss(self, dim: int, seed: int) -> RivalLoss:
        """See `rival_loss`."""
        classes = int(self.classes.max()) + 1
        return rival_loss(self.rival, classes=classes, dim=dim, seed=seed)

    def batches(self, *, tuples: int, batch_size: int, rng: np.random.Generator) -> Ids:
        """See `class_batches`: as many images as so many triplets have, in batches of as many.

        A batch has at least two classes, and whole ones.
        """
        size = max(3 * batch_size // self.per_class, 2) * self.per_class
        return class_batches(
            self.classes,
            batches=max(3 * tuples // size, 1),
            batch_size=size,
            per_class=self.per_class,
            rng=rng,
        )
