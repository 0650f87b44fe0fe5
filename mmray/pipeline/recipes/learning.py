"""The steps that all applications share: from unlabelled images to a fine-tuned network."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mmray.config.learning import LearningConfig, chosen_stages
from mmray.descriptors.network import EmbeddingNet
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.candidates import TUNED
from mmray.evaluation.oracles import OracleSide, filtered_pools, replaced_pools
from mmray.images.collection import Collection
from mmray.images.demo.demo_set import render_collection
from mmray.mining.pool_lists import summary
from mmray.pipeline.opening import running, usable_storage
from mmray.pipeline.recipes.outcome import Inputs, LearningResult, RunResult
from mmray.pipeline.recipes.publishing import publish, publish_without_pools
from mmray.pipeline.recipes.result import JobResult, places_of, scores_of
from mmray.pipeline.recipes.steps import learning_steps
from mmray.pipeline.recipes.verdict import results_told, verdict
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.extraction import extract_stage, features_stage
from mmray.pipeline.stages.minable import NothingMinedError
from mmray.pipeline.stages.mining import (
    MiningResult,
    check_stage,
    graph_stage,
    measure_purity,
    mine_stage,
)
from mmray.pipeline.stages.near_duplicates import NearDuplicates, near_duplicates_stage
from mmray.pipeline.stages.neighbors import FeatureSource, neighbors_stages
from mmray.pipeline.stages.training import train_stage
from mmray.system.folder import Folder
from mmray.system.progress import Progress, announce
from mmray.training.validation import NEIGHBORS

Settings = TypeVar("Settings", bound=LearningConfig)


def run_recipe(
    config: Settings,
    read_inputs: Callable[[Settings], Inputs],
    with_demo: Callable[[Session[Settings]], Settings],
    recipe: Callable[[Session[Settings], Inputs], RunResult],
) -> JobResult:
    """Run the recipe of a job and publish its results, skipping stages that are done.

    Parameters
    ----------
    config : settings of the job
    read_inputs : reads the inputs that the settings name; images are looked for, not listed
    with_demo : replaces missing images in the settings by the rendered demonstration set
    recipe : runs all stages in order, up to the last one that was chosen

    Returns
    -------
    The verdict, the table of the scores on the labelled sets, and where the model is.

    Raises
    ------
    InputError
        A setting, an input or the cluster cannot be used. Stages that are done are kept. Where the
        images give nothing to learn from, the page of the run says why.
    """
    storage = usable_storage(config)
    # Errors of the input are reported before Ray is started.
    inputs = read_inputs(config) if config.images else None
    chosen = chosen_stages(config)
    with running(config, storage, chosen, learning_steps(config, chosen)) as session:
        try:
            result = recipe(session, inputs or read_inputs(with_demo(session)))
        except NothingMinedError as error:
            publish_without_pools(session, error)
            raise
        publish(session, result)
    return JobResult(
        text=results_told(result, config),
        values={
            "verdict": verdict(result) or None,
            "table": scores_of(result.scores),
            "model": None if result.model is None else result.model.uri,
            **places_of(session),
        },
    )


def learn_once(
    session: Session[LearningConfig],
    images: Collection,
    feature_network: EmbeddingNet,
    initial_network: EmbeddingNet,
    *,
    labels: NDArray[np.str_] | None,
    labelled: LabelledSet | None,
    near: NearDuplicates | None = None,
) -> LearningResult | None:
    """Extract, mine and train once: one round of `rounds.learn`.

    Parameters
    ----------
    session : the run
    images : the images to learn from
    feature_network : computes the features to mine on
    initial_network : the network to train
    labels : (n,) of the images, to measure the purity of the pools; None: not measured
    labelled : set to measure on during training; None: not measured
    near : the near-duplicates that an earlier round found, by the initial network; None: none did

    Returns
    -------
    The result; None where the last stage comes before mining.
    """
    config = session.config
    described = extract_stage(session, feature_network, images)
    if near is None:
        described, near = near_duplicates_stage(session, described)
    source = features_stage(session, described)
    if session.ends_with("extract"):
        return None
    session, neighbors = neighbors_stages(session, source)
    graph = graph_stage(session, source, neighbors)
    if session.ends_with("graph"):
        return None
    mined, purity = mine_stage(session, source, graph), None
    known = None if labels is None else labels[described.places]
    if known is not None:
        purity = measure_purity(session, mined, known)
        if config.oracle is not None:
            mined = oracle_stage(session, source, mined, known)
            purity = measure_purity(session, mined, known)
    learned = LearningResult(
        images=described.items,
        extracted=described.stage,
        near=near,
        mined=mined,
        graph=graph,
        source=source,
        mining=session.config.mining,
        labels=known,
        purity=purity,
    )
    if session.ends_with("mine"):
        return learned
    validation_neighbors = check_stage(
        session, source, graph, items=config.training.validation_items, neighbors=NEIGHBORS
    )
    tuned = train_stage(
        session, initial_network, described.items, mined, validation_neighbors, labelled
    )
    return dataclasses.replace(learned, trained=[tuned])


def oracle_stage(
    session: Session[LearningConfig],
    source: FeatureSource,
    mined: MiningResult,
    labels: NDArray[Any],
) -> MiningResult:
    """Filter or replace the mined pools by labels (n,), to see the effect of purer pools."""
    which, count = session.config.oracle, session.config.mining.max_negatives
    assert which is not None, "asked for"
    how, _, named = which.partition("-")
    side = cast(OracleSide, named)
    if how == "filter":
        pools = filtered_pools(mined.pools, labels, side)
        what = f"without false {'pairs' if side == 'both' else side}"
    else:
        features = source.rows.mapped()
        pools = replaced_pools(mined.pools, labels, side, features, negatives=count)
        what = f"with {'pools' if side == 'both' else side} of the labels"
    label = f"{TUNED}, {what} (uses labels)"
    inputs = (mined.fingerprint, which, labels.tolist(), count)
    stage = session.run_stage(
        "oracle", *inputs, work=lambda stage: summary(pools), stage_flag="mine"
    )
    announce(f"pools: {what}: an oracle, not a result of the method")
    return dataclasses.replace(mined, pools=pools, label=label, oracle=stage)


def with_demo_images(session: Session[LearningConfig]) -> Folder:
    """Render the demonstration set, which stands in where no images are given."""
    size = dataclasses.asdict(session.config.demo)
    total = 2 * (size["objects"] * size["photos"] + size["distractors"])

    def render(stage: StageFolder) -> Counts:
        with Progress("render", total=total) as progress:
            return render_collection(stage.folder.write, progress=progress.advance, **size)

    return session.run_stage("demo", size, work=render, stage_flag="extract").folder
