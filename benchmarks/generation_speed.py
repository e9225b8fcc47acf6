"""Generation on one thread of a CPU: this engine, Transformers, CTranslate2 and llama.cpp on the same random weights.

python benchmarks/generation_speed.py [25M|25M-lfm2|350M ...]

25M is a Llama, 350M is CodeGen. 25M-lfm2 has the width and depth of 25M, with short convolutions in every second layer.

Each figure is tokens per second of processor time, the median of three rounds in which the engines alternate; every
measurement is a process of its own. Engines that are not installed (ctranslate2, xllamacpp) are left out.

decode 1, 8     new tokens of 1 and of 8 prompts of 64 tokens
prefill         tokens of a prompt of 512
samples         new tokens of 200 samples of one prompt of 256 tokens, with the memory of the process
keystroke       milliseconds for 8 tokens after a prompt of 512 tokens whose first 509 were the prompt before
"""

# ruff: noqa: PLC0415 - a measurement imports only what it measures

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENGINES = ("codekiln int8", "codekiln float32", "transformers", "ctranslate2 int8", "llama.cpp q8_0")
CASES = ("decode 1", "decode 8", "prefill", "samples", "keystroke")
PACKAGES = {"ctranslate2 int8": "ctranslate2", "llama.cpp q8_0": "xllamacpp"}
ROUNDS = 3
N_SAMPLES = {"25M": 200, "25M-lfm2": 200, "350M": 50}


def make_models(size: str, folder: Path) -> None:
    """The model directory, and its conversions, under `folder`."""
    import torch

    from codekiln.convert.models import export_model
    from codekiln.model.configs import KilnConfig, Lfm2Config, codegen
    from codekiln.model.huggingface import save_model
    from codekiln.model.transformer import Transformer
    from codekiln.tokenizer.bpe import hugging_face_configs
    from codekiln.tokenizer.codegen import codegen_tokenizer, load_gpt2_merges
    from codekiln.tokenizer.config import TokenizerConfig
    from codekiln.tokenizer.training import train_tokenizer

    torch.manual_seed(0)
    if size == "350M":
        config: Any = codegen("350M")
        tokenizer = codegen_tokenizer(load_gpt2_merges())
    else:
        texts = [path.read_text(encoding="utf-8") for path in sorted(Path("codekiln").rglob("*.py"))]
        tokenizer = train_tokenizer(TokenizerConfig(vocab_size=4096), texts)
        shape: dict[str, Any] = {
            "n_layers": 10, "d_model": 384, "n_heads": 6, "n_kv_heads": 6, "d_head": 64, "d_ff": 1024,
            "vocab_size": 16_384, "context_length": 2048,
        }  # fmt: skip
        has_convolutions = size == "25M-lfm2"
        config = (
            Lfm2Config(**shape, attention_layers=tuple(range(1, 10, 2)))
            if has_convolutions
            else KilnConfig(**shape, qk_norm=False)
        )
    model = Transformer(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.02)
    tokenizer.save(folder / "tokenizer.json")
    configs = hugging_face_configs(tokenizer, config.context_length)
    ids = {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id}
    save_model(folder / "hf", model, folder / "tokenizer.json", configs, ids)
    if importlib.util.find_spec("xllamacpp"):
        export_model(folder / "hf", folder / "model.gguf", "gguf", dtype="q8_0")
    if importlib.util.find_spec("ctranslate2") and size != "25M-lfm2":  # it has no convolutions
        import ctranslate2

        converter = ctranslate2.converters.TransformersConverter(str(folder / "hf"))
        converter.convert(str(folder / "ct2"), quantization="int8")
        config_path = folder / "ct2" / "config.json"
        settings = json.loads(config_path.read_text(encoding="utf-8"))
        settings["unk_token"] = (
            settings["unk_token"] or settings["eos_token"]
        )  # CodeGen has none, and it may not be null
        config_path.write_text(json.dumps(settings), encoding="utf-8")


def prompts(n: int, length: int) -> list[list[int]]:
    """Different prompts of ids that all models have."""
    return [[(7 * k * k + 13 * i * i + 5 * i + k) % 2000 + 300 for i in range(length)] for k in range(n)]


class Codekiln:
    """This engine."""

    def __init__(self, folder: Path, precision: Any) -> None:
        import torch

        from codekiln.generate.engine import Engine
        from codekiln.model.huggingface import load_model
        from codekiln.model.make_decoder import make_decoder

        torch.set_num_threads(1)
        none = frozenset[int]()
        decoder = make_decoder(load_model(folder / "hf"), precision)
        # Random text has no repetition, and the peers have no drafts.
        self.engine = Engine(decoder, stop_token_ids=none, forbidden_token_ids=none, has_drafts=False)
        self.n_calls = 0

    def run(self, rows: list[list[int]], n_new: int, n: int = 1, *, is_cached: bool = False) -> None:
        from codekiln.generate.sampling import GREEDY, SamplingParams

        self.n_calls += 1
        sampling = GREEDY if n == 1 else SamplingParams(temperature=0.8, top_p=0.95)
        key = "" if is_cached else str(self.n_calls)
        requests = [self.engine.add(row, sampling, max_new_tokens=n_new, n=n, cache_key=key) for row in rows]
        while not all(each.is_finished for each in requests):
            self.engine.step()


