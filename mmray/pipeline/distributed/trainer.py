"""Fine-tuning on Ray Train: the same loop on every rank, a checkpoint after each epoch."""

import inspect
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch.nn.parallel import DistributedDataParallel

from mmray.descriptors.embedding import allow_tf32, configure_torch
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import load
from mmray.images.collection import Collection
from mmray.images.pixel_shards import PixelShards
from mmray.pipeline.distributed.capacity import WorkerWatchdog, run_watched
from mmray.pipeline.distributed.cluster import TrainingWorkers
from mmray.pipeline.distributed.metrics import show_epoch
from mmray.pipeline.distributed.ray_internals import (
    CHECKPOINT_LIST,
    checkpoint_list,
    checkpoint_names,
    failures_in,
)
from mmray.system.errors import DamagedFileError, InputError, first_names
from mmray.system.folder import Folder
from mmray.system.formats import read_json, write_json
from mmray.system.locations import open_folder
from mmray.system.progress import announce, is_quiet, quietly
from mmray.system.uris import is_remote
from mmray.training.checkpoints import BEST, last_measured, saved_history, sound_history
from mmray.training.fine_tuning import FineTuning
from mmray.training.image_source import rank_and_size, slowest
from mmray.training.job import History, TrainingJob
from mmray.training.validation import SPREAD, collapsed

CHECKPOINTS = "checkpoints"
REFUSED = "refused.json"  # the error of a rank that cannot go on, for other ranks and the driver
RANKS = "RayTrainWorker"  # class name of Ray Train's actors
SHOWN = ("loss", "view_agreement", "manifold_map", "map")  # of an epoch, on the terminal
FAILURES = 10  # workers and machines that may vanish before training gives up
RESIZE_EVERY = 300.0  # seconds between checks for room for more workers

