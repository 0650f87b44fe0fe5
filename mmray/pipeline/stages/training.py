"""The training stages: cache the images, and fine-tune on mined pools or on labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.config.bounds import execution_settings
from mmray.config.choices import SupervisedBaseline
from mmray.config.learning import LearningConfig, RetrievalConfig
from mmray.config.run import stored
from mmray.config.sections import TrainingConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import load, save, state_digest
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.candidates import TUNED
from mmray.images.collection import Collection
from mmray.images.pixel_shards import PixelShards
from mmray.mining.manifold import ManifoldNeighbors
from mmray.pipeline import distributed
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.mining import MiningResult
from mmray.system.arrays import Ids
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import Folder
from mmray.system.formats import read_json, write_json
from mmray.system.progress import announce
from mmray.training.checkpoints import renamed_history
from mmray.training.job import History, TrainingJob
from mmray.training.supervised.labelled_tuples import NO_POOLS
from mmray.training.supervised.losses import BASELINE_LABELS, LabelledImages
from mmray.training.supervised.sfm_tuples import SfmTuples
from mmray.training.validation import best_epoch, checked_images, chosen_by

SUPERVISED = "supervised (uses labels)"


@dataclass(frozen=True)
class FineTunedNetwork:
    """The network that training kept.

    Attributes
    ----------
    network : the network
    epoch : after which it was kept; 0: it is the initial network
    label : of the network in tables and reports
    history : metrics of the initial network, and of the network after each epoch
    """

    network: EmbeddingNet
    epoch: int
    label: str = TUNED
    history: Sequence[Mapping[str, float]] = ()

    @property
    def epochs(self) -> int:
        """Return the number of epochs that were trained."""
        return max(0, len(self.history) - 1)


def tuples_stage(session: Session[RetrievalConfig], given: SfmTuples) -> MiningResult:
    """Run the stage that takes labelled pairs of a file in place of mined pools."""
    pairs = given.pairs
    counts = {
        "images": len(given.images),
        "pairs": len(pairs.queries),
        "clusters": len(np.unique(pairs.clusters)),
    }
    columns = (pairs.clusters, pairs.queries, pairs.positives)
    lists, digest = [ids.tolist() for ids in columns], given.images.digest()
    stage = session.run_stage(
        "tuples", digest, lists, work=lambda stage: counts, stage_flag="train"
    )
    announce(
        f"tuples: {SUPERVISED}: {counts['pairs']:,} pairs and {counts['clusters']:,} clusters of "
        f"{counts['images']:,} images, from {given.file}; without a graph there is no check of "
        "networks: the last one is kept"
    )
    return MiningResult(stage, pairs.as_pools(), pairs, SUPERVISED)


def classes_stage(
    session: Session[LearningConfig],
    images: Collection,
    known: NDArray[np.str_],
    baseline: SupervisedBaseline,
    per_class: int,
) -> MiningResult:
    """Run the stage that takes the classes of images in place of mined pools.

    Parameters
    ----------
    session : the run
    images : n images
    known : (n,) class of each image, "" for one without a label
    baseline : supervised loss to train with
    per_class : images of a class in a batch

    Raises
    ------
    InputError
        An image has no label.
    """
    without = np.flatnonzero(known == "")
    if len(without):
        raise InputError(
            f"--baseline {baseline}: image {images[int(without[0])].name} has no label; add it to "
            f"--pool-labels, or leave the image out with --exclude ({len(without):,} of the "
            f"{len(images):,} images have none)"
        )
    of_images = np.unique(known, return_inverse=True)[1].astype(np.int64)
    supervision = LabelledImages(classes=of_images, baseline=baseline, per_class=per_class)
    counts = {"images": len(images), "classes": int(of_images.max()) + 1}
    inputs = (images.digest(), known.tolist(), baseline, per_class)
    stage = session.run_stage("classes", *inputs, work=lambda stage: counts, stage_flag="train")
    label = BASELINE_LABELS[baseline]
    announce(
        f"classes: {label}: {counts['classes']:,} classes of {counts['images']:,} images; without "
        "a graph there is no check of networks: the last one is kept"
    )
    return MiningResult(stage, NO_POOLS, supervision, label)


def trajectory(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that training depends on, under the names that fingerprints use."""
    # Any number of workers follows one trajectory, and measuring it does not change it.
    left_out = {*execution_settings(config), "monitor_every"}
    given = stored(dataclasses.asdict(config))
    return {name: value for name, value in given.items() if name not in left_out}


