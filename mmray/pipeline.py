"""The recipe: images to a fine-tuned network and its figures, stage by stage.

Each stage takes artifacts and leaves artifacts in a folder named by all that determines them. A
stage that is done is read instead of run, so the same command goes on where it was stopped.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmray import artifacts, models
from mmray.anchors import select_anchors, stationary_distribution
from mmray.arrays import Features
from mmray.artifacts import Stage
from mmray.config import Config, Pooling, chosen_stages, settings, validate
from mmray.distributed import cluster
from mmray.distributed.extraction import extract
from mmray.distributed.mining import mine
from mmray.distributed.neighbors import nearest_neighbors
from mmray.distributed.stage import Pool
from mmray.distributed.trainer import LabelledSet, TrainingJob, fine_tune
from mmray.errors import InputError
from mmray.evaluation.benchmarks import load_benchmark
from mmray.graph import graph_report, largest_component, normalize_graph, reciprocal_knn_graph
from mmray.images import ImageFile, list_images, read_exclusions, without
from mmray.models import EmbeddingNet
from mmray.pools import Pools, matching_pairs, summary
from mmray.progress import Progress, announce
from mmray.rendering import render_collection
from mmray.report import Score, results_table
from mmray.storage import Folder, is_absolute, open_storage
from mmray.tracking import Run, default_uri, open_run
from mmray.whitening import Whitening, lda_whitening, pca_whitening

INITIAL, TUNED = "initial", "fine-tuned"
Settings = dict[str, Any]

# Flags that change how a run is carried out, not what comes of it: it stays the same MLflow run.
NOT_IDENTITY = {
    "storage",
    "stages",
    "tracking_uri",
    "experiment",
    "min_workers",
    "max_workers",
    "training.workers",
}


@dataclass(frozen=True)
class Collection:
    """Where the images are: unlabelled ones to learn from, and labelled ones to measure on."""

    images: tuple[str, ...]
    test_images: str | None
    ground_truth: str | None


@dataclass(frozen=True)
class Described:
    """Images that could be read and their descriptors; an image's id is its place in `items`."""

    stage: Stage
    poolings: Sequence[Pooling]
    items: Sequence[ImageFile]

    def features(self, pooling: Pooling) -> Features:
        """(n, d) float32, a row an item."""
        return artifacts.read_features(self.stage, self.poolings, pooling)


