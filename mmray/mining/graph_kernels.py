"""Compiled loops over neighbour lists and over the entries of a graph.

n items, k neighbours, e entries of the graph, m rows of it.
"""

from mmray.mining.compiling import compiled

# -- joining of edges -----------------------------------------------------------------------------


@compiled
def scatter(ids, weights, first, shift, ends, edges):
    """Sort the edges of a block of rows by the partition of their targets.

    Parameters
    ----------
    ids, weights : (m, k) int and float32
        The targets; those of weight 0 are none.
    first : number of the first row
    shift : base-2 logarithm of the rows of a partition
    ends : (p,) int64
        Zeros; gets the end of each partition's edges in `edges`.
    edges : (at least m * k,) records of row, column and weight
        Gets the reversed edges: row is the target.
    """
    for i in range(len(ids)):
        for place in range(ids.shape[1]):
            if weights[i, place] > 0:
                ends[ids[i, place] >> shift] += 1
    total = 0
    for partition in range(len(ends)):
        total += ends[partition]
        ends[partition] = total - ends[partition]
    for i in range(len(ids)):
        for place in range(ids.shape[1]):
            if weights[i, place] > 0:
                partition = ids[i, place] >> shift
                edge = edges[ends[partition]]
                edge.row, edge.column, edge.weight = ids[i, place], first + i, weights[i, place]
                ends[partition] += 1


@compiled
def match(edges, first, ids, weights, mutual):
    """Enter the smaller weight of both directions in `mutual` where a reversed edge is found.

    Parameters
    ----------
    edges : (e,) records of row, column and weight
    first : number of the first row of the others
    ids, weights, mutual : (m, k) int, float32 and float32
        The targets of m rows; `mutual` starts as zeros.
    """
    for e in range(len(edges)):
        row, column = edges[e].row - first, edges[e].column
        for place in range(ids.shape[1]):
            if ids[row, place] == column:
                mutual[row, place] = min(weights[row, place], edges[e].weight)


@compiled
def collect(ids, mutual, indptr, indices, data):
    """Write the entries above 0 of `mutual` (m, k) as CSR, with ascending columns."""
    end = 0
    for i in range(len(ids)):
        indptr[i] = end
        for place in range(ids.shape[1]):
            if mutual[i, place] > 0:
                _insert(indices, data, indptr[i], end, ids[i, place], mutual[i, place])
                end += 1
    indptr[len(ids)] = end


@compiled
def _insert(indices, data, start, end, column, value):
    """Insert an entry into a row that has ascending columns in the places start to end - 1."""
    place = end
    while place > start and indices[place - 1] > column:
        indices[place], data[place] = indices[place - 1], data[place - 1]
        place -= 1
    indices[place], data[place] = column, value


# -- passes over a graph --------------------------------------------------------------------------


@compiled
def renumber(graph, rows, places, scales, indptr, indices, data):
    """Write some rows of a graph as CSR, under new numbers of its items.

    Parameters
    ----------
    graph : indptr, indices and data of (n, n) CSR
    rows : (m,) int64
        The rows to write, in this order.
    places : (n,) int64
        New numbers of the items; columns are ascending by these.
    scales : (n,) float64
        An entry is multiplied by the product of those of its row and its column, which rounds alike
        in both directions.
    indptr, indices, data : (m + 1,), (e,) and (e,)
        Read, from any number on; written.
    """
    old_indptr, old_indices, old_data = graph
    for r in range(len(rows)):
        row, start = rows[r], indptr[r] - indptr[0]
        for e in range(old_indptr[row], old_indptr[row + 1]):
            column = old_indices[e]
            value = old_data[e] * (scales[row] * scales[column])
            _insert(indices, data, start, start + e - old_indptr[row], places[column], value)


@compiled
def scale(graph, scales, data):
    """Write the entries multiplied by the scales (n,) of row and column, as in `renumber`."""
    indptr, indices, old_data = graph
    for row in range(len(indptr) - 1):
        for e in range(indptr[row], indptr[row + 1]):
            data[e] = old_data[e] * (scales[row] * scales[indices[e]])


@compiled
def row_sums(graph, sums):
    """Write the sums of the rows (n,) float64, added in their order."""
    indptr, _, data = graph
    for row in range(len(indptr) - 1):
        total = 0.0
        for e in range(indptr[row], indptr[row + 1]):
            total += data[e]
        sums[row] = total


@compiled
def label_components(graph, labels):
    """Label the components of a symmetric graph by union-find (Rem's, of Dijkstra 1976).

    A parent is smaller than its child, and thus a root the smallest item of its component: these
    are numbered in this order.

    Parameters
    ----------
    graph : indptr, indices and data of (n, n) CSR
    labels : (n,) int64
        0..n-1; gets the labels.

    Returns
    -------
    Number of components.
    """
    indptr, indices, _ = graph
    for item in range(len(labels)):
        for e in range(indptr[item], indptr[item + 1]):
            left, right = item, indices[e]
            while labels[left] != labels[right]:
                if labels[left] < labels[right]:
                    left, right = right, left
                parent = labels[left]
                labels[left] = labels[right]
                if parent == left:  # a root
                    break
                left = parent
    count = 0
    for item in range(len(labels)):
        if labels[item] == item:
            labels[item] = count
            count += 1
        else:
            labels[item] = labels[labels[item]]
    return count


@compiled
def mark_maxima(graph, values, marks):
    """Mark the items of a graph that have neighbours and a value above that of each."""
    indptr, indices, _ = graph
    for item in range(len(values)):
        marks[item] = indptr[item] < indptr[item + 1]
        for e in range(indptr[item], indptr[item + 1]):
            marks[item] &= values[item] > values[indices[e]]
