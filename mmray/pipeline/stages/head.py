"""The stage that adds a fully connected layer to a network."""

import dataclasses

import numpy as np

from mmray.config.learning import FinegrainedConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import with_head
from mmray.descriptors.whitening import pca_whitening, read_whitening, write_whitening
from mmray.images.collection import Collection, sample
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.extraction import extract_descriptors
from mmray.pipeline.stages.labelled_descriptors import class_set_settings
from mmray.system.arrays import Features
from mmray.system.errors import InputError, explained

HEAD_IMAGES = 10_000  # images that the principal components are learned from


def head_stage(
    session: Session[FinegrainedConfig], images: Collection, network: EmbeddingNet
) -> EmbeddingNet:
    """Add a fully connected layer (c -> d), which is to be trained, to a network.

    The layer starts as the first d principal components of the images' pooled descriptors, not
    whitened, or at random, which is far worse (docs/results/finegrained.md).

    Raises
    ------
    InputError
        There are too few images for d components, or too many cannot be read.
    """
    config = session.config
    if config.head != "pca":
        rng = np.random.default_rng(config.seed)
        weight = rng.standard_normal((config.dim, network.channels)) / np.sqrt(network.channels)
        return with_head(
            network,
            weight.astype(np.float32),
            np.zeros(config.dim, "f4"),
            normalized=config.head == "random",
        )
    described = extract_descriptors(
        session,
        sample(images, HEAD_IMAGES, config.seed),
        network,
        settings=dataclasses.replace(
            class_set_settings(config), poolings=(config.training.pooling,)
        ),
        stage_flag="extract",
        max_bad_fraction=config.extraction.max_bad_fraction,
        flag="--extraction.max-bad-fraction",
        deduplicate=config.deduplicate,
    )
    if len(described.items) <= config.dim:
        raise InputError(
            f"{len(described.items)} images are too few for --dim {config.dim} principal "
            "components: add some, lower it, or give --head random"
        )

    def work(stage: StageFolder) -> Counts:
        with explained("--head pca", "choose --head random, or other images"):
            learned = pca_whitening(described.features(config.training.pooling))
        write_whitening(stage.folder, "pca.npz", learned)
        return {"images": len(described.items), "dims": config.dim}

    stage = session.run_stage("head", described.stage.fingerprint, work=work, stage_flag="extract")
    learned = read_whitening(stage.folder, "pca.npz")
    weight = unit_rows(learned.projection[: config.dim])
    return with_head(network, weight, -weight @ learned.mean)


def unit_rows(rows: Features) -> Features:
    """Normalise the directions (d, c) of a whitening, which removes its scaling of variances."""
    scaled: Features = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled
