"""Inverted lists on a GPU, of which there is a stand-in: equal results, limits, and failures."""

import pickle

import numpy as np
import pytest

from mmray.mining.knn import approximate
from mmray.mining.knn.approximate import ApproximateIndex
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.knn.faiss_library import faiss, faiss_has_gpu
from mmray.mining.knn.recall import recall
from mmray.serving.compressed_index import CompressedIndex
from mmray.system.errors import InputError
from tests.made.faiss_gpu import OUT_OF_MEMORY, FakeGpu
from tests.made.synthetic import clouds, unit_rows


@pytest.fixture
def gpu(monkeypatch):
    return FakeGpu.on(monkeypatch)


def equal(one, other):
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.similarities, other.similarities)


# Building


@pytest.mark.parametrize("n", [1, 90, 3000])
def test_lists_that_a_gpu_assigned_are_stored_as_those_of_a_cpu(gpu, monkeypatch, n):
    database = clouds(0, n, 20)
    plain = ApproximateIndex.of(database, "ivf", seed=4)
    assert gpu == FakeGpu()
    monkeypatch.setattr(approximate, "_BLOCK_ROWS", 1000)
    built = ApproximateIndex.of(database, "ivf", seed=4, device="cuda")
    np.testing.assert_array_equal(built.trained, plain.trained)
    assert sum(gpu.assigned) == n
    assert max(gpu.assigned) <= 1000
    # One list has its centroid without k-means; else the copy's are those that were learned.
    learned = [(index.ntotal, index.d, index.metric_type) for index in gpu.learned]
    assert learned[0][1:] == (32, faiss.METRIC_L2)
    assert learned[0][0] == (plain._exhaustive if n == 3000 else 0)
    if n == 3000:
        np.testing.assert_array_equal(
            gpu.learned[0].reconstruct_n(0, 46), plain._index.quantizer.reconstruct_n(0, 46)
        )


def test_codes_whose_cells_a_gpu_learned_are_stored_as_those_of_a_cpu(gpu):
    database = unit_rows(clouds(1, 10_000, 8))
    plain = CompressedIndex.of(database, seed=2)
    built = CompressedIndex.of(database, seed=2, device="cuda")
    assert built.to_bytes() == plain.to_bytes()
    assert not faiss.deserialize_index(np.frombuffer(built.to_bytes(), np.uint8)).by_residual
    (learned,) = gpu.learned
    assert (learned.ntotal, learned.d) == (plain.index.nlist, 8)
    assert learned.metric_type == faiss.METRIC_INNER_PRODUCT
    assert gpu.assigned == [10_000]


def test_a_graph_is_built_and_searched_without_a_gpu(gpu):
    database = clouds(2, 300, 8)
    index = ApproximateIndex.of(database, "hnsw", device="cuda")
    np.testing.assert_array_equal(index.trained, ApproximateIndex.of(database, "hnsw").trained)
    equal(index.search(database, 5, effort=20, device="cuda"), index.search(database, 5, effort=20))
    assert gpu == FakeGpu()


# Searching


@pytest.mark.parametrize("block", [2**27, 2 * 3 * 32 * 9])
def test_a_gpu_finds_what_a_cpu_finds_in_blocks_that_it_has_room_for(gpu, monkeypatch, block):
    database = clouds(3, 3000, 20)
    index, queries = ApproximateIndex.of(database, "ivf"), clouds(4, 80, 20)
    queries[7] = 0
    plain = index.search(queries, 6, effort=3)
    assert 0.2 < recall(plain, nearest_neighbors(database, queries, 6)) < 1
    monkeypatch.setattr(approximate, "_GATHERED", block)
    equal(index.search(queries, 6, effort=3, device="cuda"), plain)
    largest = 79 if block == 2**27 else 18
    assert gpu.searched[0] == (largest, 12, 3)
    assert sum(count for count, *_ in gpu.searched) == 79  # all but the query of zeros
    assert all(count <= largest for count, *_ in gpu.searched)


