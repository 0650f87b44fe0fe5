"""The recipe of `jobs/evaluate.py`: networks measured on labelled sets."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mmray.config.choices import NETWORKS_TOLD, Descriptor, Pooling, network_and_weights
from mmray.config.presets import departures_told
from mmray.config.tools import EvaluateJobConfig
from mmray.descriptors.settings import CONFIG, DescriptorSettings, Preprocessing
from mmray.descriptors.weights import build, load, load_published
from mmray.descriptors.whitening import pca_whitening, read_whitening, whitening_name
from mmray.evaluation.candidates import LDA, OWN, PCA, EvaluatedNetwork
from mmray.pipeline.opening import running, usable_storage
from mmray.pipeline.recipes.pictures import SIDE
from mmray.pipeline.recipes.publishing import write_report
from mmray.pipeline.recipes.result import JobResult, places_of, scores_of
from mmray.pipeline.recipes.run_report import scores_table
from mmray.pipeline.recipes.search_pictures import searches
from mmray.pipeline.recipes.steps import evaluation_steps
from mmray.pipeline.registry import model_folder
from mmray.pipeline.reports.run_page import Report
from mmray.pipeline.reports.tables import results_table
from mmray.pipeline.reports.thumbnails import Thumbnails
from mmray.pipeline.session import Session
from mmray.pipeline.stages.evaluation import (
    evaluate_stages,
    read_labelled_sets,
)
from mmray.pipeline.stages.labelled_descriptors import PART, describe_sample
from mmray.system.errors import InputError, explained
from mmray.system.folder import Folder
from mmray.system.progress import announce


def run(config: EvaluateJobConfig) -> JobResult:
    """Measure the networks on the labelled sets, skipping stages that are done.

    Returns
    -------
    The scores, followed by those of the paper where a network and its setting are the paper's.

    Raises
    ------
    InputError
        A setting, an input or the cluster cannot be used. Stages that are done are kept.
    """
    storage = usable_storage(config)
    candidates = [read_candidate(model, config, storage=storage) for model in config.model]
    for label, count in Counter(candidate.label for candidate in candidates).items():
        if count > 1:
            raise InputError(f"--model: {count} networks are called {label}: write OTHER={label}")
    for candidate in candidates:
        if candidate.whitenings or config.pca_images is not None:
            candidate.network.check_dims("--dims", config.dims, config.poolings)
    sets = read_labelled_sets(config)
    with running(config, storage, (PART,), evaluation_steps(config)) as session:
        preprocessing = Preprocessing(config.longest_side, scales=config.scales)
        settings = DescriptorSettings.of(config, preprocessing, config.poolings)
        if config.pca_images is not None:
            candidates = [_with_pca(session, each, settings) for each in candidates]
        measured = evaluate_stages(session, candidates, sets, config, settings)
        write_report(
            session,
            Report(
                title=f"Evaluation of {_listed(each.label for each in candidates)}",
                summary=(f"Measured on {_listed(each.name for each in sets)}.",),
                results=scores_table(measured.scores),
                retrieval=searches(
                    measured.found,
                    Thumbnails(SIDE, max_pixels=config.max_pixels),
                    seed=config.seed,
                ),
            ),
        )
    table = f"{results_table(measured.scores)}\n\n{departures_told(config)}"
    return JobResult(text=table, values={"table": scores_of(measured.scores), **places_of(session)})


def _listed(names: Iterable[str]) -> str:
    """Join names as in "A, B and C"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def read_candidate(model: str, config: EvaluateJobConfig, *, storage: Folder) -> EvaluatedNetwork:
    """Load a network that --model names: a folder, a network, its weights, or a published file.

    Parameters
    ----------
    model : the value of --model: [LABEL=]FOLDER, [LABEL=]NETWORK, [LABEL=]NETWORK:FILE or
        [LABEL=]FILE, the last of cirtorch or dirtorch; a URI of MLflow may stand for FOLDER
    config : which descriptors are measured, whose whitenings are read where there are any, at which
        scales; the tracking server for a URI of MLflow
    storage : of the runs, for a URI of MLflow

    Raises
    ------
    InputError
        The value is neither the model of a run, the name of a network nor a published file.
    """
    label, mark, named = model.partition("=")
    if not mark:
        label, named = model, model
    poolings, uri = config.poolings, config.tracking_uri
    known = network_and_weights(named)
    if known is not None:
        name, weights = known
        pooling: Pooling = "mac" if poolings[0] == "embedding" else poolings[0]
        built = build(name, pooling=pooling, weights=weights or None)
        return EvaluatedNetwork(label=label, network=built)
    if Path(named).is_file():
        return _read_rival(label, Path(named), config)
    with model_folder(named, storage=storage, uri=uri) as folder:
        if not folder.has(CONFIG):
            raise InputError(
                f"--model {model}: no folder that a run left as model/ (there is no "
                f"{CONFIG}), nor a network; choose from {NETWORKS_TOLD}"
            )
        network = load(folder)
        files = {pooling: whitening_name(pooling, network.pooling) for pooling in poolings}
        whitenings = {
            (LDA, pooling): read_whitening(folder, file, network.dimensions(pooling))
            for pooling, file in files.items()
            if folder.has(file)
        }
    return EvaluatedNetwork(label=label, network=network, whitenings=whitenings)


def _read_rival(label: str, path: Path, config: EvaluateJobConfig) -> EvaluatedNetwork:
    """Load a published network, with the whitening in its file for its own descriptor."""
    network, found = load_published(path)
    own: set[Descriptor] = {"embedding"} if network.head else {"embedding", network.pooling}
    measured = [pooling for pooling in config.poolings if pooling in own]
    if not measured:
        announce(
            f"models: {label} is not measured as published: give --poolings embedding for that"
        )
    whitening = found.whitening if len(config.scales) == 1 else found.whitening_of_scales
    whitenings = {} if whitening is None else {(OWN, pooling): whitening for pooling in measured}
    return EvaluatedNetwork(label=label, network=network, whitenings=whitenings)


def _with_pca(
    session: Session[EvaluateJobConfig], candidate: EvaluatedNetwork, settings: DescriptorSettings
) -> EvaluatedNetwork:
    """Add PCA whitenings, learned from independent images, to a network to measure."""
    config = session.config
    assert config.pca_images is not None
    learned_from = describe_sample(
        session,
        config.pca_images,
        candidate.network,
        settings,
        images=config.pca_sample,
        stage_flag=PART,
    )
    with explained(f"--pca-images {config.pca_images}", "name more and other images"):
        learned = {
            (PCA, pooling): pca_whitening(learned_from.features(pooling))
            for pooling in config.poolings
        }
    return dataclasses.replace(candidate, whitenings=learned | dict(candidate.whitenings))
