"""Fine-tuning, epoch by epoch: draw tuples, train, measure, keep the best network (Sec. 3.4).

m images, d dims. The state between two epochs is complete: training that is restored from it
continues as if it had never stopped, on any number of ranks.
"""

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import Preprocessing
from mmray.images.collection import ImageFile
from mmray.images.cropping import RandomCrop
from mmray.images.pixel_shards import PixelShards
from mmray.system.arrays import Features, Ids
from mmray.system.progress import Progress
from mmray.training import tuples
from mmray.training.agreement import agreement, parts_of, shared_neighbors
from mmray.training.checkpoints import (
    BASELINE,
    BEST,
    OPTIMIZER,
    last_measured,
    save_history,
    save_networks,
    saved_agreement,
    saved_history,
    saved_network,
    seal,
)
from mmray.training.epoch import train_epoch
from mmray.training.image_source import ImageSource, embed_ids, rank_and_size, slowest
from mmray.training.job import (
    History,
    TrainingJob,
    learning_rate_of,
    optimizers_of,
    step_rule,
    time_for_more,
    trainable,
)
from mmray.training.steps import ClassSteps, Steps, TupleSteps
from mmray.training.supervised.labelled_tuples import (
    add_labelled_negatives,
    sample_labelled_pairs,
)
from mmray.training.supervised.losses import LabelledImages
from mmray.training.tuples import Pairs
from mmray.training.usable_pools import hold_out, with_mean_weight_one
from mmray.training.validation import ManifoldValidation, best_epoch, checked_images


