"""The stages that turn mined pools, or a file's pairs, into a network: cache the images, train."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmray.config.choices import Rival
from mmray.config.learning import Config, LearningConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import load, save, state_digest
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.candidates import TUNED
from mmray.evaluation.purity import labels_of
from mmray.images.collection import Collection
from mmray.mining.manifold import ManifoldNeighbors
from mmray.pipeline.distributed import cluster
from mmray.pipeline.distributed.caching import cache_images, cached
from mmray.pipeline.distributed.trainer import fine_tune
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import Stage
from mmray.pipeline.stages.mining import Mined
from mmray.system.arrays import Ids
from mmray.system.errors import InputError
from mmray.system.formats import read_json, write_json
from mmray.system.progress import announce
from mmray.training.job import History, TrainingJob
from mmray.training.supervised.labelled_tuples import NO_POOLS
from mmray.training.supervised.losses import RIVAL_LABELS, LabelledImages
from mmray.training.supervised.sfm_tuples import SfmTuples
from mmray.training.validation import DATABASE, HEALTH, healthiest

SUPERVISED = "supervised (uses labels)"


@dataclass(frozen=True)
class Tuned:
    """The network that was kept, and after how many epochs; 0: it is the initial one.

    Attributes
    ----------
    label : what it is called wherever it is shown
    history : figures of epochs 0, 1, ... , before and after each epoch of training
    """

    network: EmbeddingNet
    epoch: int
    label: str = TUNED
    history: Sequence[Mapping[str, float]] = ()

    @property
    def epochs(self) -> int:
        """How many were trained."""
        return max(0, len(self.history) - 1)


def tuples_stage(session: Session[Config], given: SfmTuples) -> Mined:
    """The pairs of a file, which stand in for what is mined without labels."""
    pairs = given.pairs
    counts = {
        "images": len(given.images),
        "pairs": len(pairs.queries),
        "clusters": len(np.unique(pairs.clusters)),
    }
    columns = (pairs.clusters, pairs.queries, pairs.positives)
    lists, digest = [ids.tolist() for ids in columns], given.images.digest()
    stage = session.stage("tuples", digest, lists, work=lambda stage: counts, part_of="train")
    announce(
        f"tuples: {SUPERVISED}: {counts['pairs']:,} pairs and {counts['clusters']:,} clusters of "
        f"{counts['images']:,} images, from {given.file}; without a graph no network is checked: "
        "the last one is kept"
    )
    return Mined(stage, pairs.as_pools(), pairs, SUPERVISED)


def classes_stage(
    session: Session[LearningConfig],
    images: Collection,
    labels: Mapping[str, str],
    rival: Rival,
    per_class: int,
) -> Mined:
    """The classes of the images, by name, which stand in for what is mined without labels.

    Raises
    ------
    InputError
        An image has no label.
    """
    names = images.table["name"].to_pylist()
    known = labels_of(names, labels)
    if "" in known.tolist():
        without = names[known.tolist().index("")]
        raise InputError(
            f"--rival {rival}: image {without} has no label; add it to --pool-labels, or leave the "
            "image out with --exclude"
        )
    of_images = np.unique(known, return_inverse=True)[1].astype(np.int64)
    supervision = LabelledImages(classes=of_images, rival=rival, per_class=per_class)
    counts = {"images": len(images), "classes": int(of_images.max()) + 1}
    marks = (images.digest(), known.tolist(), rival, per_class)
    stage = session.stage("classes", *marks, work=lambda stage: counts, part_of="train")
    label = RIVAL_LABELS[rival]
    announce(
        f"classes: {label}: {counts['classes']:,} classes of {counts['images']:,} images; without "
        "a graph no network is checked: the last one is kept"
    )
    return Mined(stage, NO_POOLS, supervision, label)


def train_stage(
    session: Session[LearningConfig],
    network: EmbeddingNet,
    images: Collection,
    mined: Mined,
    checked: ManifoldNeighbors,
    labelled: LabelledSet | None,
) -> Tuned:
    """The network fine-tuned on the mined tuples, or on those of `tuples_stage`.

    Parameters
    ----------
    images : of the ids in the pools
    checked : manifold neighbours of some items, see `health`
    labelled : to measure on
    """
    config, seed = session.config.training, session.config.seed
    options = dataclasses.asdict(config)
    # Any number of workers follows one trajectory, and measuring it does not change it.
    del options["workers"], options["monitor_every"]

    def work(stage: Stage) -> Counts:
        cached_images, places = _cached(session, images, mined, checked)
        job = TrainingJob(
            model=network,
            images=cached_images,
            # Under labels there are none, and all images keep their places.
            pools=(mined.pools if mined.supervision is None else NO_POOLS).renamed(places),
            checked=checked.renamed(places),
            config=config,
            seed=seed,
            max_pixels=session.config.extraction.max_pixels,
            labelled=labelled,
            supervision=mined.supervision,
        )
        workers = cluster.training_workers(
            config.workers, fewest=session.config.min_workers, capacity=session.pool.capacity
        )
        trained = fine_tune(job, folder=stage.folder, workers=workers, log=session.run.log_epochs)
        last = len(trained.history) - 1
        kept = healthiest(trained.history) if config.keep == "best" else last
        save(trained.best if config.keep == "best" else trained.last, stage.folder / "model")
        write_json(stage.folder, "history.json", trained.history)
        return {"epochs": last, "kept_epoch": kept, "loss": trained.history[-1].get("loss", 0.0)}

    digest = (state_digest(network), [near.tolist() for near in checked.neighbors])
    stage = session.stage("train", mined.fingerprint, digest, options, seed, work=work)
    epoch, history = stage.counts["kept_epoch"], read_json(stage.folder, "history.json")
    session.run.log_epochs(history)  # where the server lost what it was told
    verdict, known = _verdict(history, epoch), ""
    if mined.label != TUNED:
        session.run.log_labels(mined.label)
        known = f"{mined.label}: "
    announce(f"train: {known}{verdict}")
    network = load(stage.folder / "model")
    return Tuned(network, epoch, mined.label, history)


def _cached(
    session: Session[LearningConfig], images: Collection, mined: Mined, checked: ManifoldNeighbors
) -> tuple[Collection, Ids]:
    """The images that training needs, resized and kept, and the place of each image among them."""
    size = session.config.training.longest_side
    ids = _needed(mined, checked, len(images), np.random.default_rng(session.config.seed))
    places = np.full(len(images), -1)
    places[ids] = np.arange(len(ids))
    chosen, shard_size = images.take(ids), session.config.extraction.shard_size

    def work(stage: Stage) -> Counts:
        cache_images(
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

    stage = session.stage("cache", chosen.digest(), size, shard_size, work=work, part_of="train")
    entries = cached(chosen, stage.folder, longest_side=size, shard_size=shard_size)
    return entries, places


def _needed(mined: Mined, checked: ManifoldNeighbors, n: int, rng: np.random.Generator) -> Ids:
    """The images of the pools and of the check, and others at random for the check to search.

    Under labels any of the n images may become a negative.
    """
    if mined.supervision is not None:
        return np.arange(n)
    others = rng.choice(n, min(n, DATABASE), replace=False)
    pools = mined.pools
    return np.unique(
        np.concatenate(
            [
                *(pools.anchors, *pools.positives, *pools.negatives),
                *(checked.items, *checked.neighbors, others),
            ]
        )
    )


def _verdict(history: History, kept: int) -> str:
    """What came of the training, in a sentence."""
    last, health = len(history) - 1, [metrics.get(HEALTH) for metrics in history]
    if health[0] is None:
        return f"the network after epoch {kept} is kept, the last one; its health was not checked"
    after = [value for value in health[1:] if value is not None]
    if kept == 0:
        return (
            f"no epoch of {last} made the network healthier (initial {health[0]:.3f}, then "
            f"{max(after, default=0):.3f} at best): the initial network is kept. Its pools may be "
            "impure (lower --mining.positive-k, raise --mining.positive-cut) or the steps too long "
            "(lower --training.learning-rate)"
        )
    return (
        f"the network after epoch {kept} of {last} is kept: health {health[kept]:.3f}, initially "
        f"{health[0]:.3f}"
    )
