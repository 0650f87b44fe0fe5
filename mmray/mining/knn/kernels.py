"""Compiled inner loops of the exact nearest-neighbour search.

q queries, n items, d dims, k neighbours, c candidates that a query has room for.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mmray.mining.compiling import compiled

WIDTH = 64  # similarities compared at once; tiles are as many of these wide

_LANES = 16
_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), _LANES)


def _entry(context, builder, kind, array, row, column):
    """Return the address of array[row, column] in a C-ordered two-dimensional array."""
    data = context.make_array(kind)(context, builder, array)
    width = builder.extract_value(data.shape, 1)
    place = builder.add(builder.mul(row, width), column)
    return builder.gep(data.data, [place])


def _vector(builder, address):
    """Load the 16 numbers that start at an address."""
    kind = ir.VectorType(address.type.pointee, _LANES)
    return builder.load(builder.bitcast(address, ir.PointerType(kind)), align=1)


def _as_float(builder, value):
    """Convert the bits of bfloat16, the upper half of float32, to float32; keep float32."""
    if value.type.element == ir.FloatType():
        return value
    wide = builder.zext(value, ir.VectorType(_INT32, _LANES))
    return builder.bitcast(builder.shl(wide, ir.Constant(wide.type, [16] * _LANES)), _FLOATS)


@intrinsic
def _at_least(_, values, row, column, threshold):
    """Return a uint64 whose bits tell which of values[row, column:column+64] are >= threshold."""
    signature = types.uint64(values, types.intp, types.intp, types.float32)

    def generate(context, builder, signature, arguments):
        array, row, column, threshold = arguments
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        single = builder.insert_element(undefined, threshold, ir.Constant(_INT32, 0))
        everywhere = ir.Constant(ir.VectorType(_INT32, _LANES), [0] * _LANES)
        limit = builder.shuffle_vector(single, undefined, everywhere)
        bits = ir.Constant(_INT64, 0)
        for offset in range(0, WIDTH, _LANES):
            place = builder.add(column, ir.Constant(_INT64, offset))
            address = _entry(context, builder, signature.args[0], array, row, place)
            found = builder.fcmp_ordered(">=", _as_float(builder, _vector(builder, address)), limit)
            part = builder.zext(builder.bitcast(found, _INT16), _INT64)
            bits = builder.or_(bits, builder.shl(part, ir.Constant(_INT64, offset)))
        return bits

    return signature, generate


@intrinsic
def _first_bit(_, bits):
    """Return the number of the lowest bit that is set."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def _value(_, values, row, column):
    """Load values[row, column] as float32."""
    signature = types.float32(values, types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        value = builder.load(_entry(context, builder, signature.args[0], *arguments))
        if value.type == ir.FloatType():
            return value
        shifted = builder.shl(builder.zext(value, _INT32), ir.Constant(_INT32, 16))
        return builder.bitcast(shifted, ir.FloatType())

    return signature, generate


@intrinsic
def _product(_, left, left_row, right, right_row, dims):
    """Compute the inner product of two float32 rows in float64, over their first `dims` entries.

    `dims` is a multiple of 16.

    Products of float32 are exact in float64, and the sums are taken in one order on every machine.
    """
    signature = types.float64(left, types.intp, right, types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        left, left_row, right, right_row, dims = arguments
        total = cgutils.alloca_once_value(builder, ir.Constant(_DOUBLES, [0.0] * _LANES))
        start, step = ir.Constant(_INT64, 0), ir.Constant(_INT64, _LANES)
        with cgutils.for_range_slice(builder, start, dims, step) as (column, _):
            one = _entry(context, builder, signature.args[0], left, left_row, column)
            other = _entry(context, builder, signature.args[2], right, right_row, column)
            product = builder.fmul(
                builder.fpext(_vector(builder, one), _DOUBLES),
                builder.fpext(_vector(builder, other), _DOUBLES),
            )
            builder.store(builder.fadd(builder.load(total), product), total)
        sums = builder.load(total)
        for half in (8, 4, 2, 1):
            undefined = ir.Constant(sums.type, ir.Undefined)
            indices = ir.VectorType(_INT32, half)
            low = ir.Constant(indices, list(range(half)))
            high = ir.Constant(indices, list(range(half, 2 * half)))
            sums = builder.fadd(
                builder.shuffle_vector(sums, undefined, low),
                builder.shuffle_vector(sums, undefined, high),
            )
        return builder.extract_element(sums, ir.Constant(_INT32, 0))

    return signature, generate


@intrinsic
def count_bits(_, bits):
    """Count the bits that are set."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@compiled
def similarity(database, item, queries, query):
    """Compute the inner product of two rows, summed in float64 and rounded to float32."""
    dims = database.shape[1]
    whole = dims - dims % _LANES
    total = _product(database, item, queries, query, whole)
    for column in range(whole, dims):
        total += np.float64(database[item, column]) * np.float64(queries[query, column])
    return np.float32(total)


@compiled
def pair_similarities(database, queries, ids, similarities):
    """Write the similarities (q, m) of each query with its own items ids (q, m)."""
    for query in range(ids.shape[0]):
        for place in range(ids.shape[1]):
            similarities[query, place] = similarity(database, ids[query, place], queries, query)


@compiled
def scan(tile, width, first, k, slack, ids, values, counts, thresholds, full):
    """Collect from a tile the candidates for the k most similar items of each query.

    Parameters
    ----------
    tile : (q, m) float32, or uint16: the bits of bfloat16
        Similarities of items first..first+width-1; m >= width is a multiple of 64.
    width, first, k : int
    slack : (q,) float32
        An item is left out once k others are more similar by more than this.
    ids, values : (q, c) int64, float32
        Candidates so far: ascending ids. Written.
    counts, thresholds : (q,) int64, float32
        Their number, and the least similarity that a further one needs. Written.
    full : (q,) bool
        Set where half of the room does not hold all candidates; some are then lost. Written.
    """
    room = ids.shape[1]
    for query in range(len(counts)):
        if full[query]:
            continue
        threshold, count = thresholds[query], counts[query]
        for column in range(0, width, WIDTH):
            bits = _at_least(tile, query, column, threshold)
            if width - column < WIDTH:
                bits &= (np.uint64(1) << np.uint64(width - column)) - np.uint64(1)
            while bits:
                place = column + _first_bit(bits)
                bits &= bits - np.uint64(1)
                value = _value(tile, query, place)
                if value < threshold:  # raised since the bits were made
                    continue
                if count == room:
                    least = np.partition(values[query], room - k)[room - k]
                    threshold = least - slack[query]
                    count = _keep(ids[query], values[query], threshold)
                    full[query] = 2 * count > room + k
                    if full[query] or value < threshold:
                        continue
                ids[query, count], values[query, count] = first + place, value
                count += 1
            if full[query]:
                break
        thresholds[query], counts[query] = threshold, count


@compiled
def _keep(ids, values, threshold):
    """Move the candidates of at least the threshold to the front; return their number."""
    kept = 0
    for place in range(len(ids)):
        if values[place] >= threshold:
            ids[kept], values[kept] = ids[place], values[place]
            kept += 1
    return kept


@compiled
def settle(database, queries, candidates, counts, ids, similarities):
    """Select the k most similar of each query's candidates, in order.

    Parameters
    ----------
    database, queries : (n, d), (q, d) float32
    candidates : (q, c) int64
        Ascending ids, of which the first counts of each row are used.
    counts : (q,) int64
        At least k.
    ids, similarities : (q, k) int64, float32
        Written.
    """
    k = ids.shape[1]
    for query in range(len(counts)):
        found = candidates[query, : counts[query]]
        exact = np.empty(len(found), np.float32)
        for place in range(len(found)):
            exact[place] = -similarity(database, found[place], queries, query)
        order = np.argsort(exact, kind="mergesort")  # stable: ties stay in the order of ids
        for place in range(k):
            ids[query, place] = found[order[place]]
            similarities[query, place] = -exact[order[place]]