class Pipeline:
    """One run of the main job. Its properties are the stages; each asks for those before it."""

    run: Run  # set by `execute`

    def __init__(self, config: Config, storage: Folder) -> None:
        self.config, self.storage = config, storage
        self.chosen = chosen_stages(config)
        self.pool = Pool(minimum=config.min_workers, maximum=config.max_workers)

    def check_input(self) -> None:
        """Meet what cannot be used before Ray and MLflow are started."""
        _ = self.initial
        if self.config.images:
            _ = self.unlabelled, self.labelled

    def execute(self, run: Run) -> list[Score]:
        """Run the chosen stages; scores, if `evaluate` is one of them and there are labels."""
        self.run = run
        if "extract" in self.chosen:
            _ = self.described
        if "graph" in self.chosen:
            _ = self.graph
        if "mine" in self.chosen:
            _ = self.pools
        if "train" in self.chosen:
            _ = self.tuned
        if "whiten" in self.chosen:
            _ = self.whitenings
        return self.scores if "evaluate" in self.chosen else []

    def stage(
        self, name: str, *inputs: Any, work: Callable[[Stage], Settings], part_of: str | None = None
    ) -> Stage:
        """The stage of these inputs: read if it is done, else run if it was chosen.

        `work` fills the stage's folder and returns what it counted.
        """
        stage = Stage.of(self.storage, name, *inputs)
        if stage.done:
            announce(f"{name}: done before, {stage.folder.uri}")
        else:
            if (part_of or name) not in self.chosen:
                raise InputError(
                    f"--stages {self.config.stages}: the stage {part_of or name} has not been done "
                    f"for these settings under --storage {self.storage.uri}; add it to --stages"
                )
            announce(f"{name}: {stage.folder.uri}")
            stage.finish(work(stage))
        counts = {k: v for k, v in stage.counts.items() if isinstance(v, (int, float))}
        self.run.log_metrics({f"{name}/{key}": value for key, value in counts.items()})
        return stage

    # -- input ------------------------------------------------------------------------------------

    @cached_property
    def collection(self) -> Collection:
        """The images that the flags name, or else the rendered demonstration set."""
        config = self.config
        if config.images:
            test = config.evaluation
            return Collection(config.images, test.images, test.ground_truth)
        size = dataclasses.asdict(config.demo)

        def render(stage: Stage) -> Settings:
            total = 2 * (config.demo.objects * config.demo.photos + config.demo.distractors)
            with Progress("render", total=total) as progress:
                return render_collection(stage.folder.write, progress=progress.advance, **size)

        folder = self.stage("demo", size, work=render, part_of="extract").folder
        return Collection(
            (folder.location("train"),),
            folder.location("test/jpg"),
            folder.location("test/gt"),
        )

    @cached_property
    def unlabelled(self) -> list[ImageFile]:
        """Images to learn from, without those that --exclude names."""
        items = [image for folder in self.collection.images for image in list_images(folder)]
        if self.config.exclude is not None:
            items = without(items, read_exclusions(self.config.exclude))
        self.need_items(len(items), "images")
        return items

    def need_items(self, count: int, what: str) -> None:
        """There must be at least as many items as neighbours are asked for."""
        mining = self.config.mining
        for flag, k in (("graph-k", mining.graph_k), ("positive-k", mining.positive_k)):
            if count <= k:
                raise InputError(
                    f"{count} {what} are too few for --mining.{flag} {k}: add images, or choose a "
                    f"value below {count}"
                )

    @cached_property
    def labelled(self) -> LabelledSet | None:
        """The images and the ground truth to measure on, if there are any."""
        where = self.collection
        if where.test_images is None or where.ground_truth is None:
            return None
        files = {image.name: image for image in list_images(where.test_images)}
        benchmark = load_benchmark(where.ground_truth, list(files))
        return LabelledSet(
            database=[files[name] for name in benchmark.images],
            queries=[
                dataclasses.replace(files[query.image], box=query.box)
                for query in benchmark.queries
            ],
            ground_truth=benchmark.queries,
        )

    @cached_property
    def initial(self) -> EmbeddingNet:
        """The pre-trained network."""
        config = self.config
        return models.build(config.network, pooling=config.training.pooling, weights=config.weights)

    # -- stages -----------------------------------------------------------------------------------

    @cached_property
    def described(self) -> Described:
        """Features Y of the unlabelled images by the initial network."""
        config = self.config.extraction
        described = self.describe(
            self.unlabelled,
            self.initial,
            longest_side=config.longest_side,
            poolings=config.poolings,
            part_of="extract",
            max_bad_fraction=config.max_bad_fraction,
        )
        self.need_items(len(described.items), "readable images")
        return described

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

        def work(stage: Stage) -> Settings:
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

    @cached_property
    def graph(self) -> Stage:
        """Reciprocal k-NN graph of the unlabelled images, eq. (1)."""
        config, described = self.config.mining, self.described
        chosen = ("graph_k", "count_self", "power", "component", "query_block")
        settings = {name: getattr(config, name) for name in chosen}

        def work(stage: Stage) -> Settings:
            features = described.features(self.config.extraction.poolings[0])
            found = nearest_neighbors(
                features,
                config.graph_k + (0 if config.count_self else 1),
                block=config.query_block,
                output=stage.folder / "neighbors",
                pool=self.pool,
            )
            whole = reciprocal_knn_graph(found.ids, found.similarities, power=config.power)
            report = dataclasses.asdict(graph_report(whole, features))
            items = largest_component(whole) if config.component == "largest" else None
            items = np.arange(len(features)) if items is None else items
            self.need_items(len(items), "images in the graph's largest component")
            raw = whole[items][:, items]
            normalized = normalize_graph(raw)
            artifacts.write_graph(stage.folder, raw=raw, normalized=normalized, items=items)
            artifacts.write_json(stage.folder, "report.json", report)
            return {"kept": len(items), **report}

        return self.stage("graph", described.stage.fingerprint, settings, work=work)

    @cached_property
    def mined(self) -> Stage:
        """Anchors, and their pools of positives and negatives, eqs. (2)-(6)."""
        config, described, graph = self.config.mining, self.described, self.graph
        chosen = ("alpha", "rtol", "max_iter", "positive_k", "negative_k", "max_negatives")
        settings = {name: getattr(config, name) for name in chosen}

        def work(stage: Stage) -> Settings:
            stored = artifacts.read_graph(graph.folder)
            anchors = select_anchors(
                stored.raw, config.anchors, selection=config.selection, seed=self.config.seed
            )
            importance = stationary_distribution(stored.raw)[anchors]
            artifacts.write_anchors(stage.folder, stored.items[anchors], importance)
            features = described.features(self.config.extraction.poolings[0])
            mine(
                features[stored.items],
                stored.normalized,
                stored.items,
                anchors,
                block=config.anchor_block,
                output=stage.folder / "pools",
                pool=self.pool,
                **settings,
            )
            return summary(artifacts.read_pools(stage.folder))

        seed = self.config.seed if config.selection == "random" else None
        anchors = (config.anchors, config.selection, config.anchor_block, seed)
        return self.stage("mine", graph.fingerprint, anchors, settings, work=work)

    @cached_property
    def pools(self) -> Pools:
        return artifacts.read_pools(self.mined.folder)

    @cached_property
    def tuned(self) -> EmbeddingNet:
        """The network fine-tuned on the mined tuples."""
        config, mined = self.config.training, self.mined

        def work(stage: Stage) -> Settings:
            workers, resources = cluster.training_resources(config.workers)
            job = TrainingJob(
                model=self.initial,
                images=self.described.items,
                pools=self.pools,
                config=config,
                seed=self.config.seed,
                run=self.run,
                labelled=self.labelled,
            )
            model, history = fine_tune(
                job, folder=stage.folder, workers=workers, resources=resources
            )
            models.save(model, stage.folder / "model")
            artifacts.write_json(stage.folder, "history.json", history)
            return {"epochs": len(history), "loss": history[-1]["loss"]}

        # Any number of workers follows one trajectory, and measuring it does not change it.
        apart = {"workers", "monitor_every"}
        values = dataclasses.asdict(config).items()
        settings = {name: value for name, value in values if name not in apart}
        stage = self.stage(
            "train",
            mined.fingerprint,
            models.state_digest(self.initial),
            settings,
            self.config.seed,
            work=work,
        )
        return models.load(stage.folder / "model")

    @cached_property
    def networks(self) -> dict[str, EmbeddingNet]:
        return {INITIAL: self.initial, TUNED: self.tuned}

    @cached_property
    def whitenings(self) -> dict[tuple[str, Pooling], Whitening]:
        """PCA whitening of the initial network, LDA whitening of the fine-tuned one, by pooling."""
        config, poolings = self.config.whitening, self.config.evaluation.poolings
        rng, items = np.random.default_rng(self.config.seed), self.described.items
        sample = np.sort(rng.choice(len(items), min(config.images, len(items)), replace=False))
        pairs = matching_pairs(self.pools, config.pairs, rng)
        paired = np.unique(pairs)
        described = {
            name: self.describe(
                [items[index] for index in chosen],
                self.networks[name],
                longest_side=self.config.evaluation.longest_side,
                poolings=poolings,
                part_of="whiten",
            )
            for name, chosen in ((INITIAL, sample), (TUNED, paired))
        }

        def learn(name: str, pooling: Pooling) -> Whitening:
            features = described[name].features(pooling)
            if name == INITIAL:
                return pca_whitening(features)
            return lda_whitening(features, *np.searchsorted(paired, pairs))

        def work(stage: Stage) -> Settings:
            learned = {key: learn(*key) for key in itertools.product(described, poolings)}
            for (name, pooling), whitening in learned.items():
                write_whitening(stage.folder, f"{name}-{pooling}.npz", whitening)
            models.save(self.tuned, stage.folder / "model")
            own = learned.get((TUNED, self.config.training.pooling))
            if own is not None:
                write_whitening(stage.folder / "model", "whitening.npz", own)
            return {"images": len(sample), "pairs": pairs.shape[1]}

        inputs = [each.stage.fingerprint for each in described.values()]
        self.whitening_stage = self.stage("whiten", inputs, pairs.tolist(), work=work)
        return {
            key: read_whitening(self.whitening_stage.folder, "{}-{}.npz".format(*key))
            for key in itertools.product(described, poolings)
        }

    @cached_property
    def scores(self) -> list[Score]:
        """MAP of both networks on the labelled set, each descriptor with and without whitening."""
        labelled, config = self.labelled, self.config.evaluation
        if labelled is None:
            announce("evaluate: no labelled set was given, nothing is measured")
            return []
        described = {
            name: self.describe(
                labelled.items,
                model,
                longest_side=config.longest_side,
                poolings=config.poolings,
                part_of="evaluate",
            )
            for name, model in self.networks.items()
        }
        whitenings = self.whitenings

        def score(name: str, pooling: Pooling, whiten: bool) -> Score:
            features = np.asarray(described[name].features(pooling))
            if whiten:
                features = whitenings[name, pooling].apply(features)
            mean = labelled.mean_average_precision(features)
            learned = {INITIAL: "PCA", TUNED: "LDA"}[name]
            return Score(name, pooling, learned if whiten else "none", mean)

        def work(stage: Stage) -> Settings:
            keys = itertools.product(self.networks, config.poolings, (False, True))
            rows = [dataclasses.asdict(score(*key)) for key in keys]
            artifacts.write_json(stage.folder, "metrics.json", rows)
            return {"{network}-{descriptor}-{whitening}".format(**row): row["map"] for row in rows}

        inputs = [each.stage.fingerprint for each in described.values()]
        truth = [(q.name, q.positives.tolist(), q.junk.tolist()) for q in labelled.ground_truth]
        stage = self.stage("evaluate", inputs, self.whitening_stage.fingerprint, truth, work=work)
        return [Score(**row) for row in artifacts.read_json(stage.folder, "metrics.json")]


