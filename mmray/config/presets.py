"""Recipes and presets: the sets of values that defaults come from."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from mmray.config.bounds import execution_settings
from mmray.config.choices import (
    Application,
    FinegrainedPreset,
    FinegrainedRecipe,
    MinePreset,
    Preset,
    Recipe,
)
from mmray.config.learning import (
    FinegrainedAblationConfig,
    FinegrainedConfig,
    LearningConfig,
    RetrievalAblationConfig,
    RetrievalConfig,
)
from mmray.config.run import settings
from mmray.config.sections import MiningConfig
from mmray.config.tools import EvaluateJobConfig, MineConfig

Changed = TypeVar("Changed", bound=LearningConfig)
Changes = dict[str, Any]  # of fields; those of a section in a dict of their own

# The paper's values suit a million photos of landmarks. With these, smaller and less pure
# collections gain too, and none loses: docs/results/steady-training.md.
STEADY: Changes = {
    "mining": {"graph_k": 10, "positive_k": 20, "selection": "filled"},
    "training": {
        # The contrastive loss attracts until all distances are below its margin: it contracts.
        "loss": "triplet",
        "normalized_weights": True,
        "learning_rate": 3e-4,
        "anchors_per_epoch": 200,
        "held_out": 0.1,
        "average": True,
        "keep": "best",
        "patience": 5,
    },
}
# Sizes from the collection, all of its components, and rounds while the check rises: what gained on
# the mean of the piles of docs/results/recipe-study.md.
CHOSEN: Changes = {"component": "all", "graph_k": None, "positive_k": None, "negative_k": None}
AUTO: Changes = {
    # On real photos it gained more than VGG16 and needed a sixth of the time; its weights come with
    # a Python package (docs/results/retrieval-real-photos.md).
    "network": "efficientnet_lite0",
    "rounds": 3,
    "mining": {"selection": "filled"},
    # Steps of 15 tuples instead of 5 are as good on the mean, vary less, and are faster.
    # Beside a tuple's training, which costs some 20 forward passes, 6 images are embedded for it.
    "training": STEADY["training"]
    | {"held_out": 0.0, "batch_size": 15, "learning_rate": 9e-4, "ranked_images": 6},
}
# The peer of Table 3 that learns from labels: Radenović, Tolias, Chum, "CNN image retrieval learns
# from BoW", ECCV 2016, with VGG16, by its released code. Its epoch has 6,000 queries, and draws its
# negatives anew three times: it is three of ours.
SUPERVISED: Changes = {
    "training": {
        "loss": "contrastive",
        "margin": 0.7,
        "weighted": False,
        "epochs": 90,
        "anchors_per_epoch": 2000,
        "negatives": 5,
        "hard_negatives": 5,
        "negative_pool": 22_000,
        "mean_of_pairs": True,
        "learning_rate": 1e-3,
        "decay": 0.2,
        "decay_epochs": 30,
        "validation_items": 0,
    },
}
# A baseline of Table 2 learns from labels: there is no graph for the check without labels. Its loss
# is of a whole batch.
BASELINE: Changes = {
    "training": {
        "held_out": 0.0,
        "validation_items": 0,
        "keep": "last",
        "patience": None,
        "micro_batch_size": None,
    },
}
RECIPES: dict[Recipe, Changes] = {
    "auto": AUTO,
    "steady": STEADY,
    "paper": {},
    "supervised": SUPERVISED,
}
FINEGRAINED_MINING: Changes = {
    "component": "all",
    "selection": "all",
    "anchors": None,
    "negative_k": 100,
}
SIZES: dict[Preset, Changes] = {
    "demo": {
        "network": "efficientnet_lite0",
        "extraction": {"longest_side": 192, "shard_size": 64},
        # Some 13 photos of an object: fewer neighbours than the paper's.
        "mining": {
            "component": "all",
            "graph_k": 5,
            "positive_k": 8,
            "negative_k": 100,
            "anchor_block": 64,
        },
        "training": {"longest_side": 192, "epochs": 4, "anchors_per_epoch": 100},
        "evaluation": {"longest_side": 192},
    },
    "retrieval": {},
}


# The paper's second application, where it differs from the first (Sec. 4.2 and 4.3).
FINEGRAINED: Changes = {
    "network": "googlenet",
    "extraction": {
        "longest_side": 512,
        "enlarge": True,
        "scales": (1.0, 2**-0.5, 0.5),
        "poolings": ("rmac",),
        "pca": 512,
    },
    "mining": FINEGRAINED_MINING,
    "training": {
        "pooling": "avg",
        "loss": "triplet",
        "epochs": 100,
        "anchors_per_epoch": 10**6,  # all of them
        "batch_size": 42,
        # As released: training sees crops of whole photos, which CUB-200-2011's 500 pixels are.
        "augmentation": "crop",
        "longest_side": 512,
        "crop_size": 227,
        "crop_scale": (0.08, 1.0),
        "resize_size": 256,
    },
}
FINEGRAINED_RECIPES: dict[FinegrainedRecipe, Changes] = {
    "steady": {
        "mining": {"graph_k": 10, "positive_k": 20},
        "training": {
            "crop_scale": (0.2, 1.0),  # less of a bird does not tell its species
            "normalized_weights": True,
            "learning_rate": 3e-4,
            "held_out": 0.1,
            "average": True,
            "keep": "best",
            "patience": 5,
        },
    },
    "paper": {},
    # The authors' code where it differs from the text: steps a tenth as long, for longer, and a
    # layer on activations that are not normalised.
    "released": {
        "network": "bvlc_googlenet",
        "head": "random-raw",
        "training": {"dampening": 0.9, "decay_epochs": 50},
    },
}
FINEGRAINED_SIZES: dict[FinegrainedPreset, Changes] = {
    "demo": {
        "network": "efficientnet_lite0",
        "demo": {"distractors": 0},
        "extraction": {"longest_side": 224, "scales": (1.0,), "shard_size": 64, "pca": 128},
        # Some 13 photos of an object.
        "mining": {"positive_k": 10, "anchor_block": 64},
        "training": {
            "longest_side": 224,
            "crop_size": 128,
            "resize_size": 144,
            "epochs": 4,
            "anchors_per_epoch": 300,
            "batch_size": 15,
        },
    },
    "finegrained": {},
}


# Changes in the order in which they are applied: of the application, its recipes, its sizes, and
# what a recipe does not leave to the sizes.
_FIRST: dict[Application, Changes] = {"retrieval": {}, "finegrained": FINEGRAINED}
_RECIPES: dict[Application, Mapping[Any, Changes]] = {
    "retrieval": RECIPES,
    "finegrained": FINEGRAINED_RECIPES,
}
_SIZES: dict[Application, Mapping[Any, Changes]] = {
    "retrieval": SIZES,
    "finegrained": FINEGRAINED_SIZES,
}
_LAST: dict[str, Changes] = {"auto": {"mining": CHOSEN}}  # of a recipe, in place of a preset's


def preset(name: Preset, recipe: Recipe = "auto") -> RetrievalConfig:
    """Return the paper's values, as changed by a recipe, then by the sizes of a preset."""
    return with_defaults(RetrievalConfig(preset=name, recipe=recipe))