Log = Callable[[History], None]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Result of training: the last network, the best network, and the metrics of every epoch.

    Both are means of networks where `TrainingConfig.average` is set.
    """

    last: EmbeddingNet
    best: EmbeddingNet
    history: History


def fine_tune(
    job: TrainingJob, *, folder: Folder, workers: TrainingWorkers, log: Log = lambda history: None
) -> TrainingResult:
    """Fine-tune a network, from the last checkpoint in `folder` if there is one.

    Parameters
    ----------
    job : network, data and settings
    folder : of the checkpoints
    workers : number of ranks, and their resources
    log : called by rank 0 with the metrics of all epochs, after each new checkpoint and when
        training continues from one

    Raises
    ------
    InputError
        Training diverged, an image can no longer be read, or no worker could start in time.
    DamagedFileError
        A file of cached images is damaged.
    """
    filesystem, path = open_folder(folder.uri)  # Ray would show a URI, and what is secret in it
    elastic = workers.fewest < workers.most
    if folder.has(REFUSED):
        folder.delete(REFUSED)
    _remove_damaged(folder / CHECKPOINTS)
    trainer = TorchTrainer(
        _train_on_rank,
        train_loop_config={
            "job": ray.put(job),
            "threads": int(workers.resources["CPU"]),
            "log": log,
            "folder": folder,
            "quiet": is_quiet(),
        },
        # Ray's type hints for these two are those of version 1 of Ray Train.
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]
            num_workers=(workers.fewest, workers.most) if elastic else workers.most,  # type: ignore[arg-type]
            use_gpu="GPU" in workers.resources,
            resources_per_worker=workers.resources,
            elastic_resize_monitor_interval_s=RESIZE_EVERY,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem if is_remote(folder.uri) else None,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=FAILURES),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    watchdog = WorkerWatchdog(
        "train", workers=RANKS, needs=workers.resources, timeout=workers.timeout
    )
    # In a thread Ray Train does not handle Ctrl-C; its handler would wait for the workers first.
    try:
        result = run_watched(trainer.fit, watchdog.check)
    except ray.train.TrainingFailedError as error:
        failures = failures_in(error)
        for kind in (InputError, ray.exceptions.RayError):  # any other is a mistake in the code
            for failure in failures:
                if isinstance(failure, kind):
                    raise failure from error
        raise
    if folder.has(REFUSED):
        refused = read_json(folder, REFUSED)
        if refused["damaged"] is not None:
            raise DamagedFileError(refused["damaged"], refused["reason"])
        raise InputError(refused["reason"])
    assert result.checkpoint is not None, "every epoch reports a checkpoint"
    with result.checkpoint.as_directory() as path:
        return TrainingResult(
            last=last_measured(Path(path)),
            best=load(Folder(path) / BEST),
            history=saved_history(Path(path)),
        )


def _remove_damaged(checkpoints: Folder) -> None:
    """Remove damaged checkpoints, so that training continues from the newest that is whole."""
    sizes = checkpoints.sizes()
    listed, there = None, sorted({name.partition("/")[0] for name in sizes if "/" in name})
    if CHECKPOINT_LIST in sizes:
        with suppress(ValueError, LookupError, TypeError):
            listed = checkpoint_names(checkpoints.read(CHECKPOINT_LIST))
    elif not there:
        return
    whole: list[tuple[str, Mapping[str, float]]] = []
    for name in there if listed is None else listed:
        history = sound_history(checkpoints / name, sealed=listed is None)
        if history is not None:
            whole.append((name, history[-1]))
    names = [name for name, _ in whole]
    damaged = sorted({*there, *(listed or ())}.difference(names))
    if listed == names:
        for name in damaged:  # of which the upload was cut off
            (checkpoints / name).remove()
        return
    start = f"goes on from {whole[-1][0]}" if whole else "begins anew"
    announce(
        f"train: damaged: {first_names(damaged) if damaged else CHECKPOINT_LIST}; training {start}"
    )
    if not whole:
        checkpoints.remove()
        return
    checkpoints.write(CHECKPOINT_LIST, checkpoint_list(whole))
    for name in damaged:
        (checkpoints / name).remove()


def _need_room(folder: Folder, checkpoint: Folder) -> None:
    """Raise an InputError if a checkpoint finds no room: Ray Train would try for minutes."""
    if folder.local is None:
        return
    needed, free = sum(checkpoint.sizes().values()), shutil.disk_usage(folder.local).free
    if needed > free:
        raise InputError(
            f"{folder.uri}: no room for a checkpoint of {needed / 1e6:.0f} MB ({free / 1e6:.0f} MB "
            "are free); make room, then run the same command again: what is done is kept"
        )


def _train_on_rank(arguments: dict[str, Any]) -> None:
    """Train on one rank; store an InputError for the other ranks and the driver."""
    folder: Folder = arguments["folder"]
    if folder.has(REFUSED):
        return
    try:
        with quietly(arguments["quiet"]):
            _train(arguments["job"], arguments["threads"], arguments["log"], folder)
    except InputError as error:
        # Ray Train would restart all ranks again and again, and then show its own error: restarted
        # ranks find this file and end.
        location, reason = None, str(error)
        if isinstance(error, DamagedFileError):
            location, reason = error.location, error.reason
        with suppress(InputError):  # on a full disk: `failures_in` finds the error after all tries
            write_json(folder, REFUSED, {"damaged": location, "reason": reason})
        # The job says it in one sentence; Ray Train would print a traceback for each rank.
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        raise


def _train(job: ray.ObjectRef[TrainingJob], threads: int, log: Log, folder: Folder) -> None:
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train prints every report in full
    configure_torch(threads)
    given, device = ray.get(job), get_device()
    local_rank = ray.train.get_context().get_local_rank()
    images = _near(given.images, folder, local_rank)
    slowest(0.0, device)  # so that all ranks wait for what the first of each machine copies
    tuning = FineTuning(replace(given, images=images), device)
    allow_tf32(tuning.config.precision == "tf32")
    first = rank_and_size()[0] == 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as path:
            tuning.restore(Path(path))
        if first:  # the job may have been stopped between the checkpoint and the log
            log(tuning.history)

    def report() -> None:
        """Give the checkpoint to Ray Train, which stores it and waits for every rank."""
        metrics, name = tuning.history[-1], f"epoch-{tuning.epoch:03d}"
        with tempfile.TemporaryDirectory() as path:
            reported = None
            if first:
                tuning.save(Path(path))
                _need_room(folder, Folder(path))
                reported = ray.train.Checkpoint.from_directory(path)
            ray.train.report(metrics, reported, checkpoint_dir_name=name)
        if first:
            show_epoch(tuning.epoch, tuning.images_in_epoch, metrics)
            shown = [f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics]
            announce(f"  epoch {tuning.epoch}/{tuning.config.epochs}: {', '.join(shown)}")
            if collapsed(tuning.history) and tuning.epoch:
                before, now = tuning.history[0][SPREAD], metrics[SPREAD]
                announce(
                    f"  the embedding collapses: 1 - mean cosine is {now:.2f}, initially "
                    f"{before:.2f}; use the triplet loss, which resists (--training.loss triplet), "
                    "or lower --training.learning-rate, which delays it"
                )
            log(tuning.history)

    tuning.run(prepare_model(tuning.network, parallel_strategy_kwargs=_ddp_options()), report)
    if isinstance(images, PixelShards) and images.origin is not None and local_rank == 0:
        images.folder.remove()


def _near(
    images: Collection | PixelShards, stage: Folder, local_rank: int
) -> Collection | PixelShards:
    """Return images of which each machine has a copy, made by its first rank, if they are remote.

    The copies are removed when training ends; if it is interrupted, the same command takes them.
    """
    if not isinstance(images, PixelShards) or images.folder.local is not None:
        return images
    own = Path(tempfile.gettempdir()) / f"mmray-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != os.getuid():
        raise InputError(f"{own} belongs to somebody else: name another folder by TMPDIR")
    names = (each.uri.partition("?")[0].rpartition("/")[2] for each in (stage, images.folder))
    target = own / "-".join(names)
    if local_rank == 0:
        return images.copied(target)
    return PixelShards(Folder(str(target)), images.counts, images.folder)


def _ddp_options() -> dict[str, bool]:
    """Return options of `DistributedDataParallel`: BatchNorm is frozen, with nothing to broadcast.

    PyTorch 2.13 gave the option another name, and warns of the old one.
    """
    names = inspect.signature(DistributedDataParallel).parameters
    return {next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in names): False}
