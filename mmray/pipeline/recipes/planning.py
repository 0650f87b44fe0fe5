"""Dry runs: the memory, disk and time that each stage of a job needs, beside what machines have.

n items, d dimensions.
"""

import time

import numpy as np
import torch

from mmray.config.learning import LearningConfig
from mmray.config.run import MiningRunConfig
from mmray.config.tools import MineConfig
from mmray.config.validation import validate
from mmray.descriptors.embedding import configure_torch, embed
from mmray.descriptors.files.reading import read_feature_set
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import build
from mmray.mining.knn.forecast import SAMPLE, exact_seconds
from mmray.mining.needs import (
    GB,
    Needs,
    Sizes,
    check_needs,
    description_needs,
    needs,
    pool_images,
)
from mmray.pipeline import distributed
from mmray.pipeline.reports.tables import Table
from mmray.pipeline.stages.room import known, needs_here, sizes_of
from mmray.system.errors import InputError
from mmray.system.rows import Rows

_PHOTOS = 6  # of noise, by which the network is timed
_FULL_SIDE = 1024  # pixels, where photos are not reduced
_DECODED = 0.012  # seconds of a CPU to read and decode a photo of a megapixel


def plan_mining(config: MineConfig) -> Table:
    """Tell what mining needs on the features that are given, or on as many like them as are asked.

    Raises
    ------
    InputError
        A setting or the features cannot be used.
    """
    validate(config)
    features = read_feature_set(config.features).features
    sizes, told = _mining(config, Rows(lambda: features))
    return needs_here(f"{sizes.n:,} items of {sizes.d} dimensions", told, sizes, config.mining)


def plan_learning(config: LearningConfig) -> Table:
    """Tell what learning from images needs, up to the training; no image is looked at.

    Raises
    ------
    InputError
        A setting cannot be used, or the number of images is not given.
    """
    validate(config)
    n = config.dry_run_items
    if n is None:
        raise InputError("--dry-run: say of how many images, with --dry-run-items 1000000")
    network = build(config.network, pooling=config.training.pooling, weights=config.weights)
    poolings = config.extraction.poolings
    d = config.extraction.pca or network.dimensions(poolings[0])
    # Random directions, which are searched as fast as any.
    directions = np.random.default_rng(0).standard_normal((min(n, SAMPLE), d), np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    sizes, mining = _mining(config, Rows(lambda: directions))
    seconds = n * (_DECODED + _described(config, network))
    width = len(poolings) * network.width(poolings)
    told = [description_needs(n, width, seconds), *mining, check_needs(n, config.mining)]
    side, images = config.training.longest_side, pool_images(n, known(config.mining))
    cached = images * 3 * side * side * 0.75 / GB
    return needs_here(
        f"{n:,} images, {d} dimensions",
        told,
        sizes,
        config.mining,
        note=f"Training keeps up to {images:,} images of the pools at {side} px on the storage, "
        f"{cached:,.1f} GB; its time depends on their number. Times are of CPUs, for photos of "
        "about a megapixel.",
    )


def _mining(config: MiningRunConfig, rows: Rows) -> tuple[Sizes, tuple[Needs, ...]]:
    capacity = distributed.Capacity(given_cpus=config.num_cpus, given_gpus=config.num_gpus)
    distributed.connect(capacity)
    device = distributed.mining_device(config.mining.device, capacity)
    sizes, seconds = sizes_of(rows, config.mining, device, config.dry_run_items), None
    mining = known(config.mining)
    if device == "cpu" and mining.search == "exact":
        k = mining.width(mining.chosen_sizes[0])
        seconds = exact_seconds(np.asarray(rows.read(0, SAMPLE)), sizes.n, k)
    return sizes, needs(sizes, mining, seconds=seconds)


def _described(config: LearningConfig, network: EmbeddingNet) -> float:
    """Return the seconds that one CPU takes to describe a photo of noise."""
    settings = config.extraction
    side = settings.longest_side or _FULL_SIDE
    noise = np.random.default_rng(0).integers(0, 256, (_PHOTOS, side * 3 // 4, side, 3))
    photos = noise.astype(np.uint8)
    threads = torch.get_num_threads()
    configure_torch(1)
    try:
        for images in (photos[:1], photos):  # the first warms it up
            start = time.thread_time()
            embed(
                network,
                list(images),
                settings.poolings,
                batch_size=settings.batch_size,
                device=torch.device("cpu"),
            )
        return (time.thread_time() - start) / _PHOTOS
    finally:
        torch.set_num_threads(threads)
