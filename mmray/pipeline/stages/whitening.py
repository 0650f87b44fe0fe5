"""The stage that learns whitenings and saves the model."""

import itertools

import numpy as np

from mmray.config.choices import Descriptor
from mmray.config.learning import RetrievalConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import save
from mmray.descriptors.whitening import (
    Whitening,
    lda_whitening,
    pca_whitening,
    read_whitening,
    whitening_name,
    write_whitening,
)
from mmray.evaluation.candidates import INITIAL, LDA, PCA, TUNED, EvaluatedNetwork
from mmray.images.collection import Collection
from mmray.mining.pool_lists import matching_pairs
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.extraction import ExtractedDescriptors
from mmray.pipeline.stages.labelled_descriptors import (
    describe_images,
    describe_sample,
    labelled_set_settings,
)
from mmray.pipeline.stages.mining import MiningResult
from mmray.system.arrays import Ids
from mmray.system.errors import explained
from mmray.system.folder import Folder
from mmray.system.progress import announce

WHITENING_NAMES = {INITIAL: PCA, TUNED: LDA}


def whiten_stage(
    session: Session[RetrievalConfig],
    images: Collection,
    mined: MiningResult,
    networks: dict[str, EmbeddingNet],
) -> tuple[Folder, list[EvaluatedNetwork]]:
    """Run the stage that learns PCA whitening of the initial network and LDA of the fine-tuned one.

    The folder that is returned holds the fine-tuned network with its whitening, ready for use. PCA
    is learned from independent images or a sample of the unlabelled ones, LDA from matching pairs
    that were mined.
    """
    config, test = session.config.whitening, session.config.evaluation
    rng, total = np.random.default_rng(session.config.seed), len(images)
    sample = np.sort(rng.choice(total, min(config.images, total), replace=False))
    pairs = matching_pairs(mined.pools, config.pairs, rng)
    paired, settings = np.unique(pairs), labelled_set_settings(session.config)

    def described_by(name: str, ids: Ids) -> ExtractedDescriptors:
        return describe_images(
            session, images.take(ids), networks[name], settings, stage_flag="whiten"
        )

    def described_for_pca() -> ExtractedDescriptors:
        if test.pca_images is None:
            return described_by(INITIAL, sample)
        return describe_sample(
            session,
            test.pca_images,
            networks[INITIAL],
            settings,
            images=config.images,
            stage_flag="whiten",
        )

    learned_from = {INITIAL: described_for_pca(), TUNED: described_by(TUNED, paired)}

    def learned(name: str, pooling: Descriptor) -> Whitening:
        features = learned_from[name].features(pooling)
        slower = ", lower --training.learning-rate" if name == TUNED else ""
        with explained(
            f"no whitening of {pooling} by the network {name}",
            f"use more and other images{slower}, or end with --stages extract,graph,mine,train",
        ):
            if name == INITIAL:
                return pca_whitening(features)
            return lda_whitening(features, *np.searchsorted(paired, pairs))

    def work(stage: StageFolder) -> Counts:
        for name, pooling in itertools.product(networks, test.poolings):
            whitening = learned(name, pooling)
            write_whitening(stage.folder, f"{name}-{pooling}.npz", whitening)
            if name == TUNED:
                file = whitening_name(pooling, session.config.training.pooling)
                write_whitening(stage.folder / "model", file, whitening)
        save(networks[TUNED], stage.folder / "model", preprocessing=settings.preprocessing)
        return {"images": len(learned_from[INITIAL].items), "pairs": pairs.shape[1]}

    inputs = [each.stage.fingerprint for each in learned_from.values()]
    stage = session.run_stage("whiten", inputs, pairs.tolist(), work=work)
    announce(f"model: {stage.folder.location('model')}")
    return stage.folder / "model", [
        EvaluatedNetwork(
            label=name,
            network=network,
            whitenings={
                (WHITENING_NAMES[name], pooling): read_whitening(
                    stage.folder, f"{name}-{pooling}.npz"
                )
                for pooling in test.poolings
            },
        )
        for name, network in networks.items()
    ]
