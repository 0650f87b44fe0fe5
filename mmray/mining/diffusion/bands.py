"""Bands of rows, which threads share, and the rows that a diffusion has reached.

n items, m bands of `height` rows to work on.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from mmray.mining.compiling import compiled


@intrinsic
def _next(_, turn):
    """Return turn[0] and count it up, as one step that no other thread can divide."""

    def generate(context, builder, signature, arguments):
        counter = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.intp(turn), generate


@compiled
def taken(bands, turn):
    """Take the next of the bands (m,) that no thread has taken, or -1 where none is left.

    `turn` (1,) int64, 0 at first and the same for all threads, counts them.
    """
    place = _next(turn)
    return bands[place] if place < len(bands) else -1


@compiled
def run(reached, row, stop):
    """Find the next rows reached, from `row` on: the first, and the one after the last."""
    while row < stop and not reached[row]:
        row += 1
    first = row
    while row < stop and reached[row]:
        row += 1
    return first, row


@compiled
def clear(target, height, turn, reached, bands):
    """Set the rows reached of a block (n, b) to zero; the rest as for `kernels.product`."""
    band = taken(bands, turn)
    while band >= 0:
        for row in range(band * height, min((band + 1) * height, len(target))):
            if reached[row]:
                target[row] = 0
        band = taken(bands, turn)


@compiled
def transpose(solution, positions, similarity, height, turn, bands):
    """Transpose the first columns of a block, by position, to rows of similarity, by item.

    Parameters
    ----------
    solution : (n, b) float
    positions : (n,) int64
        The row of each item.
    similarity : (m, n) float32
        Written; m at most b.
    height, turn, bands
        See `kernels.product`, but the bands are of items.
    """
    band = taken(bands, turn)
    while band >= 0:
        start, stop = band * height, min((band + 1) * height, len(positions))
        for first in range(start, stop, 16):  # of one row, a cache line at a time
            for column in range(len(similarity)):
                for item in range(first, min(first + 16, stop)):
                    similarity[column, item] = solution[positions[item], column]
        band = taken(bands, turn)


@compiled
def spread(indices, indptr, newest, reached, found):
    """Reach the neighbours of the rows reached last.

    Parameters
    ----------
    indices, indptr
        Of a symmetric CSR.
    newest : (m,) int64
        Rows reached last.
    reached : (n,) bool
        Changed.
    found : int64
        Written: rows reached now.

    Returns
    -------
    int : how many are found, or -1 where there is no room for them all.
    """
    count = 0
    for row in newest:
        for place in range(indptr[row], indptr[row + 1]):
            neighbor = indices[place]
            if not reached[neighbor]:
                if count == len(found):
                    return -1
                reached[neighbor] = True
                found[count] = neighbor
                count += 1
    return count


@compiled
def cut(old_data, old_indices, old_indptr, rows, places, data, indices, indptr):
    """Write the entries between some rows of a graph as CSR; return their number.

    Parameters
    ----------
    old_data, old_indices, old_indptr
        Of (n, n) CSR.
    rows : (m,) int64
        Ascending.
    places : (n,) int
        Number of each of them among the rows; -1 for all others.
    data, indices, indptr
        Written: (e,), (e,) with room for all entries of the rows, and (m + 1,).
    """
    end = 0
    for row in range(len(rows)):
        indptr[row] = end
        for entry in range(old_indptr[rows[row]], old_indptr[rows[row] + 1]):
            place = places[old_indices[entry]]
            if place >= 0:
                data[end], indices[end] = old_data[entry], place
                end += 1
    indptr[len(rows)] = end
    return end
