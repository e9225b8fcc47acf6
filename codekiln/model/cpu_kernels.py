"""What a decoder does on a CPU between its matrix products, compiled: few calls per layer when a batch has few tokens.

With PyTorch, a small model spends most of a step in the calls of about 40 operators per layer. Here they are five.

N token of the batch, H head, K key head, D width, d channel of a head. Arrays are float32 and contiguous, and outputs are
written into arrays of the caller.
"""

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from codekiln.model.llvm_kernels import LANES, add_weighted_1, add_weighted_4, dot_8, float_of_bits, pointer

Array = npt.NDArray[Any]
# The checksum of llvm_kernels.py: numba compiles again only if this file changes (tests/test_engine.py)
LLVM_KERNELS = "84af360cf2471e9f"
_TOKENS = 8  # whose keys, and then whose values, are read together: as many as `dot_8` takes
_SHARING = 16  # tokens that read the same keys together, at most: the weights of all of them are in memory
_EXPONENTIAL = tuple(
    np.float32(x) for x in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_MIN_EXPONENT = np.float32(-87)
SILU_GATED, GELU, GELU_TANH = 0, 1, 2
MIN_PARALLEL = 200_000  # products of attention: keys x heads x width, of all tokens; fewer are faster in one thread
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
}
_compiled = numba.njit(**_OPTIONS)


@_compiled
def _exponential(x: Any) -> Any:
    """exp of a float32 number of at most 0; under -87 it is exp(-87), 2e-38. The relative error is under 4e-7 (Cephes, `expf`).

    Unlike `math.exp`, several are computed by one instruction.
    """
    x = max(x, _MIN_EXPONENT)
    power = np.rint(x * np.float32(1.4426950408889634))
    rest = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    found = np.float32(1.9875691500e-4)
    for factor in _EXPONENTIAL:
        found = found * rest + factor
    found = found * rest * rest + rest + np.float32(1)
    return found * float_of_bits((np.int32(power) + np.int32(127)) << np.int32(23))


