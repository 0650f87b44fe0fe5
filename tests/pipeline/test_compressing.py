"""Where the compressed form of a search index is made, and what is said of it."""

import numpy as np
import pytest

from mmray.config.tools import IndexConfig
from mmray.pipeline import distributed
from mmray.pipeline.distributed import neighbors
from mmray.pipeline.recipes import index
from mmray.pipeline.session import Session
from mmray.pipeline.stage import StageFolder
from mmray.serving.compressed_index import digest_of
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from tests.made.faiss_gpu import OUT_OF_MEMORY, FakeGpu
from tests.made.synthetic import SilentRun, clouds, unit_rows


@pytest.fixture
def compress(tmp_path, ray_cluster, monkeypatch):
    """Returns a function that compresses vectors with so many GPUs, and the tasks that it began."""
    tasks = []

    def here(work, *arguments, pool, label):
        tasks.append((work.__name__, pool.gpus, label))
        return work(*arguments)

    def run(gpus):
        tasks.clear()
        config = IndexConfig(images=("x",), kind="ivf-pq", num_gpus=gpus)
        storage = Folder(str(tmp_path / str(gpus)))
        stage = StageFolder.of(storage, "index", "x")
        with stage.folder.writing("vectors.npy") as sink:
            np.save(sink, unit_rows(clouds(1, 10_000, 8)))
        kind, digest = index._compress(Session(config, storage, SilentRun(), ("index",)), stage)
        assert kind == "ivf-pq"
        assert digest == {"compressed_sha256": digest_of(stage.folder.read("ivf-pq.faiss"))}
        return digest, list(tasks)

    monkeypatch.setattr(neighbors, "run_once", here)
    monkeypatch.setattr(distributed, "run_once", here)
    return run


def test_a_task_on_a_gpu_makes_what_the_job_would(compress, monkeypatch, capsys):
    plain, tasks = compress(gpus=0)
    assert tasks == []
    FakeGpu.on(monkeypatch)
    digest, tasks = compress(gpus=1)
    assert tasks == [("faiss_has_gpu", 1, "index"), ("write_codes", 1, "index")]
    assert digest == plain
    said = capsys.readouterr().err
    assert said.count("index: cells and codes of 10,000 vectors\n") == 1
    assert said.count("index: cells and codes of 10,000 vectors on a GPU\n") == 1


def test_with_faiss_for_cpus_on_the_machines_with_gpus_the_job_makes_it(compress, capsys):
    assert compress(gpus=1)[1] == [("faiss_has_gpu", 1, "index")]
    assert capsys.readouterr().err.count("index: faiss cannot use the GPUs, and works on CPUs") == 1


def test_a_gpu_without_memory_ends_it_with_what_to_do(compress, monkeypatch):
    FakeGpu.on(monkeypatch).failing = OUT_OF_MEMORY
    with pytest.raises(InputError, match=r"too little memory free; choose --num-gpus 0$"):
        compress(gpus=1)