class Transformers:
    """Hugging Face's generate, in float32."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        torch.set_num_threads(1)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()

    def run(self, rows: list[list[int]], n_new: int, n: int = 1, *, is_cached: bool = False) -> None:
        import torch

        settings: dict[str, Any] = {"do_sample": False}
        if n > 1:
            settings = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0, "num_return_sequences": n}
        with torch.inference_mode():
            self.model.generate(
                torch.tensor(rows), max_new_tokens=n_new, min_new_tokens=n_new, pad_token_id=0, **settings
            )


class CTranslate2:
    """CTranslate2 with int8 weights."""

    def __init__(self, folder: Path) -> None:
        import ctranslate2
        import transformers

        self.generator = ctranslate2.Generator(str(folder / "ct2"), intra_threads=1, compute_type="int8")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")

    def run(self, rows: list[list[int]], n_new: int, n: int = 1, *, is_cached: bool = False) -> None:
        tokens = [self.tokenizer.convert_ids_to_tokens(row) for row in rows]
        settings: dict[str, Any] = {"sampling_topk": 1}
        if n > 1:
            settings = {"sampling_topk": 0, "sampling_topp": 0.95, "sampling_temperature": 0.8, "num_hypotheses": n}
        self.generator.generate_batch(
            tokens, max_length=n_new, min_length=n_new, include_prompt_in_result=False, end_token=[], **settings
        )


class LlamaCpp:
    """llama.cpp with q8_0 weights."""

    def __init__(self, folder: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(folder / "model.gguf")
        params.n_ctx, params.n_parallel = 16_384, 8
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup, params.n_predict = False, 64
        self.server = xllamacpp.Server(params)
        self.n_calls = 0

    def run(self, rows: list[list[int]], n_new: int, n: int = 1, *, is_cached: bool = False) -> None:
        from concurrent.futures import ThreadPoolExecutor

        import httpx

        if n > 1:
            rows = rows * n
        self.n_calls += 1

        def complete(row: list[int]) -> None:
            ids = row if is_cached else [(self.n_calls * 31 + 300) % 2000, *row[1:]]
            body = {"prompt": ids, "n_predict": n_new, "temperature": 0.8 if n > 1 else 0, "cache_prompt": is_cached}
            body |= {"ignore_eos": True, "id_slot": 0 if is_cached else -1}
            httpx.post(self.server.listening_address + "/completion", json=body, timeout=600).raise_for_status()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(complete, rows))


def make_engine(name: str, folder: Path) -> Any:
    match name:
        case "codekiln int8":
            return Codekiln(folder, "int8")
        case "codekiln float32":
            return Codekiln(folder, "float32")
        case "transformers":
            return Transformers(folder)
        case "ctranslate2 int8":
            return CTranslate2(folder)
        case _:
            return LlamaCpp(folder)


def cpu_seconds(function: Callable[[], None]) -> float:
    """Processor time of all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(engine: Any, case: str, size: str) -> float:
    """Tokens per CPU-second; for keystrokes, milliseconds."""
    match case:
        case "decode 1" | "decode 8":
            rows = prompts(int(case[-1]), 64)
            engine.run(rows, 4)
            short, long = cpu_seconds(lambda: engine.run(rows, 4)), cpu_seconds(lambda: engine.run(rows, 36))
            return len(rows) * 32 / (long - short)
        case "prefill":
            engine.run(prompts(1, 64), 1)
            return 512 / cpu_seconds(lambda: engine.run(prompts(1, 512), 1))
        case "samples":
            n = N_SAMPLES[size]
            engine.run(prompts(1, 64), 2)
            return n * 16 / cpu_seconds(lambda: engine.run(prompts(1, 256), 16, n))
        case _:
            row = prompts(1, 515)[0]
            engine.run([row[:509]], 1, is_cached=True)
            engine.run([row[:509]], 1, is_cached=True)
            return 1000 * cpu_seconds(lambda: engine.run([row[:512]], 8, is_cached=True))


def child(name: str, case: str, size: str, folder: Path) -> None:
    """Prints one measurement as JSON."""
    value = measure(make_engine(name, folder), case, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"value": value, "gigabytes": peak}))


def measurements(size: str, folder: Path, engines: list[str], cases: list[str]) -> Iterator[str]:
    """The rows of a Markdown table."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for case in cases:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for round_number in range(ROUNDS):
            for name in engines if round_number % 2 == 0 else engines[::-1]:
                command = [sys.executable, __file__, "--child", name, case, size, str(folder)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    found[name].append(json.loads(done.stdout.splitlines()[-1]))
                elif round_number == 0:
                    print(f"{name}, {case}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        cells = []
        base = statistics.median([each["value"] for each in found["transformers"]])
        for name in engines:
            if not found[name]:
                cells.append("-")
                continue
            value = statistics.median([each["value"] for each in found[name]])
            ratio = base / value if case == "keystroke" else value / base
            memory = f", {found[name][0]['gigabytes']:.2f} GB" if case == "samples" else ""
            cells.append(
                f"{value:.0f} ({ratio:.1f}x{memory})" if value >= 100 else f"{value:.1f} ({ratio:.1f}x{memory})"
            )
        yield f"| {size} {case} | " + " | ".join(cells) + " |"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, case, size, folder = sys.argv[2:]
        child(name, case, size, Path(folder))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["25M"], choices=list(N_SAMPLES))
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=CASES)
    arguments = parser.parse_args()
    engines = [name for name in ENGINES if importlib.util.find_spec(PACKAGES.get(name, "torch"))]
    print("| tokens per CPU-second | " + " | ".join(engines) + " |\n|" + "---|" * (len(engines) + 1))
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_models(size, Path(folder))
            for row in measurements(size, Path(folder), engines, arguments.case):
                print(row, flush=True)


if __name__ == "__main__":
    main()
