"""Compare recipes and checks without labels, on small piles, in one process and without Ray.

    python -m tests.study --data FOLDER --piles rendered birds --recipes steady few --output FILE

Each run is a line of the file, and runs that it has are not run again. At the end come a table of
the recipes, and one of how well the checks without labels agree with mAP.
"""

import argparse
import copy
import functools
import json
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several can be run side by side

import numpy as np
import torch
from scipy.stats import spearmanr, t

from mmray.config.learning import RetrievalConfig
from mmray.config.presets import preset
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
from mmray.mining.batches import Miner, MiningInput
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.graph import largest_component, normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.manifold import manifold_neighbors
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.mining.pool_lists import Pools, matching_pairs
from mmray.mining.pools import MiningMethod
from mmray.mining.sizes import LARGEST_K, with_chosen_sizes
from mmray.pipeline.recipes.rounds import others
from mmray.training.agreement import VIEW_AGREEMENT
from mmray.training.fine_tuning import FineTuning
from mmray.training.image_source import ImageSource
from mmray.training.job import TrainingJob, epoch_seconds
from mmray.training.validation import (
    MANIFOLD_MAP,
    NEIGHBORS,
    best_epoch,
    rise,
)
from tests.study.piles import PILES, SIDE, Pile, pile

CPU = torch.device("cpu")
AUTO, STEADY = (preset("retrieval", name) for name in ("auto", "steady"))
ALL = {"component": "all", "negative_k": 100}
FEW = ALL | {"graph_k": 5, "positive_k": 8}


@dataclass(frozen=True)
class Recipe:
    """Changes of a preset's mining and training."""

    config: RetrievalConfig = STEADY
    mining: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    rounds: int = 1
    oracle: bool = False  # pools are those of the labels


RECIPES = {
    "auto": Recipe(AUTO, rounds=AUTO.rounds),
    "auto, one round": Recipe(AUTO),
    "auto, infonce": Recipe(AUTO, training={"loss": "infonce"}, rounds=AUTO.rounds),
    "steady": Recipe(),
    "all components": Recipe(mining=ALL),
    "few": Recipe(mining=FEW),
    "few, infonce": Recipe(mining=FEW, training={"loss": "infonce"}),
    "nearest": Recipe(
        mining=ALL | {"positives": "euclidean", "negatives": "random"},
        training={"weighted": False},
    ),
    "cyclic": Recipe(
        mining=ALL | {"positives": "cyclic", "negatives": "geodesic"},
        training={"weighted": False},
    ),
    "too fast": Recipe(mining=FEW, training={"learning_rate": 3e-3}),
    "contrastive": Recipe(mining=ALL, training={"loss": "contrastive", "learning_rate": 1e-3}),
    "oracle": Recipe(mining=FEW, oracle=True),
    "oracle, infonce": Recipe(mining=FEW, training={"loss": "infonce"}, oracle=True),
}
CHECKS = (VIEW_AGREEMENT, MANIFOLD_MAP)


class Photos(ImageSource):
    """Photos in memory."""

    def __init__(self, photos, view=lambda pixels, key: pixels):
        self.photos, self.view = photos, view

    def seen_as(self, view):
        return Photos(self.photos, view)

    def groups(self, groups, keys=None):
        for group, of_group in zip(groups, keys, strict=True):
            places = zip(group.tolist(), of_group.tolist(), strict=True)
            yield [self.view(self.photos[place], key) for place, key in places]


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
    """Mine as the stages do; also return the check's ground truth, and the settings in full."""
    found = nearest_neighbors(features, features, min(mining.graph_k or LARGEST_K, len(features)))
    mining, _ = with_chosen_sizes(mining, NeighborBlocks.of(found))
    found = found.first(mining.width(mining.chosen_sizes[0]))
    raw = reciprocal_knn_graph(found.ids, found.similarities, power=mining.power)
    every = np.arange(len(features))
    items = largest_component(raw) if mining.component == "largest" else every
    raw = raw[items][:, items]
    normal = reorder(normalize_graph(raw))
    anchors = select_anchors(raw, mining.anchors, selection=mining.selection, seed=seed)
    kinds = {"positives": mining.positives, "negatives": mining.negatives}
    given = MiningInput.of(features[items], raw, normal, items, power=mining.power, **kinds)
    pools = Miner(given, MiningMethod.of(mining, seed)).mine(anchors)
    drawn = select_anchors(raw, STEADY.training.validation_items, selection="random", seed=seed)
    near = manifold_neighbors(normal, drawn, NEIGHBORS).renamed(items)
    return pools, near, mining