@_compiled
def _sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) of a float32 number."""
    exponential = _exponential(-abs(x))
    return (np.float32(1) if x >= 0 else exponential) / (np.float32(1) + exponential)


@_compiled
def normalize(x: Array, weight: Array, bias: Array, eps: float, is_rms: bool, out: Array) -> None:
    """RMSNorm or LayerNorm of x (N, D). `bias` is empty for RMSNorm."""
    width = x.shape[1]
    for n in range(x.shape[0]):
        row, y = x[n], out[n]
        mean = np.float32(0)
        if not is_rms:
            for i in range(width):
                mean += row[i]
            mean /= np.float32(width)
        squares = np.float32(0)
        for i in range(width):
            squares += (row[i] - mean) * (row[i] - mean)
        factor = np.float32(1 / math.sqrt(squares / width + eps))
        if is_rms:
            for i in range(width):
                y[i] = row[i] * factor * weight[i]
        else:
            for i in range(width):
                y[i] = (row[i] - mean) * factor * weight[i] + bias[i]


@_compiled
def split_heads(
    product: Array,
    head_scales: Array,
    eps: float,
    cosine: Array,
    sine: Array,
    is_half: bool,
    q: Array,
    k: Array,
    v: Array,
) -> None:
    """The product (N, (H + 2 K) d) of the joint projection to q (N, H, d), k and v (N, K, d), normalized and rotated.

    `head_scales` (H + K, d) are those of QK-norm, or empty. `cosine` and `sine` (N, w) are for the first w channels, with
    the sign of the sine.
    """
    n_heads, n_keys, d = q.shape[1], k.shape[1], q.shape[2]
    width = cosine.shape[1]
    half = width // 2
    head = np.empty(d, np.float32)
    for n in range(q.shape[0]):
        row = product[n]
        for h in range(n_heads + 2 * n_keys):
            for i in range(d):
                head[i] = row[h * d + i]
            if h >= n_heads + n_keys:
                v[n, h - n_heads - n_keys] = head
                continue
            if head_scales.shape[0]:
                squares = np.float32(0)
                for i in range(d):
                    squares += head[i] * head[i]
                factor = np.float32(1 / math.sqrt(squares / d + eps))
                for i in range(d):
                    head[i] *= factor * head_scales[h, i]
            out = q[n, h] if h < n_heads else k[n, h - n_heads]
            if is_half:
                for i in range(half):
                    out[i] = head[i] * cosine[n, i] + head[i + half] * sine[n, i]
                    out[i + half] = head[i + half] * cosine[n, i + half] + head[i] * sine[n, i + half]
            else:
                for i in range(half):
                    out[2 * i] = head[2 * i] * cosine[n, 2 * i] + head[2 * i + 1] * sine[n, 2 * i]
                    out[2 * i + 1] = head[2 * i + 1] * cosine[n, 2 * i + 1] + head[2 * i] * sine[n, 2 * i + 1]
            for i in range(width, d):
                out[i] = head[i]


@_compiled
def activate(product: Array, kind: int, out: Array) -> None:
    """The activation of a feed-forward layer: product (N, width or 2 width) to out (N, width)."""
    width = out.shape[1]
    for n in range(out.shape[0]):
        row, y = product[n], out[n]
        for i in range(width):
            x = row[i]
            if kind == SILU_GATED:
                y[i] = x * _sigmoid(x) * row[width + i]
            elif kind == GELU:
                y[i] = np.float32(0.5) * x * (np.float32(1) + math.erf(x * np.float32(0.7071067811865476)))
            else:
                # (1 + tanh(t)) / 2 is the sigmoid of 2 t.
                y[i] = x * _sigmoid(np.float32(1.5957691216057308) * (x + np.float32(0.044715) * x * x * x))


@_compiled
def _sharing_end(starts: Array, first: int) -> int:
    """The end of the tokens from `first` on whose keys begin at the same place: at most `_SHARING`."""
    end = first + 1
    while end < min(first + _SHARING, starts.shape[0]) and starts[end] == starts[first]:
        end += 1
    return end


@_compiled
def _attend_heads(
    q: Array,
    keys: Array,
    values: Array,
    starts: Array,
    lengths: Array,
    maxima: Array,
    sums: Array,
    out: Array,
    first_head: int,
    last_head: int,
) -> None:
    """The heads from `first_head` to `last_head` of `attend`."""
    n_heads, n_keys, d = q.shape[1], keys.shape[1], q.shape[2]
    group, stride, whole = n_heads // n_keys, n_keys * d, d // LANES * LANES
    scale = np.float32(1 / math.sqrt(d))
    longest = most_sharing = 0
    for n in range(q.shape[0]):
        longest = max(longest, lengths[n])
        most_sharing = max(most_sharing, _sharing_end(starts, n) - n)
    weights = np.empty((most_sharing, last_head - first_head, longest), np.float32)
    first = 0
    while first < q.shape[0]:
        # Tokens with the same keys read them together: those of a draft, for example. Keys and values are read in the order in
        # which they are stored, all heads of a few keys together.
        end = _sharing_end(starts, first)
        start, longest_here = starts[first], 0
        for n in range(first, end):
            longest_here = max(longest_here, lengths[n])
        for s in range(0, longest_here, _TOKENS):
            for n in range(first, end):
                n_tokens = min(_TOKENS, lengths[n] - s)
                for h in range(first_head, last_head):
                    if n_tokens == _TOKENS and whole == d:
                        row = pointer(keys, (start + s) * stride + h // group * d)
                        place = ((n - first) * weights.shape[1] + h - first_head) * longest + s
                        dot_8(pointer(q, (n * n_heads + h) * d), row, stride, d, pointer(weights, place))
                        continue
                    for t in range(s, s + n_tokens):
                        score = np.float32(0)
                        for i in range(d):
                            score += q[n, h, i] * keys[start + t, h // group, i]
                        weights[n - first, h - first_head, t] = score
        for n in range(first, end):
            length = lengths[n]
            for h in range(first_head, last_head):
                row_weights = weights[n - first, h - first_head]
                largest = maxima[n, h]
                for s in range(length):
                    row_weights[s] *= scale
                    largest = max(largest, row_weights[s])
                before = np.float32(0)
                if sums[n, h] > 0:
                    before = _exponential(maxima[n, h] - largest)
                weight_sum = sums[n, h] * before
                for s in range(length):
                    weight = _exponential(row_weights[s] - largest)
                    row_weights[s] = weight
                    weight_sum += weight
                inverse = np.float32(1) / weight_sum
                for s in range(length):
                    row_weights[s] *= inverse
                for i in range(d):
                    out[n, h * d + i] *= before * inverse
        for s in range(0, longest_here, _TOKENS):
            for n in range(first, end):
                n_tokens = min(_TOKENS, lengths[n] - s)
                if n_tokens <= 0:
                    continue
                for h in range(first_head, last_head):
                    place, at = (start + s) * stride + h // group * d, (n * n_heads + h) * d
                    row = pointer(weights, ((n - first) * weights.shape[1] + h - first_head) * longest + s)
                    for i in range(0, whole - 3 * LANES, 4 * LANES):
                        add_weighted_4(row, pointer(values, place + i), stride, n_tokens, pointer(out, at + i))
                    for i in range(whole - whole % (4 * LANES), whole, LANES):
                        add_weighted_1(row, pointer(values, place + i), stride, n_tokens, pointer(out, at + i))
                    if whole < d:
                        for t in range(s, s + n_tokens):
                            for i in range(whole, d):
                                out[n, h * d + i] += (
                                    weights[n - first, h - first_head, t] * values[start + t, h // group, i]
                                )
        first = end


@numba.njit(**_OPTIONS, parallel=True)
def _attend_in_threads(
    q: Array,
    keys: Array,
    values: Array,
    starts: Array,
    lengths: Array,
    maxima: Array,
    sums: Array,
    out: Array,
    n_threads: int,
) -> None:
    for thread in numba.prange(n_threads):
        first, last = thread * q.shape[1] // n_threads, (thread + 1) * q.shape[1] // n_threads
        _attend_heads(q, keys, values, starts, lengths, maxima, sums, out, first, last)


def attend(
    q: Array,
    keys: Array,
    values: Array,
    starts: Array,
    lengths: Array,
    maxima: Array,
    sums: Array,
    out: Array,
    n_threads: int,
) -> None:
    """Attention of tokens q (N, H, d) over ranges [start, start + length) of `keys` and `values` (S, K, d).

    `maxima` and `sums` (N, H) and `out` (N, H * d) hold the softmax over other keys that was computed before: the largest
    score, the sum of exponentials, and the weighted sum of values, not yet divided. Without one they are -inf, 0 and 0.
    The result does not depend on the number of threads.
    """
    if n_threads > 1 and int(lengths.sum()) * q.shape[1] * q.shape[2] >= MIN_PARALLEL:
        _attend_in_threads(q, keys, values, starts, lengths, maxima, sums, out, n_threads)
    else:
        _attend_heads(q, keys, values, starts, lengths, maxima, sums, out, 0, q.shape[1])


def compile_for_threads() -> None:
    """Compiles attention in threads, or loads what was compiled, before the first long text needs it."""
    floats, integers = np.zeros((1, 1, LANES), np.float32), np.ones(1, np.int64)
    states = np.zeros((1, 1), np.float32)
    _attend_in_threads(
        floats, floats, floats, 0 * integers, integers, states, states, np.zeros((1, LANES), np.float32), 2
    )


@_compiled
def convolve(product: Array, kernel: Array, slots: Array, earlier: Array, inputs: Array, out: Array) -> None:
    """A short convolution with its gates: the joint projection `product` (N, 3 D), gates and inputs, to `out` (N, D).

    `kernel` is (D, W). Gated inputs are stored in the places `slots` (N,) of `inputs` (S, D). The tokens before token n are
    in the places `earlier[n]` (W - 1), the nearest first; -1 where there is none.
    """
    n_tokens, width = out.shape
    last = kernel.shape[1] - 1
    for n in range(n_tokens):
        row, stored = product[n], inputs[slots[n]]
        for i in range(width):
            stored[i] = row[i] * row[2 * width + i]
    for n in range(n_tokens):
        row, y, stored = product[n], out[n], inputs[slots[n]]
        for i in range(width):
            y[i] = stored[i] * kernel[i, last]
        for distance in range(1, last + 1):
            if earlier[n, distance - 1] >= 0:
                before = inputs[earlier[n, distance - 1]]
                for i in range(width):
                    y[i] += before[i] * kernel[i, last - distance]
        for i in range(width):
            y[i] *= row[width + i]


@_compiled
def store(k: Array, v: Array, slots: Array, keys: Array, values: Array) -> None:
    """Stores k and v (N, K, d) in the places `slots` (N,) of `keys` and `values` (S, K, d)."""
    for n in range(slots.shape[0]):
        keys[slots[n]] = k[n]
        values[slots[n]] = v[n]
