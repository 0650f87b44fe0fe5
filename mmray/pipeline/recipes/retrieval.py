"""The recipe: images to a fine-tuned network and its figures, stage by stage.

Each stage takes artifacts and leaves artifacts in a folder named by all that determines them. A
stage that is done is read instead of run, so the same command goes on where it was stopped.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from mmray.config.learning import RetrievalConfig, chosen_stages
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import build
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.candidates import INITIAL, TUNED
from mmray.evaluation.scores import Score
from mmray.mining.manifold import ManifoldNeighbors
from mmray.pipeline.recipes.learning import check_dimensions, learn, with_demo_images
from mmray.pipeline.recipes.outcome import LearningResult, RunResult, UnlabelledImages
from mmray.pipeline.recipes.publishing import publish
from mmray.pipeline.session import Session, running, usable_storage
from mmray.pipeline.stages.evaluation import evaluate_stages, read_labelled_sets
from mmray.pipeline.stages.labelled_descriptors import (
    labelled_set_settings,
)
from mmray.pipeline.stages.training import train_stage, tuples_stage
from mmray.pipeline.stages.whitening import whiten_stage
from mmray.system.progress import announce
from mmray.training.supervised.sfm_tuples import SfmTuples, read_sfm_tuples


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run starts from: its images, perhaps labelled sets, a network."""

    unlabelled: UnlabelledImages
    sets: Sequence[LabelledSet]
    network: EmbeddingNet
    tuples: SfmTuples | None = None


def run(config: RetrievalConfig) -> list[Score]:
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
    inputs = read_inputs(config) if config.images else None  # mended sooner than Ray is started
    with running(config, storage, chosen_stages(config)) as session:
        if inputs is not None and inputs.tuples is not None:
            outcome = supervised_recipe(session, inputs, inputs.tuples)
        else:
            outcome = recipe(session, inputs or read_inputs(with_demo(session)))
        publish(session, outcome)
        return outcome.scores


def recipe(session: Session[RetrievalConfig], inputs: Inputs) -> RunResult:
    """All stages in their order, as far as the last that was chosen."""
    learned = learn(
        session,
        inputs.unlabelled.images(session),
        inputs.network,
        inputs.network,
        labels=inputs.unlabelled.labels,
        labelled=inputs.sets[0] if inputs.sets else None,
    )
    return RunResult() if learned is None else _from_training(session, inputs, learned)


def supervised_recipe(
    session: Session[RetrievalConfig], inputs: Inputs, given: SfmTuples
) -> RunResult:
    """The supervised baseline: training takes pairs and clusters from a file, nothing is mined."""
    mined, labelled = tuples_stage(session, given), inputs.sets[0] if inputs.sets else None
    nothing = ManifoldNeighbors.none()
    tuned = train_stage(session, inputs.network, given.images, mined, nothing, labelled)
    return _from_training(
        session, inputs, LearningResult(images=given.images, mined=mined, trained=[tuned])
    )


def _from_training(
    session: Session[RetrievalConfig], inputs: Inputs, learned: LearningResult
) -> RunResult:
    """The networks before and after training, whitened and measured, as far as that was chosen."""
    tuned, last = learned.tuned, session.chosen[-1]
    if tuned is None or last == "train":
        return RunResult(learned=learned)
    networks = {INITIAL: inputs.network, TUNED: tuned.network}
    model, (initial, trained) = whiten_stage(session, learned.images, learned.mined, networks)
    outcome = RunResult(learned=learned, model=model)
    if last == "whiten":
        return outcome
    if not inputs.sets:
        announce("evaluate: no labelled set was given, nothing is measured")
        return outcome
    candidates = [initial, dataclasses.replace(trained, label=tuned.label)]
    result = evaluate_stages(
        session,
        candidates,
        inputs.sets,
        session.config.evaluation,
        labelled_set_settings(session.config),
    )
    return dataclasses.replace(outcome, scores=result.scores, found=result.found)


def with_demo(session: Session[RetrievalConfig]) -> RetrievalConfig:
    """The settings, with the rendered demonstration set as the images."""
    folder = with_demo_images(session)
    test = dataclasses.replace(
        session.config.evaluation,
        images=folder.location("test/jpg"),
        ground_truth=folder.location("test/gt"),
        pool_labels=folder.location("train_labels.csv"),
    )
    return dataclasses.replace(session.config, images=(folder.location("train"),), evaluation=test)


def read_inputs(config: RetrievalConfig) -> Inputs:
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
        unlabelled=(
            UnlabelledImages.given(config, test.pool_labels)
            if tuples is None
            else UnlabelledImages()
        ),
        sets=read_labelled_sets(test),
        network=network,
        tuples=tuples,
    )
