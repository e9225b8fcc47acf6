"""Charts of training runs, and pages of charts: one HTML file each, which loads nothing from the network."""

import html
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files as package_files
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FunctionLoader, StrictUndefined
from plotly.colors import qualitative
from plotly.offline import get_plotlyjs

from codekiln.files import atomic_write
from codekiln.metrics_log import LOSS_WINDOW, MetricsRow

# Title, field of metrics.jsonl, unit, x axis.
_CURVES = (
    ("Loss", "loss", "training, nats per token", "tokens"),
    ("Validation", "validation_bits_per_byte", "held-out, bits per byte", "tokens"),
    ("Validation by time", "validation_bits_per_byte", "held-out, bits per byte", "seconds of training"),
    ("Speed", "tokens_per_second", "tokens per second", "tokens"),
    ("Efficiency", "matmul_efficiency", "fraction of the matmul peak", "tokens"),
    ("Gradient norm", "grad_norm", "before clipping", "tokens"),
    ("Learning rate", "lr", "peak group", "tokens"),
)
_MAX_BUCKETS = 1000

Point = tuple[float, float]


def training_charts(runs: Mapping[str, list[MetricsRow]]) -> dict[str, str]:
    """Charts of the metrics of runs, overlaid, as HTML by title. A metric that no run has gets no chart.

    The loss is averaged over the last `LOSS_WINDOW` steps, without skipped ones; the loss of each step is drawn pale.
    """
    charts = {}
    for title, field, unit, x_axis in _CURVES:
        figure = go.Figure()
        for (name, rows), color in zip(runs.items(), cycle(qualitative.D3), strict=False):
            points = _points(rows, field, x_axis)
            style = {"name": html.escape(name), "legendgroup": name, "line": {"color": color}}
            if field == "loss":
                _add(figure, points, **style, opacity=0.25, showlegend=False, hoverinfo="skip")
                points = _smoothed(_points([row for row in rows if "skipped" not in row], field, x_axis))
            _add(figure, points, **style, mode="lines+markers" if 0 < len(points) < 30 else "lines")
        if any(len(trace.x) for trace in figure.data):
            figure.update_layout(showlegend=len(runs) > 1, legend={"orientation": "h", "y": 1.15})
            charts[title] = _figure_html(figure, x_axis, unit)
    return charts


def bar_chart(heights: list[int], *, x_title: str, y_title: str) -> str:
    """Bars at 1, 2, 3 and so on, as HTML."""
    return _figure_html(go.Figure(go.Bar(x=list(range(1, len(heights) + 1)), y=heights)), x_title, y_title)


def is_written_by_codekiln(path: Path) -> bool:
    """Whether `path` is a page of `write_page`."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b'<meta name="generator" content="codekiln">' in file.read(4096)


def write_page(path: Path, template: str, *, has_charts: bool = True, **values: object) -> None:
    """Writes a page from a template of this package. All text is escaped; the charting code is part of a page with charts."""
    environment = Environment(autoescape=True, loader=FunctionLoader(_template), undefined=StrictUndefined)
    page = environment.get_template(template).render(plotly=get_plotlyjs() if has_charts else "", **values)
    with atomic_write(path) as temp_path:
        temp_path.write_text(page, encoding="utf-8")


def _template(name: str) -> str:
    return package_files("codekiln.report").joinpath("templates", name).read_text(encoding="utf-8")


def _points(rows: Sequence[Mapping[str, Any]], field: str, x_axis: str) -> list[Point]:
    xs = [row["tokens"] for row in rows] if x_axis == "tokens" else accumulate(row["seconds"] for row in rows)
    measured = zip(xs, rows, strict=True)
    return [(x, row[field]) for x, row in measured if row.get(field) is not None and math.isfinite(row[field])]


def _smoothed(points: list[Point]) -> list[Point]:
    sums = list(accumulate((y for _, y in points), initial=0.0))
    first = [max(0, i + 1 - LOSS_WINDOW) for i in range(len(points))]
    return [(x, (sums[i + 1] - sums[first[i]]) / (i + 1 - first[i])) for i, (x, _) in enumerate(points)]


def _downsample(points: list[Point]) -> list[Point]:
    """The points; of many, the lowest and the highest of equal buckets: a browser can draw them, and no spike is lost."""
    n = len(points)
    if n <= 2 * _MAX_BUCKETS:
        return points
    shares = [points[i * n // _MAX_BUCKETS : (i + 1) * n // _MAX_BUCKETS] for i in range(_MAX_BUCKETS)]
    return [point for share in shares for point in sorted({f(share, key=lambda p: p[1]) for f in (min, max)})]


def _add(figure: Any, points: list[Point], **style: object) -> None:
    points = _downsample(points)
    figure.add_scatter(**{"mode": "lines", "x": [x for x, _ in points], "y": [y for _, y in points]} | style)


def _figure_html(figure: Any, x_title: str, y_title: str) -> str:
    figure.update_layout(
        height=300,
        margin={"l": 50, "r": 20, "t": 20, "b": 40},
        template="plotly_white",
        xaxis_title=x_title,
        yaxis_title=y_title,
    )
    return str(figure.to_html(full_html=False, include_plotlyjs=False))
