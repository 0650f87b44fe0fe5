"""Training steps beside the loops one would write instead: same tuples, network, sizes, threads.

t tuples of three images in an epoch, d dims. A way is a manner of training. All ways start from one
network and take the same steps, so their losses are equal to rounding. On CPUs only.
"""

import copy
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from jobs.benchmarks.extraction import Photos, Rate
from mmray.config.sections import TrainingConfig
from mmray.descriptors.embedding import as_batch, configure_torch
from mmray.descriptors.network import EmbeddingNet
from mmray.images.collection import Collection
from mmray.images.decoding import MAX_PIXELS, same_shape_batches
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import Pools
from mmray.pipeline.distributed import cluster
from mmray.pipeline.distributed.caching import cache_images, cached
from mmray.pipeline.distributed.cluster import TrainingWorkers
from mmray.pipeline.distributed.trainer import fine_tune
from mmray.pipeline.distributed.units import ActorPool
from mmray.system.arrays import Ids, Pixels
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.training import tuples
from mmray.training.epoch import train_epoch
from mmray.training.image_source import ImageSource, rank_and_size
from mmray.training.job import History, TrainingJob, optimizer_of, step_rule
from mmray.training.losses import MARGINS, contrastive_loss, triplet_loss
from mmray.training.steps import TupleSteps
from mmray.training.tuples import Tuples

EPOCHS = 3  # the first one warms up; the faster of the others counts
SHARD = 64  # images
CPU = torch.device("cpu")

