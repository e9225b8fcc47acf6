"""What waiting OpenMP threads cost: training, decoding and concurrent requests, on an idle and on a busy machine.

Run: `python benchmarks/busy_machine.py RUN [--rounds 3]`, RUN a trained run. Each measurement is a process of its own: with
libgomp's default, with short active waiting (what `codekiln` sets), or with none, alone or beside one busy process per core.
Prints the medians of tokens per second, and their ratios to those of the default.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from codekiln.cli import SPIN_COUNT

POLICIES = {
    "default": {"GOMP_SPINCOUNT": "300000"},
    "short": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
REQUESTS, NEW_TOKENS = 4, 48


def measure_training() -> float:
    """Tokens per second of compiled training steps of the demo's model."""
    import torch  # noqa: PLC0415 - after OMP_WAIT_POLICY is set
    from training_speed import ours  # noqa: PLC0415

    from codekiln.recipes.demo import demo  # noqa: PLC0415

    config = demo().model
    step = ours(config, compiled=True)
    ids = torch.randint(0, config.vocab_size, (2048 // config.context_length, config.context_length))
    for _ in range(2):
        step(ids)
    return _rate(lambda: step(ids), ids.numel(), seconds=8)


def measure_decoding(run: Path) -> float:
    """Tokens per second of one completion after another."""
    from codekiln.generate.complete import Completer, CompletionParams, InfillRequest  # noqa: PLC0415
    from codekiln.generate.sampling import SamplingParams  # noqa: PLC0415

    completer = Completer.load(run)
    request = [InfillRequest("import os\n\n\ndef read(path):\n", "\n    return text\n")]

    def decode() -> int:
        sampling = SamplingParams(temperature=1.0, seed=0)
        return completer.complete(request, CompletionParams(max_new_tokens=NEW_TOKENS, sampling=sampling))[
            0
        ].completion_tokens

    n_tokens = decode()
    return _rate(decode, n_tokens, seconds=5)


def measure_serving(run: Path) -> float:
    """Tokens per second that clients receive who send requests at the same time."""
    import httpx  # noqa: PLC0415

    server = subprocess.Popen(
        [sys.executable, "-m", "codekiln", "serve", str(run), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    try:
        address = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
        body = {"prompt": "def read(path):\n", "max_tokens": NEW_TOKENS, "temperature": 1.0, "seed": 0}
        counts: list[int] = []

        def send() -> None:
            answer = httpx.post(f"{address.rstrip('/')}/v1/completions", json=body, timeout=300).raise_for_status()
            counts.append(answer.json()["usage"]["completion_tokens"])

        def send_all() -> int:
            threads = [threading.Thread(target=send) for _ in range(REQUESTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return sum(counts[-REQUESTS:])

        n_tokens = send_all()
        return _rate(send_all, n_tokens, seconds=5)
    finally:
        server.terminate()
        server.wait()


def _rate(work: Callable[[], object], n_tokens: int, *, seconds: float) -> float:
    """Tokens per second, `work` repeated for at least `seconds`."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        count += 1
    return count * n_tokens / (time.perf_counter() - start)


def measure(what: str, run: Path, policy: str, *, busy: bool) -> float:
    """One measurement in a process of its own."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy * (os.cpu_count() or 1))]
    try:
        environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        done = subprocess.run(
            [sys.executable, __file__, str(run), "--measure", what],
            env=environment | POLICIES[policy],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for process in others:
            process.kill()
            process.wait()
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=("training", "decoding", "serving"))
    arguments = parser.parse_args()
    run = arguments.run.absolute()
    if arguments.measure == "training":
        print(measure_training())
    elif arguments.measure == "decoding":
        print(measure_decoding(run))
    elif arguments.measure == "serving":
        print(measure_serving(run))
    else:
        for what in ("training", "decoding", "serving"):
            for busy in (False, True):
                rates: dict[str, list[float]] = {policy: [] for policy in POLICIES}
                for _ in range(arguments.rounds):
                    for policy, found in rates.items():
                        found.append(measure(what, run, policy, busy=busy))
                medians = {policy: statistics.median(found) for policy, found in rates.items()}
                beside = f"beside {os.cpu_count()} busy processes" if busy else "idle machine"
                shown = (f"{policy} {rate:,.0f} ({rate / medians['default']:.2f}x)" for policy, rate in medians.items())
                print(f"{what}, {beside}, tokens/s: {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