def train_stage(
    session: Session[LearningConfig],
    network: EmbeddingNet,
    images: Collection,
    mined: MiningResult,
    validation_neighbors: ManifoldNeighbors,
    labelled: LabelledSet | None,
) -> FineTunedNetwork:
    """Run the stage that fine-tunes a network on mined pools or on the labels in their place.

    Parameters
    ----------
    session : the run
    network : the initial network
    images : the images; ids in the pools are places among them
    mined : the pools, or the labels that stand in for them
    validation_neighbors : manifold neighbours of some items, see `training.validation`
    labelled : set to measure on during training; None: not measured
    """
    config, seed = session.config.training, session.config.seed
    options, budget = trajectory(config), session.config.budget

    def work(stage: StageFolder) -> Counts:
        while True:
            cached_images, places = _cached(session, images, mined, validation_neighbors)
            try:
                return trained_on(cached_images, places, stage)
            except DamagedFileError as error:
                _remove_cached(cached_images.folder, error)

    def trained_on(cached_images: PixelShards, places: Ids, stage: StageFolder) -> Counts:
        job = TrainingJob(
            model=network,
            images=cached_images,
            # Supervised training has no pools, and all images keep their places.
            pools=(mined.pools if mined.supervision is None else NO_POOLS).renamed(places),
            validation_neighbors=validation_neighbors.renamed(places),
            config=config,
            seed=seed,
            max_pixels=session.config.extraction.max_pixels,
            labelled=labelled,
            supervision=mined.supervision,
            seconds=session.time_left(budget),
        )
        workers = distributed.training_workers(
            config.workers, fewest=session.config.min_workers, capacity=session.pool.capacity
        )
        trained = distributed.fine_tune(
            job, folder=stage.folder, workers=workers, log=session.run.log_epochs
        )
        last = len(trained.history) - 1
        kept = best_epoch(trained.history) if config.keep == "best" else last
        save(trained.best if config.keep == "best" else trained.last, stage.folder / "model")
        write_json(stage.folder, "history.json", trained.history)
        return {"epochs": last, "kept_epoch": kept, "loss": trained.history[-1].get("loss", 0.0)}

    digest = (state_digest(network), [near.tolist() for near in validation_neighbors.neighbors])
    stage = session.run_stage(
        "train",
        *(mined.fingerprint, digest, options, seed, *([] if budget is None else [budget])),
        work=work,
        internal=["checkpoints/", "refused.json"],
    )
    epoch, history = stage.counts["kept_epoch"], read_json(stage.folder, "history.json")
    history = renamed_history(history)
    session.run.log_epochs(history)  # in case the server lost the metrics
    verdict, known = _verdict(history, epoch), ""
    if mined.label != TUNED:
        session.run.log_labels(mined.label)
        known = f"{mined.label}: "
    announce(f"train: {known}{verdict}")
    network = load(stage.folder / "model")
    return FineTunedNetwork(network, epoch, mined.label, history)


def _cached(
    session: Session[LearningConfig],
    images: Collection,
    mined: MiningResult,
    validation_neighbors: ManifoldNeighbors,
) -> tuple[PixelShards, Ids]:
    """Run the stage that caches the images of training; return them and the place of each image."""
    config, rng = session.config.training, np.random.default_rng(session.config.seed)
    size = config.longest_side
    others = rng.choice(len(images), min(len(images), checked_images(config)), replace=False)
    ids = _needed(mined, validation_neighbors, len(images), others)
    places = np.full(len(images), -1)
    places[ids] = np.arange(len(ids))
    chosen, shard_size = images.take(ids), session.config.extraction.shard_size

    def work(stage: StageFolder) -> Counts:
        distributed.cache_images(
            chosen,
            longest_side=size,
            max_pixels=session.config.extraction.max_pixels,
            output=stage.folder,
            pool=session.pool,
            shard_size=shard_size,
            label="cache",
            report=session.reporting("cache"),
        )
        return {"images": len(chosen)}

    stage = session.run_stage(
        "cache",
        *(chosen.digest(), size, shard_size, "arrow"),
        work=work,
        stage_flag="train",
        read_by_part=["part-"],
    )
    entries = distributed.cached(chosen, stage.folder, longest_side=size, shard_size=shard_size)
    return entries, places


def _remove_cached(cache: Folder, error: DamagedFileError) -> None:
    """Delete a damaged file of the cache, which is then made again; raise errors of other files."""
    name = error.location.rpartition("/")[2]
    if error.location != cache.location(name):
        raise error
    announce(f"cache: {error.location}: {error.reason}; made again")
    if cache.has(name):
        cache.delete(name)


def _needed(
    mined: MiningResult, validation_neighbors: ManifoldNeighbors, n: int, others: Ids
) -> Ids:
    """Collect the images of the pools and of the check, and others for the check to search.

    Supervised training needs all n images, any of which may become a negative.
    """
    if mined.supervision is not None:
        return np.arange(n)
    return np.unique(
        np.concatenate(
            [
                mined.pools.members,
                *(validation_neighbors.items, *validation_neighbors.neighbors, others),
            ]
        )
    )


def _verdict(history: History, kept: int) -> str:
    """Summarise the outcome of training in one sentence."""
    name = chosen_by(history)
    last, figures = len(history) - 1, [metrics.get(name) for metrics in history]
    if figures[0] is None:
        return f"the network after epoch {kept} is kept, the last one; no check chose an epoch"
    after = [value for value in figures[1:] if value is not None]
    if kept == 0:
        return (
            f"no epoch of {last} passed the check without labels ({name} before {figures[0]:.3f}, "
            f"then {max(after, default=0):.3f} at best): the network before is kept. Pools may be "
            "impure (lower --mining.positive-k, raise --mining.positive-cut) or the steps too long "
            "(lower --training.learning-rate)"
        )
    return (
        f"the network after epoch {kept} of {last} is kept: {name} {figures[kept]:.3f}, before "
        f"{figures[0]:.3f}"
    )
