"""k-NN and mining by Ray give what the core gives, bit for bit, on any number of actors."""

import dataclasses

import numpy as np
import pytest
import ray

from mmray.mining.batches import MiningInput
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.diffusion.solver import Diffuser
from mmray.mining.files import read_neighbors, read_pools
from mmray.mining.graph import largest_component, normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import ExactIndex, nearest_neighbors
from mmray.mining.knn.results import Neighbors
from mmray.mining.pool_lists import Pools
from mmray.mining.pools import MiningMethod, mine_pools
from mmray.pipeline.distributed.mining import MiningWorker, mine
from mmray.pipeline.distributed.neighbors import (
    QUERIES,
    find_neighbors,
    find_neighbors_in_parts,
    query_units,
)
from mmray.pipeline.distributed.units import ActorPool, run_units
from mmray.system.folder import Folder
from mmray.system.rows import Rows
from tests.made import synthetic

pytestmark = pytest.mark.usefixtures("ray_cluster")
SETTINGS = {"positive_k": 12, "negative_k": 60, "max_negatives": 9}


def assert_equal(left: Pools, right: Pools) -> None:
    for field in dataclasses.fields(Pools):
        for one, other in zip(getattr(left, field.name), getattr(right, field.name), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=field.name)


def whole(blocks):
    """All blocks of neighbours in one."""
    parts = [block for block, _ in blocks.numbered()]
    ids = np.concatenate([part.ids for part in parts])
    return Neighbors(ids, np.concatenate([part.similarities for part in parts]))


@pytest.mark.parametrize("maximum", [1, 2])
def test_neighbors_equal_the_core_whatever_the_blocks(tmp_path, maximum):
    features = synthetic.curves(3)
    folder = Folder(str(tmp_path))
    pool = ActorPool(maximum=maximum)
    index = ExactIndex.of(features)
    find_neighbors(index, 11, block=50, output=folder / "neighbors", pool=pool)
    found = whole(read_neighbors(folder, len(features), 11))
    wanted = nearest_neighbors(features, features, 11)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.similarities, wanted.similarities)


@pytest.mark.parametrize("parts", [2, 4])
def test_neighbors_in_parts_equal_the_core(tmp_path, parts):
    features = np.concatenate([synthetic.curves(3), synthetic.curves(3)[:40]])
    folder, chosen = Folder(str(tmp_path)), np.flatnonzero(np.arange(len(features)) % 7)
    rows = Rows(lambda: features).stored(folder, "rows.npy").only(chosen)
    asked = np.random.default_rng(0).permutation(len(rows))[:90]
    find_neighbors_in_parts(
        rows,
        query_units(asked, 20),
        50,
        parts=parts,
        scratch=folder / "parts",
        output=folder / "neighbors",
        pool=ActorPool(maximum=2),
    )
    found = whole(read_neighbors(folder, len(asked), 50))
    wanted = nearest_neighbors(features[chosen], features[chosen][asked], 50)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.similarities, wanted.similarities)
    assert (folder / "parts").folders() == []


@pytest.mark.parametrize("parts", [2, 5])
def test_a_search_in_parts_goes_on_where_it_was_stopped(tmp_path, parts, monkeypatch):
    """In the second of three parts; then with other parts, on what was found among a third."""
    features, folder = synthetic.curves(3), Folder(str(tmp_path))
    rows, units = Rows(lambda: features).stored(folder, "rows.npy"), query_units(np.arange(120), 40)
    given = {"scratch": folder / "parts", "output": folder / "neighbors"}
    pool, begun = ActorPool(maximum=1), []

    def run_one(*arguments, **options):
        begun.append(options["label"])
        if len(begun) == 2:
            raise KeyboardInterrupt
        run_units(*arguments, **options)

    monkeypatch.setattr("mmray.pipeline.distributed.neighbors.run_units", run_one)
    with pytest.raises(KeyboardInterrupt):
        find_neighbors_in_parts(rows, units, 50, parts=3, pool=pool, **given)
    assert (folder / "parts").folders() == ["000000000040"]
    find_neighbors_in_parts(rows, units, 50, parts=parts, pool=pool, **given)
    assert begun[2] == {2: "k-NN 1/2", 5: "k-NN 2/5"}[parts]
    assert len(begun) == {2: 4, 5: 6}[parts]
    found, wanted = read_neighbors(folder, 120, 50), nearest_neighbors(features, features, 50)
    found = whole(found)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.similarities, wanted.similarities)
    find_neighbors_in_parts(rows, units, 50, parts=7, pool=pool, **given)
    assert len(begun) == {2: 4, 5: 6}[parts], "nothing is left to do"


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_approximate_neighbors_equal_the_core_whatever_the_blocks(tmp_path, method):
    features = np.concatenate([synthetic.curves(seed) for seed in range(10)])
    folder, index = Folder(str(tmp_path)), ApproximateIndex.of(features, method)
    find_neighbors(
        index, 11, block=300, output=folder / "neighbors", pool=ActorPool(maximum=2), effort=4
    )
    found, wanted = (
        whole(read_neighbors(folder, len(features), 11)),
        index.search(features, 11, effort=4),
    )
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.similarities, wanted.similarities)


def test_pools_of_rows_equal_those_of_an_index(tmp_path):
    """Baselines too, whose items are read one by one where workers have no index."""
    features, folder = synthetic.curves(4), Folder(str(tmp_path))
    found = nearest_neighbors(features, features, 6)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    anchors, every = np.flatnonzero(np.diff(graph.indptr))[::-9], np.arange(len(features))
    method = MiningMethod(positives="euclidean", negatives="random", seed=3, **SETTINGS)
    rows = Rows(lambda: features).stored(folder, "rows.npy")
    pool, units = ActorPool(maximum=1), query_units(anchors, 5)
    find_neighbors_in_parts(
        *(rows, units, method.compared(len(features))),
        parts=3,
        scratch=folder / "parts",
        output=folder / "nearest",
        pool=pool,
    )
    sources = {"index": features, "rows": rows}
    for name, source in sources.items():
        mine(
            MiningInput.of(source, graph, reorder(normalize_graph(graph)), every),
            anchors,
            method,
            block=5,
            output=folder / f"{name}/pools",
            pool=pool,
            nearest=folder / "nearest" if name == "rows" else None,
        )
    assert_equal(*(read_pools(folder / name) for name in sources))


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
        MiningInput.of(features[items], kept, reorder(normalize_graph(kept)), items),
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
    given = MiningInput.of(features, raw, reorder(normalize_graph(raw)), np.arange(len(features)))
    built, made = [], Diffuser.__init__
    monkeypatch.setattr(
        Diffuser, "__init__", lambda *given, **options: built.append(made(*given, **options))
    )
    worker = MiningWorker([ray.put(given)], MiningMethod(**SETTINGS), None, {"threads": 2})
    for anchors in ([0, 5], [7], [5, 0, 7]):
        assert worker({QUERIES: anchors}).num_rows == len(anchors)
    assert len(built) == 1
