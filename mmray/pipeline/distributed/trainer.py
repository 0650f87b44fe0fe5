"""Fine-tuning on Ray Train: the same loop on every rank, a checkpoint an epoch."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer, get_device, prepare_model

from mmray.descriptors.embedding import configure_torch
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import load
from mmray.pipeline.distributed.capacity import WorkerWatchdog, run_watched
from mmray.pipeline.distributed.cluster import TrainingWorkers
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.progress import announce
from mmray.training.checkpoints import BEST, last_measured, saved_history
from mmray.training.fine_tuning import FineTuning
from mmray.training.image_source import rank_and_size
from mmray.training.job import History, TrainingJob
from mmray.training.validation import SPREAD, collapsed

CHECKPOINTS = "checkpoints"
REFUSED = "refused.txt"  # why a rank cannot go on, for the others and the driver
RANKS = "RayTrainWorker"  # what Ray Train calls its actors
SHOWN = ("loss", "manifold_map", "map")  # of an epoch's metrics, on the terminal
FAILURES = 10  # workers and machines that may vanish before training gives up
RESIZE_EVERY = 300.0  # seconds between two looks whether more workers have room

Log = Callable[[History], None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training left: the last network, that of the best epoch, metrics of every epoch.

    Either is a mean of networks where such means are measured.
    """

    last: EmbeddingNet
    best: EmbeddingNet
    history: History


def fine_tune(
    job: TrainingJob, *, folder: Folder, workers: TrainingWorkers, log: Log = lambda history: None
) -> TrainingResult:
    """Train, or go on training, with checkpoints in `folder`.

    Parameters
    ----------
    log : is given the metrics of all epochs by rank 0 whenever there is a new checkpoint, and where
        it goes on from one

    Raises
    ------
    InputError
        Training diverged, an image vanished, too many workers were lost, or no machine came.
    """
    elastic = workers.fewest < workers.most
    if folder.has(REFUSED):
        folder.delete(REFUSED)
    trainer = TorchTrainer(
        _train_on_rank,
        train_loop_config={
            "job": ray.put(job),
            "threads": int(workers.resources["CPU"]),
            "log": log,
            "folder": folder,
        },
        # Ray types these two as those of Train's version 1.
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]
            num_workers=(workers.fewest, workers.most) if elastic else workers.most,  # type: ignore[arg-type]
            use_gpu="GPU" in workers.resources,
            resources_per_worker=workers.resources,
            elastic_resize_monitor_interval_s=RESIZE_EVERY,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=CHECKPOINTS,
            storage_path=folder.uri,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=FAILURES),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    attendance = WorkerWatchdog(
        "train", workers=RANKS, needs=workers.resources, timeout=workers.timeout
    )
    # In a thread Ray Train leaves Ctrl-C alone: its own handler would wait for the workers first.
    result = run_watched(trainer.fit, attendance.check)
    if folder.has(REFUSED):
        raise InputError(folder.read(REFUSED).decode())
    assert result.checkpoint is not None, "every epoch reports a checkpoint"
    with result.checkpoint.as_directory() as path:
        return TrainingResult(
            last=last_measured(Path(path)),
            best=load(Folder(path) / BEST),
            history=saved_history(Path(path)),
        )


def _train_on_rank(arguments: dict[str, Any]) -> None:
    folder: Folder = arguments["folder"]
    if folder.has(REFUSED):
        return
    try:
        _train(arguments["job"], arguments["threads"], arguments["log"])
    except InputError as error:
        # Ray Train would start all ranks again and again, and then show its own error: they find
        # this instead, and end.
        folder.write(REFUSED, str(error).encode())
        raise


def _train(job: ray.ObjectRef[TrainingJob], threads: int, log: Log) -> None:
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train prints every report in full
    configure_torch(threads)
    tuning = FineTuning(ray.get(job), get_device())
    first = rank_and_size()[0] == 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as path:
            tuning.restore(Path(path))
        if first:  # it may have been stopped between the two
            log(tuning.history)

    def report() -> None:
        """Give the checkpoint to Ray Train, which stores it and waits for every rank."""
        metrics, name = tuning.history[-1], f"epoch-{tuning.epoch:03d}"
        with tempfile.TemporaryDirectory() as path:
            reported = None
            if first:
                tuning.save(Path(path))
                reported = ray.train.Checkpoint.from_directory(path)
            ray.train.report(metrics, reported, checkpoint_dir_name=name)
        if first:
            shown = [f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics]
            announce(f"  epoch {tuning.epoch}/{tuning.config.epochs}: {', '.join(shown)}")
            if collapsed(tuning.history) and tuning.epoch:
                before, now = tuning.history[0][SPREAD], metrics[SPREAD]
                announce(
                    f"  the embedding collapses: 1 - mean cosine {now:.2f}, first {before:.2f}; "
                    "the triplet loss resists (--training.loss triplet), a lower "
                    "--training.learning-rate delays it"
                )
            log(tuning.history)

    # BatchNorm statistics are frozen, the same on all ranks: nothing to broadcast.
    options = {"broadcast_buffers": False}
    tuning.run(prepare_model(tuning.network, parallel_strategy_kwargs=options), report)
