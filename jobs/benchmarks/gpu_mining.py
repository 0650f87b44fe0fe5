"""Exact k-NN and mining on a GPU, step by step.

n items, d dims, k neighbours.
"""

import time
from functools import partial

import numpy as np
import torch

from benchmarks.gpu_trial import Trial
from mmray.mining.batches import Miner, MiningInput
from mmray.mining.diffusion.solver import Diffuser
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.exact_cuda import most_similar
from mmray.mining.knn.results import Neighbors, rescored
from mmray.mining.pools import MiningMethod
from mmray.system.arrays import Device, Features, Ids

K = 30
_ROOM = K + K // 8 + 64  # candidates of a query that a GPU sorts, as `ExactIndex.search` has it
_TILE_ITEMS = 65_536
_ANCHORS = 32  # in a unit of mining
_ALL_ANCHORS = 1500  # of a run


def knn(trial: Trial) -> None:
    """Time a unit of the exact k-NN search as it is, and its steps by themselves."""
    n, d, block, units = (1_000_000, 512, 4096, 4) if trial.full else (3000, 64, 512, 1)
    features = _features(trial, n, d)
    index = ExactIndex.of(features)
    upload = trial.seconds(lambda: torch.from_numpy(features).to(trial.device), 2)
    trial.say("knn", step="upload of the database, done for every unit", seconds=upload)
    index.search(features[:2], K, device=trial.device, threads=1)  # compiles
    start = time.perf_counter()
    for unit in range(units):
        queries = features[unit * block : (unit + 1) * block]
        index.search(queries, K, device=trial.device, threads=1)
    seconds = (time.perf_counter() - start) / units
    whole = {"seconds": seconds, "whole_seconds": seconds * n / block}
    trial.say("knn", step="a unit as it is", queries=block, **whole)
    _time_search(trial, features)


def _time_search(trial: Trial, features: Features) -> None:
    """Time the steps of a search for the first queries, the database being on the device."""
    n, tile_items = len(features), min(_TILE_ITEMS, len(features))
    asked = features[: 1024 if trial.full else 256]
    m, slack = len(asked), np.full(len(asked), 1e-4, np.float32)
    database = torch.from_numpy(features).to(trial.device)
    queries = torch.from_numpy(asked).to(trial.device)

    def say(step: str, seconds: float) -> None:
        trial.say("knn", step=step, seconds=seconds, whole_seconds=seconds * n / m)

    say(
        f"most_similar of {m:,}, database resident",
        trial.seconds(lambda: most_similar(database, queries, K, _ROOM, slack), 2),
    )
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        rows, right = database.to(dtype), queries.to(dtype)
        seconds = trial.seconds(partial(_products, rows, right), 2)
        say(f"products of {m:,}, {name}", seconds)
    tile = queries @ database[:tile_items].T
    seconds = trial.seconds(lambda: tile.topk(_ROOM, dim=1), 5)
    trial.say("knn", step=f"topk {_ROOM} of a tile {m} x {tile_items}", seconds=seconds)
    candidates, counts, _ = most_similar(database, queries, K, _ROOM, slack)
    start = time.perf_counter()
    rescored(features, asked, candidates, counts, K)
    say(f"settling {m:,} on a CPU thread", time.perf_counter() - start)


def _products(database: torch.Tensor, queries: torch.Tensor) -> None:
    for first in range(0, len(database), _TILE_ITEMS):
        queries @ database[first : first + _TILE_ITEMS].T


def mine(trial: Trial) -> None:
    """Time the graph, diffusion, and a unit of anchors, on the device and on a CPU thread."""
    n, d = (1_000_000, 512) if trial.full else (3000, 64)
    features = _features(trial, n, d)
    found = _roughly_nearest(trial, features)
    start = time.perf_counter()
    raw = reciprocal_knn_graph(found.ids, found.similarities)
    given = MiningInput.of(features, raw, normalize_graph(raw), np.arange(n))
    seconds = time.perf_counter() - start
    trial.say("mine", step="graph and its order", seconds=seconds, entries=int(raw.nnz))
    linked = np.flatnonzero(np.diff(raw.indptr))
    anchors = np.random.default_rng(0).choice(linked, 2 * _ANCHORS, replace=False)
    devices: tuple[Device, ...] = ("cuda", "cpu") if trial.cuda else ("cpu",)
    for device in devices:
        _time_mining(trial, given, anchors, device)
    few = anchors[:8]
    start = time.perf_counter()
    given.index.ranks(features[few], [found.ids[anchor][:20] for anchor in few])
    seconds = (time.perf_counter() - start) / len(few)
    trial.say("mine", step="ranks, of one anchor, on the CPU", seconds=seconds)


def _time_mining(trial: Trial, given: MiningInput, anchors: Ids, device: Device) -> None:
    """Time the first half of the anchors diffused alone, and the second half mined."""
    method = MiningMethod(
        positive_k=50, negative_k=min(10_000, len(given.items) // 4), max_negatives=50
    )
    start = time.perf_counter()
    miner = Miner(given, method, device=device)
    seconds = time.perf_counter() - start
    trial.say("mine", step="graph and work arrays in place", device=device, seconds=seconds)
    miner.mine(anchors[:2])  # compiles
    diffuser = Diffuser(given.normalized, method.solver, device=device)
    start = time.perf_counter()
    for _ in diffuser.blocks(anchors[:_ANCHORS]):
        pass
    seconds = time.perf_counter() - start
    step = f"diffusion of {_ANCHORS} anchors alone"
    trial.say("mine", step=step, device=device, seconds=seconds)
    start = time.perf_counter()
    miner.mine(anchors[_ANCHORS:])
    seconds = time.perf_counter() - start
    trial.say(
        "mine",
        step=f"a unit of {_ANCHORS} anchors as it is",
        device=device,
        seconds=seconds,
        of_1500_on_one_actor=seconds * _ALL_ANCHORS / _ANCHORS,
    )


def _features(trial: Trial, n: int, d: int) -> Features:
    """(n, d) float32, l2-normalised: points of a curved manifold of 8 dimensions."""
    generator = torch.Generator(device=trial.device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=trial.device)

    latent, first, second = normal(n, 8), normal(8, d), normal(8, d)
    rows = torch.sin(latent @ first) + 0.5 * torch.cos(2 * latent @ second)
    features: Features = torch.nn.functional.normalize(rows, dim=1).cpu().numpy()
    return features


def _roughly_nearest(trial: Trial, features: Features) -> Neighbors:
    """Find neighbours quickly, in bfloat16: only the size and shape of the graph matter here."""
    n, rows, items = len(features), 4096, 131_072
    database = torch.from_numpy(features).to(trial.device).bfloat16()
    ids, similarities = np.empty((n, K), np.int64), np.empty((n, K), np.float32)
    for start in range(0, n, rows):
        values, places = [], []
        for first in range(0, n, items):
            tile = database[start : start + rows] @ database[first : first + items].T
            best = tile.float().topk(K, dim=1)
            values.append(best.values)
            places.append(best.indices + first)
        nearest = torch.cat(values, 1).topk(K, dim=1)
        chosen = torch.cat(places, 1).gather(1, nearest.indices)
        ids[start : start + rows] = chosen.cpu().numpy()
        similarities[start : start + rows] = nearest.values.clamp(0, 1).cpu().numpy()
    return Neighbors(ids, similarities)
