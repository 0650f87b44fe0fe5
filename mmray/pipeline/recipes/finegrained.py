"""The fine-grained recipe: an embedding from unlabelled images of similar classes (Sec. 4.2).

n items, c channels of the backbone's last map, d dimensions of the embedding.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from mmray.config.learning import FinegrainedConfig
from mmray.config.presets import BASELINE, changed
from mmray.config.sections import LabelledSetsConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import save, state_digest
from mmray.evaluation.benchmarks.classes import ClassSet, class_set
from mmray.evaluation.benchmarks.labelled_set import LabelledSet, as_labelled
from mmray.evaluation.candidates import INITIAL, EvaluatedNetwork
from mmray.evaluation.purity import labels_of_images, read_named_labels
from mmray.images.collection import Collection, named_images, sample
from mmray.images.names import fit
from mmray.images.sources import list_images
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
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.evaluation import evaluate_stages
from mmray.pipeline.stages.extraction import extract_stage
from mmray.pipeline.stages.head import head_stage
from mmray.pipeline.stages.labelled_descriptors import class_set_settings
from mmray.pipeline.stages.listing import read_exclusion_list, without_named
from mmray.pipeline.stages.near_duplicates import near_duplicates_stage
from mmray.pipeline.stages.training import classes_stage, train_stage
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.progress import announce

_POOL_LABELS = "--pool-labels"


def run(config: FinegrainedConfig) -> JobResult:
    """Run the fine-grained job, see `run_recipe`."""
    if config.baseline is not None:
        config = changed(config, BASELINE)
    return run_recipe(config, read_inputs, with_demo, recipe)


def recipe(session: Session[FinegrainedConfig], inputs: Inputs) -> RunResult:
    """Run all stages in order, up to the last one that was chosen."""
    images, network = inputs.unlabelled.listed(session), inputs.network
    labels = inputs.unlabelled.labels_of(images)
    if {"train", "evaluate"} & set(session.chosen):
        network = head_stage(session, images, inputs.network)
    if session.config.baseline is None:
        learned = learn(
            session,
            images,
            inputs.feature_network,
            network,
            labels=labels,
            labelled=inputs.labelled,
        )
    else:
        learned = learn_from_labels(session, images, network, inputs, labels)
    if learned is None or learned.tuned is None:
        return RunResult(learned=learned)
    tuned = learned.tuned
    outcome = RunResult(learned=learned, model=model_stage(session, tuned.network))
    if session.ends_with("train"):
        return outcome
    if not inputs.sets:
        announce("evaluate: no test classes were given, nothing is measured")
        return outcome
    candidates = [EvaluatedNetwork(label=INITIAL, network=network)]
    candidates += [EvaluatedNetwork(label=tuned.label, network=tuned.network)]
    settings = class_set_settings(session.config)
    searched = LabelledSetsConfig(
        longest_side=settings.preprocessing.longest_side or 0,
        poolings=("embedding",),
        clusterings=session.config.test.clusterings,
    )
    measured = evaluate_stages(session, candidates, inputs.sets, searched, settings)
    return dataclasses.replace(outcome, scores=measured.scores, found=measured.found)


def model_stage(session: Session[FinegrainedConfig], network: EmbeddingNet) -> Folder:
    """Save the network that was kept as a model, and return its folder."""
    preprocessing = class_set_settings(session.config).preprocessing

    def work(stage: StageFolder) -> Counts:
        save(network, stage.folder / "model", preprocessing=preprocessing)
        return {"dims": network.dim}

    inputs = (state_digest(network), preprocessing.stored())
    stage = session.run_stage("model", *inputs, work=work, stage_flag="train")
    announce(f"model: {stage.folder.location('model')}")
    return stage.folder / "model"


def learn_from_labels(
    session: Session[FinegrainedConfig],
    images: Collection,
    network: EmbeddingNet,
    inputs: Inputs,
    labels: NDArray[np.str_] | None,
) -> LearningResult | None:
    """Train a supervised baseline of Table 2 on the same images, network and optimiser."""
    baseline = session.config.baseline
    assert labels is not None, "settings are validated"
    assert baseline is not None, "asked for"
    described, near = near_duplicates_stage(session, extract_stage(session, inputs.network, images))
    if not {"train", "evaluate"} & set(session.chosen):
        return None
    known = labels[described.places]
    mined = classes_stage(session, described.items, known, baseline, session.config.per_class)
    nothing = ManifoldNeighbors.none()
    tuned = train_stage(session, network, described.items, mined, nothing, inputs.labelled)
    return LearningResult(
        images=described.items, extracted=described.stage, near=near, mined=mined, trained=[tuned]
    )


# -- inputs ---------------------------------------------------------------------------------------


def with_demo(session: Session[FinegrainedConfig]) -> FinegrainedConfig:
    """Return the settings with the rendered demonstration set as the images."""
    folder = with_demo_images(session)
    test = dataclasses.replace(
        session.config.test,
        images=folder.location("test/jpg"),
        labels=folder.location("test_labels.csv"),
    )
    return dataclasses.replace(
        session.config,
        images=(folder.location("train"),),
        pool_labels=folder.location("train_labels.csv"),
        test=test,
    )


def read_inputs(config: FinegrainedConfig) -> Inputs:
    """Read the network and the test sets, and look for the images, that the settings name.

    Raises
    ------
    InputError
        An input cannot be read, there are no images, or classes are needed and missing.
    """
    network, features = build_networks(config)
    network.check_dims("--dim", config.dim, [config.training.pooling])
    if config.test.images is None and config.test.split:
        first, second = _halves(config)
        return Inputs(unlabelled=first, sets=[second], network=network, feature_network=features)
    sets = []
    if config.test.images is not None:
        sets.append(as_labelled(_test_classes(config.test.images, config.test.labels)))
    unlabelled = UnlabelledImages.read(config, _POOL_LABELS, config.pool_labels)
    return Inputs(unlabelled=unlabelled, sets=sets, network=network, feature_network=features)


def _halves(config: FinegrainedConfig) -> tuple[UnlabelledImages, LabelledSet]:
    """Split a folder of classes: half of them to train on without labels, the others to test on."""
    first, second = _class_folder(config).halves()
    announce(
        f"classes: {len(first.classes)} train, without labels, on {len(first.images):,} images; "
        f"{len(second.classes)} others test, on {len(second.images):,}"
    )
    images, excluded = Collection.of(first.images), read_exclusion_list(config)
    images, fitting = without_named(images, excluded, must_fit=False)
    if excluded and not fitting:
        tests = named_images(Collection.of(second.images), excluded)[1]
        said = fit("--exclude", excluded, tests, [image.name for image in first.images])
        announce(f"list: {said}; all these are of classes that test, where they stay")
    if not len(images):
        raise InputError("--exclude: none of the images to train on is left; name fewer")
    if config.sample is not None:
        images = sample(images, config.sample, config.seed)
    names = [image.name for image in first.images]
    labels, source = dict(zip(names, first.labels, strict=True)), None
    if config.pool_labels:
        labels = read_named_labels(config.pool_labels)
        source = f"{_POOL_LABELS} {config.pool_labels}"
    unlabelled = UnlabelledImages(
        image_sources=config.images, images=images, labels=labels, labels_source=source
    )
    return unlabelled, as_labelled(second)


def _test_classes(folder: str, labels: str | None) -> ClassSet:
    """Find test images with their classes, from their folders or from a CSV file of labels."""
    if labels is None:
        return class_set(folder)
    images, source = list_images(folder), f"--test.labels {labels}"
    known, fitting = labels_of_images(Collection.of(images), read_named_labels(labels), source)
    labelled = [
        (image, label) for image, label in zip(images, known.tolist(), strict=True) if label
    ]
    announce(f"labels: {fitting}")
    announce(f"labels: {len(labelled):,} of the {len(images):,} images of {folder} have one")
    if not labelled:
        raise InputError(f"{source}: no name has a label; give name,label in each line")
    return ClassSet(
        source=folder,
        images=tuple(image for image, _ in labelled),
        labels=tuple(label for _, label in labelled),
        classes=tuple(sorted({label for _, label in labelled})),
    )


def _class_folder(config: FinegrainedConfig) -> ClassSet:
    """Read the only image source as a set of classes."""
    if len(config.images) != 1:
        raise InputError(
            f"--images names {len(config.images)} sources, which are not split into classes: name "
            "one folder of classes, or the test images with --test.images (--test.no-split: all "
            "train, nothing is measured)"
        )
    try:
        return class_set(config.images[0])
    except InputError as error:
        raise InputError(
            f"{error}; or name labelled images with --test.images (--test.no-split: all of "
            "--images train, nothing is measured)"
        ) from error
