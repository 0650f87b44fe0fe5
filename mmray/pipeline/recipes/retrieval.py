"""The retrieval recipe: from images to a fine-tuned network and its mAP, stage by stage.

Each stage reads artifacts, and writes artifacts into a folder named by all that determines them. A
stage that is done is read instead of run, so the same command continues where it was stopped.
"""

import dataclasses

from mmray.config.learning import RetrievalConfig
from mmray.evaluation.candidates import INITIAL, TUNED
from mmray.mining.manifold import ManifoldNeighbors
from mmray.pipeline.recipes.learning import (
    run_recipe,
    with_demo_images,
)
from mmray.pipeline.recipes.outcome import (
    Inputs,
    LearningResult,
    RunResult,
    UnlabelledImages,
    build_networks,
)
from mmray.pipeline.recipes.result import JobResult
from mmray.pipeline.recipes.rounds import learn
from mmray.pipeline.session import Session
from mmray.pipeline.stages.evaluation import (
    evaluate_stages,
    read_labelled_sets,
    shown_descriptor,
)
from mmray.pipeline.stages.labelled_descriptors import (
    labelled_set_settings,
)
from mmray.pipeline.stages.training import train_stage, tuples_stage
from mmray.pipeline.stages.whitening import whiten_stage
from mmray.system.progress import announce
from mmray.training.supervised.sfm_tuples import SfmTuples, read_sfm_tuples


def run(config: RetrievalConfig) -> JobResult:
    """Run the retrieval job, see `run_recipe`."""
    return run_recipe(config, read_inputs, with_demo, recipe)


def recipe(session: Session[RetrievalConfig], inputs: Inputs) -> RunResult:
    """Run all stages in order, up to the last one that was chosen."""
    learned: LearningResult | None
    if inputs.tuples is not None:
        learned = _learn_from_tuples(session, inputs, inputs.tuples)
    else:
        images = inputs.unlabelled.listed(session)
        labels = inputs.unlabelled.labels_of(images)
        starting = inputs.feature_network, inputs.network
        learned = learn(session, images, *starting, labels=labels, labelled=inputs.labelled)
    if learned is None or learned.tuned is None or session.ends_with("train"):
        return RunResult(learned=learned)
    networks = {INITIAL: inputs.network, TUNED: learned.tuned.network}
    whitened = whiten_stage(session, learned.images, learned.mined, networks)
    result = RunResult(learned=learned, model=whitened.model)
    if session.ends_with("whiten"):
        return result
    if not inputs.sets:
        announce("evaluate: no labelled set was given, nothing is measured")
        shown = shown_descriptor(inputs.network, session.config.evaluation)
        return dataclasses.replace(result, found=whitened.search(shown))
    initial, trained = whitened.candidates
    trained = dataclasses.replace(trained, label=learned.tuned.label)
    measured = evaluate_stages(
        session,
        [initial, trained],
        inputs.sets,
        session.config.evaluation,
        labelled_set_settings(session.config),
    )
    return dataclasses.replace(result, scores=measured.scores, found=measured.found)


def _learn_from_tuples(
    session: Session[RetrievalConfig], inputs: Inputs, given: SfmTuples
) -> LearningResult:
    """Train the supervised baseline on pairs and clusters from a file; nothing is mined."""
    mined, nothing = tuples_stage(session, given), ManifoldNeighbors.none()
    tuned = train_stage(session, inputs.network, given.images, mined, nothing, inputs.labelled)
    return LearningResult(images=given.images, mined=mined, trained=[tuned])


def with_demo(session: Session[RetrievalConfig]) -> RetrievalConfig:
    """Return the settings with the rendered demonstration set as the images."""
    folder = with_demo_images(session)
    test = dataclasses.replace(
        session.config.evaluation,
        images=folder.location("test/jpg"),
        ground_truth=folder.location("test/gt"),
        pool_labels=folder.location("train_labels.csv"),
    )
    return dataclasses.replace(session.config, images=(folder.location("train"),), evaluation=test)


def read_inputs(config: RetrievalConfig) -> Inputs:
    """Read the network and the labelled sets, and look for the images, that the settings name.

    Raises
    ------
    InputError
        An input cannot be read, or there are no images.
    """
    test = config.evaluation
    network, features = build_networks(config)
    network.check_dims("--evaluation.dims", test.dims, test.poolings)
    tuples = None if config.tuples is None else read_sfm_tuples(config.tuples, config.images[0])
    return Inputs(
        unlabelled=(
            UnlabelledImages.read(config, "--evaluation.pool-labels", test.pool_labels)
            if tuples is None
            else UnlabelledImages()
        ),
        sets=read_labelled_sets(test),
        network=network,
        feature_network=features,
        tuples=tuples,
    )