def test_the_copy_of_the_lists_stays_for_a_worker_s_life_and_goes_to_no_other(gpu):
    database = clouds(3, 3000, 20)
    index = ApproximateIndex.of(database, "ivf")
    for _ in range(3):
        index.search(database[:9], 5, effort=4, device="cuda")
    assert len(gpu.lists) == 1
    assert len(gpu.searched) == 3
    other = pickle.loads(pickle.dumps(index))
    other.search(database[:9], 5, effort=4, device="cuda")
    assert len(gpu.lists) == 2


@pytest.mark.parametrize(
    ("k", "effort", "fits"), [(10, 20, True), (10, 21, False), (11, 20, False)]
)
def test_past_the_limits_of_a_gpu_the_cpu_searches(gpu, monkeypatch, k, effort, fits):
    database = clouds(5, 3000, 8)
    index = ApproximateIndex.of(database, "ivf")
    assert approximate.MOST_ON_GPU == 2048
    monkeypatch.setattr(approximate, "MOST_ON_GPU", 20)
    found = index.search(database[:30], k, effort=effort, device="cuda")
    equal(found, index.search(database[:30], k, effort=effort))
    assert bool(gpu.searched) == fits


def test_rows_that_need_more_lists_than_a_gpu_probes_get_them_from_the_cpu(gpu, monkeypatch):
    database = clouds(5, 3000, 8)
    index = ApproximateIndex.of(database, "ivf")
    monkeypatch.setattr(approximate, "MOST_ON_GPU", 1000)
    equal(
        index.search(database[:5], 500, effort=1, device="cuda"),
        index.search(database[:5], 500, effort=1),
    )
    probed = [lists for *_, lists in gpu.searched]
    assert probed[0] == 1
    assert max(probed) < index._exhaustive
    monkeypatch.setattr(approximate, "MOST_ON_GPU", max(probed))
    gpu.searched.clear()
    index.search(database[:5], 500, effort=1, device="cuda")
    assert not gpu.searched  # 1,000 candidates


# Without a GPU, and without its memory


def test_faiss_without_a_gpu_works_on_the_cpu(gpu, monkeypatch):
    """faiss-cpu, and faiss-gpu where there is none, tell that there are 0."""
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert not faiss_has_gpu()
    database = unit_rows(clouds(6, 10_000, 8))
    index = ApproximateIndex.of(database, "ivf", device="cuda")
    equal(
        index.search(database[:20], 5, effort=2, device="cuda"),
        index.search(database[:20], 5, effort=2),
    )
    CompressedIndex.of(database, device="cuda")
    assert gpu == FakeGpu()


BUILDING = "building inverted lists: a GPU has too little memory free; choose --mining.device cpu"
SEARCHING = "searching inverted lists: a GPU has too little memory free; choose --mining.device cpu"
CODES = "building cells and codes: a GPU has too little memory free; choose --num-gpus 0"


def test_a_gpu_without_memory_is_named_with_what_to_do(gpu):
    database = unit_rows(clouds(7, 10_000, 8))
    index = ApproximateIndex.of(database, "ivf")
    gpu.failing = OUT_OF_MEMORY
    for wanted, work in (
        (BUILDING, lambda: ApproximateIndex.of(database, "ivf", device="cuda")),
        (SEARCHING, lambda: index.search(database[:5], 5, effort=2, device="cuda")),
        (CODES, lambda: CompressedIndex.of(database, device="cuda")),
    ):
        with pytest.raises(InputError) as refused:
            work()
        assert str(refused.value) == wanted


def test_k_means_that_finds_no_memory_leaves_no_index_of_the_gpu_behind(gpu, monkeypatch):
    seen = []

    def fail(self, sample):
        seen.append(self)
        assert self.clustering_index is not None
        raise RuntimeError(OUT_OF_MEMORY)

    monkeypatch.setattr(faiss.IndexIVFScalarQuantizer, "train", fail)
    with pytest.raises(InputError, match=r"^building inverted lists: a GPU"):
        ApproximateIndex.of(clouds(8, 300, 8), "ivf", device="cuda")
    assert seen[0].clustering_index is None


def test_other_errors_of_a_gpu_are_raised_as_they_are(gpu):
    gpu.failing = "CUDA error 700 an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match=r"^CUDA error 700"):
        ApproximateIndex.of(clouds(8, 300, 8), "ivf", device="cuda")
