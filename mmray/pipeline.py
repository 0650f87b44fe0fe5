"""The recipe: images to a fine-tuned network and its figures, stage by stage.

Each stage takes artifacts and leaves artifacts in a folder named by all that determines them. A
stage that is done is read instead of run, so the same command goes on where it was stopped.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmray import artifacts, models
from mmray.arrays import Ids
from mmray.artifacts import Stage
from mmray.collection import Collection, read_exclusions
from mmray.config import Config, Pooling, chosen_stages
from mmray.describing import Described
from mmray.errors import InputError
from mmray.evaluation.labelled import LabelledSet
from mmray.evaluation.purity import labels_of, read_named_labels
from mmray.evaluation_stages import (
    LDA,
    PCA,
    Candidate,
    Measuring,
    describe_images,
    describe_sample,
    evaluate_stages,
    given_sets,
)
from mmray.feature_stages import extract_stage, features_stage
from mmray.health import NEIGHBORS
from mmray.manifold import ManifoldNeighbors
from mmray.mining_stages import (
    Mined,
    check_stage,
    graph_stage,
    measure_purity,
    mine_stage,
)
from mmray.models import EmbeddingNet
from mmray.pools import matching_pairs
from mmray.progress import Progress, announce
from mmray.rendering.photo_set import render_collection
from mmray.report import Score
from mmray.session import Counts, Session, running, usable_storage
from mmray.sfm_tuples import SfmTuples, read_sfm_tuples
from mmray.sources import probe
from mmray.training_stages import TUNED, Tuned, train_stage, tuples_stage
from mmray.whitening import Whitening, lda_whitening, pca_whitening

INITIAL = "initial"
WHITENING_NAMES = {INITIAL: PCA, TUNED: LDA}


@dataclass(frozen=True)
class Inputs:
    """What a run starts from: where its images are, perhaps labelled sets, a network."""

    sources: tuple[str, ...]
    excluded: set[str]
    sets: Sequence[LabelledSet]
    network: EmbeddingNet
    pool_labels: Mapping[str, str] | None
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
            return supervised_recipe(session, inputs, inputs.tuples)
        return recipe(session, inputs or given_inputs(with_demo(session)))


def recipe(session: Session[Config], inputs: Inputs) -> list[Score]:
    """All stages in their order, as far as the last that was chosen."""
    last, tuned = session.chosen[-1], Tuned(inputs.network, 0)
    for number in range(1, session.config.rounds + 1):
        if number > 1:
            announce(f"round {number}: features by the network of the round before")
        described = extract_stage(session, tuned.network, inputs.sources, inputs.excluded)
        source = features_stage(session, described)
        if last == "extract":
            return []
        graph = graph_stage(session, source)
        if last == "graph":
            return []
        mined = mine_stage(session, source, graph)
        if inputs.pool_labels is not None:
            names = described.items.table["name"].to_pylist()
            measure_purity(session, mined, labels_of(names, inputs.pool_labels))
        if last == "mine":
            return []
        checked = check_stage(
            session, source, graph, items=session.config.training.check_items, neighbors=NEIGHBORS
        )
        metrics = "" if number == 1 else f"round-{number}/"
        images, labelled = described.items, inputs.sets[0] if inputs.sets else None
        tuned = train_stage(
            session, tuned.network, images, mined, checked, labelled, metrics=metrics
        )
        if tuned.epoch == 0:
            break  # another round would be the same
    if last == "train":
        return []
    networks = {INITIAL: inputs.network, TUNED: tuned.network}
    candidates = whiten_stage(session, described.items, mined, networks)
    if last == "whiten":
        return []
    return evaluate_stage(session, inputs.sets, candidates)


def supervised_recipe(session: Session[Config], inputs: Inputs, given: SfmTuples) -> list[Score]:
    """The supervised baseline: training takes pairs and clusters from a file, nothing is mined."""
    mined, labelled = tuples_stage(session, given), inputs.sets[0] if inputs.sets else None
    tuned = train_stage(
        session,
        inputs.network,
        given.images,
        mined,
        ManifoldNeighbors.none(),
        labelled,
        metrics="supervised/",
    )
    if session.chosen[-1] == "train":
        return []
    networks = {INITIAL: inputs.network, TUNED: tuned.network}
    initial, trained = whiten_stage(session, given.images, mined, networks)
    if session.chosen[-1] == "whiten":
        return []
    trained = dataclasses.replace(trained, label=tuned.label)
    return evaluate_stage(session, inputs.sets, [initial, trained])


def with_demo(session: Session[Config]) -> Config:
    """The settings, with the rendered demonstration set as the images."""
    demo = session.config.demo
    size = dataclasses.asdict(demo)

    def render(stage: Stage) -> Counts:
        total = 2 * (demo.objects * demo.photos + demo.distractors)
        with Progress("render", total=total) as progress:
            return render_collection(stage.folder.write, progress=progress.advance, **size)

    folder = session.stage("demo", size, work=render, part_of="extract").folder
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
    for source in config.images if config.tuples is None else ():
        probe(source, column=config.image_column)
    test = config.evaluation
    network = models.build(config.network, pooling=config.training.pooling, weights=config.weights)
    if config.extraction.pca is not None and config.extraction.pca > network.dim:
        raise InputError(
            f"--extraction.pca {config.extraction.pca}: {config.network} has {network.dim} "
            "dimensions; choose as many or fewer"
        )
    return Inputs(
        config.images,
        set() if config.exclude is None else read_exclusions(config.exclude),
        given_sets(test),
        network,
        read_named_labels(test.pool_labels) if test.pool_labels else None,
        None if config.tuples is None else read_sfm_tuples(config.tuples, config.images[0]),
    )


def whiten_stage(
    session: Session[Config], images: Collection, mined: Mined, networks: dict[str, EmbeddingNet]
) -> list[Candidate]:
    """The networks with PCA whitening of the initial, LDA whitening of the fine-tuned one.

    PCA learns from independent images or a sample of the unlabelled ones, LDA from matching pairs
    that were mined.
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

    def learn(name: str, pooling: Pooling) -> Whitening:
        features = learned_from[name].features(pooling)
        if name == INITIAL:
            return pca_whitening(features)
        return lda_whitening(features, *np.searchsorted(paired, pairs))

    def work(stage: Stage) -> Counts:
        for name, pooling in itertools.product(networks, test.poolings):
            whitening = learn(name, pooling)
            artifacts.write_whitening(stage.folder, f"{name}-{pooling}.npz", whitening)
            if name == TUNED:
                file = artifacts.whitening_name(pooling, session.config.training.pooling)
                artifacts.write_whitening(stage.folder / "model", file, whitening)
        models.save(networks[TUNED], stage.folder / "model")
        return {"images": len(learned_from[INITIAL].items), "pairs": pairs.shape[1]}

    marks = [each.stage.fingerprint for each in learned_from.values()]
    stage = session.stage("whiten", marks, pairs.tolist(), work=work)
    for file in (stage.folder / "model").names():
        session.run.log_file(stage.folder / "model", file, "model")
    announce(f"model: {stage.folder.location('model')}")
    return [
        Candidate(
            label=name,
            network=network,
            whitenings={
                (WHITENING_NAMES[name], pooling): artifacts.read_whitening(
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


def evaluate_stage(
    session: Session[Config], sets: Sequence[LabelledSet], candidates: Sequence[Candidate]
) -> list[Score]:
    """Score both networks on the labelled sets, each descriptor with and without whitening."""
    if not sets:
        announce("evaluate: no labelled set was given, nothing is measured")
        return []
    return evaluate_stages(session, candidates, sets, _measuring(session.config))
