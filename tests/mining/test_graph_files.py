"""The files of a graph hold the matrices that the public functions make, bit for bit."""

import numpy as np
import pytest

from mmray.mining import graph_files
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.graph import largest_component, normalize_graph
from mmray.mining.graph_files import read_graph, write_graph
from mmray.system.folder import Folder
from tests.made.synthetic import graph_of, random_graph


def assert_equal(left, right):
    assert left.shape == right.shape
    for name in ("indptr", "indices", "data"):
        one, other = getattr(left, name), getattr(right, name)
        np.testing.assert_array_equal(one, other, err_msg=name)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("kept", ["all", "largest"])
def test_a_graph_comes_back_normalised_and_reordered(tmp_path, monkeypatch, rows, kept):
    monkeypatch.setattr(graph_files, "_BLOCK_ROWS", rows)
    graph = random_graph(1, 90, 0.02, np.float32)
    items = largest_component(graph) if kept == "largest" else np.arange(90)
    assert len(items) > 20
    assert kept == "all" or len(items) < 80
    write_graph(Folder(str(tmp_path)), graph, items)
    stored, raw = read_graph(Folder(str(tmp_path))), graph[items][:, items]
    assert_equal(stored.raw, raw)
    wanted = reorder(normalize_graph(raw))
    assert_equal(stored.normalized.graph, wanted.graph)
    np.testing.assert_array_equal(stored.normalized.items, wanted.items)
    np.testing.assert_array_equal(stored.items, items)


def test_its_arrays_are_mapped_from_the_files(tmp_path):
    write_graph(Folder(str(tmp_path)), random_graph(2, 60, 0.1), np.arange(60))
    stored = read_graph(Folder(str(tmp_path)))
    for matrix in (stored.raw, stored.normalized.graph):
        for array in (matrix.data, matrix.indices, matrix.indptr):
            assert isinstance(_owner(array), np.memmap)
            assert type(array) is np.ndarray  # Ray copies others


def _owner(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def test_a_graph_of_isolated_items_is_stored_too(tmp_path):
    write_graph(Folder(str(tmp_path)), graph_of([], 5), np.arange(5))
    stored = read_graph(Folder(str(tmp_path)))
    assert (stored.raw.nnz, stored.raw.shape) == (0, (5, 5))
    assert sorted(stored.normalized.items) == [0, 1, 2, 3, 4]
