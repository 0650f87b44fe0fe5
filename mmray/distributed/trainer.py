"""Fine-tuning on Ray Train: the loop of epochs on every rank, a checkpoint an epoch."""

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device, prepare_model

from mmray import models, tuples
from mmray.collection import Collection, ImageFile
from mmray.config import TrainingConfig
from mmray.evaluation.labelled import LabelledSet
from mmray.models import EmbeddingNet
from mmray.pools import Pools
from mmray.progress import Progress, announce
from mmray.storage import Folder
from mmray.tracking import Run
from mmray.training import ImageSource, embed_ids, rank_and_size, train_epoch

CHECKPOINTS = "checkpoints"
STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """All that a rank needs; put into the object store once."""

    model: EmbeddingNet
    images: Collection
    pools: Pools
    config: TrainingConfig
    seed: int
    max_pixels: int
    run: Run | None
    labelled: LabelledSet | None


class Trainer:
    """State of one rank between epochs."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.config = job, job.config
        self.rank, self.size = rank_and_size()
        self.device = get_device()
        self.source = self.images(job.images)
        self.network = job.model.to(self.device)
        self.history: list[dict[str, float]] = []
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.config.learning_rate,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
        )

    def images(self, items: Sequence[ImageFile]) -> ImageSource:
        side = self.config.longest_side
        return ImageSource(items, longest_side=side, max_pixels=self.job.max_pixels)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint, as if nothing had happened."""
        self.network.load_state_dict(models.load(Folder(str(folder))).state_dict())
        state = torch.load(folder / "optimizer.pt", weights_only=True, map_location=self.device)
        self.optimizer.load_state_dict(state)
        self.history = json.loads((folder / STATE).read_text())["history"]

    def save(self, folder: Path) -> None:
        models.save(self.network, Folder(str(folder)))
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        state = {"epoch": len(self.history), "seed": self.job.seed, "history": self.history}
        (folder / STATE).write_text(json.dumps(state, indent=1))

    def train(self) -> None:
        # BatchNorm statistics are frozen, the same on all ranks: nothing to broadcast.
        options = {"broadcast_buffers": False}
        model = prepare_model(self.network, parallel_strategy_kwargs=options)
        if not self.history:
            self.log(0, self.measure(0))
        for epoch in range(len(self.history) + 1, self.config.epochs + 1):
            start = time.monotonic()
            metrics = {"learning_rate": self.set_learning_rate(epoch)}
            metrics["loss"] = self.run_epoch(model, epoch)
            metrics |= self.measure(epoch)
            metrics["epoch_seconds"] = time.monotonic() - start
            self.history.append(metrics)
            self.log(epoch, metrics)
            self.report(epoch, metrics)

    def set_learning_rate(self, epoch: int) -> float:
        config = self.config
        rate = config.learning_rate * config.decay ** ((epoch - 1) // config.decay_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def run_epoch(self, model: torch.nn.Module, epoch: int) -> float:
        """Draw the epoch's tuples with the network as it is, train on them; returns the mean loss.

        Every rank draws the same tuples: the generator and the embeddings are the same.
        """
        config, rng = self.config, np.random.default_rng([self.job.seed, epoch])
        pairs = tuples.sample_pairs(self.job.pools, config.anchors_per_epoch, rng)
        embeddings = embed_ids(
            self.network,
            self.source,
            pairs.needed,
            [config.pooling],
            batch_size=config.embed_batch_size,
            device=self.device,
        )[:, 0]
        drawn = tuples.add_negatives(
            pairs, embeddings, hard_negatives=config.hard_negatives, rng=rng
        )
        with Progress(f"epoch {epoch}", total=len(drawn.anchors), silent=self.rank > 0) as progress:
            return train_epoch(
                model,
                self.optimizer,
                drawn,
                self.source,
                loss=config.loss,
                margin=config.margin,
                weighted=config.weighted,
                batch_size=config.batch_size,
                device=self.device,
                progress=progress.advance,
            )

    def measure(self, epoch: int) -> dict[str, float]:
        """MAP of the network on the labelled set, without whitening, at the training size."""
        labelled, every = self.job.labelled, self.config.monitor_every
        if labelled is None or every == 0 or epoch % every:
            return {}
        items = labelled.items
        rows = embed_ids(
            self.network,
            self.images(items),
            np.arange(len(items)),
            [self.config.pooling],
            batch_size=self.config.embed_batch_size,
            device=self.device,
        )
        return {"map": labelled.mean_average_precision(rows[:, 0])}

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        if self.rank:
            return
        numbers = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        announce(f"    epoch {epoch}/{self.config.epochs}: {numbers}")
        if self.job.run is not None:
            self.job.run.log_metrics(metrics, step=epoch)

    def report(self, epoch: int, metrics: dict[str, float]) -> None:
        """Give the checkpoint to Ray Train, which stores it and waits for every rank."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                self.save(Path(folder))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint, checkpoint_dir_name=f"epoch-{epoch:03d}")


def _train_on_rank(arguments: dict[str, Any]) -> None:
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train prints every report in full
    torch.set_num_threads(arguments["threads"])
    trainer = Trainer(ray.get(arguments["job"]))
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.restore(Path(folder))
    trainer.train()


def fine_tune(
    job: TrainingJob, *, folder: Folder, workers: int, resources: dict[str, float]
) -> tuple[EmbeddingNet, list[dict[str, float]]]:
    """Train, or go on training, with checkpoints in `folder`.

    Parameters
    ----------
    workers, resources : how many ranks, and what each takes of the cluster

    Returns
    -------
    The network after the last epoch, and the metrics of every epoch.
    """
    result = TorchTrainer(
        _train_on_rank,
        train_loop_config={"job": ray.put(job), "threads": int(resources["CPU"])},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu="GPU" in resources, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg] # typed as that of Train's version 1
            name=CHECKPOINTS,
            storage_path=folder.uri,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=3),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    ).fit()
    assert result.checkpoint is not None, "every epoch reports a checkpoint"
    with result.checkpoint.as_directory() as last:
        state = json.loads((Path(last) / STATE).read_text())
        return models.load(Folder(last)), state["history"]
