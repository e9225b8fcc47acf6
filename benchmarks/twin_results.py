"""What each stage of CodeGen's small twin does to each kind of text, and the curves of both twins.

    twin_results.py CODEGEN INCODER --out FOLDER

CODEGEN is the folder of `codekiln train codegen-tiny`, and INCODER that of incoder-tiny. Each model of the three stages is
measured on the held-out documents of each stage, by `codekiln evaluate STAGE --on bits-per-byte --code OTHER`. Prints the table
of bits per byte, and writes FOLDER/twins.svg. The evaluations are folders in FOLDER; those that exist are not repeated.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from codekiln.metrics_log import METRICS_FILE, read_metrics

STAGES = {"1-nl": "natural language", "2-multi": "six languages", "3-mono": "Python"}
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd")
WIDTH, HEIGHT, MARGIN = 400, 260, 45


@dataclass(frozen=True)
class Curve:
    """Bits per byte of held-out text by millions of tokens, both of all stages so far."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]


def measure(codegen: Path, out: Path) -> dict[tuple[str, str], dict[str, float]]:
    """The results of each stage's model on the held-out documents of each stage."""
    found = {}
    for model in STAGES:
        for kind in STAGES:
            folder = out / f"{model}-on-{kind}"
            words = ("evaluate", codegen / model, "--on", "bits-per-byte", "--code", codegen / kind, "--out", folder)
            subprocess.run([sys.executable, "-m", "codekiln", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            found[model, kind] = results["benchmarks"]["bits-per-byte"]["metrics"]["bits_per_byte"]["interval"]
    return found


def curves(codegen: Path, incoder: Path) -> list[list[Curve]]:
    """The panels: the three stages one after the other, then InCoder."""
    before, stages = 0.0, []
    for (stage, kind), color in zip(STAGES.items(), COLORS, strict=False):
        points = read_points(codegen / stage)
        stages.append(Curve(kind, color, [(before + tokens, value) for tokens, value in points]))
        before += points[-1][0]
    return [stages, [Curve("code and threads", COLORS[-1], read_points(incoder))]]


def read_points(run: Path) -> list[tuple[float, float]]:
    """Millions of tokens and bits per byte of each measurement of a run."""
    rows = read_metrics(run / METRICS_FILE)
    values = ((row["tokens"] / 1e6, row.get("validation_bits_per_byte")) for row in rows)
    return [(tokens, value) for tokens, value in values if value is not None]


def draw(panels: Sequence[tuple[str, Sequence[Curve]]]) -> str:
    """Panels next to each other, with the same vertical axis, as SVG."""
    top = max(value for _, each in panels for curve in each for _, value in curve.points)
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for k, (title, each) in enumerate(panels):
        parts += [f'<g transform="translate({k * WIDTH} 0)">', *_draw_panel(title, each, int(top) + 1), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _draw_panel(title: str, curves: Sequence[Curve], top: int) -> Iterator[str]:
    last = max(tokens for curve in curves for tokens, _ in curve.points)

    def at(tokens: float, value: float) -> tuple[float, float]:
        x = MARGIN + tokens / last * (WIDTH - MARGIN - 15)
        return round(x, 1), round(HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN), 1)

    yield f'<text x="{MARGIN}" y="18" font-weight="bold">{title}: held-out bits per byte</text>'
    for value in range(top + 1):
        (left, y), (right, _) = at(0, value), at(last, value)
        yield f'<path d="M{left} {y}H{right}" stroke="#ddd"/><text x="{left - 15}" y="{y + 4}">{value}</text>'
    for k in range(5):
        x, y = at(last * k / 4, 0)
        yield f'<text x="{x}" y="{y + 16}" text-anchor="middle">{last * k / 4:.2f}</text>'
    yield f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">million tokens</text>'
    for k, curve in enumerate(curves):
        line = " ".join(f"{x},{y}" for x, y in (at(*point) for point in curve.points))
        yield f'<polyline points="{line}" fill="none" stroke="{curve.color}" stroke-width="2"/>'
        yield f'<text x="{WIDTH - 20}" y="{38 + 14 * k}" text-anchor="end" fill="{curve.color}">{curve.name}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("codegen", type=Path)
    parser.add_argument("incoder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    panels = curves(options.codegen, options.incoder)
    titles = ("codegen-tiny", "incoder-tiny")
    (options.out / "twins.svg").write_text(draw(list(zip(titles, panels, strict=True))), encoding="utf-8")
    found = measure(options.codegen, options.out)
    print(f"| bits per byte after | {' | '.join(STAGES.values())} |\n|---|---|---|---|")
    for model in STAGES:
        cells = (found[model, kind] for kind in STAGES)
        print(f"| {model} | " + " | ".join(f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in cells) + " |")


if __name__ == "__main__":
    main()
