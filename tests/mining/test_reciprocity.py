"""The join of edges by partitions is the graph of plain loops, and needs little memory."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.mining import reciprocity
from mmray.mining.graph import reciprocal_knn_graph
from mmray.mining.knn.results import Neighbors
from mmray.mining.neighbor_blocks import NeighborBlocks
from mmray.mining.reciprocity import reciprocal_graph
from mmray.system.errors import InputError
from tests.mining.test_graph import lists_of


def in_blocks(neighbors, similarities, rows, scratch=None):
    """Neighbours in blocks of so many rows."""

    def read():
        for start in range(0, len(neighbors), rows):
            block = slice(start, start + rows)
            yield Neighbors(neighbors[block], similarities[block])

    return NeighborBlocks(*neighbors.shape, read, scratch)


def by_loops(neighbors, similarities, power):
    """Weights by pair, by dictionaries, with the bits of the powers of an array."""
    weights = np.maximum(similarities, 0) ** np.float32(power)
    edges = {
        (i, int(j)): weight
        for i, row in enumerate(neighbors)
        for j, weight in zip(row, weights[i], strict=True)
        if i != j and weight > 0
    }
    return {(i, j): min(w, edges[j, i]) for (i, j), w in sorted(edges.items()) if (j, i) in edges}


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), data=st.data())
def test_partitions_and_blocks_of_any_size_give_the_same_bits(seed, n, data):
    neighbors, similarities = lists_of(seed, n, data.draw(st.integers(1, min(n, 9))))
    power = data.draw(st.sampled_from([1.0, 3.0, 40.0]))
    found = in_blocks(neighbors, similarities, data.draw(st.integers(1, 50)))
    graph = reciprocal_graph(found, power=power, partition_bytes=data.draw(st.integers(1, 2000)))
    wanted = by_loops(neighbors, similarities, power)
    rows = np.repeat(np.arange(n), np.diff(graph.indptr)).tolist()
    assert [*zip(rows, graph.indices.tolist(), strict=True)] == list(wanted)
    np.testing.assert_array_equal(graph.data, np.array([*wanted.values()], np.float32))
    assert (graph.dtype, graph.indices.dtype, graph.indptr.dtype) == ("f4", "i4", "i4")


def test_more_edges_than_an_int32_can_count_are_joined_alike(monkeypatch):
    neighbors, similarities = lists_of(8, 60, 9)
    wanted = reciprocal_knn_graph(neighbors, similarities)
    monkeypatch.setattr(reciprocity, "get_index_dtype", lambda maxval: np.int64)
    found = in_blocks(neighbors, similarities, 7)
    for data, indices, indptr in reciprocity._Join(found, 3.0, 1 << 20).parts():
        assert (indices.dtype, indptr.dtype) == ("i8", "i8")
        np.testing.assert_array_equal(indices, wanted.indices)
        np.testing.assert_array_equal(data, wanted.data)


@pytest.mark.parametrize("similarity", [0.5, -0.5])
def test_the_files_are_mapped_and_leave_nothing(tmp_path, similarity):
    neighbors, similarities = lists_of(1, 300, 12)
    similarities = np.abs(similarities) * np.float32(similarity)
    found = in_blocks(neighbors, similarities, 100, tmp_path)
    graph = reciprocal_graph(found, power=3.0, partition_bytes=1000)
    assert [*tmp_path.iterdir()] == []
    wanted = reciprocal_knn_graph(neighbors, similarities)
    assert (wanted.nnz > 0) == (similarity > 0)
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(wanted, name))
        assert getattr(graph, name).dtype == getattr(wanted, name).dtype


def test_the_graph_of_arrays_in_memory_can_be_written():
    graph = reciprocal_knn_graph(*lists_of(2, 20, 5))
    graph.data *= 2
    graph.indices[:0] = 0


def test_fewer_neighbours_are_the_first_ones():
    neighbors, similarities = lists_of(3, 50, 9)
    fewer = reciprocal_graph(in_blocks(neighbors, similarities, 7).first(4), power=3.0)
    wanted = reciprocal_knn_graph(neighbors[:, :4], similarities[:, :4])
    assert 0 < wanted.nnz == fewer.nnz
    np.testing.assert_array_equal(fewer.toarray(), wanted.toarray())


def test_a_bad_row_of_a_later_block_is_named_by_its_item():
    neighbors, similarities = lists_of(4, 30, 5)
    neighbors[23, 1] = neighbors[23, 0]
    with pytest.raises(ValueError, match="item 23: the row lists an item twice"):
        reciprocal_graph(in_blocks(neighbors, similarities, 10), power=3.0)


def test_missing_rows_are_noticed():
    neighbors, similarities = lists_of(5, 30, 5)
    found = dataclasses.replace(in_blocks(neighbors, similarities, 10), count=31)
    with pytest.raises(AssertionError, match="30 rows instead of 31"):
        reciprocal_graph(found, power=3.0)


def test_a_full_disk_is_said_in_one_sentence(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(InputError, match=r"cannot be written .*make room"):
        reciprocal_graph(in_blocks(*lists_of(6, 30, 5), 10, tmp_path), power=3.0)


def test_no_more_than_some_partitions_are_in_memory(tmp_path):
    n, k, rows = 60_000, 20, 1000
    rng = np.random.default_rng(0)
    offsets = np.array([*range(-12, 0), *range(1, 13)])

    def read():
        for start in range(0, n, rows):
            picked = rng.permuted(np.tile(offsets, (rows, 1)), axis=1)[:, :k]
            ids = (np.arange(start, start + rows)[:, None] + picked) % n
            yield Neighbors(ids, np.full(ids.shape, 0.5, np.float32))

    found = NeighborBlocks(n, k, read, tmp_path)
    reciprocal_graph(in_blocks(*lists_of(7, 30, 5), 10, tmp_path), power=3.0)  # compiles
    tracemalloc.start()
    graph = reciprocal_graph(found, power=3.0, partition_bytes=1 << 18)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert graph.nnz > n * k / 2
    assert peak < n * k * 12 / 2  # half of the neighbours as they are read
