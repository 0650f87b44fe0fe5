"""Checks of settings; an impossible one is refused with its flag, its value and the remedy."""

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from mmray.config.bounds import check_bounds, check_not_empty, seconds_in
from mmray.config.choices import NETWORKS_TOLD, network_and_weights
from mmray.config.describing import ExtractionConfig
from mmray.config.learning import FinegrainedConfig, LearningConfig, RetrievalConfig, chosen_stages
from mmray.config.run import RunConfig, settings
from mmray.config.sections import LabelledSetsConfig
from mmray.config.tools import EvaluateJobConfig, IndexConfig, MineConfig
from mmray.system.errors import InputError
from mmray.system.locations import is_absolute

_INDEX_NAME = re.compile(r"[\w-]{1,100}")
_MODEL_NAME = re.compile(r"(?![\s.]*$)[^/:]{1,250}")  # what MLflow takes for a registered model


def validate(config: RunConfig) -> None:
    """Raise InputError for the first impossible setting: its flag, its value and the remedy."""
    try:
        check_bounds(config)
        check_not_empty(config)
        for kind in reversed(type(config).__mro__):
            for check in _CHECKS.get(kind, ()):
                check(config)
    except InputError as error:
        if not config.config:
            raise
        raise InputError(f"{error} (settings are of {config.config} and of the flags)") from error


def _validate_run(config: RunConfig) -> None:
    if in_uploaded_folder() and not is_absolute(config.storage):
        raise InputError(
            f"--storage {config.storage}: this job runs in a copy of your folder that will vanish; "
            "name an absolute folder or a URI"
        )
    if config.max_workers is not None and config.max_workers < config.min_workers:
        raise InputError(
            f"--max-workers {config.max_workers} is below --min-workers {config.min_workers}: "
            "raise the one or lower the other"
        )


