"""The next token from logits. B row, V vocabulary.

Each row has its own settings and its own random numbers, which depend on its seed, the number of the sample and the position
only. So a request has the same tokens alone and in any batch.
"""

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codekiln.errors import ConfigError

MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 300  # entries of a request, as in OpenAI's API
MIN_TEMPERATURE = 1e-4  # below it, logits overflow, and the most likely token would be sampled in any case
N_SORTED = (
    256  # most likely tokens that are sorted first; a nucleus that is larger needs a sort of the whole vocabulary
)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are sampled, in vLLM's names. Temperature 0 is greedy.

    `min_p` keeps tokens with at least that fraction of the largest probability, `top_k` the most likely ones (0: all), and
    `top_p` the fewest whose probabilities reach it (Holtzman et al. 2020); they are applied in this order. The repetition
    penalty is for tokens of the prompt and of the completion (Keskar et al. 2019), the presence and frequency penalties for
    those of the completion (OpenAI). `logit_bias` is added to the logits of tokens. `logprobs` is the number of the most
    likely tokens to report at each position, None for none.
    """

    temperature: float = 0.2
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0, 2)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}: it must be greater than 0 and at most 1")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}: it must be at least 1, or 0 for all tokens")
        _require("min_p", self.min_p, 0, 1)
        _require("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _require("presence_penalty", self.presence_penalty, -2, 2)
        _require("frequency_penalty", self.frequency_penalty, -2, 2)
        _require("logprobs", self.logprobs or 0, 0, MAX_TOP_LOGPROBS)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise ConfigError(f"logit_bias has {len(self.logit_bias)} entries: at most {MAX_LOGIT_BIAS} are allowed")
        for _, bias in self.logit_bias:
            _require("logit_bias", bias, -100, 100)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether logits are changed before sampling."""
        penalties = (self.repetition_penalty - 1, self.presence_penalty, self.frequency_penalty)
        return any(penalties) or bool(self.logit_bias)


def _require(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}: it must be between {low} and {high}")


GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token, and the most likely tokens at its position with theirs, before any setting is applied."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Row:
    """What the sampling of one row depends on: sample number `index` of a request, with `generated` tokens so far."""

    sampling: SamplingParams
    index: int
    prompt: Sequence[int]
    generated: Sequence[int]


