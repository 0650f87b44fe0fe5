"""The stages of each job in order: the one place that knows how many there are.

They follow from the settings alone, so that the first stage can say how many will come.
"""

from collections.abc import Sequence

from mmray.config.learning import (
    FinegrainedConfig,
    LearningConfig,
    RetrievalConfig,
)
from mmray.config.sections import LabelledSetsConfig, MiningConfig
from mmray.config.tools import EvaluateJobConfig, IndexConfig, MineConfig
from mmray.evaluation.benchmarks.published import has_distractors

_FLAGS = {  # of --stages, that the others belong to
    "extract": ("demo", "list", "regions", "extract", "near", "pca", "head"),
    "graph": ("knn", "sizes", "graph"),
    "mine": ("mine", "oracle"),
    "train": ("check", "tuples", "classes", "train", "model"),
    "whiten": ("whiten/extract", "whiten"),
    "evaluate": ("evaluate/extract", "evaluate"),
}
_FLAG_OF = {step: flag for flag, steps in _FLAGS.items() for step in steps}


def in_rounds(config: LearningConfig) -> bool:
    """Tell whether learning is a sequence of rounds, the number of which is not known before."""
    return config.rounds > 1 or None in config.mining.sizes


def round_steps(config: LearningConfig, chosen: Sequence[str], *, first: bool = True) -> list[str]:
    """Return the stages from images to a fine-tuned network, up to the last one of --stages.

    Parameters
    ----------
    config : settings
    chosen : the stages of --stages
    first : whether the images have not been described before, by an earlier round
    """
    regions = ["regions"] if config.extraction.region_whitening else []
    near = ["near"] if first else []
    pca = [] if config.extraction.pca is None else ["pca"]
    oracle = [] if config.oracle is None else ["oracle"]
    steps = [*regions, "extract", *near, *pca, *_graph_steps(config.mining), "mine", *oracle]
    return _until(chosen[-1], [*steps, "check", "train"])


def learning_steps(config: LearningConfig, chosen: Sequence[str]) -> list[str]:
    """Return the stages of a job that learns, without those of its rounds where it has rounds."""
    assert isinstance(config, RetrievalConfig | FinegrainedConfig), "there is no other"
    last, demo = chosen[-1], [] if config.images else ["demo"]
    if isinstance(config, FinegrainedConfig):
        return _until(last, [*demo, *_finegrained_steps(config, chosen)])
    whiten = 2 + (config.evaluation.pca_images is not None)
    rest = [*["whiten/extract"] * whiten, "whiten", *_set_steps(config.evaluation, 2, demo=demo)]
    if config.tuples is not None:
        return _until(last, ["tuples", "train", *rest])
    return _until(last, [*demo, "list", *_rounds(config, chosen), *rest])


def row_steps(config: LearningConfig, chosen: Sequence[str]) -> list[str]:
    """Return the stages of a row of an ablation, for which the images have been listed."""
    return [step for step in learning_steps(config, chosen) if step not in ("demo", "list")]


def mining_steps(config: MineConfig) -> list[str]:
    """Return the stages of the job that mines on features."""
    return [*_graph_steps(config.mining), "mine"]


def evaluation_steps(config: EvaluateJobConfig) -> list[str]:
    """Return the stages of the job that measures networks."""
    networks = len(config.model)
    pca = [] if config.pca_images is None else ["evaluate/extract"] * networks
    return [*pca, *_set_steps(config, networks)]


def index_steps(config: IndexConfig) -> list[str]:
    """Return the stages of the job that writes an index, which describes new images in its last."""
    return [*["list"] * len(config.images), "index"]


def _finegrained_steps(config: FinegrainedConfig, chosen: Sequence[str]) -> list[str]:
    split = bool(config.images) and config.test.images is None and config.test.split
    listed = [] if split else ["list"]  # else with the classes, before the first stage
    trains = {"train", "evaluate"} & set(chosen)
    head = ["extract", "head"] if config.head == "pca" and trains else []
    learned = _rounds(config, chosen)
    if config.baseline is not None:
        regions = ["regions"] if config.extraction.region_whitening else []
        learned = [*regions, "extract", "near", "classes", "train"]
    measured = not config.images or config.test.images is not None or split
    rest = ["evaluate/extract", "evaluate/extract", "evaluate"] if measured else []
    return [*listed, *head, *learned, "model", *rest]


def _rounds(config: LearningConfig, chosen: Sequence[str]) -> list[str]:
    return [] if in_rounds(config) else round_steps(config, chosen)


def _graph_steps(mining: MiningConfig) -> list[str]:
    return ["knn", *(["sizes"] if None in mining.sizes else []), "graph"]


def _set_steps(config: LabelledSetsConfig, networks: int, *, demo: Sequence[str] = ()) -> list[str]:
    """Return the stages that measure so many networks on the labelled sets."""
    own = [0] if config.images or demo else []
    distractors = [*own, *map(has_distractors, config.benchmark)]
    return [
        step
        for others in distractors
        for step in (*["evaluate/extract"] * (networks * (1 + others)), "evaluate")
    ]


def _until(last: str, steps: Sequence[str]) -> list[str]:
    """Return the stages up to the last one of --stages."""
    flags = list(_FLAGS)
    return [step for step in steps if flags.index(_FLAG_OF[step]) <= flags.index(last)]
