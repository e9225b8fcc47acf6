"""Matrix products of weights in 8 bits and activations in up to 13 bits, compiled for the processor by numba.

N row of activations, O output, K input. Sums are exact integers, so a row does not depend on the others. One instruction of
x86 processors (`pmaddwd`) multiplies pairs of 16-bit numbers and adds them in 32 bits: the weights are extended to 16 bits as
they are loaded. LLVM cannot be made to choose it for a tile of rows and outputs from plain loops, so tiles are written in its
own language. On other processors, the same tile is written with general vector operations.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Array = npt.NDArray[Any]
MAX_WEIGHT, MAX_ACTIVATION = 127, 4095
K_MULTIPLE, O_MULTIPLE = 32, 4  # weights are padded with zeros to these
MIN_MAGNITUDE = 1e-20  # of a row of activations; a row of zeros stays zero
ROWS_PER_BLOCK = 8  # of activations, that are multiplied with the same weights while these are in the cache
MIN_PARALLEL = 1_000_000  # multiplications; fewer are faster in one thread
# Weights are requested this early. Rows are too short for the processor to notice that they are read one after the other.
PREFETCH_BYTES = 16 * 1024

_FEATURES = llvmlite.binding.get_host_cpu_features()
_LANES = 32 if _FEATURES.get("avx512bw") else 16  # 16-bit numbers in a register
_MULTIPLY_ADD = {16: "llvm.x86.avx2.pmadd.wd", 32: "llvm.x86.avx512.pmaddw.d.512"} if _FEATURES.get("avx2") else {}
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


def max_activation(n_inputs: int) -> int:
    """The largest quantized activation for which no sum of `n_inputs` products leaves 32 bits."""
    return int(min(MAX_ACTIVATION, (2**31 - 1) // (MAX_WEIGHT * n_inputs)))


def _tile(n_outputs: int, n_rows: int) -> Callable[..., None]:
    """A function for the products of some rows of weights and some rows of activations.

    Its arguments: pointers to the first weight and the first activation, K, and a pointer to four or eight sums, those of one
    row of activations after the other.
    """
    bytes_, shorts = ir.VectorType(ir.IntType(8), _LANES), ir.VectorType(ir.IntType(16), _LANES)
    sums = ir.VectorType(ir.IntType(32), _LANES // 2)
    index, integer, byte_pointer = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
    even, odd = (ir.Constant(ir.VectorType(integer, _LANES // 2), list(range(k, _LANES, 2))) for k in (0, 1))

    def multiply_add(builder: Any, weights: Any, activations: Any) -> Any:
        """The sums of neighboring products."""
        if name := _MULTIPLY_ADD.get(_LANES):
            function = ir.FunctionType(sums, [shorts, shorts])
            return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [weights, activations])
        pairs = []
        for places in (even, odd):
            a, b = (
                builder.shuffle_vector(each, ir.Constant(shorts, ir.Undefined), places)
                for each in (weights, activations)
            )
            pairs.append(builder.mul(builder.sext(a, sums), builder.sext(b, sums)))
        return builder.add(*pairs)

    def shuffle(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(integer, len(places)), places))

    def add_lanes(builder: Any, vectors: list[Any]) -> Any:
        """A vector with the sum of the lanes of each of four or eight vectors. The pairs are those of x86's `phaddd`."""
        if _LANES == 32:
            halves = list(range(8)), list(range(8, 16))
            vectors = [builder.add(*(shuffle(builder, each, each, half) for half in halves)) for each in vectors]
        for _ in range(2):
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [
                builder.add(
                    shuffle(builder, a, b, [0, 2, 8, 10, 4, 6, 12, 14]),
                    shuffle(builder, a, b, [1, 3, 9, 11, 5, 7, 13, 15]),
                )
                for a, b in pairs
            ]
        a, b = vectors[0], vectors[-1]
        n = 4 * len(vectors)
        return builder.add(
            shuffle(builder, a, b, [0, 1, 2, 3, 8, 9, 10, 11][:n]),
            shuffle(builder, a, b, [4, 5, 6, 7, 12, 13, 14, 15][:n]),
        )

    def prefetch(builder: Any, pointer: Any) -> None:
        """Requests memory to read, into the first cache. There need not be any at this address."""
        function = ir.FunctionType(ir.VoidType(), [byte_pointer, integer, integer, integer])
        options = [integer(0), integer(3), integer(1)]
        name = "llvm.prefetch.p0"
        builder.call(cgutils.get_or_insert_function(builder.module, function, name), [pointer, *options])

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first_weight, first_activation, length, out = arguments
        weights = [builder.gep(first_weight, [builder.mul(length, index(r))]) for r in range(n_outputs)]
        activations = [builder.gep(first_activation, [builder.mul(length, index(c))]) for c in range(n_rows)]
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(index)
        at.add_incoming(index(0), before)
        totals = [[builder.phi(sums) for _ in range(n_outputs)] for _ in range(n_rows)]

        def load(pointer: Any, kind: Any) -> Any:
            loaded = builder.load(builder.bitcast(builder.gep(pointer, [at]), kind.as_pointer()))
            loaded.align = 1
            return loaded

        for each in weights:
            prefetch(builder, builder.gep(each, [builder.add(at, index(PREFETCH_BYTES))]))
        loaded_weights = [builder.sext(load(each, bytes_), shorts) for each in weights]
        loaded_activations = [load(each, shorts) for each in activations]
        following = builder.add(at, index(_LANES))
        at.add_incoming(following, loop)
        ends = []
        for row, x in zip(totals, loaded_activations, strict=True):
            for total, w in zip(row, loaded_weights, strict=True):
                end = builder.add(total, multiply_add(builder, w, x))
                total.add_incoming(ir.Constant(sums, [0] * (_LANES // 2)), before)
                total.add_incoming(end, loop)
                ends.append(end)
        builder.cbranch(builder.icmp_signed("<", following, length), loop, after)
        builder.position_at_end(after)
        found = add_lanes(builder, ends)
        stored = builder.store(found, builder.bitcast(out, found.type.as_pointer()))
        stored.align = 4
        return context.get_dummy_value()

    @intrinsic
    def tile(typing_context: Any, weight: Any, activation: Any, length: Any, out: Any) -> Any:
        return types.void(weight, activation, types.int64, out), generate

    function: Callable[..., None] = tile
    return function


@intrinsic
def _pointer(typing_context: Any, array: Any, place: Any) -> Any:
    """A pointer to an element of a contiguous array, by its number in the order of storage."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.int64), generate


_tile_4x1, _tile_2x4 = _tile(4, 1), _tile(2, 4)


@_compiled
def quantize_rows(x: Array, limit: int, out: Array, scales: Array) -> None:
    """Rounds rows of x (N, K) to integers up to `limit`, in out (N, K padded) of 16 bits: x is about out * scales."""
    for n in range(x.shape[0]):
        row = x[n]
        largest = np.float32(MIN_MAGNITUDE)
        for i in range(row.shape[0]):
            largest = max(largest, abs(row[i]))
        factor = np.float32(limit) / largest
        for i in range(row.shape[0]):
            out[n, i] = np.int16(np.rint(row[i] * factor))
        for i in range(row.shape[0], out.shape[1]):
            out[n, i] = 0
        scales[n] = largest / np.float32(limit)


@_compiled
def _multiply_outputs(
    weight: Array, scales: Array, bias: Array, x: Array, x_scales: Array, out: Array, first: int, last: int
) -> None:
    """The outputs from `first` to `last` of `multiply`, both multiples of O_MULTIPLE."""
    n_rows, n_inputs = x.shape
    tile = np.empty(8, np.int32)
    sums = _pointer(tile, 0)
    for start in range(0, n_rows, ROWS_PER_BLOCK):
        stop = min(start + ROWS_PER_BLOCK, n_rows)
        whole = start + (stop - start) // 4 * 4
        for o in range(first, last, 4):
            for n in range(start, whole, 4):
                for half in range(o, o + 4, 2):
                    _tile_2x4(_pointer(weight, half * n_inputs), _pointer(x, n * n_inputs), n_inputs, sums)
                    for c in range(4):
                        for r in range(2):
                            scale = scales[half + r] * x_scales[n + c]
                            out[n + c, half + r] = np.float32(tile[2 * c + r]) * scale + bias[half + r]
            for n in range(whole, stop):
                _tile_4x1(_pointer(weight, o * n_inputs), _pointer(x, n * n_inputs), n_inputs, sums)
                for r in range(4):
                    out[n, o + r] = np.float32(tile[r]) * (scales[o + r] * x_scales[n]) + bias[o + r]


@numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _multiply_in_threads(
    weight: Array, scales: Array, bias: Array, x: Array, x_scales: Array, out: Array, n_threads: int
) -> None:
    n_blocks = weight.shape[0] // O_MULTIPLE
    for thread in numba.prange(n_threads):
        first, last = thread * n_blocks // n_threads, (thread + 1) * n_blocks // n_threads
        _multiply_outputs(weight, scales, bias, x, x_scales, out, O_MULTIPLE * first, O_MULTIPLE * last)


def multiply(weight: Array, scales: Array, bias: Array, x: Array, n_threads: int) -> Array:
    """x (N, K) times the weights, plus the bias: float32 (N, O).

    `weight` (O, K) has 8 bits, `scales` (O,) are those of its rows, and `bias` (O,). The three are padded.
    """
    quantized, x_scales = np.empty((len(x), weight.shape[1]), np.int16), np.empty(len(x), np.float32)
    quantize_rows(x, max_activation(weight.shape[1]), quantized, x_scales)
    out = np.empty((len(x), len(scales)), np.float32)
    if n_threads > 1 and len(x) * weight.size >= MIN_PARALLEL:
        _multiply_in_threads(weight, scales, bias, quantized, x_scales, out, n_threads)
    else:
        _multiply_outputs(weight, scales, bias, quantized, x_scales, out, 0, len(weight))
    return out
