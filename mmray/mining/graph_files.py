"""Files of the graph: arrays that are written block by block, and mapped to memory where local.

n items of the whole graph, of which m are kept.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csgraph, csr_array

from mmray.mining import graph_kernels
from mmray.mining.diffusion.reordering import ReorderedGraph
from mmray.mining.graph import degree_scales, parts_of
from mmray.system.arrays import Floats, Graph, Ids
from mmray.system.folder import Folder
from mmray.system.formats import read_array, write_array, write_header

_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class StoredGraph:
    """The files of a graph.

    Attributes
    ----------
    raw : (m, m) CSR
        A of eq. (1).
    normalized : (m, m) ReorderedGraph
        Â of eq. (2).
    items : (m,) int64
        Image ids of the items.
    """

    raw: Graph
    normalized: ReorderedGraph
    items: Ids


def write_graph(folder: Folder, graph: Graph, items: Ids) -> None:
    """Write the graph of some items, and the order in which its rows are near their neighbours.

    Parameters
    ----------
    folder : of the files, see `StoredGraph`
    graph : (n, n) CSR
        A of eq. (1).
    items : (m,) int64
        Items to keep, ascending; no edge leads to another.
    """
    write_array(folder, "items.npy", items)
    _write_matrix(folder / "raw", graph, items, np.ones(graph.shape[0]))
    raw = _read_matrix(folder / "raw")
    order = csgraph.reverse_cuthill_mckee(raw, symmetric_mode=True).astype(np.int64)
    write_array(folder, "order.npy", order)
    _write_matrix(folder / "normalized", raw, order, degree_scales(raw))


def read_graph(folder: Folder) -> StoredGraph:
    """Read what `write_graph` wrote; raises as `Folder.parsed`."""
    items, order = (np.asarray(read_array(folder, name)) for name in ("items.npy", "order.npy"))
    normalized = ReorderedGraph(_read_matrix(folder / "normalized"), order)
    return StoredGraph(_read_matrix(folder / "raw"), normalized, items)


def _write_matrix(folder: Folder, graph: Graph, rows: Ids, scales: Floats) -> None:
    """Write the rows (m,) of a graph, numbered in this order; scales as in `renumber`."""
    places = np.zeros(graph.shape[0], graph.indices.dtype)
    places[rows] = np.arange(len(rows))
    starts = np.zeros(len(rows) + 1, graph.indptr.dtype)
    np.cumsum(np.diff(graph.indptr)[rows], out=starts[1:])
    write_array(folder, "indptr.npy", starts)
    with folder.writing("indices.npy") as index_file, folder.writing("data.npy") as data_file:
        write_header(index_file, (int(starts[-1]),), graph.indices.dtype)
        write_header(data_file, (int(starts[-1]),), graph.dtype)
        for first in range(0, len(rows), _BLOCK_ROWS):
            block = slice(first, first + _BLOCK_ROWS)
            indptr = starts[first : first + _BLOCK_ROWS + 1]
            size = indptr[-1] - indptr[0]
            indices, data = np.empty(size, places.dtype), np.empty(size, graph.dtype)
            graph_kernels.renumber(
                parts_of(graph), rows[block], places, scales, indptr, indices, data
            )
            index_file.write(indices.data)
            data_file.write(data.data)


def _read_matrix(folder: Folder) -> Graph:
    data, indices, indptr = (
        read_array(folder, f"{name}.npy") for name in ("data", "indices", "indptr")
    )
    return csr_array((data, indices, indptr), shape=(len(indptr) - 1, len(indptr) - 1))
