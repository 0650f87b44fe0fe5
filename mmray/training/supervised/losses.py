"""Losses of the supervised baselines of Table 2, by pytorch-metric-learning.

They train the same network on the same images as the method, but on batches of labelled images
instead of mined tuples. The library has no implementation of "Clustering", which is in
`facility_location`, nor of "Smart mining", for which its nearest loss stands in, by its own name:

* "Triplet + semi-hard", Schroff et al., CVPR 2015: triplet-semihard. Margin and distance are those
  of eq. (8), so that only the tuples differ from ours.
* "Lifted-Structure", Song et al., CVPR 2016: lifted-structure, margin 1.
* "Clustering", Song et al., CVPR 2017: clustering, γ = 1.
* soft-triple, Qian et al., ICCV 2019, is not in the table. It has several centres a class: 10, λ =
  20, γ = 0.1, δ = 0.01, its values; the library has no regularizer that merges centres.
* "Smart mining", Harwood et al., ICCV 2017: not in the library. distance-weighted (Wu et al., ICCV
  2017), whose negatives are drawn evenly over all distances: cut-offs 0.5 and 1.4, margin 0.2 and
  β = 1.2, its values, but β is not learned.
* proxy-nca, Movshovitz-Attias et al., ICCV 2017, of the same year, is not in the table. Proxies
  are normalized, distances squared and not scaled; the library's softmax is over all proxies,
  the paper's over those of other classes.

b images of a batch, n images, c classes, d dims.
"""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from mmray.config.choices import SupervisedBaseline
from mmray.system.arrays import Ids
from mmray.system.errors import InputError
from mmray.training.losses import MARGINS
from mmray.training.supervised.facility_location import FacilityLocationLoss

BASELINE_LABELS: dict[SupervisedBaseline, str] = {
    "triplet-semihard": "triplet, semi-hard negatives (uses labels)",
    "lifted-structure": "lifted structure (uses labels)",
    "clustering": "clustering by facility location (uses labels)",
    "proxy-nca": "proxy NCA (uses labels)",
    "soft-triple": "SoftTriple (uses labels)",
    "distance-weighted": "distance-weighted (uses labels)",
}