def write_whitening(folder: Folder, name: str, whitening: Whitening) -> None:
    with folder.writing(name) as sink:
        whitening.save(sink)


def read_whitening(folder: Folder, name: str) -> Whitening:
    with folder.reading(name) as source:
        return Whitening.load(source)


def run(config: Config) -> list[Score]:
    """Do all that the settings ask for, as far as it is not done yet; the table's scores.

    Raises
    ------
    InputError
        A setting, an input or the cluster cannot be used. What was done until then is kept.
    """
    validate(config)
    if cluster.in_uploaded_folder() and not is_absolute(config.storage):
        raise InputError(
            f"--storage {config.storage}: this job runs in a copy of your folder that vanishes with "
            "it; name an absolute folder or a URI"
        )
    storage = open_storage(config.storage)
    pipeline = Pipeline(config, storage)
    pipeline.check_input()
    identity = {key: value for key, value in settings(config).items() if key not in NOT_IDENTITY}
    tracked = open_run(
        storage,
        uri=config.tracking_uri or default_uri(storage),
        experiment=config.experiment,
        identity=artifacts.fingerprint(identity),
        settings=identity,
    )
    status = "FAILED"
    try:
        cluster.connect()
        scores = pipeline.execute(tracked)
        status = "FINISHED"
        if scores:
            tracked.log_text("results.md", results_table(scores) + "\n")
        return scores
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracked.end(status)
