"""The recipe: images to a fine-tuned network and its figures, stage by stage.

Each stage takes artifacts and leaves artifacts in a folder named by all that determines them. A
stage that is done is read instead of run, so the same command goes on where it was stopped.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmray.artifacts import Stage
from mmray.config.choices import Descriptor
from mmray.config.learning import Config, chosen_stages
from mmray.describing import Described
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import build, save
from mmray.descriptors.whitening import (
    Whitening,
    lda_whitening,
    pca_whitening,
    read_whitening,
    whitening_name,
    write_whitening,
)
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.candidates import INITIAL, LDA, PCA, TUNED, Candidate
from mmray.evaluation.scores import Score
from mmray.evaluation_stages import (
    Measuring,
    describe_images,
    describe_sample,
    evaluate_stages,
    given_sets,
)
from mmray.images.collection import Collection
from mmray.learning import Learned, Outcome, Unlabelled, check_dimensions, learn, with_demo_images
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import matching_pairs
from mmray.mining_stages import Mined
from mmray.publishing import publish
from mmray.session import Counts, Session, running, usable_storage
from mmray.system.arrays import Ids
from mmray.system.folder import Folder
from mmray.system.progress import announce
from mmray.training.supervised.sfm_tuples import SfmTuples, read_sfm_tuples
from mmray.training_stages import train_stage, tuples_stage

WHITENING_NAMES = {INITIAL: PCA, TUNED: LDA}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run starts from: its images, perhaps labelled sets, a network."""

    unlabelled: Unlabelled
    sets: Sequence[LabelledSet]
    network: EmbeddingNet
    tuples: SfmTuples | None = None


def run(config: Config) -> list[Score]:
    """Do all that the settings ask for, as far as it is not done yet.

    Returns
    -------
    The scores on the labelled set; none if there is no such set, or no stage `evaluate`.

    Raises
    ------
    InputError
        A setting, an input or the cluster cannot be used. What was done until then is kept.
    """
    storage = usable_storage(config)
    inputs = given_inputs(config) if config.images else None  # mended sooner than Ray is started
    with running(config, storage, chosen_stages(config)) as session:
        if inputs is not None and inputs.tuples is not None:
            outcome = supervised_recipe(session, inputs, inputs.tuples)
        else:
            outcome = recipe(session, inputs or given_inputs(with_demo(session)))
        publish(session, outcome)
        return outcome.scores


def recipe(session: Session[Config], inputs: Inputs) -> Outcome:
    """All stages in their order, as far as the last that was chosen."""
    learned = learn(
        session,
        inputs.unlabelled.images(session),
        inputs.network,
        inputs.network,
        labels=inputs.unlabelled.labels,
        labelled=inputs.sets[0] if inputs.sets else None,
    )
    return Outcome() if learned is None else _from_training(session, inputs, learned)


def supervised_recipe(session: Session[Config], inputs: Inputs, given: SfmTuples) -> Outcome:
    """The supervised baseline: training takes pairs and clusters from a file, nothing is mined."""
    mined, labelled = tuples_stage(session, given), inputs.sets[0] if inputs.sets else None
    nothing = ManifoldNeighbors.none()
    tuned = train_stage(session, inputs.network, given.images, mined, nothing, labelled)
    return _from_training(
        session, inputs, Learned(images=given.images, mined=mined, trained=[tuned])
    )


def _from_training(session: Session[Config], inputs: Inputs, learned: Learned) -> Outcome:
    """The networks before and after training, whitened and measured, as far as that was chosen."""
    tuned, last = learned.tuned, session.chosen[-1]
    if tuned is None or last == "train":
        return Outcome(learned=learned)
    networks = {INITIAL: inputs.network, TUNED: tuned.network}
    model, (initial, trained) = whiten_stage(session, learned.images, learned.mined, networks)
    outcome = Outcome(learned=learned, model=model)
    if last == "whiten":
        return outcome
    if not inputs.sets:
        announce("evaluate: no labelled set was given, nothing is measured")
        return outcome
    candidates = [initial, dataclasses.replace(trained, label=tuned.label)]
    result = evaluate_stages(session, candidates, inputs.sets, _measuring(session.config))
    return dataclasses.replace(outcome, scores=result.scores, found=result.found)


