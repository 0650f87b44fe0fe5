"""Compiled passes over the vectors of a block of conjugate gradients.

n items, e entries of the graph, b = 32 columns; a block is (n, b), its rows taken in t bands of
`height` rows, of which a pass works on m: see `mmray.mining.diffusion.bands`.

A product gathers one row of b numbers for each entry of the graph. In single precision that row is
two cache lines and two registers, which numba's own loops do not make of it: each row operation is
written as vector instructions of LLVM, which the compiler fits to the machine.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mmray.mining.compiling import compiled
from mmray.mining.diffusion.bands import run, taken

COLUMNS = 32
_AHEAD = 128  # entries of the graph between asking for a row and using it
_LINE = 64  # bytes that one prefetch asks for

# -- row operations, as vector instructions -------------------------------------------------------

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_POINTER = ir.PointerType(ir.IntType(8))
_WIDE = ir.VectorType(ir.DoubleType(), COLUMNS)
_FIRST, _ONE = ir.Constant(_INT64, 0), ir.Constant(_INT64, 1)


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

    def variable(self, value: Any) -> Any:
        """Make a variable that begins with a value; the compiler keeps it in registers."""
        place = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, place)
        return place

    def add_product(self, total: Any, left: Any, right: Any) -> None:
        """Add left * right to the variable `total`, in double precision."""
        if left.type != _WIDE:
            left, right = self.builder.fpext(left, _WIDE), self.builder.fpext(right, _WIDE)
        added = self.multiply_add(left, right, self.builder.load(total))
        self.builder.store(added, total)

    def prefetch(self, array: int, row: Any) -> None:
        kind = ir.FunctionType(ir.VoidType(), [_POINTER, _INT32, _INT32, _INT32])
        ask = self.builder.module.declare_intrinsic("llvm.prefetch", [_POINTER], kind)
        to_read, keep_near, is_data = (ir.Constant(_INT32, value) for value in (0, 3, 1))
        address = self.builder.bitcast(self.row(array, row), _POINTER)
        for line in range(0, COLUMNS * self.types[array].dtype.bitwidth // 8, _LINE):
            place = self.builder.gep(address, [ir.Constant(_INT64, line)])
            self.builder.call(ask, [place, to_read, keep_near, is_data])


@intrinsic
def _product_rows(
    _, data, indices, indptr, vectors, image, factor, start, stop, stored, sums, band
):  # fmt: skip
    """Set image = vectors + factor Σ data vectors in some rows; add their product to the sums."""
    signature = types.void(
        data, indices, indptr, vectors, image, factor, types.intp, types.intp, types.intp, sums,
        types.intp,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments)
        factor, start, stop, stored, _, band = arguments[5:]
        sums = rows.variable(rows.load(9, band))
        with cgutils.for_range_slice(builder, start, stop, _ONE) as (row, _):
            total = rows.variable(ir.Constant(ir.VectorType(factor.type, COLUMNS), [0.0] * COLUMNS))
            bounds = rows.entry(2, row), rows.entry(2, builder.add(row, _ONE))
            end = builder.add(bounds[1], ir.Constant(_INT64, _AHEAD))
            inside = builder.icmp_signed("<=", end, stored)
            ahead = builder.select(inside, ir.Constant(_INT64, _AHEAD), _FIRST)
            with cgutils.for_range_slice(builder, *bounds, _ONE) as (place, _):
                rows.prefetch(3, rows.entry(1, builder.add(place, ahead)))
                gathered = rows.load(3, rows.entry(1, place))
                weight = rows.splat(rows.entry(0, place))
                builder.store(rows.multiply_add(weight, gathered, builder.load(total)), total)
            own = rows.load(3, row)
            result = rows.multiply_add(rows.splat(factor), builder.load(total), own)
            rows.store(result, 4, row)
            rows.add_product(sums, own, result)
        rows.store(builder.load(sums), 9, band)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_rows(_, target, source, length, start, stop, sums, band):
    """Add length * source to some rows of the target; add their squares to the band's sums."""
    signature = types.void(target, source, length, types.intp, types.intp, sums, types.intp)

    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments)
        _, _, _, start, stop, _, band = arguments
        sums, length = rows.variable(rows.load(5, band)), rows.load(2, _FIRST)
        with cgutils.for_range_slice(builder, start, stop, _ONE) as (row, _):
            value = rows.multiply_add(length, rows.load(1, row), rows.load(0, row))
            rows.store(value, 0, row)
            rows.add_product(sums, value, value)
        rows.store(builder.load(sums), 5, band)
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
def product(
    data, indices, indptr, vectors, image, factor, sums, height, turn, reached, bands
):  # fmt: skip
    """Set image = vectors + factor Â vectors, and add vectors · image to the bands' sums.

    Parameters
    ----------
    data, indices, indptr : (e,) float, (e,) and (n + 1,) int
        Â as CSR.
    vectors, image : (n, b) float of the type of data
        Read; written.
    factor : number of the same type
    sums : (t, b) float64
        Sums of each band over its rows, 0 before.
    height : rows of a band
    turn : (1,) int64
        See `taken`.
    reached : (n,) bool
        The rows to work on.
    bands : (m,) int64
        Numbers of the bands that have such rows.
    """
    stored = len(indices)
    band = taken(bands, turn)
    while band >= 0:
        row, stop = band * height, min((band + 1) * height, len(vectors))
        while row < stop:
            first, row = run(reached, row, stop)
            _product_rows(
                data, indices, indptr, vectors, image, factor, first, row, stored, sums, band
            )  # fmt: skip
        band = taken(bands, turn)


@compiled
def add(target, source, length, sums, height, turn, reached, bands):
    """Add length * source to target, and target² to the bands' sums.

    Parameters
    ----------
    target, source : (n, b) float
        Changed; read.
    length : (b,) of the same type
    sums, height, turn, reached, bands
        See `product`.
    """
    band = taken(bands, turn)
    while band >= 0:
        row, stop = band * height, min((band + 1) * height, len(target))
        while row < stop:
            first, row = run(reached, row, stop)
            _add_rows(target, source, length, first, row, sums, band)
        band = taken(bands, turn)


@compiled
def advance(
    solution, direction, remainder, best, step, conjugation, outgoing, height, turn, reached, bands
):
    """Update solution += step * direction, then direction = remainder + conjugation * direction.

    Parameters
    ----------
    solution, direction, remainder : (n, b) float
        The first two are changed.
    best : (n, b) float
        Gets the solution, before the update, in the columns outgoing.
    step, conjugation : (b,) of the same type
    outgoing : (b,) bool
    height, turn, reached, bands
        See `product`.
    """
    saving = outgoing.any()
    band = taken(bands, turn)
    while band >= 0:
        for row in range(band * height, min((band + 1) * height, len(solution))):
            if reached[row]:
                if saving:
                    _take_row(best, solution, outgoing, row)
                _advance_row(solution, direction, remainder, step, conjugation, row)
        band = taken(bands, turn)


@compiled
def take(target, source, flags, height, turn, reached, bands):
    """Copy source to target in the columns flagged.

    Parameters
    ----------
    target, source : (n, b) float
        Changed; read.
    flags : (b,) bool
    height, turn, reached, bands
        See `product`.
    """
    band = taken(bands, turn)
    while band >= 0:
        for row in range(band * height, min((band + 1) * height, len(target))):
            if reached[row]:
                _take_row(target, source, flags, row)
        band = taken(bands, turn)
