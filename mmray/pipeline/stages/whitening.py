"""The stage that learns whitenings and saves the model."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from mmray.pipeline.stages.evaluation import SearchExamples, unlabelled_examples
from mmray.pipeline.stages.labelled_descriptors import (
    describe_images,
    describe_sample,
    labelled_set_settings,
)
from mmray.pipeline.stages.mining import MiningResult
from mmray.system.errors import explained
from mmray.system.folder import Folder
from mmray.system.progress import announce

# The initial network also by LDA: what training gains must not be credited with that.
WHITENINGS = ((INITIAL, PCA), (INITIAL, LDA), (TUNED, LDA))


@dataclass(frozen=True, kw_only=True)
class WhitenedNetworks:
    """Result of the stage.

    Attributes
    ----------
    model : folder of the fine-tuned network with its whitening, ready for use
    candidates : the networks to measure, in the order in which they were given
    search : searches the images of the matching pairs by some of them, by each network and LDA
    """

    model: Folder
    candidates: Sequence[EvaluatedNetwork]
    search: Callable[[Descriptor], list[SearchExamples]]


def whiten_stage(
    session: Session[RetrievalConfig],
    images: Collection,
    mined: MiningResult,
    networks: dict[str, EmbeddingNet],
) -> WhitenedNetworks:
    """Run the stage that learns whitenings: of the initial network PCA and LDA, of the other LDA.

    PCA is learned from independent images or a sample of the unlabelled ones, LDA from matching
    pairs that were mined.
    """
    config, test = session.config.whitening, session.config.evaluation
    rng, total = np.random.default_rng(session.config.seed), len(images)
    sample = np.sort(rng.choice(total, min(config.images, total), replace=False))
    pairs = matching_pairs(mined.pools, config.pairs, rng)
    paired, settings = np.unique(pairs), labelled_set_settings(session.config)
    ids = {INITIAL: paired, TUNED: paired}
    others = None
    if test.pca_images is None:
        ids[INITIAL] = np.union1d(sample, paired)
    else:
        others = describe_sample(
            session,
            test.pca_images,
            networks[INITIAL],
            settings,
            images=config.images,
            stage_flag="whiten",
        )
    found = {
        name: describe_images(
            session, images.take(ids[name]), network, settings, stage_flag="whiten"
        )
        for name, network in networks.items()
    }

    def learned(name: str, kind: str, pooling: Descriptor) -> Whitening:
        rows = found[name].features(pooling)
        slower = ", lower --training.learning-rate" if name == TUNED else ""
        with explained(
            f"no whitening of {pooling} by the network {name}",
            f"use more and other images{slower}, or end with --stages extract,graph,mine,train",
        ):
            if kind == LDA:
                return lda_whitening(rows, *np.searchsorted(ids[name], pairs))
            if others is not None:
                return pca_whitening(others.features(pooling))
            return pca_whitening(rows[np.searchsorted(ids[name], sample)])

    def work(stage: StageFolder) -> Counts:
        for (name, kind), pooling in itertools.product(WHITENINGS, test.poolings):
            whitening = learned(name, kind, pooling)
            write_whitening(stage.folder, f"{name}-{kind}-{pooling}.npz", whitening)
            if name == TUNED:
                file = whitening_name(pooling, session.config.training.pooling)
                write_whitening(stage.folder / "model", file, whitening)
        save(networks[TUNED], stage.folder / "model", preprocessing=settings.preprocessing)
        of_sample = len(sample) if others is None else len(others.items)
        return {"images": of_sample, "pairs": pairs.shape[1]}

    described = [*found.values(), *([] if others is None else [others])]
    inputs = [each.stage.fingerprint for each in described]
    stage = session.run_stage("whiten", inputs, pairs.tolist(), WHITENINGS, work=work)
    announce(f"model: {stage.folder.location('model')}")
    candidates = [
        EvaluatedNetwork(
            label=name,
            network=network,
            whitenings={
                (kind, pooling): read_whitening(stage.folder, f"{name}-{kind}-{pooling}.npz")
                for (of, kind), pooling in itertools.product(WHITENINGS, test.poolings)
                if of == name
            },
        )
        for name, network in networks.items()
    ]

    def search(pooling: Descriptor) -> list[SearchExamples]:
        whitened = {
            name: candidate.whitenings[LDA, pooling].apply(
                found[name].features(pooling)[np.searchsorted(ids[name], paired)]
            )
            for name, candidate in zip(networks, candidates, strict=True)
        }
        return unlabelled_examples(whitened, images.take(paired), seed=session.config.seed)

    return WhitenedNetworks(model=stage.folder / "model", candidates=candidates, search=search)