def in_uploaded_folder() -> bool:
    """Tell whether this is a submitted job in a copy of the user's folder, which will vanish."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return bool(job.get("runtime_env", {}).get("working_dir"))


def _validate_mine(config: MineConfig) -> None:
    if not config.features:
        raise InputError("--features is missing: name a .npy file, a Parquet folder or a .mat file")


def _validate_evaluate(config: EvaluateJobConfig) -> None:
    _validate_measuring(config, "--")
    if not config.model:
        raise InputError("--model is missing: name a folder model/ of a run, or a network")
    if not config.benchmark and config.images is None:
        raise InputError("--benchmark and --images are missing: name a labelled set")


def _validate_retrieval(config: RetrievalConfig) -> None:
    _validate_measuring(config.evaluation, "--evaluation.")
    _validate_tuples(config)


def _validate_index(config: IndexConfig) -> None:
    if not config.images:
        raise InputError("--images is missing: name folders, archives or lists of images")
    if not _INDEX_NAME.fullmatch(config.index_name):
        raise InputError(f"--name {config.index_name!r}: choose letters, digits, - and _ alone")


def _validate_descriptors(config: ExtractionConfig | LabelledSetsConfig, prefix: str) -> None:
    if not config.poolings:
        raise InputError(f"{prefix}poolings is empty: name one or more of mac, rmac, gem, avg, cls")
    _refuse_twice(f"{prefix}poolings", config.poolings)
    if "embedding" in config.poolings and len(config.poolings) > 1:
        raise InputError(f"{prefix}poolings embedding: it may have fewer dimensions, take it alone")
    if not config.scales:
        raise InputError(f"{prefix}scales is empty: name at least one, such as 1.0")


def _validate_measuring(config: LabelledSetsConfig, prefix: str) -> None:
    _validate_descriptors(config, prefix)
    if config.ground_truth is not None and config.images is None:
        raise InputError(
            f"{prefix}ground-truth needs {prefix}images: name the folder of its images"
        )
    if config.benchmark and config.data is None:
        raise InputError(
            f"{prefix}benchmark needs {prefix}data: name the folder that holds the benchmarks"
        )
    _refuse_twice(f"{prefix}benchmark", config.benchmark)
    if not config.search:
        raise InputError(f"{prefix}search is empty: name at least one, such as plain")
    _refuse_twice(f"{prefix}search", config.search)


def _refuse_twice(flag: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{flag} names {name} twice: once is enough")


def _validate_networks(config: LearningConfig) -> None:
    for flag, network in (
        ("--network", config.network),
        ("--feature-network", config.feature_network),
    ):
        known = None if network is None else network_and_weights(network)
        if network is not None and known is None:
            raise InputError(f"{flag} {network}: choose from {NETWORKS_TOLD}")
        if flag == "--network" and known is not None and known[1]:
            raise InputError(f"{flag} {network}: write --network {known[0]} --weights {known[1]}")


def _validate_learning(config: LearningConfig) -> None:
    _validate_descriptors(config.extraction, "--extraction.")
    _validate_networks(config)
    if not config.images and not config.has_demo:
        raise InputError("--images is missing: name the folder of the images to learn from")
    if config.extraction.region_whitening and "rmac" not in config.extraction.poolings:
        raise InputError(
            "--extraction.region-whitening: only rmac, in --extraction.poolings, has regions"
        )
    training = config.training
    if not training.validation_items and (training.keep == "best" or training.patience is not None):
        raise InputError(
            "--training.validation-items 0: this check tells the best network, and when training "
            "no longer helps; leave it on, or give --training.keep last --training.patience None"
        )
    if training.gem_rate and training.pooling != "gem":
        raise InputError(
            f"--training.gem-rate {training.gem_rate:g}: {training.pooling} has no exponent to "
            "learn; give --training.pooling gem, or leave it at 0"
        )
    if training.mean_of_pairs and training.loss != "contrastive":
        raise InputError(
            f"--training.mean-of-pairs: {training.loss} has no terms of pairs; give "
            "--training.loss contrastive, or leave it out"
        )
    least, most = training.crop_scale
    if least > most:
        raise InputError(
            f"--training.crop-scale {least:g} {most:g}: give the least share first, then the most"
        )
    if training.resize_size is not None and training.resize_size < training.crop_size:
        raise InputError(
            f"--training.resize-size {training.resize_size} is below --training.crop-size "
            f"{training.crop_size}: no crop of that size fits; raise the one or lower the other"
        )
    if training.loss == "infonce":
        _refuse_micro_batches(config, "--training.loss infonce")
    if config.budget is not None and not seconds_in(config.budget):
        raise InputError(
            f"--budget {config.budget!r}: give a number above 0 with s, m, h or d, such as 30m"
        )
    chosen_stages(config)
    if config.registered_model and not _MODEL_NAME.fullmatch(config.registered_model):
        raise InputError(
            f"--registered-model {config.registered_model[:80]!r}: MLflow takes no / and no : in "
            "a name, and at most 250 characters; choose another, or '' for none"
        )
    labels = config.labels_flag
    if config.oracle is not None and labels is not None:
        raise InputError(f"--oracle {config.oracle} uses labels: name them with {labels}")


def _refuse_micro_batches(config: LearningConfig, chosen: str) -> None:
    size = config.training.micro_batch_size
    if size is not None:
        raise InputError(
            f"--training.micro-batch-size {size}: with {chosen} the loss compares all images of a "
            "step, which no part of them has; leave it at None, and lower --training.batch-size or "
            "add --training.workers where memory is short"
        )


def _validate_finegrained(config: FinegrainedConfig) -> None:
    if config.test.labels is not None and config.test.images is None:
        raise InputError("--test.labels needs --test.images: name the folder of its images")
    if config.baseline is None:
        return
    labels = config.labels_flag
    if labels is not None:
        raise InputError(
            f"--baseline {config.baseline} learns from labels: name them with {labels}"
        )
    if config.rounds != 1 or config.oracle is not None:
        raise InputError(
            f"--baseline {config.baseline} learns from labels, not from mined pools: leave "
            "--rounds at 1 and --oracle out"
        )
    _refuse_micro_batches(config, f"--baseline {config.baseline}")


# Settings without a meaning where training takes its pairs from a file, and their only value there.
_WITH_TUPLES: dict[str, Any] = {
    "recipe": "supervised",
    "rounds": 1,
    "image_column": None,
    "exclude": None,
    "sample": None,
    "training.positives": 1,
    "training.held_out": 0,
    "training.validation_items": 0,
    "training.keep": "last",
    "training.patience": None,
    "evaluation.pool_labels": None,
    "near_duplicates": "keep",
}


def _validate_tuples(config: RetrievalConfig) -> None:
    if config.tuples is None:
        if config.recipe == "supervised":
            raise InputError("--recipe supervised needs --tuples: name a file of training tuples")
        return
    if len(config.images) != 1:
        raise InputError(
            f"--images names {len(config.images)} sources: with --tuples name one, the folder "
            "`ims` of the images of its tuples"
        )
    given = settings(config)
    for name, needed in _WITH_TUPLES.items():
        if given[name] != needed:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag} {given[name]}: with --tuples nothing is mined, so that there is no graph "
                f"to check a network by, and all pairs are the file's; leave it at {needed}"
            )
    if not {"train", "whiten", "evaluate"} & set(chosen_stages(config)):
        raise InputError(
            f"--stages {config.stages}: with --tuples the stages are train, whiten and evaluate"
        )


# Checks by class of settings; those of its base classes run before its own.
_CHECKS: dict[type, tuple[Callable[[Any], None], ...]] = {
    RunConfig: (_validate_run,),
    MineConfig: (_validate_mine,),
    IndexConfig: (_validate_index,),
    LearningConfig: (_validate_learning,),
    RetrievalConfig: (_validate_retrieval,),
    FinegrainedConfig: (_validate_finegrained,),
    EvaluateJobConfig: (_validate_evaluate,),
}
