"""Training steps beside the loops one would write instead: same tuples, network, sizes, threads.

t tuples of three images in an epoch, d dims. A way is a manner of training. All ways start from one
network and take the same steps, so their losses are equal to rounding. They train on GPUs where
there are any.
"""

import copy
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.extraction import Rate
from benchmarks.training_loops import (
    DEVICE,
    EPOCHS,
    Course,
    by_shape,
    one_at_a_time,
    plain,
    spawned,
    tuples_of,
)
from mmray.config.sections import TrainingConfig
from mmray.descriptors.embedding import configure_torch
from mmray.descriptors.network import EmbeddingNet
from mmray.images.collection import Collection
from mmray.images.decoding import MAX_PIXELS
from mmray.images.pixel_shards import PixelShards
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import Pools
from mmray.pipeline.distributed import cluster
from mmray.pipeline.distributed.caching import cache_images, cached
from mmray.pipeline.distributed.cluster import TrainingWorkers
from mmray.pipeline.distributed.trainer import fine_tune
from mmray.pipeline.distributed.units import ActorPool
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.training.epoch import train_epoch
from mmray.training.image_source import ImageSource
from mmray.training.job import History, TrainingJob, optimizer_of, step_rule
from mmray.training.steps import TupleSteps

SHARD = 64  # images


def compare_training(
    images: Collection,
    model: EmbeddingNet,
    config: TrainingConfig,
    *,
    steps: int,
    workers: int,
    threads: int,
    storage: str | None = None,
) -> list[Rate]:
    """Rates of training steps: three loops over a DataLoader of the originals, and ours.

    The first takes one image at a time, as the field's code does; the second is a bare loop with
    batches of one shape, and the third the same as distributed data parallel. A loader decodes in
    the loop's process or in as many others as that has threads; the faster counts. Ours come last,
    since to fork processes beside a Ray that is connected is not safe: an epoch alone, then on Ray
    Train. They read the cache of resized images. torch is tuned alike for all. Before them the DDP
    loop, whose processes are started anew, runs once more beside Ray: what Ray's own processes take
    of the cores is the difference. Last, with the images of the tuples embedded before each epoch,
    where a way does so: images that are trained on, by the seconds of both.

    Parameters
    ----------
    images : that tuples are drawn from at random, at least 3
    config : its loss, margin, precision, tuples in a step, optimiser and size of images
    steps : in an epoch
    workers : processes of what is distributed; they share the threads
    storage : folder or URI of the cache; None: a temporary folder. What is there is taken

    Raises
    ------
    InputError
        There are fewer than 3 images, or more workers than threads, than tuples in a step or than
        GPUs, where there are any.
    """
    if len(images) < 3:
        raise InputError(f"{len(images)} images: a tuple has 3, name more with --images")
    gpus = torch.cuda.device_count()
    most = min(threads, config.batch_size, *([gpus] if gpus else []))
    if not 1 <= workers <= most:
        raise InputError(
            f"--workers {workers}: from 1 to {most}, as there are {threads} threads to share, "
            f"{config.batch_size} tuples in a step, and {gpus} GPUs"
        )
    configure_torch(threads)
    job = _random_job(images, model, config, steps)
    share, bare = threads // workers, f"bare DDP loop, {_counted(workers, 'process')}"
    courses = {
        "one image at a time": plain(job, one_at_a_time, threads),
        "bare loop, batches of one shape": plain(job, by_shape, threads),
        bare: spawned(job, workers, share),
    }
    cluster.connect()
    courses[f"{bare}, beside Ray"] = spawned(job, workers, share)
    with tempfile.TemporaryDirectory() as folder:
        reduced, seconds = _cached(job, Folder(storage or folder))
        courses["mmray, train_epoch"] = replace(_ours(reduced, Path(folder)), startup=seconds)
        for count in dict.fromkeys((1, workers)):
            course = _on_ray(reduced, count, threads // count)
            name = f"mmray, Ray Train, {_counted(count, 'worker')}"
            print(f"{name}: {_parts(course)}", flush=True)
            courses[name] = replace(course, startup=seconds + course.startup)
    base = courses["one image at a time"].losses[0]
    timed = {way: (course, course.seconds) for way, course in courses.items()}
    for way, course in courses.items():
        if course.embedding:
            whole = [sum(parts) for parts in zip(course.embedding, course.seconds, strict=True)]
            timed[f"{way}, and embedding"] = course, whole
    return [
        Rate(
            way=way,
            images_per_second=3 * len(job.pools.anchors) / min(seconds[1:]),
            startup=course.startup,
            deviation=abs(course.losses[0] / base - 1),
        )
        for way, (course, seconds) in timed.items()
    ]


def _parts(course: Course) -> str:
    """Describe what the faster epoch of a course spent its time on."""
    epochs = zip(course.embedding[1:], course.seconds[1:], course.waiting[1:], strict=True)
    embedding, training, waiting = min(epochs, key=lambda epoch: epoch[0] + epoch[1])
    whole = embedding + training
    return (
        f"an epoch of {whole:.1f} s is {embedding / whole:.0%} embedding, {waiting / whole:.1%} "
        f"waiting for images and {(training - waiting) / whole:.0%} steps"
    )


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
    pools = replace(
        Pools.empty(anchors),
        positives=tuple(positives[:, None]),
        positive_similarity=tuple(np.ones((t, 1), np.float32)),
        negatives=tuple(negatives[:, None]),
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


def _cached(job: TrainingJob, folder: Folder) -> tuple[TrainingJob, float]:
    """Return the same work on resized images, and the seconds that it took to write them."""
    start, size = time.perf_counter(), job.config.longest_side
    assert isinstance(job.images, Collection), "not cached yet"
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


def _ours(job: TrainingJob, near: Path) -> Course:
    """Train as a single worker does, by copies of images that are remote."""
    assert isinstance(job.images, PixelShards), "cached"
    images = job.images if job.images.folder.local else job.images.copied(near / "near")
    config, model = job.config, copy.deepcopy(job.model).on(DEVICE)
    optimizer = optimizer_of(model, config)
    source = ImageSource(images, longest_side=config.longest_side)
    losses, seconds = [], []
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        drawn = tuples_of(job, epoch)
        rule = step_rule(config)
        steps = TupleSteps(drawn, rule)
        metrics = train_epoch(model, [optimizer], steps, source, rule, device=DEVICE)
        losses.append(metrics["loss"])
        seconds.append(time.perf_counter() - start)
    return Course(losses=losses, seconds=seconds)


def _on_ray(job: TrainingJob, workers: int, threads: int) -> Course:
    with tempfile.TemporaryDirectory() as folder:
        started = Path(folder) / "started"

        # Not of the module: where `mmray benchmark` runs, Ray's processes cannot import this one.
        def note_start(history: History) -> None:
            if len(history) == 1:  # of the initial network; each epoch comes after it
                started.write_text(str(time.time()))

        gpu = {"GPU": 1.0} if DEVICE.type == "cuda" else {}
        start = time.time()
        trained = fine_tune(
            job,
            folder=Folder(folder) / "train",
            workers=TrainingWorkers(
                fewest=workers, most=workers, resources={"CPU": float(threads)} | gpu
            ),
            log=note_start,
        )
        ready = float(started.read_text())
    epochs = trained.history[1:]
    return Course(
        losses=[epoch["loss"] for epoch in epochs],
        seconds=[epoch["train_seconds"] for epoch in epochs],
        embedding=[epoch["embed_seconds"] for epoch in epochs],
        waiting=[epoch["image_seconds"] for epoch in epochs],
        startup=ready - start - epochs[0]["embed_seconds"],
    )
