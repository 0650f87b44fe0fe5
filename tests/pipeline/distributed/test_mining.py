"""k-NN and mining by Ray give what the core gives, bit for bit, on any number of actors."""

import dataclasses

import numpy as np
import pytest
import ray

from mmray.mining.batches import MiningInput
from mmray.mining.diffusion.solver import Diffuser
from mmray.mining.files import read_neighbors, read_pools
from mmray.mining.graph import largest_component, normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex, nearest_neighbors
from mmray.mining.pool_lists import Pools
from mmray.mining.pools import MiningMethod, mine_pools
from mmray.pipeline.distributed.mining import MiningWorker, mine
from mmray.pipeline.distributed.neighbors import find_neighbors
from mmray.pipeline.distributed.units import ActorPool
from mmray.system.folder import Folder
from tests.made import synthetic

pytestmark = pytest.mark.usefixtures("ray_cluster")
SETTINGS = {"positive_k": 12, "negative_k": 60, "max_negatives": 9}


def assert_equal(left: Pools, right: Pools) -> None:
    for field in dataclasses.fields(Pools):
        for one, other in zip(getattr(left, field.name), getattr(right, field.name), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=field.name)


@pytest.mark.parametrize("maximum", [1, 2])
def test_neighbors_equal_the_core_whatever_the_blocks(tmp_path, maximum):
    features = synthetic.curves(3)
    folder = Folder(str(tmp_path))
    pool = ActorPool(maximum=maximum)
    index = ExactIndex.of(features)
    find_neighbors(index, 11, block=50, output=folder / "neighbors", pool=pool)
    found = read_neighbors(folder)
    wanted = nearest_neighbors(features, features, 11)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.similarities, wanted.similarities)


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_approximate_neighbors_equal_the_core_whatever_the_blocks(tmp_path, method):
    features = np.concatenate([synthetic.curves(seed) for seed in range(10)])
    folder, index = Folder(str(tmp_path)), ApproximateIndex.of(features, method)
    find_neighbors(
        index, 11, block=300, output=folder / "neighbors", pool=ActorPool(maximum=2), effort=4
    )
    found, wanted = read_neighbors(folder), index.search(features, 11, effort=4)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.similarities, wanted.similarities)


@pytest.mark.parametrize("maximum", [1, 2])
def test_pools_equal_the_core_and_go_by_image_id(tmp_path, maximum):
    features = synthetic.curves(4)
    found = nearest_neighbors(features, features, 6)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    items = largest_component(graph)
    assert 30 <= len(items) < len(features)
    kept = graph[items][:, items]
    anchors = np.arange(len(items))[::-4]
    mine(
        MiningInput.of(features[items], kept, normalize_graph(kept), items),
        anchors,
        MiningMethod(**SETTINGS),
        block=3,
        output=Folder(str(tmp_path)) / "pools",
        pool=ActorPool(maximum=maximum),
    )
    pools = read_pools(Folder(str(tmp_path)))
    assert_equal(pools, mine_pools(features, graph, items[anchors], items=items, **SETTINGS))
    assert len((Folder(str(tmp_path)) / "pools").names()) == -(-len(anchors) // 3)


def test_a_worker_builds_its_work_arrays_once(monkeypatch):
    features = synthetic.curves(4)
    found = nearest_neighbors(features, features, 6)
    raw = reciprocal_knn_graph(found.ids, found.similarities)
    given = MiningInput.of(features, raw, normalize_graph(raw), np.arange(len(features)))
    built, made = [], Diffuser.__init__
    monkeypatch.setattr(
        Diffuser, "__init__", lambda *given, **options: built.append(made(*given, **options))
    )
    worker = MiningWorker([ray.put(given)], MiningMethod(**SETTINGS), {"threads": 2})
    for anchors in ([0, 5], [7], [5, 0, 7]):
        assert worker({"anchors": anchors}).num_rows == len(anchors)
    assert len(built) == 1
