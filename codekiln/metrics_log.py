"""metrics.jsonl: one JSON object per training step after a header line, read and written. Needs no PyTorch."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict

from codekiln.errors import InvalidFileError
from codekiln.files import atomic_write

METRICS_FILE = "metrics.jsonl"
FORMAT = 1
LOSS_WINDOW = 20  # steps over which the loss is averaged where it is shown


class MetricsRow(TypedDict):
    """One training step."""

    step: int  # counts from 0
    tokens: int  # seen so far, this step included
    loss: float  # nats per token
    grad_norm: float  # before clipping
    lr: float
    lr_scale: float  # of the peak learning rate; 0 where the step was skipped
    seconds: float
    tokens_per_second: float
    matmul_efficiency: float  # fraction of the fastest matrix product measured on this machine
    skipped: NotRequired[str]  # why the step was skipped
    documents: NotRequired[list[int]]  # of a skipped step: their numbers in the token shards
    z_loss: NotRequired[float]  # mean squared log-sum-exp of the logits, before it is weighted
    validation_bits_per_byte: NotRequired[float | None]


class TrainingSummary(TypedDict):
    """What the rows of a log add up to."""

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float  # median
    matmul_efficiency: float  # median
    validation_bits_per_byte: float | None  # the last one


class MetricSink(Protocol):
    """A copy of the log elsewhere. Each time the log is opened, a sink receives every row from the first one on."""

    def write(self, row: MetricsRow) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends rows to `metrics.jsonl`. Opening it at `step` removes the rows of later steps, which a killed run wrote.

    Sinks receive the rows that stay and then each new row after it was written, so a sink that is added later is complete.
    """

    def __init__(self, path: Path, *, step: int, sinks: Sequence[MetricSink] = ()) -> None:
        kept = [row for row in read_metrics(path) if row["step"] < step]
        lines: list[Mapping[str, object]] = [{"format": FORMAT}, *kept]
        with atomic_write(path) as temp_path:
            temp_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        self._sinks = sinks
        for row in kept:
            self._emit(row)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: MetricsRow) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._emit(row)

    def close(self) -> None:
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def _emit(self, row: MetricsRow) -> None:
        for sink in self._sinks:
            sink.write(row)


def read_metrics(path: Path) -> list[MetricsRow]:
    """The rows of a log, without a last line that a killed run did not finish. No file has no rows.

    Raises InvalidFileError for another format, and for a damaged line by its number.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    rows: list[MetricsRow] = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            break  # the last line of a killed run
        record = _parse_line(line)
        if number == 1:
            if record is None or record.get("format") != FORMAT:
                raise InvalidFileError(
                    f"{path} is not a metrics log of format {FORMAT}: it is damaged or of another version of Codekiln"
                )
            continue
        if record is None or record.get("step") != len(rows) or not _is_row(record):
            raise InvalidFileError(
                f"{path}, line {number}, is damaged: restore the file, or train again into a new run"
            )
        rows.append(record)  # type: ignore[arg-type] # checked by `_is_row`
    return rows


def summarize(rows: Sequence[MetricsRow]) -> TrainingSummary:
    """Totals and medians of at least one row. The first step, which may have compiled, is not part of the medians."""
    steady = sorted(rows[1:] or rows, key=lambda row: row["tokens_per_second"])
    median = steady[len(steady) // 2]
    found = [row.get("validation_bits_per_byte") for row in rows]
    validated = [value for value in found if value is not None]
    return {
        "steps": len(rows),
        "tokens": rows[-1]["tokens"],
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "tokens_per_second": median["tokens_per_second"],
        "matmul_efficiency": median["matmul_efficiency"],
        "validation_bits_per_byte": validated[-1] if validated else None,
    }


def bits_per_byte(nats: float, n_bytes: float) -> float:
    """Bits per byte of text, from the sum of the cross-entropy (nats) over all predicted tokens.

    The loss of end-of-text tokens is part of the sum, although they have no bytes.
    """
    return nats / math.log(2) / n_bytes


_NUMBERS = ("tokens", "loss", "grad_norm", "lr", "lr_scale", "seconds", "tokens_per_second", "matmul_efficiency")


def _parse_line(line: bytes) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_row(record: Mapping[str, object]) -> bool:
    return all(isinstance(record.get(name), int | float) for name in _NUMBERS)
