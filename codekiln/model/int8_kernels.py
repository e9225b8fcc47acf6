"""Matrix products of weights in 8 bits and activations in up to 13 bits, compiled for the processor by numba.

N row of activations, O output, K input. Sums are exact integers, so a row does not depend on the others. Instructions of x86
processors multiply pairs of 16-bit numbers and add them in 32 bits (`pmaddwd`, and with VNNI `vpdpwssd`): the weights are
extended to 16 bits as they are loaded. LLVM cannot be made to choose them for a tile of rows and outputs from plain loops, so
tiles are written in its own language. On other processors, the same tile is written with general vector operations.
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

from codekiln.model.llvm_kernels import FLOAT, INDEX, INT32, emit_prefetch, pointer, shuffle, spread, sum_lanes

Array = npt.NDArray[Any]
# The checksum of llvm_kernels.py: numba compiles again only if this file changes (tests/test_engine.py)
LLVM_KERNELS = "84af360cf2471e9f"
MAX_WEIGHT, MAX_ACTIVATION = 127, 4095
K_MULTIPLE, O_MULTIPLE = 32, 4  # weights are padded with zeros to these
MIN_MAGNITUDE = 1e-20  # of a row of activations; a row of zeros stays zero
ROWS_PER_BLOCK = 8  # of activations, that are multiplied with the same weights while these are in the cache
MIN_PARALLEL = 1_000_000  # multiplications; fewer are faster in one thread
# Weights are requested this early. Rows are too short for the processor to notice that they are read one after the other.
PREFETCH_BYTES = 16 * 1024

_FEATURES = llvmlite.binding.get_host_cpu_features()
_LANES = 32 if _FEATURES.get("avx512bw") else 16  # 16-bit numbers in a register
_TILE_ROWS = 4 if _LANES == 32 else 2  # of activations: there are registers for the sums of so many, with 4 outputs
_ADD_PRODUCTS = {16: "", 32: "llvm.x86.avx512.vpdpwssd.512"}[_LANES] if _FEATURES.get("avx512vnni") else ""
_MULTIPLY_ADD = {16: "llvm.x86.avx2.pmadd.wd", 32: "llvm.x86.avx512.pmaddw.d.512"} if _FEATURES.get("avx2") else {}
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


def max_activation(n_inputs: int) -> int:
    """The largest quantized activation for which no sum of `n_inputs` products leaves 32 bits."""
    return int(min(MAX_ACTIVATION, (2**31 - 1) // (MAX_WEIGHT * n_inputs)))


def _tile(n_rows: int) -> Callable[..., None]:
    """A function for the products of four rows of weights and `n_rows` rows of activations.

    Its arguments: pointers to the first weight and the first activation, K, pointers to the scales of the weights, those of the
    activations, and the bias; a pointer to the first output, and the distance of its rows.
    """
    bytes_, shorts = ir.VectorType(ir.IntType(8), _LANES), ir.VectorType(ir.IntType(16), _LANES)
    sums = ir.VectorType(INT32, _LANES // 2)
    outputs = ir.VectorType(FLOAT, O_MULTIPLE)
    even, odd = (ir.Constant(sums, list(range(k, _LANES, 2))) for k in (0, 1))

    def add_products(builder: Any, total: Any, weights: Any, activations: Any) -> Any:
        """The total, plus the sums of neighboring products."""
        if _ADD_PRODUCTS:
            # LLVM 22 takes vectors of 16-bit numbers, and those before vectors of 32 bits with the same content.
            kind = shorts if llvmlite.binding.llvm_version_info[0] >= 22 else sums
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(sums, [sums, kind, kind]), _ADD_PRODUCTS
            )
            return builder.call(function, [total, *(builder.bitcast(each, kind) for each in (weights, activations))])
        if name := _MULTIPLY_ADD.get(_LANES):
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(sums, [shorts, shorts]), name)
            return builder.add(total, builder.call(function, [weights, activations]))
        for places in (even, odd):
            a, b = (
                builder.sext(builder.shuffle_vector(each, ir.Constant(shorts, ir.Undefined), places), sums)
                for each in (weights, activations)
            )
            total = builder.add(total, builder.mul(a, b))
        return total

    def load(builder: Any, address: Any, kind: Any) -> Any:
        loaded = builder.load(builder.bitcast(address, kind.as_pointer()))
        loaded.align = 1
        return loaded

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first_weight, first_activation, length, scales, row_scales, bias, out, stride = arguments
        weights = [builder.gep(first_weight, [builder.mul(length, INDEX(r))]) for r in range(O_MULTIPLE)]
        activations = [builder.gep(first_activation, [builder.mul(length, INDEX(c))]) for c in range(n_rows)]
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.phi(INDEX)
        at.add_incoming(INDEX(0), before)
        totals = [[builder.phi(sums) for _ in weights] for _ in activations]
        for each in weights:
            emit_prefetch(builder, builder.gep(each, [builder.add(at, INDEX(PREFETCH_BYTES))]))
        loaded = [builder.sext(load(builder, builder.gep(each, [at]), bytes_), shorts) for each in weights]
        ends = []
        for row, activation in zip(totals, activations, strict=True):
            x = load(builder, builder.gep(activation, [at]), shorts)
            ends += [add_products(builder, total, w, x) for total, w in zip(row, loaded, strict=True)]
        following = builder.add(at, INDEX(_LANES))
        at.add_incoming(following, loop)
        for total, end in zip((each for row in totals for each in row), ends, strict=True):
            total.add_incoming(ir.Constant(sums, [0] * (_LANES // 2)), before)
            total.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", following, length), loop, after)
        builder.position_at_end(after)
        known_scales, known_bias = load(builder, scales, outputs), load(builder, bias, outputs)
        for c in range(n_rows):
            if c % 2 == 0:  # the sums of two rows are made together
                found = sum_lanes(builder, ends[4 * c : 4 * c + 8], builder.add)
            places = list(range(4 * (c % 2), 4 * (c % 2) + 4))
            exact = builder.sitofp(shuffle(builder, found, found, places), outputs)
            row_scale = spread(builder, builder.load(builder.gep(row_scales, [INDEX(c)])), O_MULTIPLE)
            y = builder.fadd(builder.fmul(exact, builder.fmul(known_scales, row_scale)), known_bias)
            place = builder.gep(out, [builder.mul(stride, INDEX(c))])
            builder.store(y, builder.bitcast(place, outputs.as_pointer())).align = 4
        return context.get_dummy_value()

    @intrinsic
    def tile(
        typing_context: Any,
        weight: Any,
        activation: Any,
        length: Any,
        scales: Any,
        row_scales: Any,
        bias: Any,
        out: Any,
        stride: Any,
    ) -> Any:
        kinds = (weight, activation, types.int64, scales, row_scales, bias, out, types.int64)
        return types.void(*kinds), generate

    function: Callable[..., None] = tile
    return function


_tile_1, _tile_2, _tile_4 = _tile(1), _tile(2), _tile(4)


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
    n_inputs, stride = x.shape[1], out.shape[1]
    for start in range(0, x.shape[0], ROWS_PER_BLOCK):
        stop = min(start + ROWS_PER_BLOCK, x.shape[0])
        for o in range(first, last, O_MULTIPLE):
            w, w_scales, b = pointer(weight, o * n_inputs), pointer(scales, o), pointer(bias, o)
            n = start
            while n < stop:
                row, row_scales, y = pointer(x, n * n_inputs), pointer(x_scales, n), pointer(out, n * stride + o)
                if _TILE_ROWS == 4 and stop - n >= 4:
                    _tile_4(w, row, n_inputs, w_scales, row_scales, b, y, stride)
                    n += 4
                elif stop - n >= 2:
                    _tile_2(w, row, n_inputs, w_scales, row_scales, b, y, stride)
                    n += 2
                else:
                    _tile_1(w, row, n_inputs, w_scales, row_scales, b, y, stride)
                    n += 1


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