class FineTuning:
    """State of fine-tuning on one rank; between epochs it is the same on all ranks.

    Attributes
    ----------
    epoch : number of epochs trained so far
    history : metrics of the initial network, and of the network after each epoch
    network : the network in training
    measured : the network that is measured and may be kept: `network`, or the mean of the initial
        network and of those after each epoch (stochastic weight averaging, Izmailov et al. 2018)
    best : `measured` as it was after the best epoch, see `validation.best_epoch`
    """

    def __init__(self, job: TrainingJob, device: torch.device) -> None:
        self.job, self.config, self.device = job, job.config, device
        self.network = trainable(job.model, self.config).on(device)
        self.measured = copy.deepcopy(self.network) if self.config.average else self.network
        self.best = copy.deepcopy(job.model).cpu()
        self.source = self._images(job.images)
        rng = np.random.default_rng([job.seed, 0])
        pools = job.pools
        if self.config.normalized_weights:
            pools = with_mean_weight_one(pools)
        self.pools, held_out = hold_out(pools, self.config.held_out, rng)
        self.validation = ManifoldValidation.of(
            *(job.validation_neighbors, held_out, len(job.images), rng),
            most=checked_images(self.config),
        )
        self.baseline = None
        if isinstance(job.supervision, LabelledImages):
            self.baseline = job.supervision.loss(self.network.dim, job.seed).to(device)
        self.optimizers = optimizers_of(self.network, self.baseline, self.config)
        self.epoch, self.history = 0, History()
        self.images_in_epoch = 0  # that the last epoch trained on, of all ranks
        self.initially = np.empty(0)  # neighbours that the initial network shares with parts
        self._trained: dict[str, float] = {}  # metrics of the epoch that is not measured yet

    @property
    def best_epoch(self) -> int:
        return best_epoch(self.history)

    @property
    def finished(self) -> bool:
        """Tell whether all epochs are done, or patience with the last ones or time has run out."""
        if len(self.history) <= self.epoch:
            return False
        patience = self.config.patience
        waited = self.epoch - self.best_epoch
        if self.epoch >= self.config.epochs or (patience is not None and waited >= patience):
            return True
        return self.epoch > 0 and not time_for_more(self.history, self.job.seconds)

    def run(self, model: nn.Module, report: Callable[[], None]) -> None:
        """Train until `finished`.

        Every rank draws the same tuples, as generators and embeddings are the same.

        Parameters
        ----------
        model : `network`, or its wrapper that averages gradients over the ranks
        report : called whenever the state is complete: before the first epoch and after each
        """
        while not self.finished:
            start = time.monotonic()
            rng = np.random.default_rng([self.job.seed, self.epoch + 1])
            more = self.epoch < self.config.epochs
            pairs = self._pairs(rng) if more else None
            trained_on = np.empty(0, np.int64) if pairs is None else pairs.needed
            of_check, of_pairs = self._rows(self.validation.needed, trained_on)
            figures = self._checked(of_check) if len(self.history) == self.epoch else None
            seconds = time.monotonic() - start
            if figures is not None:
                self._keep(figures)
                report()
            if more and not self.finished:
                steps = self._steps(pairs, of_pairs, rng)
                self._train(model, steps, checked_in=time.monotonic() - start)
                self._trained["embed_seconds"] = slowest(seconds, self.device)

    def _pairs(self, rng: np.random.Generator) -> Pairs | None:
        """Draw an epoch's anchors and positives; None where training is on classes."""
        config, count = self.config, self.config.anchors_per_epoch
        if isinstance(self.job.supervision, LabelledImages):
            return None
        if self.job.supervision is not None:
            pool = {"hard_negatives": config.hard_negatives, "negative_pool": config.negative_pool}
            return sample_labelled_pairs(self.job.supervision, count, rng, **pool)
        return tuples.sample_pairs(
            self.pools,
            count,
            rng,
            positives=config.positives,
            top_positives=config.top_positives,
            hard_negatives=config.hard_negatives,
            ranked_images=config.ranked_images,
        )

    def _steps(self, pairs: Pairs | None, rows: Features, rng: np.random.Generator) -> Steps:
        """Complete the pairs with hard negatives by the embeddings (m, d), or draw class batches.

        An epoch and a step have as many images with classes as with tuples.
        """
        config, supervision = self.config, self.job.supervision
        if isinstance(supervision, LabelledImages):
            batches = supervision.batches(
                tuples=min(config.anchors_per_epoch, len(supervision.classes)),
                batch_size=config.batch_size,
                rng=rng,
            )
            assert self.baseline is not None, "made from the same labels"
            first = self.epoch * len(batches)
            return ClassSteps(batches, supervision.classes, self.baseline, first=first)
        assert pairs is not None, "drawn where there are no classes"
        add = tuples.add_negatives
        if supervision is not None:
            add = partial(add_labelled_negatives, clusters=supervision.clusters)
        drawn = add(pairs, rows, negatives=config.negatives, rng=rng)
        return TupleSteps(drawn, step_rule(config))

    def _rows(self, check: Ids, pairs: Ids) -> tuple[Features, Features]:
        """Embed the images of the check (c, d), and those of the pairs (p, d).

        Both are of the network that is measured, so that each image is embedded once.
        """
        ids = np.union1d(check, pairs)
        rows = self._embedded(self.measured, self.source, ids)
        return rows[np.searchsorted(ids, check)], rows[np.searchsorted(ids, pairs)]

    def _checked(self, rows: Features) -> dict[str, float]:
        """Measure the network by its embeddings of the check's images (c, d) and of their parts."""
        check, shared = self.validation, np.empty(0)
        if len(check.queries):
            parts = parts_of(self.source, self.job.seed)
            shared = shared_neighbors(rows, self._embedded(self.measured, parts, check.needed))
        if self.epoch == 0:
            self.initially = shared
        return check.measure(rows, self.config) | agreement(shared, self.initially)

    def _keep(self, figures: dict[str, float]) -> None:
        """Add the metrics of the network to the history, and keep it if it is the best so far."""
        self.history.append(self._trained | figures | self._labelled_map())
        if self.best_epoch == self.epoch:
            self.best = copy.deepcopy(self.measured).cpu()

    def _train(self, model: nn.Module, steps: Steps, *, checked_in: float) -> None:
        """Train for one epoch, which a check follows, and remember its metrics."""
        config, start = self.config, time.monotonic()
        rate, silent = learning_rate_of(config), rank_and_size()[0] > 0
        self.epoch += 1
        label, done = f"epoch {self.epoch} of {config.epochs}", self.epoch - 1
        total, more = sum(steps.sizes), config.epochs - self.epoch
        then = (more * total, (more + 1) * checked_in)  # as long as the check before
        with Progress(label, total=total, silent=silent, then=then) as progress:
            metrics = train_epoch(
                model,
                self.optimizers,
                steps,
                self._training_source(),
                step_rule(config),
                device=self.device,
                learning_rate=lambda share: rate(done + share),
                progress=progress.advance,
            )
        if self.measured is not self.network:
            self._add_to_mean()
        metrics["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        if self.network.p is not None:
            metrics["gem_p"] = self.network.p.item()
        metrics["train_seconds"] = slowest(time.monotonic() - start, self.device)
        self._trained, self.images_in_epoch = metrics, len(steps.images)

    @torch.no_grad()
    def _add_to_mean(self) -> None:
        """Add the network to the mean of all so far."""
        # The statistics of BatchNorm are frozen, and the same in all networks.
        pairs = zip(self.measured.parameters(), self.network.parameters(), strict=True)
        for mean, new in pairs:
            mean.lerp_(new, 1 / (self.epoch + 1))

    def _labelled_map(self) -> dict[str, float]:
        """Measure the mAP on the labelled set, without whitening, at the training size, if due."""
        labelled, every = self.job.labelled, self.config.monitor_every
        if labelled is None or every == 0 or self.epoch % every:
            return {}
        items = labelled.items
        rows = self._embedded(self.measured, self._images(items), np.arange(len(items)))
        return {"map": labelled.mean_average_precision(rows)}

    def _images(self, items: Sequence[ImageFile] | PixelShards) -> ImageSource:
        """Prepare images for embedding."""
        seen, size = Preprocessing.in_training(self.config), self.config.longest_side
        source = ImageSource(items, longest_side=size, max_pixels=self.job.max_pixels)
        return source.seen_as(lambda pixels, key: seen.cropped(pixels))

    def _training_source(self) -> ImageSource:
        """Prepare images for training; an epoch's crops are the same for any number of ranks."""
        if self.config.augmentation == "none":
            return self.source
        crop = RandomCrop(size=self.config.crop_size, scale=self.config.crop_scale)
        seed = [self.job.seed, self.epoch]
        return self.source.seen_as(
            lambda pixels, key: crop(pixels, np.random.default_rng([*seed, key]))
        )

    def _embedded(self, network: EmbeddingNet, source: ImageSource, ids: Ids) -> Features:
        """Embed images by their ids, (m, d) float32, with the settings of the job."""
        return embed_ids(
            network,
            source,
            ids,
            batch_size=self.config.embed_batch_size,
            device=self.device,
            precision=self.config.precision,
        )

    # -- checkpoints ------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write a checkpoint: all networks, the states of the optimisers, and the history."""
        save_networks(folder, self.network, self.measured, self.best)
        torch.save([each.state_dict() for each in self.optimizers], folder / OPTIMIZER)
        if self.baseline is not None:
            torch.save(self.baseline.state_dict(), folder / BASELINE)
        save_history(folder, self.history, self.initially, seed=self.job.seed)
        seal(folder)

    def restore(self, folder: Path) -> None:
        """Restore the state from a checkpoint that `save` wrote."""
        # Where both are one network, it is read once.
        loads = {self.network: saved_network, self.measured: last_measured}
        for network, load in loads.items():
            network.load_state_dict(trainable(load(folder), self.config).state_dict())
        self.best = trainable(saved_network(folder / BEST), self.config)
        states = torch.load(folder / OPTIMIZER, weights_only=True, map_location=self.device)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        if self.baseline is not None:
            state = torch.load(folder / BASELINE, weights_only=True, map_location=self.device)
            self.baseline.load_state_dict(state)
        self.history, self.initially = saved_history(folder), saved_agreement(folder)
        self.epoch = len(self.history) - 1