def of_labels(pools: Pools, features, labels) -> Pools:
    """Replace pools by those of the labels: all photos of a thing, and the nearest of others."""
    positives, negatives, weights = [], [], []
    for anchor in pools.anchors:
        same = (labels == labels[anchor]) & (labels != "")
        nearest = np.argsort(-features @ features[anchor], kind="stable")
        ids = np.setdiff1d(np.flatnonzero(same), [anchor])
        positives.append(ids)
        weights.append(np.ones(len(ids), np.float32))
        negatives.append(nearest[~same[nearest] & (nearest != anchor)][:50])
    columns = {"positives": positives, "negatives": negatives, "manifold_neighbors": positives}
    columns |= {"positive_similarity": weights, "positive_rank_e": positives}
    return replace(pools, **{name: tuple(lists) for name, lists in columns.items()})


def whitened(rows, of_pile, pools):
    """mAP is measured of these: plain, whitened by PCA and by LDA from what was mined."""
    pairs = matching_pairs(pools, 10_000, np.random.default_rng(0))
    pca, lda = pca_whitening(of_pile), lda_whitening(of_pile, *pairs)
    return {"none": rows, "PCA": pca.apply(rows), "LDA": lda.apply(rows)}


pile_of = functools.cache(pile)


@functools.cache
def initial_descriptors(name: str, data: Path):
    """R-MAC of a pile, and the embeddings of its photos and of those that test."""
    given, network = pile_of(name, data), build("efficientnet_lite0", pooling="mac")
    return (
        described(network, given.photos, "rmac"),
        described(network, given.photos),
        described(network, given.test),
    )