def with_demo(session: Session[Config]) -> Config:
    """The settings, with the rendered demonstration set as the images."""
    folder = with_demo_images(session)
    test = dataclasses.replace(
        session.config.evaluation,
        images=folder.location("test/jpg"),
        ground_truth=folder.location("test/gt"),
        pool_labels=folder.location("train_labels.csv"),
    )
    return dataclasses.replace(session.config, images=(folder.location("train"),), evaluation=test)


def given_inputs(config: Config) -> Inputs:
    """What the settings name; the images are looked for only, not listed.

    Raises
    ------
    InputError
        One of them cannot be read, or there are no images.
    """
    test = config.evaluation
    network = build(config.network, pooling=config.training.pooling, weights=config.weights)
    check_dimensions(config, network)
    tuples = None if config.tuples is None else read_sfm_tuples(config.tuples, config.images[0])
    return Inputs(
        unlabelled=(Unlabelled.given(config, test.pool_labels) if tuples is None else Unlabelled()),
        sets=given_sets(test),
        network=network,
        tuples=tuples,
    )


def whiten_stage(
    session: Session[Config], images: Collection, mined: Mined, networks: dict[str, EmbeddingNet]
) -> tuple[Folder, list[Candidate]]:
    """The networks with PCA whitening of the initial, LDA whitening of the fine-tuned one.

    The folder holds the fine-tuned one with its whitening, ready for use. PCA learns from
    independent images or a sample of the unlabelled ones, LDA from matching pairs that were mined.
    """
    config, test = session.config.whitening, session.config.evaluation
    rng, total = np.random.default_rng(session.config.seed), len(images)
    sample = np.sort(rng.choice(total, min(config.images, total), replace=False))
    pairs = matching_pairs(mined.pools, config.pairs, rng)
    paired, measuring = np.unique(pairs), _measuring(session.config)

    def described_by(name: str, ids: Ids) -> Described:
        return describe_images(
            session, images.take(ids), networks[name], measuring, part_of="whiten"
        )

    def described_for_pca() -> Described:
        if test.pca_images is None:
            return described_by(INITIAL, sample)
        return describe_sample(
            session,
            test.pca_images,
            networks[INITIAL],
            measuring,
            images=config.images,
            part_of="whiten",
        )

    learned_from = {INITIAL: described_for_pca(), TUNED: described_by(TUNED, paired)}

    def learned(name: str, pooling: Descriptor) -> Whitening:
        features = learned_from[name].features(pooling)
        if name == INITIAL:
            return pca_whitening(features)
        return lda_whitening(features, *np.searchsorted(paired, pairs))

    def work(stage: Stage) -> Counts:
        for name, pooling in itertools.product(networks, test.poolings):
            whitening = learned(name, pooling)
            write_whitening(stage.folder, f"{name}-{pooling}.npz", whitening)
            if name == TUNED:
                file = whitening_name(pooling, session.config.training.pooling)
                write_whitening(stage.folder / "model", file, whitening)
        save(networks[TUNED], stage.folder / "model", framing=measuring.framing)
        return {"images": len(learned_from[INITIAL].items), "pairs": pairs.shape[1]}

    marks = [each.stage.fingerprint for each in learned_from.values()]
    stage = session.stage("whiten", marks, pairs.tolist(), work=work)
    announce(f"model: {stage.folder.location('model')}")
    return stage.folder / "model", [
        Candidate(
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


def _measuring(config: Config) -> Measuring:
    """How images are described for retrieval."""
    extraction = config.extraction
    return Measuring(
        config=config.evaluation,
        shard_size=extraction.shard_size,
        batch_size=extraction.batch_size,
        max_pixels=extraction.max_pixels,
    )
