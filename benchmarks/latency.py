"""Latency of inline completion: clients that type, against the real server.

python benchmarks/latency.py [MODEL] [--draw FILE]

Without a model directory, one of 25M random weights is made. Each client edits its own file: at each keystroke it sends the
text before and after its cursor, and waits for 24 new tokens. Times are those of the client, of the wall clock. FILE gets a
picture of all times as SVG.
"""

import argparse
import contextlib
import math
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

CLIENTS = (1, 4, 16)
KEYSTROKES = 24
NEW_TOKENS = 24
PREFIX_LINES, SUFFIX_LINES = 60, 20
WIDTH, HEIGHT, MARGIN = 620, 260, 45
COLORS = ("#2e7d32", "#1565c0", "#ad1457")


def make_model(folder: Path) -> Path:
    """A model directory with random weights, 25M without embeddings, and a tokenizer of Codekiln's sources."""
    import torch  # noqa: PLC0415

    from codekiln.model.configs import kiln  # noqa: PLC0415
    from codekiln.model.huggingface import save_model  # noqa: PLC0415
    from codekiln.model.transformer import Transformer  # noqa: PLC0415
    from codekiln.tokenizer.bpe import hugging_face_configs  # noqa: PLC0415
    from codekiln.tokenizer.config import TokenizerConfig  # noqa: PLC0415
    from codekiln.tokenizer.training import train_tokenizer  # noqa: PLC0415

    texts = [path.read_text(encoding="utf-8") for path in sorted(Path("codekiln").rglob("*.py"))]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=8192), texts)
    model = Transformer(kiln("25M", vocab_size=tokenizer.vocab_size, context_length=2048))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.02)
    tokenizer.save(folder / "tokenizer.json")
    ids = {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id}
    save_model(folder / "model", model, folder / "tokenizer.json", hugging_face_configs(tokenizer, 2048), ids)
    return folder / "model"


def type_text(url: str, number: int) -> list[float]:
    """The seconds that one client waits at each keystroke after the first."""
    paths = sorted(Path("codekiln").rglob("*.py"))
    rng = random.Random(number)
    lines: list[str] = []
    while len(lines) < PREFIX_LINES + SUFFIX_LINES + 2:
        lines = rng.choice(paths).read_text(encoding="utf-8").splitlines(keepends=True)
    prefix, suffix = "".join(lines[:PREFIX_LINES]), "".join(lines[PREFIX_LINES + 1 : PREFIX_LINES + 1 + SUFFIX_LINES])
    typed = (lines[PREFIX_LINES].strip() + "            " * KEYSTROKES)[:KEYSTROKES]
    waited = []
    with httpx.Client(timeout=120) as client:
        for k in range(KEYSTROKES):
            body = {"prompt": prefix + typed[:k], "suffix": suffix, "max_tokens": NEW_TOKENS, "temperature": 0}
            start = time.perf_counter()
            client.post(url + "/v1/completions", json=body).raise_for_status()
            waited.append(time.perf_counter() - start)
    return waited[1:]


def draw(waited: dict[int, list[float]]) -> str:
    """The percentage of completions that took at most so many milliseconds, for each number of clients."""
    last = 100 * math.ceil(1000 * max(map(max, waited.values())) / 100)

    def at(milliseconds: float, percentage: float) -> tuple[float, float]:
        x = MARGIN + milliseconds / last * (WIDTH - 2 * MARGIN)
        return round(x, 1), round(HEIGHT - MARGIN - percentage / 100 * (HEIGHT - 2 * MARGIN), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11" '
        'fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{MARGIN}" y="20" font-weight="bold">Completions of {NEW_TOKENS} tokens, 25M parameters: percentage that '
        "has arrived after so many milliseconds</text>",
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">milliseconds</text>',
    ]
    for percentage in (0, 50, 100):
        (left, y), (right, _) = at(0, percentage), at(last, percentage)
        parts.append(
            f'<path d="M{left} {y}H{right}" stroke="#ddd"/><text x="{left - 30}" y="{y + 4}">{percentage}%</text>'
        )
    for milliseconds in range(0, last + 1, 100):
        x, y = at(milliseconds, 0)
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{milliseconds}</text>')
    for (n_clients, times), color in zip(waited.items(), COLORS, strict=True):
        points = [at(1000 * time, 100 * (k + 1) / len(times)) for k, time in enumerate(sorted(times))]
        line = " ".join(f"{x},{y}" for x, y in points)
        x, y = points[len(points) // 2]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        name = "1 client" if n_clients == 1 else f"{n_clients} clients"
        parts.append(f'<text x="{x + 8}" y="{y + 12}" fill="{color}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--draw", type=Path)
    options = parser.parse_args()
    all_waited: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_model(Path(folder))
        command = [sys.executable, "-m", "codekiln", "serve", str(model), "--port", "0", "--weights", "int8"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().split(" on ")[1].split(" ")[0]
            print("| clients | p50 ms | p95 ms | completions per second |\n|---|---|---|---|")
            try:
                type_text(url, 99)  # compiles the kernels
                for n_clients in CLIENTS:
                    start = time.perf_counter()
                    with ThreadPoolExecutor(n_clients) as pool:
                        waited = [
                            each for found in pool.map(lambda k: type_text(url, k), range(n_clients)) for each in found
                        ]
                    all_waited[n_clients] = waited
                    rate = n_clients * KEYSTROKES / (time.perf_counter() - start)
                    cuts = statistics.quantiles(waited, n=20)
                    print(f"| {n_clients} | {1000 * cuts[9]:.0f} | {1000 * cuts[18]:.0f} | {rate:.1f} |", flush=True)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    server.send_signal(signal.SIGINT)
    if options.draw is not None:
        options.draw.write_text(draw(all_waited), encoding="utf-8")


if __name__ == "__main__":
    main()
