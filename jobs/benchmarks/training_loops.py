"""Loops of training that one would write instead of ours, in one process and distributed.

t tuples of three images in an epoch, m images, d dims. They read the originals by a DataLoader and
take the steps that our own training takes, so their losses are equal to rounding. They train on
GPUs where there are any.
"""

import copy
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from benchmarks.extraction import Photos
from mmray.descriptors.embedding import as_batch, configure_torch
from mmray.images.collection import Collection
from mmray.images.decoding import same_shape_batches
from mmray.system.arrays import Ids, Pixels
from mmray.training import tuples
from mmray.training.image_source import rank_and_size
from mmray.training.job import TrainingJob, optimizer_of
from mmray.training.losses import MARGINS, contrastive_loss, triplet_loss
from mmray.training.tuples import Tuples

EPOCHS = 3  # the first one warms up; the faster of the others counts
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Forward = Callable[[nn.Module, Sequence[Pixels]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Course:
    """Mean losses and seconds of the epochs of one manner of training, and its start-up.

    `embedding` is the seconds of embedding all images before each epoch, where that was done, and
    `waiting` those of `seconds` that passed waiting for images, where that was measured.
    """

    losses: list[float]
    seconds: list[float]
    embedding: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    startup: float = 0.0


def tuples_of(job: TrainingJob, epoch: int) -> Tuples:
    """Draw the tuples of an epoch, from 0, as fine-tuning does."""
    rng = np.random.default_rng([job.seed, epoch + 1])
    pairs = tuples.sample_pairs(job.pools, job.config.anchors_per_epoch, rng)
    # There is one negative, however far it is.
    rows = np.zeros((len(pairs.needed), 1), np.float32)
    return tuples.add_negatives(pairs, rows, rng=rng)


def one_at_a_time(model: nn.Module, images: Sequence[Pixels]) -> Tensor:
    """Embeddings (m, d), one image at a time."""
    return torch.cat([model(as_batch([image], DEVICE)) for image in images])


def by_shape(model: nn.Module, images: Sequence[Pixels]) -> Tensor:
    """Embeddings (m, d), the images of one shape together."""
    batches = same_shape_batches([image.shape[:2] for image in images], len(images))
    rows = model([as_batch([images[place] for place in batch], DEVICE) for batch in batches])
    ordered: Tensor = rows[np.argsort(np.concatenate(batches))]
    return ordered


def plain(job: TrainingJob, forward: Forward, threads: int) -> Course:
    """Train in this process, images being decoded by it or by so many others."""
    model = copy.deepcopy(job.model).on(DEVICE)
    return _epochs(job, model, forward, threads, embeds=forward is by_shape)


def _epochs(
    job: TrainingJob, model: nn.Module, forward: Forward, threads: int, *, embeds: bool
) -> Course:
    """Run all epochs of one rank; the losses are those of all ranks."""
    config, (rank, size) = job.config, rank_and_size()
    assert isinstance(job.images, Collection), "not cached"
    photos, optimizer = Photos(job.images, config.longest_side), optimizer_of(model, config)
    losses, seconds, embedding = [], [], []
    for epoch in range(EPOCHS):
        decoders = threads if epoch == EPOCHS - 1 else 0
        start = time.perf_counter()
        if embeds:
            model.eval()
            with torch.no_grad():
                ids, size_of_batch = np.arange(len(photos))[rank::size], config.embed_batch_size
                batches = np.array_split(ids, -(-len(ids) // size_of_batch))
                for images in _loader(photos, batches, decoders):
                    forward(model, images).cpu()
            embedding.append(time.perf_counter() - start)
        model.train()
        start = time.perf_counter()
        drawn = tuples_of(job, epoch)
        members = np.hstack([drawn.anchors[:, None], drawn.positives, drawn.negatives])
        firsts = range(0, len(members), config.batch_size)
        stripes = [members[first : first + config.batch_size][rank::size] for first in firsts]
        total = _epoch(job, model, optimizer, _loader(photos, stripes, decoders), forward)
        if size > 1:
            torch.distributed.all_reduce(total)
        losses.append(total.item() / len(members))
        seconds.append(time.perf_counter() - start)
    return Course(losses=losses, seconds=seconds, embedding=embedding)


def _loader(photos: Photos, stripes: Sequence[Ids], decoders: int) -> DataLoader[Pixels]:
    steps = [stripe.ravel().tolist() for stripe in stripes]
    return DataLoader(photos, batch_sampler=steps, num_workers=decoders, collate_fn=list)


def _epoch(
    job: TrainingJob,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Pixels],
    forward: Forward,
) -> Tensor:
    """Run an epoch; returns the sum of the losses of this rank's tuples."""
    config, (_, size) = job.config, rank_and_size()
    function = {"contrastive": contrastive_loss, "triplet": triplet_loss}[config.loss]
    margin = MARGINS[config.loss] if config.margin is None else config.margin
    total = torch.zeros((), device=DEVICE)
    half = config.precision == "bfloat16"
    for images in loader:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
            rows = forward(model, images)
        anchors, positives, negatives = rows.unflatten(0, (-1, 3)).unbind(1)
        loss = function(anchors, positives, negatives, margin=margin).sum()
        optimizer.zero_grad()
        (loss * size / config.batch_size).backward()  # DDP takes the mean over the ranks
        optimizer.step()
        total += loss.detach()
    return total


def spawned(job: TrainingJob, workers: int, threads: int) -> Course:
    """Train in processes of distributed data parallel, which speak by gloo, or NCCL on GPUs."""
    # It is read only after the processes have ended: what they put there is small.
    answers = get_context("spawn").SimpleQueue()
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, threads, f"file://{folder}/meeting", job, answers)
        spawn(_ddp_rank, arguments, nprocs=workers)
    course: Course
    course, ready = answers.get()
    return replace(course, startup=ready - start)


def _ddp_rank(
    rank: int, size: int, threads: int, meeting: str, job: TrainingJob, answers: Any
) -> None:
    configure_torch(threads)
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    if DEVICE.type == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=size)
    # A copy, as torch sends weights in memory that all processes share. BatchNorm's statistics are
    # frozen: there is nothing to broadcast.
    own = copy.deepcopy(job.model).on(DEVICE)
    model = DistributedDataParallel(own, broadcast_buffers=False)
    ready = time.time()
    course = _epochs(job, model, by_shape, threads, embeds=True)
    if rank == 0:
        answers.put((course, ready))
    torch.distributed.barrier()
    # Now and then torch waits for ever in ending gloo: whoever frees the model holds the
    # interpreter's lock while it waits for a thread that needs that lock to free a gradient.
    os._exit(0)
