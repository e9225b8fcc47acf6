"""What is measured while a model learns: the log, the machine's limit, bits per byte."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from codekiln.files import JsonObject, atomic_write


class MetricSink(Protocol):
    """Where the rows of a log go too. It is told every row of the log from the first, in order, each time it is opened."""

    def write(self, row: JsonObject) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """`metrics.jsonl`, one object a step, in order. Opening it at a step forgets what a lost run wrote after it.

    Mirrors are told what is kept, then each row after it stands in the file, so one that joins late or was cut off
    is whole again.
    """

    def __init__(self, path: Path, *, step: int, loggers: Sequence[MetricSink] = ()) -> None:
        kept = [row for row in read_metrics(path) if row["step"] < step]
        with atomic_write(path) as temp_path:
            temp_path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._sinks = loggers
        for row in kept:
            self._emit(row)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: JsonObject) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._emit(row)

    def close(self) -> None:
        self._file.close()
        for mirror in self._sinks:
            mirror.close()

    def _emit(self, row: JsonObject) -> None:
        for mirror in self._sinks:
            mirror.write(row)


def read_metrics(path: Path) -> list[JsonObject]:
    """The whole rows of a log; a row that a killed run tore, and what follows it, is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def summarize(rows: list[JsonObject]) -> JsonObject:
    """What the rows of a log come to: steps, tokens, seconds of training, median speed and utilization, last validation.

    The first step, which may have compiled, is left out of the medians.
    """
    steady = sorted(rows[1:] or rows, key=lambda row: float(row["tokens_per_second"]))
    median = steady[len(steady) // 2]
    validated = [row["validation_bits_per_byte"] for row in rows if row.get("validation_bits_per_byte") is not None]
    return {
        "steps": len(rows),
        "tokens": rows[-1]["tokens"],
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "tokens_per_second": median["tokens_per_second"],
        "matmul_efficiency": median["matmul_efficiency"],
        "validation_bits_per_byte": validated[-1] if validated else None,
    }


def measure_peak_flops(device: torch.device, dtype: torch.dtype, *, size: int = 1024, seconds: float = 0.5) -> float:
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


def bits_per_byte(nats: float, n_bytes: float) -> float:
    """Bits that a model spends on each byte of text, from the sum of nats over all predicted tokens.

    The end-of-text token's loss is in the sum and its zero bytes are not.
    """
    return nats / math.log(2) / n_bytes
