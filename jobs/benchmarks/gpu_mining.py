"""Exact and approximate k-NN and mining on a GPU, step by step.

n items, d dims, k neighbours.
"""

import importlib
import os
import time
from functools import partial

import numpy as np
import torch

from benchmarks.gpu_trial import Trial
from mmray.mining.batches import Miner, MiningInput
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.diffusion.solver import Diffuser
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex
from mmray.mining.knn.exact_cuda import DeviceIndex
from mmray.mining.knn.faiss_library import faiss, faiss_has_gpu
from mmray.mining.knn.recall import recall
from mmray.mining.knn.results import Neighbors
from mmray.mining.pools import MiningMethod
from mmray.system.arrays import Device, Features, Ids

K = 30
_ROOM = 4 * K + 512  # candidates of a query, as `ExactIndex.search` has it
_TILE_ITEMS = 65_536
_ANCHORS = 32  # in a unit of mining
_ALL_ANCHORS = 1500  # of a run
_PROBES = 64  # lists, the default of --mining.search-effort
_NO_GPU = "faiss has no GPU here, and is not compared on one"


def knn(trial: Trial) -> None:
    """Time a unit of the exact k-NN search as it is, and its steps by themselves."""
    n, d, block, units = (1_000_000, 512, 4096, 4) if trial.full else (3000, 64, 512, 1)
    features = _features(trial, n, d)
    index = ExactIndex.of(features, half=False)
    kept = trial.seconds(lambda: DeviceIndex(features, index.norm, trial.device), 2)
    trial.say("knn", step="the database on the device, once for an actor", seconds=kept)
    index.search(features[:32], K, device=trial.device, threads=1)  # compiles
    start = time.perf_counter()
    for unit in range(units):
        queries = features[unit * block : (unit + 1) * block]
        index.search(queries, K, device=trial.device, threads=1)
    seconds = (time.perf_counter() - start) / units
    whole = {"seconds": seconds, "whole_seconds": seconds * n / block}
    trial.say("knn", step="a unit as it is", queries=block, **whole)
    _time_search(trial, features, index.norm)


def _time_search(trial: Trial, features: Features, norm: float) -> None:
    """Time the steps of a search for the first queries, the database being on the device."""
    n, asked = len(features), features[: 1024 if trial.full else 256]
    on_device, m = DeviceIndex(features, norm, trial.device), len(asked)

    def say(step: str, seconds: float) -> None:
        trial.say("knn", step=step, seconds=seconds, whole_seconds=seconds * n / m)

    for name, half in (("float32", False), ("bf16", True)):
        search = partial(on_device.search, asked, K, room=_ROOM, half=half)
        say(f"search of {m:,}, {name}", trial.seconds(search, 2))
        rows = on_device.half if half else on_device.items
        right = torch.from_numpy(asked).to(trial.device, rows.dtype)
        say(f"products of {m:,}, {name}", trial.seconds(partial(_products, rows, right), 2))
    candidates = torch.arange(min(n, 2 * K), device=trial.device).repeat(m, 1)
    right = torch.from_numpy(asked).to(trial.device)
    settle = partial(on_device.settled, right, candidates, K)
    say(f"settling {m:,}, {candidates.shape[1]} candidates of each", trial.seconds(settle, 2))
    if not faiss_has_gpu():
        trial.say("knn", step=_NO_GPU)
    elif trial.cuda:
        importlib.import_module("faiss.contrib.torch_utils")  # else it takes no tensors
        resources = faiss.StandardGpuResources()
        database, metric = torch.from_numpy(features).to(trial.device), faiss.METRIC_INNER_PRODUCT
        library = partial(faiss.knn_gpu, resources, right, database, K, metric=metric)
        say(f"faiss.knn_gpu of {m:,}, {faiss.get_compile_options()}", trial.seconds(library, 2))


def _products(database: torch.Tensor, queries: torch.Tensor) -> None:
    for first in range(0, len(database), _TILE_ITEMS):
        queries @ database[first : first + _TILE_ITEMS].T


def ivf(trial: Trial) -> None:
    """Time building and searching inverted lists on the GPU, and on all CPUs."""
    n, d, block = (1_000_000, 512, 4096) if trial.full else (3000, 64, 512)
    features, threads = _features(trial, n, d), os.cpu_count() or 1
    gpu = faiss_has_gpu()
    if not gpu:
        trial.say("ivf", step=_NO_GPU)
    devices: tuple[Device, ...] = ("cuda", "cpu") if gpu else ("cpu",)
    for device in devices:
        start = time.perf_counter()
        index = ApproximateIndex.of(features, "ivf", device=device, threads=threads)
        seconds = time.perf_counter() - start
        trial.say("ivf", step="building", device=device, threads=threads, seconds=seconds)
    found = []
    for device in devices:  # in one index, that of the CPUs
        search = partial(index.search, effort=_PROBES, device=device, threads=threads)
        seconds = trial.seconds(partial(search, features[:block], K), 2)
        whole = {"seconds": seconds, "whole_seconds": seconds * n / block}
        trial.say("ivf", step="a unit", device=device, queries=block, threads=threads, **whole)
        found.append(search(features[:block], K))
    if gpu:
        trial.say("ivf", step="of the CPUs' neighbours, found on the GPU", share=recall(*found))


def mine(trial: Trial) -> None:
    """Time the graph, diffusion, and a unit of anchors, on the device and on a CPU thread."""
    n, d = (1_000_000, 512) if trial.full else (3000, 64)
    features = _features(trial, n, d)
    found = _roughly_nearest(trial, features)
    start = time.perf_counter()
    raw = reciprocal_knn_graph(found.ids, found.similarities)
    given = MiningInput.of(features, raw, reorder(normalize_graph(raw)), np.arange(n))
    seconds = time.perf_counter() - start
    trial.say("mine", step="graph and its order", seconds=seconds, entries=int(raw.nnz))
    linked = np.flatnonzero(np.diff(raw.indptr))
    anchors = np.random.default_rng(0).choice(linked, 2 * _ANCHORS, replace=False)
    devices: tuple[Device, ...] = ("cuda", "cpu") if trial.cuda else ("cpu",)
    for device in devices:
        _time_mining(trial, given, anchors, device)


def _time_mining(trial: Trial, given: MiningInput, anchors: Ids, device: Device) -> None:
    """Time the first half of the anchors diffused alone, and the second half mined."""
    method = MiningMethod(
        positive_k=50, negative_k=min(10_000, len(given.items) // 4), max_negatives=50
    )
    start = time.perf_counter()
    # An actor on a GPU has the CPUs beside it, another has one: see `cluster.with_gpus_and_cpus`.
    threads = max(1, (os.cpu_count() or 1) - 2) if device == "cuda" else 1
    miner = Miner(given, method, device=device, threads=threads)
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
        threads=threads,
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
