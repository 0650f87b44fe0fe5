"""Settings that jobs share: storage, tracking and workers, mining, listing of images."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from mmray.config.bounds import EXECUTION, NOT_KEPT, Between, execution_settings
from mmray.config.sections import MiningConfig
from mmray.system.uris import masked

ALIAS = "newest"  # in MLflow's registry: the version that was registered last
EXPERIMENT = "mmray"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings shared by all jobs that leave artifacts."""

    storage: Annotated[str, EXECUTION] = "mmray-runs"
    """Folder or URI where everything that a run produces is kept."""
    seed: Annotated[int, Between(0, 2**63 - 1)] = 0
    """Seed of every random choice."""
    tracking_uri: Annotated[str | None, EXECUTION] = None
    """MLflow server; by default a database under the storage folder."""
    experiment: Annotated[str, EXECUTION] = EXPERIMENT
    """MLflow experiment; models and search indexes take its name, unless they are given another."""
    min_workers: Annotated[int, Between(1, 100_000), EXECUTION] = 1
    """Fewest actors of a stage where they must share GPUs; training continues with as few."""
    max_workers: Annotated[int | None, Between(1, 100_000), EXECUTION] = None
    """Most actors of a stage; by default as many as the cluster has CPUs or GPUs for."""
    num_cpus: Annotated[int | None, Between(1, 10**7), EXECUTION] = None
    """CPUs to count on where an autoscaler adds machines; by default those of the cluster now."""
    num_gpus: Annotated[int | None, Between(0, 10**6), EXECUTION] = None
    """GPUs to count on where an autoscaler adds machines; by default those of the cluster now."""
    resource_timeout: Annotated[float, Between(1, 10**9), EXECUTION] = 1800.0
    """Seconds that a stage without any worker waits for machines before it gives up."""
    config: Annotated[str | None, EXECUTION, NOT_KEPT] = None
    """YAML file of settings, as each run leaves one (reports/RUN.yaml): `training: {epochs: 4}`.
    Flags go before the file, the file before --preset and --recipe, which it may name too."""
    quiet: Annotated[bool, EXECUTION, NOT_KEPT] = False
    """Print only errors and the result."""
    json: Annotated[bool, EXECUTION, NOT_KEPT] = False
    """Print the result as one line of JSON instead of a table."""

    @property
    def title(self) -> str:
        """Name of the job's MLflow run."""
        return type(self).__name__.removesuffix("Config").removesuffix("Job").lower()


@dataclass(frozen=True, kw_only=True)
class MiningRunConfig(RunConfig):
    """Settings shared by all jobs that mine."""

    dry_run: Annotated[bool, EXECUTION, NOT_KEPT] = False
    """Only say what the stages need of memory, disk and time, here or on the cluster."""
    dry_run_items: Annotated[int | None, Between(3, 10**12), EXECUTION, NOT_KEPT] = None
    """Items or images that a dry run tells of; None: as many as there are features."""
    mining: MiningConfig = field(default_factory=MiningConfig)


@dataclass(frozen=True, kw_only=True)
class ListingConfig(RunConfig):
    """Settings shared by all jobs that list images."""

    images: tuple[str, ...] = ()
    """Folders, tar shards, Parquet files or lists of images."""
    image_column: str | None = None
    """Column of Parquet files that holds the images; by default it is detected."""
    exclude: str | None = None
    """Text file of image names to leave out, one per line (the paper removes test landmarks)."""
    sample: Annotated[int | None, Between(1, 10**12)] = None
    """Number of images to draw at random, by --seed; None: all."""
    relist: Annotated[bool, EXECUTION] = False
    """List the images again, where a rerun would use the list that the first run kept."""


def owned_name(experiment: str) -> str:
    """Return the default name of what belongs to an experiment: its models, its search index.

    MLflow and file systems take every such name, and URIs need no escapes.
    """
    return re.sub(r"[^\w-]", "-", experiment)[:100]


# Names under which renamed fields are stored: they are part of fingerprints, and a new name there
# would compute every stage again.
_STORED_AS = {
    "baseline": "rival",
    "validation_items": "check_items",
    "mean_of_pairs": "sum_negatives",
}

# Settings that earlier versions did not have, with the value under which all is as it was then.
_ADDED = {
    "temperature": 0.07,
    "budget": None,
    "ranked_images": None,
    "fixed_batches": False,
    "near_duplicates": "keep",
    "hops": None,
    "gem_rate": 0.0,
    "dampening": 0.0,
    "enlarge": False,
    "crop_scale": (0.2, 1.0),
    "resize_size": None,
    "feature_network": None,
}


def stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under the names that fingerprints use; the values stay as they are.

    What was added since is left out where it changes nothing.
    """
    return {
        ".".join(_STORED_AS.get(part, part) for part in name.split(".")): value
        for name, value in values.items()
        if _ADDED.get(name.rpartition(".")[2], ...) != value
    }


def settings(config: Any) -> dict[str, Any]:
    """Return a config as plain values by flag name ("mining.alpha"), as MLflow lists them."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            flat[name] = value
    return flat


def identity_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings that determine the results of a run, by flag, without credentials."""
    carried_out = execution_settings(config)
    return {
        key: without_credentials(value)
        for key, value in settings(config).items()
        if key not in carried_out
    }


def without_credentials(value: Any) -> Any:
    """Return the value of a setting with the credentials of URIs hidden."""
    if isinstance(value, str):
        return masked(value)
    return tuple(map(without_credentials, value)) if isinstance(value, tuple) else value
