"""Compare recipes and checks without labels, on small piles, in one process and without Ray.

    python -m tests.study --data FOLDER --piles rendered birds --recipes steady few --output FILE

Each run is a line of the file, and runs that it has are not run again. At the end come a table of
the recipes, and one of how well the checks without labels agree with mAP.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several can be run side by side

import numpy as np
import torch
from scipy.stats import spearmanr

from mmray.config.presets import RETRIEVAL
from mmray.config.sections import MiningConfig
from mmray.descriptors.embedding import embed
from mmray.descriptors.inference import fused
from mmray.descriptors.weights import build
from mmray.descriptors.whitening import lda_whitening, pca_whitening
from mmray.evaluation.benchmarks.layouts import class_benchmark
from mmray.evaluation.purity import pool_purity
from mmray.evaluation.ranking import mean_average_precision, rank
from mmray.images.collection import Collection, ImageFile
from mmray.mining.anchors import select_anchors
from mmray.mining.batches import MiningInput, mine_batch
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.graph import largest_component, normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.manifold import manifold_neighbors
from mmray.mining.pool_lists import matching_pairs
from mmray.mining.pools import MiningMethod
from mmray.training.fine_tuning import FineTuning
from mmray.training.image_source import ImageSource
from mmray.training.job import TrainingJob
from mmray.training.validation import LEAST_MAP, MANIFOLD_MAP, NEIGHBORS, VIEW_AGREEMENT
from tests.study.piles import SIDE, Pile, pile

CPU = torch.device("cpu")
ALL = {"component": "all", "negative_k": 100}
FEW = ALL | {"graph_k": 5, "positive_k": 8}
RECIPES = {  # changes of the preset `retrieval` with the recipe `steady`: of mining, of training
    "steady": ({}, {}),
    "all components": (ALL, {}),
    "few": (FEW, {}),
    "few, infonce": (FEW, {"loss": "infonce"}),
    "nearest": (ALL | {"positives": "euclidean", "negatives": "random"}, {"weighted": False}),
    "too fast": (FEW, {"learning_rate": 3e-3}),
    "contrastive": (ALL, {"loss": "contrastive", "learning_rate": 1e-3}),
}
CHECKS = (VIEW_AGREEMENT, MANIFOLD_MAP)


class Photos(ImageSource):
    """Photos in memory."""

    def __init__(self, photos):
        self.photos = photos

    def groups(self, groups, keys=None):
        for group in groups:
            yield [self.photos[place] for place in group.tolist()]


class Studied(FineTuning):
    """Fine-tuning on photos in memory, measured on labelled ones after each epoch."""

    def __init__(self, job, given: Pile):
        self.given = given
        super().__init__(job, CPU)

    def _images(self, items):
        return Photos(self.given.photos)

    def _training_source(self):
        return self.source

    def _labelled_map(self):
        rows = described(self.measured, self.given.test)
        return {"map": average_precision(rows, self.given.test_labels)}


def described(network, photos, descriptor="embedding"):
    return embed(fused(network), photos, [descriptor], batch_size=32, device=CPU)[:, 0]


def average_precision(rows, labels) -> float:
    """mAP in percent: each photo with a label searches for the others of it."""
    names = [str(place) for place in range(len(rows))]
    known = [label or f"alone {place}" for place, label in enumerate(labels)]
    benchmark = class_benchmark(names, known, name="study")
    return 100 * mean_average_precision(rank(rows, rows), benchmark.queries)[0]


def mined(features, mining: MiningConfig, seed: int):
    found = nearest_neighbors(features, features, mining.graph_k)
    raw = reciprocal_knn_graph(found.ids, found.similarities, power=mining.power)
    every = np.arange(len(features))
    items = largest_component(raw) if mining.component == "largest" else every
    raw = raw[items][:, items]
    normal = normalize_graph(raw)
    anchors = select_anchors(raw, mining.anchors, selection=mining.selection, seed=seed)
    kinds = {"positives": mining.positives, "negatives": mining.negatives}
    given = MiningInput.of(features[items], raw, normal, items, power=mining.power, **kinds)
    pools = mine_batch(given, anchors, MiningMethod.of(mining, seed))
    drawn = select_anchors(raw, 300, selection="random", seed=seed)
    return pools, manifold_neighbors(reorder(normal), drawn, NEIGHBORS).renamed(items)


def whitened(rows, of_pile, pools):
    """mAP is measured of these: plain, whitened by PCA and by LDA from what was mined."""
    pairs = matching_pairs(pools, 10_000, np.random.default_rng(0))
    pca, lda = pca_whitening(of_pile), lda_whitening(of_pile, *pairs)
    return {"none": rows, "PCA": pca.apply(rows), "LDA": lda.apply(rows)}


def run(name: str, recipe: str, seed: int, options) -> dict:
    started, given = time.monotonic(), pile(name, options.data)
    of_mining, of_training = RECIPES[recipe]
    mining = replace(RETRIEVAL.mining, **of_mining)
    training = replace(
        RETRIEVAL.training,
        **{"epochs": options.epochs, "anchors_per_epoch": options.tuples, "patience": None}
        | {"longest_side": SIDE}
        | of_training,
    )
    torch.manual_seed(seed)
    initial = build("efficientnet_lite0", pooling="mac")
    pools, neighbors = mined(described(initial, given.photos, "rmac"), mining, seed)
    job = TrainingJob(
        model=build("efficientnet_lite0", pooling="mac"),
        images=Collection.of(
            [ImageFile(uri=f"/{place}", name=f"{place}") for place in range(len(given.photos))]
        ),
        pools=pools,
        validation_neighbors=neighbors,
        config=training,
        seed=seed,
        max_pixels=10**9,
        labelled=None,
    )
    tuning = Studied(job, given)
    tuning.run(tuning.network, lambda: None)
    maps = {}
    for label, network in (("initial", initial), ("kept", tuning.best)):
        test, own = described(network, given.test), described(network, given.photos)
        for kind, rows in whitened(test, own, pools).items():
            maps[f"{label}, {kind}"] = average_precision(rows, given.test_labels)
    return {
        **{"pile": name, "recipe": recipe, "seed": seed, "kept": tuning.best_epoch},
        **{
            "true": 100 * pool_purity(pools, given.labels).positives,
            "mAP": maps,
            "history": tuning.history,
        },
        "seconds": time.monotonic() - started,
    }


def table_of(runs: list[dict]) -> str:
    kinds = ("none", "PCA", "LDA")
    head = ["pile", "recipe", "seed", "true positives", "mAP of epochs", "kept"]
    head += [f"{label}: {', '.join(kinds)}" for label in ("initial", "kept")]
    rows = []
    for each in runs:
        maps = each["mAP"]
        initial, kept = (
            ", ".join(f"{maps[f'{label}, {kind}']:.1f}" for kind in kinds)
            for label in ("initial", "kept")
        )
        epochs = " ".join(f"{figures['map']:.1f}" for figures in each["history"])
        row = (each["pile"], each["recipe"], each["seed"], f"{each['true']:.0f}%", epochs)
        rows.append([*map(str, row), str(each["kept"]), initial, kept])
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def agreement(runs: list[dict]) -> str:
    """How well each check agrees with mAP, over the epochs of all runs on a pile."""
    rows = [["pile", "check", "Spearman", "worse", "regret"], ["---"] * 5]
    piles = defaultdict(list)
    for each in runs:
        piles[each["pile"]].append(each["history"])
    for title, histories in piles.items():
        for check in (*CHECKS, "both"):
            maps, values, worse, regrets = [], [], 0, []
            for history in histories:
                of = np.array([figures["map"] for figures in history])
                by = np.array(
                    [figures[VIEW_AGREEMENT if check == "both" else check] for figures in history]
                )
                kept = np.array([figures[MANIFOLD_MAP] for figures in history])
                allowed = kept >= LEAST_MAP * kept[0] if check == "both" else np.full(len(of), True)
                best = int(np.argmax(np.where(allowed, by, -1)))
                maps += (of[1:] - of[0]).tolist()
                values += (by[1:] - by[0]).tolist()
                worse += bool(of[best] < of[0])
                regrets.append(of.max() - of[best])
            spearman = f"{spearmanr(maps, values)[0]:.2f}"
            rows.append(
                [title, check, spearman, f"{worse} of {len(histories)}", f"{np.mean(regrets):.1f}"]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of cub50, flowers17, coil20, clutter1000")
    parser.add_argument("--piles", nargs="+", default=["rendered", "birds", "flowers", "objects"])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--tuples", type=int, default=150, help="in an epoch")
    parser.add_argument("--output", type=Path, default=Path("study.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.touch()
    runs = [json.loads(line) for line in options.output.read_text().splitlines()]
    done = {(each["pile"], each["recipe"], each["seed"]) for each in runs}
    for name in options.piles:
        for seed in options.seeds:
            for recipe in options.recipes:
                if (name, recipe, seed) in done:
                    continue
                runs.append(run(name, recipe, seed, options))
                with options.output.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    print(table_of(runs))
    print()
    print(agreement(runs))


if __name__ == "__main__":
    main()
