"""Parts of the compiled kernels in LLVM's own language: pointers, prefetching, and products of float32 vectors.

From plain loops, LLVM makes a sum over the lanes of a register for each product of two short vectors, and keeps a vector that
is added to in memory. Here eight products share one sum over lanes, and the vector stays in registers.

numba keeps compiled code until the file of the compiled function changes. So the files that use this one have its checksum.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # float32 numbers in a vector, which is two registers on processors without AVX-512
INDEX, INT32, FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_VECTOR = ir.VectorType(FLOAT, LANES)
_ZEROS = ir.Constant(_VECTOR, [0.0] * LANES)
_MAY_REORDER = ("reassoc", "contract", "nsz")  # sums


@intrinsic
def pointer(typing_context: Any, array: Any, place: Any) -> Any:
    """A pointer to an element of a contiguous array, by its number in the order of storage."""
    assert array.layout == "C", array

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.int64), generate


@intrinsic
def float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 number with the bits of an integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], FLOAT)

    return types.float32(types.int32), generate


def emit_prefetch(builder: Any, address: Any) -> None:
    """Requests memory that will be read, into the first cache. There need not be any at this address."""
    byte_pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte_pointer, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(address, byte_pointer), INT32(0), INT32(3), INT32(1)])


def shuffle(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
    """The lanes of a and b, which are numbered one after the other, at `places`."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(places)), places))


def spread(builder: Any, value: Any, n_lanes: int) -> Any:
    """A vector with a number in each lane."""
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, n_lanes), ir.Undefined), value, INT32(0))
    return shuffle(builder, one, one, [0] * n_lanes)


def sum_lanes(builder: Any, vectors: list[Any], add: Callable[[Any, Any], Any]) -> Any:
    """A vector with the sum of the lanes of each of four or eight vectors of 8 or 16 lanes. The pairs are those of x86's
    `phaddd`."""
    if vectors[0].type.count == 16:
        halves = list(range(8)), list(range(8, 16))
        vectors = [add(*(shuffle(builder, each, each, half) for half in halves)) for each in vectors]
    for _ in range(2):
        vectors = [
            add(
                shuffle(builder, a, b, [0, 2, 8, 10, 4, 6, 12, 14]),
                shuffle(builder, a, b, [1, 3, 9, 11, 5, 7, 13, 15]),
            )
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    a, b = vectors[0], vectors[-1]
    n = 4 * len(vectors)
    return add(
        shuffle(builder, a, b, [0, 1, 2, 3, 8, 9, 10, 11][:n]), shuffle(builder, a, b, [4, 5, 6, 7, 12, 13, 14, 15][:n])
    )


def _load(builder: Any, address: Any) -> Any:
    loaded = builder.load(builder.bitcast(address, _VECTOR.as_pointer()))
    loaded.align = 4
    return loaded


def _multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """One instruction where the processor has it."""
    return builder.fadd(total, builder.fmul(a, b, _MAY_REORDER), _MAY_REORDER)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.bitcast(address, value.type.as_pointer())).align = 4


@intrinsic
def dot_8(typing_context: Any, x: Any, rows: Any, stride: Any, length: Any, out: Any) -> Any:
    """The products of a vector with eight rows that begin `stride` numbers apart, to eight numbers at `out`.

    `length` is a multiple of `LANES`, and at least that.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, first, stride, length, out = arguments
        rows = [builder.gep(first, [builder.mul(stride, INDEX(k))]) for k in range(8)]
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(INDEX)
        at.add_incoming(INDEX(0), before)
        totals = [builder.phi(_VECTOR) for _ in rows]
        factor = _load(builder, builder.gep(x, [at]))
        ends = [
            _multiply_add(builder, factor, _load(builder, builder.gep(row, [at])), total)
            for row, total in zip(rows, totals, strict=True)
        ]
        following = builder.add(at, INDEX(LANES))
        at.add_incoming(following, loop)
        for total, end in zip(totals, ends, strict=True):
            total.add_incoming(_ZEROS, before)
            total.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", following, length), loop, after)
        builder.position_at_end(after)
        _store(builder, sum_lanes(builder, ends, lambda a, b: builder.fadd(a, b, _MAY_REORDER)), out)
        return context.get_dummy_value()

    return types.void(x, rows, types.int64, types.int64, out), generate


def _weighted_sum(n_vectors: int) -> Callable[..., None]:
    """A function that adds a weighted sum of rows of `n_vectors * LANES` numbers to a vector.

    Its arguments: pointers to the weights and the first row, the distance of rows, their number, and the vector.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, first, stride, n_rows, out = arguments
        places = [INDEX(k * LANES) for k in range(n_vectors)]
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
        begun = [_load(builder, builder.gep(out, [place])) for place in places]
        builder.branch(loop)
        builder.position_at_end(loop)
        row = builder.phi(INDEX)
        row.add_incoming(INDEX(0), before)
        totals = [builder.phi(_VECTOR) for _ in places]
        weight = builder.load(builder.gep(weights, [row]))
        factor = spread(builder, weight, LANES)
        start = builder.gep(first, [builder.mul(row, stride)])
        ends = [
            _multiply_add(builder, factor, _load(builder, builder.gep(start, [place])), total)
            for place, total in zip(places, totals, strict=True)
        ]
        following = builder.add(row, INDEX(1))
        row.add_incoming(following, loop)
        for total, initial, end in zip(totals, begun, ends, strict=True):
            total.add_incoming(initial, before)
            total.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", following, n_rows), loop, after)
        builder.position_at_end(after)
        for end, place in zip(ends, places, strict=True):
            _store(builder, end, builder.gep(out, [place]))
        return context.get_dummy_value()

    @intrinsic
    def add_weighted(typing_context: Any, weights: Any, first: Any, stride: Any, n_rows: Any, out: Any) -> Any:
        return types.void(weights, first, types.int64, types.int64, out), generate

    function: Callable[..., None] = add_weighted
    return function


add_weighted_1, add_weighted_4 = _weighted_sum(1), _weighted_sum(4)
