"""Compiled passes over the vectors of a block of conjugate gradients.

n items, e entries of the graph, b = 16 columns; a block is (n, b), its rows taken in bands of
`height` rows. A pass works on m of the bands, of which there are t in total.

A product gathers one row of b numbers for each entry of the graph. In single precision that row is
one cache line and one register, which numba's own loops do not make of it: each row operation is
written as vector instructions of LLVM, which the compiler fits to the machine.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mmray.mining.compiling import compiled

COLUMNS = 16
_AHEAD = 64  # entries of the graph between asking for a row and using it

# -- row operations, as vector instructions -------------------------------------------------------

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_POINTER = ir.PointerType(ir.IntType(8))


class _Rows:
    """A writer of LLVM instructions on rows of the (·, b) arrays in an intrinsic's arguments."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.context, self.builder = context, builder
        self.types, self.arguments = signature.args, arguments

    def data(self, array: int) -> Any:
        """Return the address of the first entry of argument number `array`."""
        kind = self.context.make_array(self.types[array])
        return kind(self.context, self.builder, self.arguments[array]).data

    def row(self, array: int, row: Any) -> Any:
        first = self.data(array)
        entry = self.builder.gep(first, [self.builder.mul(row, ir.Constant(_INT64, COLUMNS))])
        vector = ir.VectorType(first.type.pointee, COLUMNS)
        return self.builder.bitcast(entry, ir.PointerType(vector))

    def load(self, array: int, row: Any) -> Any:
        return self.builder.load(self.row(array, row), align=1)

    def store(self, value: Any, array: int, row: Any) -> None:
        self.builder.store(value, self.row(array, row), align=1)

    def entry(self, array: int, place: Any) -> Any:
        """Load an entry of a one-dimensional array; an integer is widened to 64 bits."""
        value = self.builder.load(self.builder.gep(self.data(array), [place]))
        if isinstance(value.type, ir.IntType) and value.type.width < 64:
            return self.builder.zext(value, _INT64)
        return value

    def splat(self, number: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(number.type, COLUMNS), ir.Undefined)
        single = self.builder.insert_element(undefined, number, ir.Constant(_INT32, 0))
        everywhere = ir.Constant(ir.VectorType(_INT32, COLUMNS), [0] * COLUMNS)
        return self.builder.shuffle_vector(single, undefined, everywhere)

    def multiply_add(self, left: Any, right: Any, addend: Any) -> Any:
        flags = ("contract",)  # one instruction where the machine has it
        product = self.builder.fmul(left, right, flags=flags)
        return self.builder.fadd(product, addend, flags=flags)

    def add_product(self, sums: int, row: Any, left: Any, right: Any) -> None:
        """Add left * right to a row of the float64 array `sums`, in double precision."""
        wide = ir.VectorType(ir.DoubleType(), COLUMNS)
        if left.type != wide:
            left, right = self.builder.fpext(left, wide), self.builder.fpext(right, wide)
        self.store(self.multiply_add(left, right, self.load(sums, row)), sums, row)

    def prefetch(self, array: int, row: Any) -> None:
        kind = ir.FunctionType(ir.VoidType(), [_POINTER, _INT32, _INT32, _INT32])
        ask = self.builder.module.declare_intrinsic("llvm.prefetch", [_POINTER], kind)
        to_read, keep_near, is_data = (ir.Constant(_INT32, value) for value in (0, 3, 1))
        address = self.builder.bitcast(self.row(array, row), _POINTER)
        self.builder.call(ask, [address, to_read, keep_near, is_data])


_FIRST = ir.Constant(_INT64, 0)