Forward = Callable[[nn.Module, Sequence[Pixels]], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Course:
    """What was seen of a way: mean losses and seconds of its epochs, and of its start-up."""

    losses: list[float]
    seconds: list[float]
    startup: float = 0.0


def compare_training(
    images: Collection,
    model: EmbeddingNet,
    config: TrainingConfig,
    *,
    steps: int,
    workers: int,
    threads: int,
) -> list[Rate]:
    """Rates of training steps: three loops over a DataLoader of the originals, and ours.

    The first takes one image at a time, as the field's code does; the second is a bare loop with
    batches of one shape, and the third the same as distributed data parallel. A loader decodes in
    the loop's process or in as many others as that has threads; the faster counts. Ours come last,
    since to fork processes beside a Ray that is connected is not safe: an epoch alone, then on Ray
    Train. They read the cache of resized images. torch is tuned alike for all. Before them the DDP
    loop, whose processes are started anew, runs once more beside Ray: what Ray's own processes take
    of the cores is the difference.

    Parameters
    ----------
    images : that tuples are drawn from at random, at least 3
    config : its loss, margin, precision, tuples in a step, optimiser and size of images
    steps : in an epoch
    workers : processes of what is distributed; they share the threads

    Raises
    ------
    InputError
        There are fewer than 3 images, or more workers than threads or than tuples in a step.
    """
    if len(images) < 3:
        raise InputError(f"{len(images)} images: a tuple has 3, name more with --images")
    most = min(threads, config.batch_size)
    if not 1 <= workers <= most:
        raise InputError(
            f"--workers {workers}: from 1 to {most}, as there are {threads} threads to share and "
            f"{config.batch_size} tuples in a step"
        )
    configure_torch(threads)
    job = _random_job(images, model, config, steps)
    share, bare = threads // workers, f"bare DDP loop, {_counted(workers, 'process')}"
    courses = {
        "one image at a time": _plain(job, _alone, threads),
        "bare loop, batches of one shape": _plain(job, _by_shape, threads),
        bare: _spawned(job, workers, share),
    }
    cluster.connect()
    courses[f"{bare}, beside Ray"] = _spawned(job, workers, share)
    with tempfile.TemporaryDirectory() as folder:
        reduced, seconds = _cached(job, Folder(folder))
        courses["mmray, train_epoch"] = replace(_ours(reduced), startup=seconds)
        for count in dict.fromkeys((1, workers)):
            course = _on_ray(reduced, count, threads // count)
            name = f"mmray, Ray Train, {_counted(count, 'worker')}"
            courses[name] = replace(course, startup=seconds + course.startup)
    base = courses["one image at a time"].losses[0]
    return [
        Rate(
            way=way,
            images_per_second=3 * len(job.pools.anchors) / min(course.seconds[1:]),
            startup=course.startup,
            deviation=abs(course.losses[0] / base - 1),
        )
        for way, course in courses.items()
    ]


def _counted(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{plural if count > 1 else ''}"


def _random_job(
    images: Collection, model: EmbeddingNet, config: TrainingConfig, steps: int
) -> TrainingJob:
    """Pools that leave no choice: every epoch has the same t tuples, in another order."""
    rng, t = np.random.default_rng(0), steps * config.batch_size
    members = np.stack([rng.choice(len(images), 3, replace=False) for _ in range(t)])
    # Fine-tuning embeds all images that it is given, before each epoch.
    ids, places = np.unique(members, return_inverse=True)
    anchors, positives, negatives = places.reshape(t, 3).T
    none: tuple[Any, ...] = tuple(np.zeros((t, 0)))
    pools = Pools(
        anchors=anchors,
        positives=tuple(positives[:, None]),
        positive_similarity=tuple(np.ones((t, 1), np.float32)),
        positive_rank_e=none,
        negatives=tuple(negatives[:, None]),
        negative_similarity=none,
        negative_rank_m=none,
        manifold_neighbors=none,
        zero_positives=np.zeros(t, np.int64),
        residual=np.zeros(t),
        iterations=np.zeros(t, np.int64),
    )
    return TrainingJob(
        model=model,
        images=images.take(ids),
        pools=pools,
        validation_neighbors=ManifoldNeighbors(
            items=np.empty(0, np.int64), neighbors=(), similarity=()
        ),
        config=replace(config, epochs=EPOCHS, anchors_per_epoch=t, schedule="constant"),
        seed=0,
        max_pixels=MAX_PIXELS,
        labelled=None,
    )


def _tuples_of(job: TrainingJob, epoch: int) -> Tuples:
    """Those that fine-tuning draws for an epoch, from 0."""
    rng = np.random.default_rng([job.seed, epoch + 1])
    pairs = tuples.sample_pairs(job.pools, job.config.anchors_per_epoch, rng)
    # There is one negative, however far it is.
    rows = np.zeros((len(pairs.needed), 1), np.float32)
    return tuples.add_negatives(pairs, rows, rng=rng)


# -- what one would write ---------------------------------------------------------------------


def _alone(model: nn.Module, images: Sequence[Pixels]) -> Tensor:
    """Embeddings (m, d), one image at a time."""
    return torch.cat([model(as_batch([image], CPU)) for image in images])


def _by_shape(model: nn.Module, images: Sequence[Pixels]) -> Tensor:
    """Embeddings (m, d), the images of one shape together."""
    batches = same_shape_batches([image.shape[:2] for image in images], len(images))
    rows = model([as_batch([images[place] for place in batch], CPU) for batch in batches])
    ordered: Tensor = rows[np.argsort(np.concatenate(batches))]
    return ordered


def _plain(job: TrainingJob, forward: Forward, threads: int) -> _Course:
    return _plain_epochs(job, copy.deepcopy(job.model), forward, threads)


def _plain_epochs(job: TrainingJob, model: nn.Module, forward: Forward, threads: int) -> _Course:
    """All epochs of one rank; the losses are those of all ranks."""
    config, (rank, size) = job.config, rank_and_size()
    photos, optimizer = Photos(job.images, config.longest_side), optimizer_of(model, config)
    losses, seconds = [], []
    model.train()
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        drawn = _tuples_of(job, epoch)
        members = np.hstack([drawn.anchors[:, None], drawn.positives, drawn.negatives])
        firsts = range(0, len(members), config.batch_size)
        stripes = [members[first : first + config.batch_size][rank::size] for first in firsts]
        decoders = threads if epoch == EPOCHS - 1 else 0
        total = _plain_epoch(job, model, optimizer, _loader(photos, stripes, decoders), forward)
        if size > 1:
            torch.distributed.all_reduce(total)
        losses.append(total.item() / len(members))
        seconds.append(time.perf_counter() - start)
    return _Course(losses=losses, seconds=seconds)


def _loader(photos: Photos, stripes: Sequence[Ids], decoders: int) -> DataLoader[Pixels]:
    steps = [stripe.ravel().tolist() for stripe in stripes]
    return DataLoader(photos, batch_sampler=steps, num_workers=decoders, collate_fn=list)


def _plain_epoch(
    job: TrainingJob,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Pixels],
    forward: Forward,
) -> Tensor:
    """Sum of the losses of this rank's tuples."""
    config, (_, size) = job.config, rank_and_size()
    function = {"contrastive": contrastive_loss, "triplet": triplet_loss}[config.loss]
    margin = MARGINS[config.loss] if config.margin is None else config.margin
    total = torch.zeros(())
    for images in loader:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            rows = forward(model, images)
        anchors, positives, negatives = rows.unflatten(0, (-1, 3)).unbind(1)
        loss = function(anchors, positives, negatives, margin=margin).sum()
        optimizer.zero_grad()
        (loss * size / config.batch_size).backward()  # DDP takes the mean over the ranks
        optimizer.step()
        total += loss.detach()
    return total


def _spawned(job: TrainingJob, workers: int, threads: int) -> _Course:
    """Processes of distributed data parallel, by gloo."""
    # It is read only after the processes have ended: what they put there is small.
    answers = get_context("spawn").SimpleQueue()
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, threads, f"file://{folder}/meeting", job, answers)
        spawn(_ddp_rank, arguments, nprocs=workers)
    course: _Course
    course, ready = answers.get()
    return replace(course, startup=ready - start)


def _ddp_rank(
    rank: int, size: int, threads: int, meeting: str, job: TrainingJob, answers: Any
) -> None:
    configure_torch(threads)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    # A copy, as torch sends weights in memory that all processes share. BatchNorm's statistics are
    # frozen: there is nothing to broadcast.
    model = DistributedDataParallel(copy.deepcopy(job.model), broadcast_buffers=False)
    ready = time.time()
    course = _plain_epochs(job, model, _by_shape, threads)
    if rank == 0:
        answers.put((course, ready))
    torch.distributed.barrier()
    # Now and then torch waits for ever in ending gloo: whoever frees the model holds the
    # interpreter's lock while it waits for a thread that needs that lock to free a gradient.
    os._exit(0)


# -- ours -------------------------------------------------------------------------------------


def _cached(job: TrainingJob, folder: Folder) -> tuple[TrainingJob, float]:
    """The same work on resized images, and the seconds that it took to write them."""
    start, size = time.perf_counter(), job.config.longest_side
    cache_images(
        job.images,
        longest_side=size,
        max_pixels=job.max_pixels,
        output=folder,
        pool=ActorPool(),
        shard_size=SHARD,
        label="cache",
    )
    images = cached(job.images, folder, longest_side=size, shard_size=SHARD)
    return replace(job, images=images), time.perf_counter() - start


def _ours(job: TrainingJob) -> _Course:
    """What a single worker does."""
    config, model = job.config, copy.deepcopy(job.model)
    optimizer = optimizer_of(model, config)
    source = ImageSource(job.images, longest_side=config.longest_side)
    losses, seconds = [], []
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        drawn = _tuples_of(job, epoch)
        rule = step_rule(config)
        metrics = train_epoch(model, [optimizer], TupleSteps(drawn, rule), source, rule, device=CPU)
        losses.append(metrics["loss"])
        seconds.append(time.perf_counter() - start)
    return _Course(losses=losses, seconds=seconds)


def _on_ray(job: TrainingJob, workers: int, threads: int) -> _Course:
    """Embedding before each epoch, which no other way does, is left out of the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = Path(folder) / "started"
        start = time.time()
        trained = fine_tune(
            job,
            folder=Folder(folder) / "train",
            workers=TrainingWorkers(
                fewest=workers, most=workers, resources={"CPU": float(threads)}
            ),
            log=partial(_note_start, started),
        )
        ready = float(started.read_text())
    epochs = trained.history[1:]
    return _Course(
        losses=[epoch["loss"] for epoch in epochs],
        seconds=[epoch["train_seconds"] for epoch in epochs],
        startup=ready - start - epochs[0]["embed_seconds"],
    )


def _note_start(file: Path, history: History) -> None:
    """Is told of the initial network, and then of each epoch."""
    if len(history) == 1:
        file.write_text(str(time.time()))