class BaselineLoss(nn.Module):
    """A loss of a labelled batch, with a miner that chooses its tuples where the loss needs one.

    Proxies or centres that the loss learns are parameters of this module.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None, seed: int) -> None:
        super().__init__()
        self.loss, self.miner, self.seed = loss, miner, seed

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> Tensor:
        """Return the loss of a batch, a scalar; 0, with gradient 0, where it has no tuple.

        Parameters
        ----------
        embeddings : (b, d) float32, l2-normalised
        labels : (b,) int64, 0..c-1
        step : number of the step, which with the seed determines the random choices
        """
        if self.miner is None:
            value: Tensor = self.loss(embeddings, labels)
            return value
        of_step = int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0])
        with _seeded(of_step, embeddings.device), torch.no_grad():
            # The weights of distances in 1280 dimensions span a factor of e^700: in float32 a near
            # pair would leave most anchors without a negative.
            chosen = self.miner(embeddings.double(), labels)
        found: Tensor = self.loss(embeddings, labels, chosen)
        return found


def baseline_loss(name: SupervisedBaseline, *, classes: int, dim: int, seed: int) -> BaselineLoss:
    """Make the loss of a supervised baseline, with the values that the module lists.

    Parameters
    ----------
    name : of the baseline
    classes, dim : c and d
    seed : of the initial proxies or centres and of random choices; torch's own generators are left
        untouched
    """
    loss, miner = _parts(name, classes, dim, seed)
    return BaselineLoss(loss, miner, seed)


def _parts(
    name: SupervisedBaseline, classes: int, dim: int, seed: int
) -> tuple[nn.Module, nn.Module | None]:
    if name == "clustering":
        return FacilityLocationLoss(), None
    # Imported only here: it takes seconds, which training without labels should not pay for.
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
    with _seeded(seed, torch.device("cpu")):
        if name == "proxy-nca":
            return losses.ProxyNCALoss(classes, dim), None
        return losses.SoftTripleLoss(
            classes, dim, centers_per_class=10, la=20, gamma=0.1, margin=0.01
        ), None


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and of the device, and restore them afterwards.

    `torch.manual_seed` would also seed all other GPUs, which `fork_rng` does not restore.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def class_batches(
    labels: Ids, *, batches: int, batch_size: int, per_class: int, rng: np.random.Generator
) -> Ids:
    """Draw batches of images of a few classes each, so that every image has others of its class.

    Classes are dealt from a shuffled deck, and the images of a class from another; a deck is
    shuffled again when all of it is dealt. So the counts of two classes never differ by more than
    one, nor those of two images of a class, apart from the repeats in classes that are too small.

    Parameters
    ----------
    labels : (n,) int64
        A class of a single image is never drawn.
    batches : at least 1
    batch_size : a multiple of per_class
        A batch has batch_size / per_class different classes. Where there are fewer, it has all of
        them, some more often than others, with per_class more images each time.
    per_class : at least 2
        Images of a class in a batch, all different; where the class has fewer, all, repeated.

    Returns
    -------
    (batches, batch_size) int64

    Raises
    ------
    InputError
        There are fewer than two classes with two images or more.
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
    deck, parts = _Deck(usable, rng), batch_size // per_class
    of_class = {label: _Deck(np.flatnonzero(labels == label), rng) for label in usable.tolist()}
    rounds, rest = divmod(parts, len(usable))
    chosen = []
    for _ in range(batches):
        dealt = [deck.deal(count) for count in (*[len(usable)] * rounds, rest)]
        shares = Counter(chain.from_iterable(dealt))
        drawn = (of_class[label].deal(share * per_class) for label, share in shares.items())
        chosen.append(list(chain.from_iterable(drawn)))
    return np.array(chosen, np.int64)


class _Deck:
    """A deck of values in random order, shuffled again when all are dealt."""

    def __init__(self, values: Ids, rng: np.random.Generator) -> None:
        self.values, self.rng = values, rng
        self.waiting: deque[int] = deque()

    def deal(self, count: int) -> list[int]:
        """Deal the next `count` different values; where there are fewer, all, repeated."""
        taken: dict[int, None] = {}
        again: list[int] = []
        while len(taken) < min(count, len(self.values)):
            if not self.waiting:
                self.waiting.extend(self.rng.permutation(self.values).tolist())
            value = self.waiting.popleft()
            if value in taken:
                again.append(value)  # it is the first of the next deal
            else:
                taken[value] = None
        self.waiting.extendleft(reversed(again))
        whole: list[int] = np.resize(list(taken), count).tolist()
        return whole


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImages:
    """The class of every image, and the supervised baseline to train on it.

    Attributes
    ----------
    classes : (n,) int64, 0..c-1
    per_class : images of a class in a batch
    """

    classes: Ids
    baseline: SupervisedBaseline
    per_class: int

    def loss(self, dim: int, seed: int) -> BaselineLoss:
        """Make the loss of the baseline, see `baseline_loss`."""
        classes = int(self.classes.max()) + 1
        return baseline_loss(self.baseline, classes=classes, dim=dim, seed=seed)

    def batches(self, *, tuples: int, batch_size: int, rng: np.random.Generator) -> Ids:
        """Draw batches that have as many images as `tuples` triplets in steps of `batch_size`.

        A batch has at least two classes, each with `per_class` images, see `class_batches`.
        """
        size = max(3 * batch_size // self.per_class, 2) * self.per_class
        return class_batches(
            self.classes,
            batches=max(3 * tuples // size, 1),
            batch_size=size,
            per_class=self.per_class,
            rng=rng,
        )
