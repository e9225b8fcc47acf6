"""Fits the gate of recall on held-out documents: which prediction to trust when."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from codekiln.errors import ConfigError
from codekiln.generate.complete import Completer
from codekiln.generate.recall import N_HIDDEN, Gate, GateRow, Recall, Searched
from codekiln.generate.recall_kernels import N_FEATURES, N_INPUTS, N_PREDICTIONS, NO_WEIGHT
from codekiln.generate.windows import Scored, score_document

MIN_STEPS, MAX_STEPS, ROWS_PER_STEP = 200, 800, 75
BATCH_ROWS = 2048
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-3
MIN_ROWS = 2000
# Which of the five predictions a row keeps, so that one gate serves with any sources.
CORPUS, WORKSPACE, REQUEST = (1, 1, 0, 0, 0), (0, 0, 1, 1, 0), (0, 0, 0, 0, 1)


def record_rows(
    completer: Completer,
    corpus: Searched | None,
    documents: Iterable[tuple[Scored, Searched | None]],
    on_document: Callable[[int], None],
) -> list[GateRow]:
    """The rows of documents, each with its workspace. `on_document` is called with the tokens of each."""
    rows: list[GateRow] = []
    for scored, workspace in documents:
        recall = Recall(corpus=corpus, workspace=workspace)
        recall.record = rows
        completer.use_recall(recall)
        score_document(completer, scored)
        on_document(scored.n_tokens)
    completer.use_recall(Recall())
    return rows


def fit_gate(rows: Sequence[GateRow], seed: int = 0) -> Gate:
    """The gate with the lowest cross-entropy on the recorded rows, for any subset of the sources.

    Raises ConfigError if there are too few rows.
    """
    if len(rows) < MIN_ROWS:
        raise ConfigError(
            f"{len(rows)} held-out tokens are too few to fit the weights of recall: {MIN_ROWS} are needed"
        )
    n_steps = max(MIN_STEPS, min(MAX_STEPS, len(rows) // ROWS_PER_STEP))
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.from_numpy(np.stack([row.inputs for row in rows]))
    predicted = torch.from_numpy(np.stack([row.predicted for row in rows])).float()
    model = torch.tensor([row.logprob for row in rows]).exp()
    has_tokens = inputs[:, : N_PREDICTIONS * N_FEATURES].view(-1, N_PREDICTIONS, N_FEATURES)[:, :, 0] > 0
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-3
    net = nn.Sequential(nn.Linear(N_INPUTS, N_HIDDEN), nn.SiLU(), nn.Linear(N_HIDDEN, N_PREDICTIONS + 1))
    with torch.no_grad():
        for parameter in net.parameters():
            bound = N_INPUTS**-0.5
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
    sources = torch.tensor([CORPUS, WORKSPACE, REQUEST])
    chosen_sources = torch.tensor([bits for bits in itertools.product((0, 1), repeat=len(sources)) if any(bits)])
    subsets = chosen_sources @ sources  # (7, K)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        chosen = torch.randint(len(rows), (BATCH_ROWS,), generator=generator)
        is_on = has_tokens[chosen] & (subsets[torch.randint(len(subsets), (BATCH_ROWS,), generator=generator)] > 0)
        optimizer.zero_grad()
        loss = _loss(net, inputs[chosen], is_on, predicted[chosen], model[chosen], mean, scale)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    first, last = net[0], net[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    tensors = (mean, scale, first.weight.T, first.bias, last.weight.T, last.bias)
    return Gate(*(tensor.detach().float().contiguous().numpy() for tensor in tensors))


def _loss(
    net: nn.Module, inputs: Tensor, is_on: Tensor, predicted: Tensor, model: Tensor, mean: Tensor, scale: Tensor
) -> Tensor:
    """The mean cost of the targets in nats, with some predictions left out as if they had found nothing."""
    n = N_PREDICTIONS * N_FEATURES
    kept = (inputs[:, :n].view(-1, N_PREDICTIONS, N_FEATURES) * is_on[:, :, None]).flatten(1)
    logits: Tensor = net((torch.cat([kept, inputs[:, n:]], 1) - mean) / scale)
    weights = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(~is_on, NO_WEIGHT)], 1).softmax(1)
    mixed = weights[:, 0] * model + (weights[:, 1:] * predicted).sum(1)
    return -mixed.clamp_min(1e-9).log().mean()
