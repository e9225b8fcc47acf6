"""What is measured while a model learns: the log, the machine's limit, bits per byte."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from codekiln.files import Record, replacing
from codekiln.train.loader import Batch


class MetricsLog:
    """`metrics.jsonl`, one object a step, in order. Opening it at a step forgets what a lost run wrote after it."""

    def __init__(self, path: Path, *, step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] < step]
        with replacing(path) as draft:
            draft.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Record) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """The whole rows of a log; a row that a killed run tore, and what follows it, is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def matmul_peak(device: torch.device, dtype: torch.dtype, *, size: int = 1024, seconds: float = 0.5) -> float:
    """Floating-point operations a second of the best matrix product seen within `seconds`."""
    size = size if device.type == "cpu" else 8 * size
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, begun = math.inf, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        for _ in range(4):
            product = a @ b
        if device.type != "cpu":
            product.sum().item()
        best = min(best, (time.perf_counter() - started) / 4)
    return 2 * size**3 / best


def bits_per_byte(loss_sum: Callable[[Batch], Tensor], batches: list[Batch]) -> float:
    """Bits that a model spends on each byte of text: the sum of nats over all predicted tokens / ln 2 / bytes.

    The end-of-text token's loss is in the sum and its zero bytes are not.
    """
    nats = sum(float(loss_sum(batch)) for batch in batches)
    return nats / math.log(2) / sum(batch.n_bytes for batch in batches)
