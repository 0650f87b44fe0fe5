"""The k-NN stage with inverted lists: where it builds and searches them, and what it says."""

import dataclasses

import numpy as np
import pytest

from mmray.config.sections import MiningConfig
from mmray.config.tools import MineConfig
from mmray.mining.files import read_neighbors
from mmray.pipeline import distributed
from mmray.pipeline.distributed import neighbors
from mmray.pipeline.session import Session
from mmray.pipeline.stages.neighbors import FeatureSource, neighbors_stage
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.formats import read_array
from mmray.system.rows import Rows
from tests.made import synthetic
from tests.made.faiss_gpu import OUT_OF_MEMORY, FakeGpu

FEATURES = np.concatenate([synthetic.curves(seed) for seed in range(8)])
SOURCE = FeatureSource("features", len(FEATURES), Rows(lambda: FEATURES))


@pytest.fixture
def searched(tmp_path, ray_cluster):
    """Returns a function that runs the stage in a storage of its own, with GPUs or without."""

    def run(name, gpus, search="ivf", device="auto"):
        mining = MiningConfig(search=search, search_effort=4, graph_k=10, device=device)
        config = MineConfig(features="x", mining=mining, num_gpus=gpus)
        storage = Folder(str(tmp_path / name))
        session = Session(config, storage, synthetic.SilentRun(), ("graph",))
        return neighbors_stage(session, SOURCE)

    return run


@pytest.fixture
def tasks(monkeypatch):
    """Calls of tasks, which are done in this process, and resources of the actors.

    The actors themselves get no GPU, and their faiss has none: they search on CPUs.
    """
    seen, find = [], distributed.find_neighbors

    def here(work, *arguments, pool, label):
        seen.append((work.__name__, pool.gpus, label))
        return work(*arguments)

    def without_gpus(*given, pool, **options):
        seen.append(("search", pool.gpus, options["device"]))
        find(*given, pool=dataclasses.replace(pool, gpus=0.0), **options)

    monkeypatch.setattr(neighbors, "run_once", here)
    monkeypatch.setattr(distributed, "run_once", here)
    monkeypatch.setattr(distributed, "find_neighbors", without_gpus)
    return seen


def found(stage):
    blocks = read_neighbors(stage.folder, len(FEATURES), stage.counts["k"]).numbered()
    return np.concatenate([block.ids for block, _ in blocks])


def test_a_task_on_a_gpu_builds_what_the_job_would_and_actors_on_gpus_search(
    searched, tasks, monkeypatch, capsys
):
    plain = searched("cpu", gpus=0)
    assert tasks == [("search", 0, "cpu")]
    tasks.clear()
    gpu = FakeGpu.on(monkeypatch)
    stage = searched("gpu", gpus=1)
    assert tasks == [
        *(("faiss_has_gpu", 1, "knn"), ("write_index", 1, "knn"), ("search", 1, "cuda"))
    ]
    assert sum(gpu.assigned) == len(FEATURES)
    assert stage.fingerprint == plain.fingerprint
    for name in (plain, stage):
        assert 0.5 < name.counts["recall"] <= 1
    np.testing.assert_array_equal(
        read_array(stage.folder, "index.npy"), read_array(plain.folder, "index.npy")
    )
    np.testing.assert_array_equal(found(stage), found(plain))
    said = capsys.readouterr().err
    assert said.count("knn: building an index (ivf)\n") == 1
    assert said.count("knn: building an index (ivf) on a GPU\n") == 1


def test_with_faiss_for_cpus_on_the_machines_with_gpus_it_says_so_once(searched, tasks, capsys):
    stage = searched("gpu", gpus=1)
    assert tasks == [("faiss_has_gpu", 1, "knn"), ("search", 0, "cpu")]
    assert found(stage).shape == (len(FEATURES), 10)
    said = "knn: faiss cannot use the GPUs, and works on CPUs; requirements-gpu.txt has the package"
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize(("search", "device"), [("ivf", "cpu"), ("hnsw", "auto")])
def test_no_gpu_is_asked_for_where_none_is_wanted_or_of_use(searched, tasks, search, device):
    searched("gpu", gpus=1, search=search, device=device)
    assert tasks == [("search", 0, "cpu")]


def test_a_gpu_without_memory_ends_the_stage_with_what_to_do(searched, tasks, monkeypatch):
    FakeGpu.on(monkeypatch).failing = OUT_OF_MEMORY
    with pytest.raises(InputError, match=r"too little memory free; choose --mining\.device cpu$"):
        searched("gpu", gpus=1)


def test_faiss_is_asked_on_the_machines_of_the_pool(ray_cluster, monkeypatch):
    """Run in a process of Ray, which the stand-in of this process does not reach."""
    FakeGpu.on(monkeypatch)
    pool = distributed.ActorPool(maximum=1)
    assert not distributed.run_once(neighbors.faiss_has_gpu, pool=pool, label="knn")


def test_an_index_that_a_task_wrote_is_that_of_this_process(ray_cluster, tmp_path):
    folder, pool = Folder(str(tmp_path)), distributed.ActorPool(maximum=1)
    what = (FEATURES, "ivf", folder)
    neighbors.write_index(*what, "here.npy", 3, "cpu", 1)
    distributed.run_once(
        neighbors.write_index, *what, "there.npy", 3, "cuda", 1, pool=pool, label="knn"
    )
    np.testing.assert_array_equal(read_array(folder, "here.npy"), read_array(folder, "there.npy"))
