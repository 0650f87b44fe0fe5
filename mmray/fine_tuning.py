"""Fine-tuning from the initial network to the one that is kept: draw, train, measure (Sec. 3.4).

m images, d dims. The state between two epochs is whole: what is saved there and restored goes on as
if nothing had happened, on any number of ranks.
"""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmray import models, tuples
from mmray.arrays import Features, Ids
from mmray.augmentation import RandomCrop, center_crop
from mmray.collection import Collection, ImageFile
from mmray.config import TrainingConfig
from mmray.evaluation.labelled import LabelledSet
from mmray.health import HealthCheck, healthiest
from mmray.labelled_tuples import LabelledPairs, add_labelled_negatives, sample_labelled_pairs
from mmray.manifold import ManifoldNeighbors
from mmray.models import EmbeddingNet
from mmray.optimization import learning_rate, make_optimizer
from mmray.pools import Pools
from mmray.progress import Progress
from mmray.storage import Folder
from mmray.training import ImageSource, StepRule, embed_ids, rank_and_size, train_epoch
from mmray.tuples import Pairs, Tuples

OPTIMIZER, STATE, MEASURED, BEST = "optimizer.pt", "state.json", "measured", "best"
History = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What is trained, and on what.

    Attributes
    ----------
    images : those that the pools name, by their place
    checked : manifold neighbours of some items, see `health`
    labelled : is measured on after every `monitor_every` epochs; nothing follows from it
    supervision : pairs by labels, and the labels under which negatives are chosen, instead of the
        pools; see `labelled_tuples`. None: no labels
    """

    model: EmbeddingNet
    images: Collection
    pools: Pools
    checked: ManifoldNeighbors
    config: TrainingConfig
    seed: int
    max_pixels: int
    labelled: LabelledSet | None
    supervision: LabelledPairs | None = None


class FineTuning:
    """The state of one rank between epochs; all ranks have the same.

    Attributes
    ----------
    epoch : how many were trained
    history : metrics of the initial network, and of the network after each epoch
    network : as it is
    measured : the one that is measured and may be kept: `network`, or the mean of it after every
        epoch so far and before the first (stochastic weight averaging, Izmailov et al. 2018)
    best : `measured` as it was when the label-free check of its health was highest
    """

    def __init__(self, job: TrainingJob, device: torch.device) -> None:
        self.job, self.config, self.device = job, job.config, device
        self.network = job.model.to(device)
        self.measured = copy.deepcopy(self.network) if self.config.average else self.network
        self.best = copy.deepcopy(job.model).cpu()
        self.source = self._images(job.images)
        rng = np.random.default_rng([job.seed, 0])
        pools = job.pools
        if self.config.normalized_weights:
            pools = tuples.with_mean_weight_one(pools)
        self.pools, held_out = tuples.hold_out(pools, self.config.held_out, rng)
        self.health = HealthCheck.of(job.checked, held_out, len(job.images), rng)
        self.optimizer = optimizer_of(self.network, self.config)
        self.epoch, self.history = 0, History()
        self._trained: dict[str, float] = {}  # metrics of the epoch that is not measured yet

    @property
    def best_epoch(self) -> int:
        return healthiest(self.history)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the last few did not help."""
        if len(self.history) <= self.epoch:
            return False
        patience = self.config.patience
        waited = self.epoch - self.best_epoch
        return self.epoch >= self.config.epochs or (patience is not None and waited >= patience)

    def run(self, model: nn.Module, report: Callable[[], None]) -> None:
        """Train until it is finished.

        Every rank draws the same tuples: the generator and the embeddings are the same.

        Parameters
        ----------
        model : `network`, or what shares its gradients between ranks
        report : is called whenever the state is whole: before the first epoch and after each
        """
        while not self.finished:
            start = time.monotonic()
            rng = np.random.default_rng([self.job.seed, self.epoch + 1])
            pairs = self._pairs(rng) if self.epoch < self.config.epochs else None
            trained_on = np.empty(0, np.int64) if pairs is None else pairs.needed
            of_check, of_pairs = self._rows(self.health.needed, trained_on)
            seconds = time.monotonic() - start
            if len(self.history) == self.epoch:
                self._measure(of_check)
                report()
            if pairs is not None and not self.finished:
                self._train(model, pairs, of_pairs, rng)
                self._trained["embed_seconds"] = seconds

    def _pairs(self, rng: np.random.Generator) -> Pairs:
        count = self.config.anchors_per_epoch
        if self.job.supervision is not None:
            pool = self.config.negative_pool
            return sample_labelled_pairs(self.job.supervision, count, rng, negative_pool=pool)
        return tuples.sample_pairs(
            self.pools,
            count,
            rng,
            positives=self.config.positives,
            top_positives=self.config.top_positives,
        )

    def _tuples(self, pairs: Pairs, rows: Features, rng: np.random.Generator) -> Tuples:
        """Pairs with negatives near to the anchors in the embedding (m, d) as it is."""
        add = tuples.add_negatives
        if self.job.supervision is not None:
            add = partial(add_labelled_negatives, clusters=self.job.supervision.clusters)
        return add(
            pairs,
            rows,
            hard_negatives=self.config.hard_negatives,
            negatives=self.config.negatives,
            rng=rng,
        )

    def _rows(self, check: Ids, pairs: Ids) -> tuple[Features, Features]:
        """Embeddings of images by the network that is measured, and of others by the one trained.

        Where those are the same (always without a mean, and before the first epoch), no image goes
        through it twice.
        """
        same = self.measured is self.network or self.epoch == 0
        if not same and len(pairs):
            return (
                self._embedded(self.measured, self.source, check),
                self._embedded(self.network, self.source, pairs),
            )
        ids = np.union1d(check, pairs)
        rows = self._embedded(self.measured, self.source, ids)
        return rows[np.searchsorted(ids, check)], rows[np.searchsorted(ids, pairs)]

    def _measure(self, rows: Features) -> None:
        """Add to the history what is known of the network, and keep it if it is the best so far.

        Parameters
        ----------
        rows : (m, d), of what the check of its health needs
        """
        figures = self.health.measure(rows, loss=self.config.loss, margin=self.config.margin)
        self.history.append(self._trained | figures | self._labelled_map())
        if self.best_epoch == self.epoch:
            self.best = copy.deepcopy(self.measured).cpu()

    def _train(
        self, model: nn.Module, pairs: Pairs, rows: Features, rng: np.random.Generator
    ) -> None:
        """One epoch, on negatives near to the anchors in the embedding (m, d) as it is."""
        config, start = self.config, time.monotonic()
        drawn = self._tuples(pairs, rows, rng)
        rate = partial(
            learning_rate,
            base=config.learning_rate,
            schedule=config.schedule,
            epochs=config.epochs,
            decay=config.decay,
            decay_epochs=config.decay_epochs,
            warmup_epochs=config.warmup_epochs,
        )
        silent = rank_and_size()[0] > 0
        self.epoch += 1
        label, done_before = f"epoch {self.epoch}", self.epoch - 1
        with Progress(label, total=len(drawn.anchors), silent=silent) as progress:
            metrics = train_epoch(
                model,
                self.optimizer,
                drawn,
                self._training_source(),
                step_rule(config),
                device=self.device,
                learning_rate=lambda share: rate(done_before + share),
                progress=progress.advance,
            )
        if self.measured is not self.network:
            self._add_to_mean()
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        metrics["train_seconds"] = time.monotonic() - start
        self._trained = metrics

    @torch.no_grad()
    def _add_to_mean(self) -> None:
        """The statistics of BatchNorm are frozen, the same in all networks."""
        pairs = zip(self.measured.parameters(), self.network.parameters(), strict=True)
        for mean, new in pairs:
            mean.lerp_(new, 1 / (self.epoch + 1))

    def _labelled_map(self) -> dict[str, float]:
        """MAP of the network on the labelled set, without whitening, at the training size."""
        labelled, every = self.job.labelled, self.config.monitor_every
        if labelled is None or every == 0 or self.epoch % every:
            return {}
        items = labelled.items
        rows = self._embedded(self.measured, self._images(items), np.arange(len(items)))
        return {"map": labelled.mean_average_precision(rows)}

    def _images(self, items: Sequence[ImageFile]) -> ImageSource:
        """As they are embedded: a network that is trained on crops sees the middle of each."""
        config = self.config
        source = ImageSource(
            items, longest_side=config.longest_side, max_pixels=self.job.max_pixels
        )
        if config.augmentation == "none":
            return source
        return source.seen_as(lambda pixels, key: center_crop(pixels, config.crop_size))

    def _training_source(self) -> ImageSource:
        """As they are trained on in this epoch: its crops are the same for any number of ranks."""
        if self.config.augmentation == "none":
            return self.source
        crop, seed = RandomCrop(size=self.config.crop_size), [self.job.seed, self.epoch]
        return self.source.seen_as(
            lambda pixels, key: crop(pixels, np.random.default_rng([*seed, key]))
        )

    def _embedded(self, network: EmbeddingNet, source: ImageSource, ids: Ids) -> Features:
        """(m, d)."""
        return embed_ids(
            network,
            source,
            ids,
            self.config.pooling,
            batch_size=self.config.embed_batch_size,
            device=self.device,
            precision=self.config.precision,
        )

    # -- checkpoints ------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """The last network, its optimiser, the mean if any, the best network, and the history."""
        models.save(self.network, Folder(str(folder)))
        if self.measured is not self.network:
            models.save(self.measured, Folder(str(folder / MEASURED)))
        models.save(self.best, Folder(str(folder / BEST)))
        torch.save(self.optimizer.state_dict(), folder / OPTIMIZER)
        state = {"epoch": self.epoch, "seed": self.job.seed, "history": self.history}
        (folder / STATE).write_text(json.dumps(state, indent=1))

    def restore(self, folder: Path) -> None:
        self.network.load_state_dict(models.load(Folder(str(folder))).state_dict())
        if self.measured is not self.network:
            self.measured.load_state_dict(last_measured(folder).state_dict())
        self.best = models.load(Folder(str(folder / BEST)))
        state = torch.load(folder / OPTIMIZER, weights_only=True, map_location=self.device)
        self.optimizer.load_state_dict(state)
        self.history = saved_history(folder)
        self.epoch = len(self.history) - 1


def optimizer_of(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    return make_optimizer(
        model.parameters(),
        name=config.optimizer,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def step_rule(config: TrainingConfig) -> StepRule:
    return StepRule(
        loss=config.loss,
        margin=config.margin,
        weighted=config.weighted,
        batch_size=config.batch_size,
        precision=config.precision,
        clip_norm=config.clip_norm,
        sum_negatives=config.sum_negatives,
    )


def last_measured(folder: Path) -> EmbeddingNet:
    """The network of a checkpoint, or the mean of those so far where that is measured."""
    mean = folder / MEASURED
    return models.load(Folder(str(mean if mean.exists() else folder)))


def saved_history(folder: Path) -> History:
    """That of a checkpoint."""
    history: History = json.loads((folder / STATE).read_text())["history"]
    return history
