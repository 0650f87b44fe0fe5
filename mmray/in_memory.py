"""Fine-tuning and evaluation in this process, for images that fit into its memory.

The jobs do the same for any number of images and machines, and go on after an interruption; these
functions keep nothing but what they return, and load neither Ray nor MLflow.

n images, d dimensions.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch

from mmray.config.bounds import checked
from mmray.config.choices import Descriptor, Network
from mmray.config.presets import RETRIEVAL
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import Preprocessing
from mmray.descriptors.weights import build
from mmray.descriptors.whitening import lda_whitening
from mmray.evaluation.benchmarks.classes import ClassSet
from mmray.evaluation.benchmarks.labelled_set import LabelledSet, as_labelled, labelled_set
from mmray.evaluation.ranking import rank
from mmray.evaluation.scoring import figures
from mmray.images.collection import Collection, ImageFile
from mmray.images.sources import list_images
from mmray.mining.in_memory import Mined, mine
from mmray.mining.pool_lists import matching_pairs
from mmray.serving.encoder import ImageEncoder, TrainedModel
from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError, explained
from mmray.system.locations import absolute
from mmray.system.progress import Progress
from mmray.training.fine_tuning import FineTuning
from mmray.training.image_source import ImageSource, embed_ids
from mmray.training.job import History, TrainingJob
from mmray.training.validation import NEIGHBORS

Images: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, eq=False, kw_only=True)
class FineTuned:
    """Result of `fine_tune`.

    Attributes
    ----------
    model : the fine-tuned network with a whitening learned from mined pairs; `model.save(folder)`
        is what `ImageEncoder.load`, `search index` and `export` take
    before : the initial network with one of the same kind, to compare with
    epoch : after which the network was kept; 0: it is the initial one
    history : metrics of the initial network, and of the network after each epoch
    mined : what it learned from
    """

    model: TrainedModel
    before: TrainedModel
    epoch: int
    history: History
    mined: Mined

    @cached_property
    def encoder(self) -> ImageEncoder:
        """Return the encoder of images by the model."""
        return self.model.encoder()


def fine_tune(
    images: Images,
    network: Network | EmbeddingNet = "efficientnet_lite0",
    *,
    mining: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> FineTuned:
    """Fine-tune a network on images without labels: one round of the method (Sec. 3.4).

    Parameters
    ----------
    images : a folder, or n paths or URIs
    network : name of a network, as for --network, or a network that is left unchanged
    mining : settings for `mine`
    seed : of the random choices
    device : of the training
    settings : of `TrainingConfig`, such as epochs=4 or learning_rate=3e-4; by default those of
        --recipe auto

    Raises
    ------
    InputError
        A setting is outside its bounds, an image cannot be read, the network cannot be had, or
        nothing is mined.
    """
    config, extraction = checked(RETRIEVAL.training, settings), RETRIEVAL.extraction
    if isinstance(network, str):
        network = build(network, pooling=config.pooling)
    items, place = _listed(images), torch.device(device)
    mined = mine(
        _described(network, items, config.longest_side, extraction.poolings[0], place),
        seed=seed,
        **(mining or {}),
    )
    if not any(map(len, mined.pools.positives)):
        raise InputError(
            f"images: nothing is mined from {len(items)} images, as none has positives; give more "
            "images, or other sizes in mining"
        )
    job = TrainingJob(
        model=copy.deepcopy(network),  # which is trained in place
        images=Collection.of(items),
        pools=mined.pools,
        validation_neighbors=mined.neighbors_of_some(config.validation_items, NEIGHBORS, seed),
        config=config,
        seed=seed,
        max_pixels=extraction.max_pixels,
        labelled=None,
    )
    tuning = FineTuning(job, place)
    tuning.run(tuning.network, lambda: None)
    best = config.keep == "best"
    kept = tuning.best if best else copy.deepcopy(tuning.measured).cpu()
    pairs = matching_pairs(mined.pools, RETRIEVAL.whitening.pairs, np.random.default_rng(seed))
    before, model = (
        _whitened(each, items, config.longest_side, pairs, place) for each in (network, kept)
    )
    return FineTuned(
        model=model,
        before=before,
        epoch=tuning.best_epoch if best else tuning.epoch,
        history=tuning.history,
        mined=mined,
    )


def evaluate(
    encoder: ImageEncoder, images: Images, labels: Sequence[Any] | None = None
) -> dict[str, float]:
    """Measure how well images find the others of their class.

    Parameters
    ----------
    encoder : of the images
    images : n paths or URIs, or a folder
    labels : class of each image; None: `images` is a folder with a folder for each class

    Returns
    -------
    mAP and Recall@k (R@1, R@2, R@4, R@8), each in [0, 1].

    Raises
    ------
    InputError
        An image cannot be read, there is not a label for each image, or no two are equal.
    """
    labelled = _labelled(images, labels)
    rows = encoder.encode([item.uri for item in labelled.items])
    return figures(labelled, rank(*labelled.split(rows)))


def _listed(images: Images) -> list[ImageFile]:
    if isinstance(images, str | os.PathLike):
        return list_images(os.fspath(images))
    names = [os.fspath(image) for image in images]
    return [ImageFile(uri=absolute(name), name=name) for name in names]


def _described(
    network: EmbeddingNet,
    items: Sequence[ImageFile],
    longest_side: int,
    descriptor: Descriptor,
    device: torch.device,
) -> Features:
    """Compute descriptors (n, d) of images; InputError names the first that cannot be read."""
    with Progress("describe", total=len(items)) as progress:
        return embed_ids(
            network,
            ImageSource(items, longest_side=longest_side),
            np.arange(len(items)),
            batch_size=RETRIEVAL.extraction.batch_size,
            device=device,
            descriptor=descriptor,
            advance=progress.advance,
        )


def _whitened(
    network: EmbeddingNet,
    items: Sequence[ImageFile],
    longest_side: int,
    pairs: Ids,
    device: torch.device,
) -> TrainedModel:
    """Learn a whitening of the embeddings from matching pairs (2, m)."""
    paired_ids = np.unique(pairs)
    rows = _described(network, [items[i] for i in paired_ids], longest_side, "embedding", device)
    with explained("images: no whitening can be learned", "give more and other images"):
        whitening = lda_whitening(rows, *np.searchsorted(paired_ids, pairs))
    return TrainedModel(network, whitening, Preprocessing(longest_side))


def _labelled(images: Images, labels: Sequence[Any] | None) -> LabelledSet:
    if labels is None:
        if not isinstance(images, str | os.PathLike):
            raise InputError("labels is missing: give one for each image, or a folder of classes")
        return labelled_set(os.fspath(images), None)
    items = _listed(images)
    if len(labels) != len(items):
        raise InputError(f"labels: {len(labels)} for {len(items)} images; give one for each image")
    classes = tuple(map(str, labels))
    named = tuple(replace(item, name=f"{i} {item.name}") for i, item in enumerate(items))
    return as_labelled(
        ClassSet(source="images", images=named, labels=classes, classes=tuple(sorted(set(classes))))
    )
