"""What settings cannot be: each is refused with its flag, its value and what is allowed."""

import re
from collections.abc import Sequence
from typing import Any

from mmray.config.learning import FinegrainedConfig, LearningConfig, RetrievalConfig, chosen_stages
from mmray.config.run import RunConfig, settings
from mmray.config.sections import ExtractionConfig, LabelledSetsConfig
from mmray.config.tools import EvaluateJobConfig, IndexConfig, MineConfig
from mmray.system.errors import InputError

_INDEX_NAME = re.compile(r"[\w-]{1,100}")

# What cannot be, flag by flag: (section, field) -> (smallest, largest) allowed.
_BOUNDS: dict[tuple[str, str], tuple[float, float]] = {
    ("demo", "objects"): (2, 10_000),
    ("demo", "photos"): (3, 1000),
    ("demo", "distractors"): (0, 100_000),
    ("demo", "longest_side"): (32, 4096),
    ("extraction", "longest_side"): (32, 16_384),
    ("extraction", "shard_size"): (1, 1_000_000),
    ("extraction", "batch_size"): (1, 65_536),
    ("extraction", "max_bad_fraction"): (0, 1),
    ("extraction", "max_pixels"): (1, 10**12),
    ("extraction", "pca"): (1, 100_000),
    ("mining", "graph_k"): (2, 1_000_000),
    ("mining", "search_effort"): (1, 10**9),
    ("mining", "power"): (0, 100),
    ("mining", "anchors"): (1, 10**9),
    ("mining", "alpha"): (0, 0.999999),
    ("mining", "rtol"): (0, 1),
    ("mining", "max_iter"): (1, 1_000_000),
    ("mining", "positive_k"): (1, 1_000_000),
    ("mining", "positive_cut"): (0, 1),
    ("mining", "negative_k"): (1, 10**9),
    ("mining", "max_negatives"): (1, 1_000_000),
    ("mining", "geodesic_far"): (0, 1),
    ("mining", "threads"): (1, 10_000),
    ("mining", "query_block"): (1, 10**9),
    ("mining", "anchor_block"): (1, 100_000),
    ("training", "margin"): (0, 4),
    ("training", "epochs"): (1, 100_000),
    ("training", "anchors_per_epoch"): (1, 10**9),
    ("training", "batch_size"): (1, 1_000_000),
    ("training", "positives"): (1, 1000),
    ("training", "negatives"): (1, 1000),
    ("training", "top_positives"): (1, 1_000_000),
    ("training", "hard_negatives"): (1, 1_000_000),
    ("training", "negative_pool"): (2, 10**9),
    ("training", "crop_size"): (32, 4096),
    ("training", "warmup_epochs"): (0, 100_000),
    ("training", "clip_norm"): (0, 1e9),
    ("training", "held_out"): (0, 0.9),
    ("training", "validation_items"): (0, 1_000_000),
    ("training", "patience"): (1, 100_000),
    ("training", "learning_rate"): (0, 1000),
    ("training", "decay"): (0, 1),
    ("training", "decay_epochs"): (1, 100_000),
    ("training", "momentum"): (0, 1),
    ("training", "weight_decay"): (0, 1000),
    ("training", "longest_side"): (32, 16_384),
    ("training", "embed_batch_size"): (1, 65_536),
    ("training", "monitor_every"): (0, 100_000),
    ("training", "workers"): (1, 100_000),
    ("whitening", "images"): (2, 10**9),
    ("whitening", "pairs"): (2, 10**9),
    ("evaluation", "longest_side"): (32, 16_384),
    ("evaluation", "dims"): (1, 100_000),
    ("evaluation", "clusterings"): (1, 10_000),
    ("test", "clusterings"): (1, 10_000),
    ("", "shard_size"): (1, 1_000_000),
    ("", "batch_size"): (1, 65_536),
    ("", "max_pixels"): (1, 10**12),
    ("", "pca_sample"): (2, 10**9),
    ("", "min_workers"): (1, 100_000),
    ("", "num_cpus"): (1, 10**7),
    ("", "num_gpus"): (0, 10**6),
    ("", "resource_timeout"): (1, 10**9),
    ("", "max_workers"): (1, 100_000),
    ("", "seed"): (0, 2**63 - 1),
    ("", "sample"): (1, 10**12),
    ("", "rounds"): (1, 1000),
    ("", "dim"): (1, 100_000),
    ("", "per_class"): (2, 10_000),
}