def sample(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """A token for each row of logits (B, V) in float32, which may be changed. A logit of -inf is never sampled."""
    for number, row in enumerate(rows):
        if row.sampling.has_penalties:
            _penalize(logits[number], row)
    tokens = logits.argmax(-1).tolist()
    drawn = [number for number, row in enumerate(rows) if not row.sampling.is_greedy]
    if not drawn:
        return [int(token) for token in tokens]
    params = [rows[number].sampling for number in drawn]
    device = logits.device
    temperature, top_p, min_p = (
        torch.tensor([getattr(each, name) for each in params], device=device)[:, None]
        for name in ("temperature", "top_p", "min_p")
    )
    top_k = torch.tensor([each.top_k or logits.shape[1] for each in params], device=device)[:, None]
    sources = [rows[number] for number in drawn]
    uniform = [_uniform(row, 0) for row in sources]
    scaled = (logits if len(drawn) == len(rows) else logits[drawn]) / temperature
    found, is_complete = _draw(scaled, top_p, top_k, min_p, uniform, min(N_SORTED, logits.shape[1]))
    rest = [i for i, ok in enumerate(is_complete) if not ok and not params[i].top_k]
    if rest:
        again = _draw_unsorted(scaled[rest], top_p[rest], min_p[rest], [sources[i] for i in rest])
        for i, token in zip(rest, again, strict=True):
            found[i] = token
    rest = [i for i, ok in enumerate(is_complete) if not ok and params[i].top_k]
    if rest:
        kept = [uniform[i] for i in rest]
        again, _ = _draw(scaled[rest], top_p[rest], top_k[rest], min_p[rest], kept, logits.shape[1])
        for i, token in zip(rest, again, strict=True):
            found[i] = token
    for number, token in zip(drawn, found, strict=True):
        tokens[number] = token
    return [int(token) for token in tokens]


def _draw(
    scaled: Tensor, top_p: Tensor, top_k: Tensor, min_p: Tensor, uniform: list[float], n_sorted: int
) -> tuple[list[int], list[bool]]:
    """A token for each row, drawn from the `n_sorted` most likely ones, and whether all that may be drawn are among them."""
    top, ids = scaled.topk(n_sorted, -1)
    probabilities = (top - scaled.logsumexp(-1, keepdim=True)).exp()  # in descending order
    is_kept = (probabilities >= min_p * probabilities[:, :1]) & (torch.arange(n_sorted, device=top.device) < top_k)
    is_all = (n_sorted == scaled.shape[1]) | ~is_kept[:, -1:] | (top_k <= n_sorted)
    kept = probabilities * is_kept
    # Where min_p or top_k cuts the distribution off, top_p is a fraction of what they keep.
    total = torch.where(is_all, kept.sum(-1, keepdim=True), 1.0)
    cumulative = kept.cumsum(-1)
    is_in = (cumulative - kept) < top_p * total
    is_in[:, 0] = True  # also if top_p is smaller than float32 can represent
    is_complete = (is_all | ((min_p == 0) & (cumulative[:, -1:] >= top_p))).flatten()
    cumulative = (kept * is_in).cumsum(-1)
    targets = torch.tensor(uniform, dtype=torch.float64, device=top.device)[:, None] * cumulative[:, -1:].double()
    places = torch.searchsorted(cumulative.double(), targets, right=True)
    last = (kept * is_in > 0).sum(-1, keepdim=True) - 1
    found: list[int] = ids.gather(-1, torch.minimum(places, last)).flatten().tolist()
    return found, is_complete.tolist()


def _draw_unsorted(scaled: Tensor, top_p: Tensor, min_p: Tensor, rows: Sequence[Row]) -> list[int]:
    """A token for each row, without sorting: tokens are drawn from all, until one is in the nucleus (rejection sampling).

    A token is in it if all likelier tokens together have less than `top_p`.
    """
    probabilities = (scaled - scaled.logsumexp(-1, keepdim=True)).exp_()
    probabilities *= probabilities >= min_p * probabilities.amax(-1, keepdim=True)
    limits = top_p * probabilities.sum(-1, keepdim=True)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    tokens = [0] * len(rows)
    is_open, attempt = list(range(len(rows))), 1
    while is_open:
        p, sums, limit = probabilities, cumulative, limits
        if len(is_open) < len(rows):
            p, sums, limit = p[is_open], sums[is_open], limit[is_open]
        uniform = [_uniform(rows[i], attempt) for i in is_open]
        targets = torch.tensor(uniform, dtype=torch.float64, device=p.device)[:, None] * sums[:, -1:]
        drawn = torch.searchsorted(sums, targets, right=True).clamp_(max=p.shape[1] - 1)
        chosen = p.gather(1, drawn)
        likelier = (p * (p > chosen)).sum(-1, keepdim=True)
        is_in = ((likelier < limit) & (chosen > 0)).flatten().tolist()
        for i, token, ok in zip(is_open, drawn.flatten().tolist(), is_in, strict=True):
            if ok:
                tokens[i] = token
        is_open = [i for i, ok in zip(is_open, is_in, strict=True) if not ok]
        attempt += 1
    return tokens


def _penalize(logits: Tensor, row: Row) -> None:
    """Applies the penalties and biases of a row to its logits (V,)."""
    sampling = row.sampling
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*row.prompt, *row.generated}), device=logits.device)
        values = logits[seen]
        factor = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / factor, values * factor)
    if row.generated and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens, counts = torch.unique(torch.tensor(row.generated, device=logits.device), return_counts=True)
        logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    for token, bias in sampling.logit_bias:
        logits[token] += bias


def _uniform(row: Row, attempt: int) -> float:
    """A number in [0, 1) that depends on the seed, the sample, the position and the attempt only."""
    numbers = (row.sampling.seed, row.index, len(row.generated), attempt)
    digest = hashlib.blake2b(struct.pack("<QQQQ", *numbers), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def token_logprobs(logits: Tensor, tokens: Sequence[int], n_top: Sequence[int]) -> list[TokenLogprobs]:
    """The log-probabilities of one token per row of logits (B, V), with the `n_top` most likely tokens of each row."""
    values = logits.log_softmax(-1)
    chosen = values.gather(1, torch.tensor(tokens, device=logits.device)[:, None]).flatten().tolist()
    if not (longest := max(n_top)):
        return [TokenLogprobs(token, logprob, ()) for token, logprob in zip(tokens, chosen, strict=True)]
    top, ids = values.topk(min(longest, logits.shape[1]))
    rows = zip(tokens, chosen, ids.tolist(), top.tolist(), n_top, strict=True)
    return [
        TokenLogprobs(token, logprob, tuple(zip(row_ids[:n], row_top[:n], strict=True)))
        for token, logprob, row_ids, row_top, n in rows
    ]


def bits(logprobs: Sequence[TokenLogprobs]) -> float:
    """The cost of tokens in bits."""
    return -sum(each.logprob for each in logprobs) / math.log(2)