def run(name: str, title: str, seed: int, options) -> dict:
    started, given, recipe = time.monotonic(), pile_of(name, options.data), RECIPES[title]
    mining = replace(recipe.config.mining, **recipe.mining)
    training = replace(
        recipe.config.training,
        **{"epochs": options.epochs, "anchors_per_epoch": options.tuples, "patience": None}
        | {"longest_side": SIDE}
        | recipe.training,
    )
    features, own, test = initial_descriptors(name, options.data)
    network, rounds = build("efficientnet_lite0", pooling="mac"), []
    initial = rows = None

    def trained(mining):
        pools, neighbors, mining = mined(features, mining, seed)
        if recipe.oracle:
            pools = of_labels(pools, features, given.labels)
        job = TrainingJob(
            model=copy.deepcopy(network),
            images=Collection.of(
                [ImageFile(uri=f"/{place}", name=f"{place}") for place in range(len(own))]
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
        return tuning, mining

    def gain(attempt):
        return rise(attempt[0].history, attempt[0].best_epoch)

    for number in range(recipe.rounds):
        if number:
            features = described(network, given.photos, "rmac")
        attempts = [trained(mining)]
        first = attempts[0][0]
        open_sizes = not number and mining.graph_k is None
        if open_sizes:
            count, kept = len(features), first.best_epoch
            rivals = others(attempts[0][1], first.history, kept, count=count)
            attempts += [trained(rival) for rival in rivals]
        tuning, mining = max(attempts, key=gain)
        pools = tuning.job.pools
        if initial is None:
            initial = whitened(test, own, pools)
        for each, sizes in attempts:
            rounds.append(
                {
                    "true": 100 * pool_purity(each.job.pools, given.labels).positives,
                    "sizes": sizes.sizes,
                    "positives": sizes.positives,
                    "kept": each.best_epoch if each is tuning else None,
                    "history": each.history,
                }
            )
        network = tuning.best
        rows = whitened(described(network, given.test), described(network, given.photos), pools)
        if tuning.best_epoch == 0 or mining.sizes != attempts[0][1].sizes:
            break
    maps = {}
    for label, whitenings in (("initial", initial), ("kept", rows)):
        for kind, descriptors in whitenings.items():
            maps[f"{label}, {kind}"] = average_precision(descriptors, given.test_labels)
    return {
        **{"pile": name, "recipe": title, "seed": seed, "rounds": rounds, "mAP": maps},
        "seconds": time.monotonic() - started,
    }


def table_of(runs: list[dict]) -> str:
    """mAP of each recipe on each pile, as the mean over seeds, and its gain with an interval."""
    kinds = ("none", "PCA", "LDA")
    columns = ["pile", "recipe", "seeds", "true positives", "none, PCA, LDA", "gain", "best gain"]
    rows = [[*columns, "epoch"]]
    rows.append(["---"] * len(rows[0]))
    for (name, title), given in _grouped(runs, "pile", "recipe"):
        maps = np.array(
            [[[each["mAP"][f"{of}, {kind}"] for kind in kinds] for of in OF] for each in given]
        )
        true = " → ".join(
            f"{each['true']:.0f}%" for each in given[0]["rounds"] if each["kept"] is not None
        )
        plain = maps[:, 1, 0] - maps[:, 0, 0]
        best = maps[:, 1].max(1) - maps[:, 0].max(1)
        after = ", ".join(f"{value:.1f}" for value in maps[:, 1].mean(0))
        gains = [interval(plain), interval(best)]
        rows.append([name, title, str(len(given)), true, after, *gains, f"{epoch_cost(given):.2f}"])
    for (name,), given in _grouped(runs, "pile"):
        before = ", ".join(f"{given[0]['mAP'][f'initial, {kind}']:.1f}" for kind in kinds)
        place = next(i for i, row in enumerate(rows) if row[0] == name)
        rows.insert(place, [name, "initial", "", "", before, "", "", ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


OF = ("initial", "kept")


def epoch_cost(runs: list[dict]) -> float:
    """Seconds of an epoch, with what it embeds to rank and to check, in those of its steps."""
    epochs = [figures for each in runs for one in each["rounds"] for figures in one["history"][1:]]
    return sum(map(epoch_seconds, epochs)) / sum(each["train_seconds"] for each in epochs)


def interval(values) -> str:
    """The mean with its 95% confidence interval by Student's t."""
    if len(values) < 2:
        return f"{np.mean(values):+.1f}"
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):+.1f} ± {half:.1f}"


def paired(runs: list[dict], one: str, two: str) -> str:
    """The difference of two recipes over all piles and seeds that both have."""
    rows = [["with", f"{one} - {two}", "piles lost"], ["---"] * 3]
    for what in ("none", "best"):
        found = {}
        for each in runs:
            maps = each["mAP"]
            value = (
                maps["kept, none"]
                if what == "none"
                else max(maps[f"kept, {kind}"] for kind in ("none", "PCA", "LDA"))
            )
            found[each["recipe"], each["pile"], each["seed"]] = value
        keys = [key[1:] for key in found if key[0] == one and (two, *key[1:]) in found]
        of_piles = defaultdict(list)
        for key in keys:
            of_piles[key[0]].append(found[one, *key] - found[two, *key])
        means = [np.mean(values) for values in of_piles.values()]
        lost = [name for name, values in of_piles.items() if np.mean(values) < 0]
        rows.append([what, interval(means) if means else "", ", ".join(lost)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _grouped(runs, *names):
    groups = defaultdict(list)
    for each in runs:
        groups[tuple(each[name] for name in names)].append(each)
    return groups.items()


def agreement(runs: list[dict]) -> str:
    """How well each check agrees with mAP, over the epochs of all rounds on a pile."""
    rows = [["pile", "check", "rounds", "Spearman", "worse", "regret"], ["---"] * 6]
    piles = defaultdict(list)
    for each in runs:
        piles[each["pile"]] += [one["history"] for one in each["rounds"]]
        piles["all"] += [one["history"] for one in each["rounds"]]
    for title in [*(name for name in piles if name != "all"), "all"]:
        histories = piles[title]
        for check in CHECKS:
            maps, values, worse, regrets = [], [], 0, []
            for history in histories:
                of = np.array([figures["map"] for figures in history])
                by = np.array([figures[check] for figures in history])
                best = best_epoch(history) if check == VIEW_AGREEMENT else int(np.argmax(by))
                maps += (of[1:] - of[0]).tolist()
                values += (by[1:] - by[0]).tolist()
                worse += bool(of[best] < of[0])
                regrets.append(of.max() - of[best])
            spearman = f"{spearmanr(maps, values)[0]:.2f}"
            count = str(len(histories))
            rows.append([title, check, count, spearman, str(worse), f"{np.mean(regrets):.1f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of cub50, flowers17, coil20, clutter1000")
    parser.add_argument("--piles", nargs="+", default=["rendered", *PILES])
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
    parts = [table_of(runs), *(paired(runs, "auto", name) for name in RECIPES if name != "auto")]
    print("\n\n".join([*parts, agreement(runs)]))


if __name__ == "__main__":
    main()