@intrinsic
def _product_row(_, data, indices, start, stop, last, vectors, image, factor, row, sums, band):
    """Set image row = vectors row + factor Σ data vectors; add their product to the band's sums."""
    signature = types.void(
        data, indices, types.intp, types.intp, types.intp, vectors, image, factor, types.intp, sums,
        types.intp,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments)
        _, _, start, stop, last, _, _, factor, row, _, band = arguments
        zero = ir.Constant(ir.VectorType(factor.type, COLUMNS), [0.0] * COLUMNS)
        total = cgutils.alloca_once_value(builder, zero)
        one = ir.Constant(_INT64, 1)
        with cgutils.for_range_slice(builder, start, stop, one) as (place, _):
            ahead = builder.add(place, ir.Constant(_INT64, _AHEAD))
            ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
            rows.prefetch(5, rows.entry(1, ahead))
            gathered = rows.load(5, rows.entry(1, place))
            weight = rows.splat(rows.entry(0, place))
            builder.store(rows.multiply_add(weight, gathered, builder.load(total)), total)
        own = rows.load(5, row)
        result = rows.multiply_add(rows.splat(factor), builder.load(total), own)
        rows.store(result, 6, row)
        rows.add_product(9, band, own, result)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_row(_, target, source, length, row, sums, band):
    """Add length * source row to the target row, and target² to the band's sums."""
    signature = types.void(target, source, length, types.intp, sums, types.intp)

    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments)
        row, band = arguments[3], arguments[5]
        value = rows.multiply_add(rows.load(2, _FIRST), rows.load(1, row), rows.load(0, row))
        rows.store(value, 0, row)
        rows.add_product(4, band, value, value)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _advance_row(_, solution, direction, remainder, step, conjugation, row):
    """Update a row of solution and direction, as `advance` does with whole bands."""
    signature = types.void(solution, direction, remainder, step, conjugation, types.intp)

    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments)
        row = arguments[5]
        old = rows.load(1, row)
        step, conjugation = rows.load(3, _FIRST), rows.load(4, _FIRST)
        rows.store(rows.multiply_add(step, old, rows.load(0, row)), 0, row)
        rows.store(rows.multiply_add(conjugation, old, rows.load(2, row)), 1, row)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _take_row(_, target, source, flags, row):
    """Copy the source row to the target row in the columns flagged."""
    signature = types.void(target, source, flags, types.intp)

    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments)
        row = arguments[3]
        flags = rows.load(2, _FIRST)
        chosen = builder.icmp_unsigned("!=", flags, ir.Constant(flags.type, [0] * COLUMNS))
        rows.store(builder.select(chosen, rows.load(1, row), rows.load(0, row)), 0, row)
        return context.get_dummy_value()

    return signature, generate


# -- passes over the bands ------------------------------------------------------------------------


@compiled
def product(data, indices, indptr, vectors, image, factor, bands, height, sums):
    """Set image = vectors + factor Â vectors in some bands, and add vectors · image to their sums.

    Parameters
    ----------
    data, indices, indptr : (e,) float, (e,) and (n + 1,) int
        Â as CSR.
    vectors, image : (n, b) float of the type of data
        Read; written.
    factor : number of the same type
    bands : (m,) int64
        Numbers of the bands to work on.
    height : rows of a band
    sums : (t, b) float64
        Sums of each band over its rows.
    """
    last = len(indices) - 1
    for band in bands:
        for row in range(band * height, min((band + 1) * height, len(vectors))):
            start, stop = np.intp(indptr[row]), np.intp(indptr[row + 1])
            _product_row(
                data, indices, start, stop, last, vectors, image, factor, row, sums, band
            )  # fmt: skip


@compiled
def add(target, source, length, bands, height, sums):
    """Add length * source to target in some bands, and target² to their sums.

    Parameters
    ----------
    target, source : (n, b) float
        Changed; read.
    length : (b,) of the same type
    bands, height, sums
        See `product`.
    """
    for band in bands:
        for row in range(band * height, min((band + 1) * height, len(target))):
            _add_row(target, source, length, row, sums, band)


@compiled
def advance(solution, direction, remainder, step, conjugation, bands, height, sums):
    """Update solution += step * direction, then direction = remainder + conjugation * direction.

    Parameters
    ----------
    solution, direction, remainder : (n, b) float
        The first two are changed.
    step, conjugation : (b,) of the same type
    bands, height, sums
        See `product`; sums are not used.
    """
    for band in bands:
        for row in range(band * height, min((band + 1) * height, len(solution))):
            _advance_row(solution, direction, remainder, step, conjugation, row)


@compiled
def take(target, source, flags, bands, height, sums):
    """Copy source to target in the columns flagged, in some bands.

    Parameters
    ----------
    target, source : (n, b) float
        Changed; read.
    flags : (b,) bool
    bands, height, sums
        See `product`; sums are not used.
    """
    for band in bands:
        for row in range(band * height, min((band + 1) * height, len(target))):
            _take_row(target, source, flags, row)


@compiled
def clear(solution, remainder, direction, image, bands, height, sums):
    """Set some bands of four blocks to zero.

    Parameters
    ----------
    solution, remainder, direction, image : (n, b) float
        Changed.
    bands, height, sums
        See `product`; sums are not used.
    """
    for band in bands:
        rows = slice(band * height, (band + 1) * height)
        solution[rows] = 0
        remainder[rows] = 0
        direction[rows] = 0
        image[rows] = 0


@compiled
def mark_touched(indices, indptr, height, touches):
    """Mark in touches (t, t) bool the pairs of bands between which the graph has an entry."""
    for row in range(len(indptr) - 1):
        for place in range(indptr[row], indptr[row + 1]):
            touches[row // height, indices[place] // height] = True


@compiled
def transpose(solution, positions, similarity):
    """Transpose the first columns of a block, by position, to the rows of similarity, by item."""
    for item in range(len(positions)):
        row = solution[positions[item]]
        for column in range(len(similarity)):
            similarity[column, item] = row[column]