def validate(config: RunConfig) -> None:
    """Raise InputError for the first impossible setting: its flag, its value, what is allowed."""
    for (section, name), (low, high) in _BOUNDS.items():
        # Jobs that measure or describe alone have these settings without a section.
        alone = isinstance(config, EvaluateJobConfig | IndexConfig)
        inside = section and not (section == "evaluation" and alone)
        owner = getattr(config, section, None) if inside else config
        value = getattr(owner, name, None)
        if value is not None and not low <= value <= high:
            flag = f"--{section}.{name}" if inside else f"--{name}"
            raise InputError(
                f"{flag.replace('_', '-')} {value}: choose a value from {low:g} to {high:g}"
            )
    if config.max_workers is not None and config.max_workers < config.min_workers:
        raise InputError(
            f"--max-workers {config.max_workers} is below --min-workers {config.min_workers}: "
            "raise the one or lower the other"
        )
    if isinstance(config, MineConfig) and not config.features:
        raise InputError("--features is missing: name a .npy file, a Parquet folder or a .mat file")
    if isinstance(config, IndexConfig):
        _validate_index(config)
    if isinstance(config, LearningConfig):
        _validate_learning(config)
    if isinstance(config, RetrievalConfig):
        _validate_measuring(config.evaluation, "--evaluation.")
        _validate_tuples(config)
    if isinstance(config, FinegrainedConfig):
        _validate_finegrained(config)
    if isinstance(config, EvaluateJobConfig):
        _validate_measuring(config, "--")
        if not config.model:
            raise InputError("--model is missing: name a folder model/ of a run, or a network")
        if not config.benchmark and config.images is None:
            raise InputError("--benchmark and --images are missing: name a labelled set")


def _validate_index(config: IndexConfig) -> None:
    if not config.model:
        raise InputError("--model is missing: name a folder model/ that a run left")
    if not config.images:
        raise InputError("--images is missing: name folders, archives or lists of images")
    if not _INDEX_NAME.fullmatch(config.name):
        raise InputError(f"--name {config.name!r}: choose letters, digits, - and _ alone")


def _validate_descriptors(config: ExtractionConfig | LabelledSetsConfig, prefix: str) -> None:
    if not config.poolings:
        raise InputError(f"{prefix}poolings is empty: name at least one of mac, rmac, gem, avg")
    _refuse_twice(f"{prefix}poolings", config.poolings)
    if "embedding" in config.poolings and len(config.poolings) > 1:
        raise InputError(f"{prefix}poolings embedding: it may have fewer dimensions, take it alone")
    if not config.scales:
        raise InputError(f"{prefix}scales is empty: name at least one, such as 1.0")
    for scale in config.scales:
        if not 0.05 <= scale <= 4:
            raise InputError(f"{prefix}scales {scale:g}: choose values from 0.05 to 4")


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


def _validate_learning(config: LearningConfig) -> None:
    _validate_descriptors(config.extraction, "--extraction.")
    if not config.images and not _has_demo(config):
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
    chosen_stages(config)
    labels = _label_source(config)
    if config.oracle is not None and labels is not None:
        raise InputError(f"--oracle {config.oracle} uses labels: name them with {labels}")


def _has_demo(config: LearningConfig) -> bool:
    """Whether the rendered photos stand in for images that are not given."""
    if isinstance(config, RetrievalConfig):
        return config.preset == "demo" and config.evaluation.images is None
    return isinstance(config, FinegrainedConfig) and (
        config.preset == "demo" and config.test.images is None
    )


def _label_source(config: LearningConfig) -> str | None:
    """The flag that would name the labels of the images; None where they are known."""
    if not config.images:
        return None  # the demonstration has its own
    if isinstance(config, RetrievalConfig):
        return None if config.evaluation.pool_labels else "--evaluation.pool-labels"
    assert isinstance(config, FinegrainedConfig)
    split = config.test.images is None and config.test.split
    return None if config.pool_labels or split else "--pool-labels"


def _validate_finegrained(config: FinegrainedConfig) -> None:
    if config.test.labels is not None and config.test.images is None:
        raise InputError("--test.labels needs --test.images: name the folder of its images")
    if config.baseline is None:
        return
    labels = _label_source(config)
    if labels is not None:
        raise InputError(
            f"--baseline {config.baseline} learns from labels: name them with {labels}"
        )
    if config.rounds != 1 or config.oracle is not None:
        raise InputError(
            f"--baseline {config.baseline} learns from labels, not from mined pools: leave "
            "--rounds at 1 and --oracle out"
        )


# Settings that mean nothing where training takes its pairs from a file, and what they must be.
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
