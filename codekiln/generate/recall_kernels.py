"""The gate of recall, compiled. K predictions, F gate inputs, N ids of all predictions of a row, one after another."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
N_PREDICTIONS = 5
N_FEATURES = 7  # of each prediction
N_INPUTS = N_PREDICTIONS * N_FEATURES + 2
MIN_MODEL_WEIGHT = 1e-4
MIN_LOGPROB = -14.0
NO_WEIGHT = -30.0  # the gate's logit of a prediction without tokens
_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def gate_inputs(
    lengths: Array, counts: Array, ends: Array, ids: Array, fractions: Array, logprobs: Array, numbers: Array
) -> Array:
    """The inputs of the gate for one row, (F,) float32. Predictions without tokens have zeros.

    `ends` (K + 1,) bound the ids of each prediction, `logprobs` (N,) are the model's, and `numbers` are the model's entropy,
    its highest log-probability, the id that has it, and the probability of all ids that end a text.
    """
    inputs = np.zeros(N_INPUTS, np.float32)
    for k in range(N_PREDICTIONS):
        first, last = ends[k], ends[k + 1]
        if first == last:
            continue
        best = first
        for i in range(first, last):
            if fractions[i] > fractions[best]:
                best = i
        at = k * N_FEATURES
        inputs[at] = np.log1p(lengths[k])
        inputs[at + 1] = np.log1p(counts[k])
        inputs[at + 2] = fractions[best]
        inputs[at + 3] = np.log1p(last - first)
        inputs[at + 4] = max(logprobs[best], MIN_LOGPROB)
        inputs[at + 5] = 1.0 if last - first == 1 else 0.0
        inputs[at + 6] = 1.0 if ids[best] == np.int64(numbers[2]) else 0.0
    inputs[N_INPUTS - 2] = numbers[0]
    inputs[N_INPUTS - 1] = max(numbers[1], MIN_LOGPROB)
    return inputs


@_compiled
def mix_row(
    lengths: Array,
    counts: Array,
    ends: Array,
    ids: Array,
    fractions: Array,
    logprobs: Array,
    numbers: Array,
    mean: Array,
    scale: Array,
    hidden_weight: Array,
    hidden_bias: Array,
    output_weight: Array,
    output_bias: Array,
) -> tuple[Array, Array, float]:
    """Different ids of all predictions, what is added to their logits, and what is added to those of ids that end a text.

    All other logits stay as they are: the mixture is divided by the model's weight.
    """
    inputs = gate_inputs(lengths, counts, ends, ids, fractions, logprobs, numbers)
    weights = output_bias.astype(np.float64)
    for j in range(len(hidden_bias)):
        total = np.float64(hidden_bias[j])
        for i in range(len(inputs)):
            total += hidden_weight[i, j] * ((inputs[i] - mean[i]) / scale[i])
        total /= 1.0 + np.exp(-total)
        for k in range(len(weights)):
            weights[k] += output_weight[j, k] * total
    for k in range(N_PREDICTIONS):
        if ends[k] == ends[k + 1]:
            weights[k + 1] = NO_WEIGHT
    weights = np.exp(weights - weights.max())
    weights /= weights.sum()
    own = max(weights[0], MIN_MODEL_WEIGHT)
    share = (1.0 - own) / max(1.0 - weights[0], 1e-12) * (1.0 - numbers[3])
    found, added, n = np.empty(len(ids), np.int64), np.zeros(len(ids), np.float64), 0
    model = np.empty(len(ids), np.float64)
    for k in range(N_PREDICTIONS):
        for i in range(ends[k], ends[k + 1]):
            place = 0
            while place < n and found[place] != ids[i]:
                place += 1
            if place == n:
                found[n], model[n] = ids[i], logprobs[i]
                n += 1
            added[place] += share * weights[k + 1] * fractions[i]
    for i in range(n):
        # log((own * p + added) / (own * p)), also where the model's probability is tiny
        ratio = np.log(max(added[i], 1e-300)) - np.log(own) - model[i]
        added[i] = ratio + np.log1p(np.exp(-ratio)) if ratio > 0 else np.log1p(np.exp(ratio))
    return found[:n], added[:n], -np.log(own)
