"""The recipe: images to a fine-tuned network and its figures, stage by stage.

Each stage takes artifacts and leaves artifacts in a folder named by all that determines them. A
stage that is done is read instead of run, so the same command goes on where it was stopped.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmray import artifacts, models
from mmray.arrays import Ids
from mmray.artifacts import Stage
from mmray.collection import Collection, read_exclusions
from mmray.config import Config, Pooling, chosen_stages
from mmray.describing import Described, describe
from mmray.distributed.extraction import Description
from mmray.errors import InputError
from mmray.evaluation.labelled import LabelledSet, labelled_set
from mmray.evaluation.purity import labels_of, read_named_labels
from mmray.feature_stages import extract_stage, features_stage
from mmray.health import NEIGHBORS
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
from mmray.report import Score, results_table
from mmray.session import Counts, Session, running, usable_storage
from mmray.sources import probe
from mmray.training_stages import Tuned, train_stage
from mmray.whitening import Whitening, lda_whitening, pca_whitening

INITIAL, TUNED = "initial", "fine-tuned"
WHITENING_NAMES = {INITIAL: "PCA", TUNED: "LDA"}


@dataclass(frozen=True)
class Inputs:
    """What a run starts from: where its images are, perhaps a labelled set, a network."""

    sources: tuple[str, ...]
    excluded: set[str]
    labelled: LabelledSet | None
    network: EmbeddingNet
    pool_labels: Mapping[str, str] | None


@dataclass(frozen=True)
class Whitened:
    """The whitening stage, and what it learned for each network and pooling."""

    stage: Stage
    whitenings: dict[tuple[str, Pooling], Whitening]


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
        images, labelled = described.items, inputs.labelled
        tuned = train_stage(
            session, tuned.network, images, mined, checked, labelled, metrics=metrics
        )
        if tuned.epoch == 0:
            break  # another round would be the same
    if last == "train":
        return []
    networks = {INITIAL: inputs.network, TUNED: tuned.network}
    whitened = whiten_stage(session, described, mined, networks)
    if last == "whiten":
        return []
    return evaluate_stage(session, inputs.labelled, whitened, networks)


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
    for source in config.images:
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
        labelled_set(test.images, test.ground_truth) if test.images and test.ground_truth else None,
        network,
        read_named_labels(test.pool_labels) if test.pool_labels else None,
    )


def whiten_stage(
    session: Session[Config], described: Described, mined: Mined, networks: dict[str, EmbeddingNet]
) -> Whitened:
    """PCA whitening of the initial network, LDA whitening of the fine-tuned one.

    PCA learns from a sample of the unlabelled images, LDA from matching pairs that were mined.
    """
    config, test = session.config.whitening, session.config.evaluation
    rng, total = np.random.default_rng(session.config.seed), len(described.items)
    sample = np.sort(rng.choice(total, min(config.images, total), replace=False))
    pairs = matching_pairs(mined.pools, config.pairs, rng)
    paired = np.unique(pairs)

    def described_by(name: str, ids: Ids) -> Described:
        return describe(
            session,
            described.items.take(ids),
            networks[name],
            how=test_description(session.config),
            part_of="whiten",
        )

    learned_from = {INITIAL: described_by(INITIAL, sample), TUNED: described_by(TUNED, paired)}

    def learn(name: str, pooling: Pooling) -> Whitening:
        features = learned_from[name].features(pooling)
        if name == INITIAL:
            return pca_whitening(features)
        return lda_whitening(features, *np.searchsorted(paired, pairs))

    def work(stage: Stage) -> Counts:
        for name, pooling in itertools.product(networks, test.poolings):
            whitening = learn(name, pooling)
            artifacts.write_whitening(stage.folder, f"{name}-{pooling}.npz", whitening)
            if (name, pooling) == (TUNED, session.config.training.pooling):
                artifacts.write_whitening(stage.folder / "model", "whitening.npz", whitening)
        models.save(networks[TUNED], stage.folder / "model")
        return {"images": len(sample), "pairs": pairs.shape[1]}

    marks = [each.stage.fingerprint for each in learned_from.values()]
    stage = session.stage("whiten", marks, pairs.tolist(), work=work)
    for file in (stage.folder / "model").names():
        session.run.log_file(stage.folder / "model", file, "model")
    announce(f"model: {stage.folder.location('model')}")
    return Whitened(
        stage,
        {
            (name, pooling): artifacts.read_whitening(stage.folder, f"{name}-{pooling}.npz")
            for name, pooling in itertools.product(networks, test.poolings)
        },
    )


def test_description(config: Config) -> Description:
    """How images are described for retrieval."""
    return Description(
        longest_side=config.evaluation.longest_side,
        poolings=config.evaluation.poolings,
        batch_size=config.extraction.batch_size,
        max_pixels=config.extraction.max_pixels,
    )


def evaluate_stage(
    session: Session[Config],
    labelled: LabelledSet | None,
    whitened: Whitened,
    networks: dict[str, EmbeddingNet],
) -> list[Score]:
    """Score both networks on the labelled set, each descriptor with and without whitening."""
    if labelled is None:
        announce("evaluate: no labelled set was given, nothing is measured")
        return []
    config = session.config.evaluation
    described = {
        name: describe(
            session,
            Collection.of(labelled.items),
            model,
            how=test_description(session.config),
            part_of="evaluate",
        )
        for name, model in networks.items()
    }

    def score(name: str, pooling: Pooling, whiten: bool) -> Score:
        features = described[name].features(pooling)
        if whiten:
            features = whitened.whitenings[name, pooling].apply(features)
        whitening = WHITENING_NAMES[name] if whiten else "none"
        return Score(name, pooling, whitening, labelled.mean_average_precision(features))

    def work(stage: Stage) -> Counts:
        scores = [
            score(*key) for key in itertools.product(networks, config.poolings, (False, True))
        ]
        artifacts.write_json(stage.folder, "metrics.json", [dataclasses.asdict(s) for s in scores])
        return {f"map-{s.network}-{s.descriptor}-{s.whitening}": s.map for s in scores}

    marks = [each.stage.fingerprint for each in described.values()]
    truth = [(q.name, q.positives.tolist(), q.junk.tolist()) for q in labelled.ground_truth]
    stage = session.stage("evaluate", marks, whitened.stage.fingerprint, truth, work=work)
    scores = [Score(**row) for row in artifacts.read_json(stage.folder, "metrics.json")]
    session.run.log_text("results.md", results_table(scores) + "\n")
    return scores
