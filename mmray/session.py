"""What all stages of a run share: settings, storage, tracking, workers, and how a stage is run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmray import artifacts, models
from mmray.arrays import Features
from mmray.artifacts import Stage
from mmray.collection import ImageFile
from mmray.config import Config, Pooling, chosen_stages
from mmray.distributed import cluster
from mmray.distributed.extraction import extract
from mmray.distributed.stage import Pool
from mmray.errors import InputError
from mmray.models import EmbeddingNet
from mmray.progress import announce
from mmray.storage import Folder
from mmray.tracking import Run

Counts = Mapping[str, Any]


@dataclass(frozen=True)
class Described:
    """Images that could be read and their descriptors; an image's id is its place in `items`."""

    stage: Stage
    poolings: Sequence[Pooling]
    items: Sequence[ImageFile]

    def features(self, pooling: Pooling) -> Features:
        """(n, d) float32, a row an item."""
        return artifacts.read_features(self.stage, self.poolings, pooling)


class Session:
    """One run on a cluster that is connected."""

    def __init__(self, config: Config, storage: Folder, run: Run) -> None:
        self.config, self.storage, self.run = config, storage, run
        self.chosen = chosen_stages(config)
        self.pool = Pool(minimum=config.min_workers, maximum=config.max_workers)

    def stage(
        self, name: str, *inputs: Any, work: Callable[[Stage], Counts], part_of: str | None = None
    ) -> Stage:
        """The stage of these inputs: read if it is done, else run if it was chosen.

        Parameters
        ----------
        inputs : JSON-like
            All that determines what the stage leaves.
        work
            Fills the stage's folder and returns what it counted.
        part_of
            The stage of --stages that this one belongs to, if it is not its own.

        Raises
        ------
        InputError
            It is not done, and --stages leaves it out.
        """
        stage = Stage.of(self.storage, name, *inputs)
        if stage.done:
            announce(f"{name}: done before, {stage.folder.uri}")
        elif (part_of or name) not in self.chosen:
            raise InputError(
                f"--stages {self.config.stages}: the stage {part_of or name} has not been done "
                f"for these settings under --storage {self.storage.uri}; add it to --stages"
            )
        else:
            announce(f"{name}: {stage.folder.uri}")
            stage.finish(work(stage))
        numbers = {k: v for k, v in stage.counts.items() if isinstance(v, (int, float))}
        self.run.log_metrics({f"{name}/{key}": value for key, value in numbers.items()})
        return stage

    def describe(
        self,
        items: Sequence[ImageFile],
        model: EmbeddingNet,
        *,
        longest_side: int,
        poolings: Sequence[Pooling],
        part_of: str,
        max_bad_fraction: float = 0.0,
    ) -> Described:
        """Descriptors of images by a network.

        Raises
        ------
        InputError
            More than the given fraction of the images cannot be read.
        """
        config = self.config.extraction

        def work(stage: Stage) -> Counts:
            extract(
                items,
                model,
                output=stage.folder / "features",
                longest_side=longest_side,
                poolings=poolings,
                shard_size=config.shard_size,
                batch_size=config.batch_size,
                pool=cluster.with_gpus(self.pool),
                label=part_of,
            )
            return artifacts.finish_features(stage, poolings, max_bad_fraction=max_bad_fraction)

        names = [(item.uri, item.size, item.box) for item in items]
        batches = (config.shard_size, config.batch_size, longest_side)
        digest = models.state_digest(model)
        stage = self.stage("extract", names, digest, poolings, batches, work=work, part_of=part_of)
        quarantine = stage.folder.read_table("quarantine.parquet", ["uri"])
        bad = set(quarantine["uri"].to_pylist())
        return Described(stage, poolings, [item for item in items if item.uri not in bad])