def with_defaults(config: Changed) -> Changed:
    """Return the settings of the preset and the recipe that a config names."""
    own: Any = config  # `preset` and `recipe` are fields of the applications
    recipes, sizes = _RECIPES[config.kind], _SIZES[config.kind]
    first, last = _FIRST[config.kind], _LAST.get(own.recipe, {})
    return changed(config, first, recipes[own.recipe], sizes[own.preset], last)


# Settings that a result is of, and not how it is computed or on what.
_METHOD = ("network", "dim", "head", "rounds", "deduplicate", "near_duplicates")
_SECTIONS = ("mining.", "extraction.", "training.", "whitening.")
_MEASURED = ("longest_side", "scales", "crop", "dims")
_UNITS = ("extraction.shard_size", "mining.anchor_block")


def departures(config: LearningConfig | EvaluateJobConfig) -> list[str]:
    """Tell each setting that differs from the paper's: the flag, its value, the paper's value."""
    own: Any = config
    if isinstance(config, EvaluateJobConfig):
        paper, names = settings(EvaluateJobConfig()), [*_MEASURED]
    else:
        plain = replace(type(own)(), preset=config.kind, recipe="paper")
        paper, carried_out = settings(with_defaults(plain)), execution_settings(config)
        names = [*_METHOD, *(f"evaluation.{name}" for name in _MEASURED)]
        names += [name for name in paper if name.startswith(_SECTIONS)]
        names = [name for name in names if name not in carried_out and name not in _UNITS]
    return [
        f"--{name.replace('_', '-')} {_shown(value)} ({_shown(paper[name])})"
        for name, value in settings(config).items()
        if name in names and value != paper[name]
    ]


def departures_told(config: LearningConfig | EvaluateJobConfig) -> str:
    """Tell all departures in a sentence, for below a table that is to compare with the paper's."""
    return f"Settings (the paper's): {', '.join(departures(config)) or 'as in the paper'}."


def _shown(value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)


def recipe_names(config: LearningConfig) -> tuple[str, ...]:
    """Return the recipes of an application."""
    return tuple(_RECIPES[config.kind])


def changed(config: Changed, *changes: Changes) -> Changed:
    """Return a config with some fields changed, one set of changes after the other."""
    for each in changes:
        new = {
            field: replace(getattr(config, field), **value) if isinstance(value, dict) else value
            for field, value in each.items()
        }
        config = replace(config, **new)
    return config


DEMO, RETRIEVAL = preset("demo"), preset("retrieval")
PRESETS: dict[Preset, RetrievalConfig] = {"demo": DEMO, "retrieval": RETRIEVAL}
FINEGRAINED_PRESETS: dict[FinegrainedPreset, FinegrainedConfig] = {
    "demo": with_defaults(FinegrainedConfig(preset="demo")),
    "finegrained": with_defaults(FinegrainedConfig(preset="finegrained")),
}
FINEGRAINED_ABLATIONS: dict[FinegrainedPreset, FinegrainedAblationConfig] = {
    "demo": with_defaults(FinegrainedAblationConfig(preset="demo")),
    "finegrained": with_defaults(FinegrainedAblationConfig(preset="finegrained")),
}
RETRIEVAL_ABLATIONS: dict[Preset, RetrievalAblationConfig] = {
    "demo": with_defaults(RetrievalAblationConfig(preset="demo")),
    "retrieval": with_defaults(RetrievalAblationConfig(preset="retrieval")),
}
MINE_PRESETS: dict[MinePreset, MineConfig] = {
    "retrieval": MineConfig(),
    "finegrained": MineConfig(
        preset="finegrained",
        mining=MiningConfig(**FINEGRAINED_MINING),
    ),
}

EVALUATE = EvaluateJobConfig()
