"""What causal masking gains and costs: InCoder's comparison, at a size that two cores can train.

Run: `python benchmarks/infilling_objectives.py RUN --out DIR [--tokens 4000000] [--seeds 3] [--threads 2]`. RUN is a
finished run of the demo, whose corpus is read. Each seed trains two models that differ only in the objective: causal masking
(InCoder, section 2.1), and left to right. Both fill the same held-out holes. Prints exact match and bits per byte of
infilling, of left to right, and of left to right with reranking (section 4.1: ten samples at temperature 0.8, ranked by the
probability of the whole text). Also prints how much the objective adds to the left-to-right loss. Intervals are over
problems, each the mean of its seeds. Ranges are over seeds. Run the same command again to resume.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from codekiln.corpus.documents import read_documents
from codekiln.corpus.sample import balanced_sample
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.held_out.holes import sample_problems
from codekiln.evaluate.infilling import greedy_settings, hole_answers, middle_bits
from codekiln.evaluate.metrics import Interval, mean_interval, ratio_interval
from codekiln.evaluate.problems.holes import HoleProblem
from codekiln.files import JsonObject, read_json, write_json
from codekiln.generate.complete import Completer
from codekiln.metrics_log import read_metrics
from codekiln.model.configs import ModelConfig
from codekiln.recipes.demo import demo
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.special_tokens import INCODER_SPECIAL_TOKENS
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.config import RuntimeConfig
from codekiln.train.loop import train
from codekiln.train.objectives import CausalMasking, NextToken, Objective
from codekiln.train.prepare import prepare_shards

OBJECTIVES: dict[str, Objective] = {"causal masking": CausalMasking(sampling="released"), "left to right": NextToken()}
N_MERGED = 2048  # ids that are no control tokens
PLAN = InfillingConfig(n_problems=500)


def prepared(run: Path, out: Path) -> Tokenizer:
    """One tokenizer for both objectives, and the corpus' tokens."""
    path = out / "tokenizer.json"
    if not (out / "tokens" / "manifest.json").is_file():
        sample = [document.text for document in balanced_sample(run / "corpus", "train", 6_000_000, 0)]
        plan = TokenizerConfig(vocab_size=N_MERGED + len(INCODER_SPECIAL_TOKENS), special_tokens=INCODER_SPECIAL_TOKENS)
        train_tokenizer(plan, sample).save(path)
        prepare_shards(run / "corpus", path, out / "tokens")
    return Tokenizer.load(path)


def measured(completer: Completer, problems: dict[str, list[HoleProblem]], *, can_infill: bool) -> JsonObject:
    """By kind of hole and way of filling it: which problems were hit, and their bits."""
    found: JsonObject = {}
    for kind, of_kind in problems.items():
        reranking = replace(greedy_settings(PLAN, "reranking"), temperatures=(0.8,))
        ways = {"reranked": reranking, "left to right": greedy_settings(PLAN, "left-to-right")}
        if can_infill:
            ways["infilled"] = greedy_settings(PLAN, "infilling")
        for way, settings in ways.items():
            answers = hole_answers(completer, of_kind, settings, title=f"{kind}, {way}")
            found[f"{kind}, {way}"] = {
                "exact": [p.text_scores(answer)["exact_match"] for answer, p in zip(answers, of_kind, strict=True)],
                "bits": None if way == "reranked" else middle_bits(completer, of_kind, with_suffix=way == "infilled"),
            }
    return found


def trained(
    run: Path, out: Path, name: str, seed: int, config: ModelConfig, tokenizer: Tokenizer, n_tokens: int
) -> JsonObject:
    """The record of one model: trained, or read if it exists."""
    folder = out / f"{name.replace(' ', '-')}-{seed}"
    path = folder / "measured.json"
    if not path.is_file():
        plan = dataclasses.replace(
            demo().train,
            objective=OBJECTIVES[name],
            total_tokens=n_tokens,
            eval_sequences=256,
            eval_every=100,
            save_every=100,
            seed=seed,
        )
        model = train(
            plan, config, tokens=out / "tokens", tokenizer=tokenizer, run=folder, runtime=RuntimeConfig(), inputs={}
        )
        problems = sample_problems(read_documents(run / "corpus", "validation"), PLAN)
        write_json(
            path,
            {
                "tokens": n_tokens,
                "valid": read_metrics(folder / "metrics.jsonl")[-1]["validation_bits_per_byte"],
                "bytes": {kind: [len(p.reference.encode()) for p in of_kind] for kind, of_kind in problems.items()},
                "found": measured(Completer.of_model(model, tokenizer), problems, can_infill=name == "causal masking"),
            },
        )
    record = read_json(path)
    if record["tokens"] != n_tokens:
        raise SystemExit(f"{folder} holds a model of {record['tokens']} tokens: name another --out")
    return record


def format_interval(seeds: list[float], interval: Interval, *, unit: Callable[[float], str]) -> str:
    """A mean with its interval over problems, and its range over seeds."""
    low, high = unit(interval["low"]), unit(interval["high"])
    return f"{unit(interval['value'])} [{low}, {high}] | {unit(min(seeds))} to {unit(max(seeds))}"


def table(records: dict[str, list[JsonObject]]) -> None:
    """All of it as Markdown."""
    first = next(iter(records.values()))[0]
    print("| trained by | hole, filled | exact, 95 % interval | of seeds | bits per byte, 95 % interval | of seeds |")
    print("|---|---|---|---|---|---|")
    kinds = list(first["bytes"])
    exact: dict[tuple[str, str], np.ndarray] = {}
    bits: dict[tuple[str, str], np.ndarray] = {}
    for objective, of_seeds in records.items():
        for way in of_seeds[0]["found"]:
            n_bytes = np.array(first["bytes"][next(kind for kind in kinds if way.startswith(kind))], float)
            hits = exact[objective, way] = np.array([r["found"][way]["exact"] for r in of_seeds], float)
            cells = format_interval(hits.mean(1).tolist(), mean_interval(hits.mean(0)), unit="{:.1%}".format)
            if of_seeds[0]["found"][way]["bits"] is not None:
                spent = bits[objective, way] = np.array([r["found"][way]["bits"] for r in of_seeds])
                rates = (spent.sum(1) / n_bytes.sum()).tolist()
                cells += " | " + format_interval(rates, ratio_interval(spent.mean(0), n_bytes), unit="{:.3f}".format)
            else:
                cells += " | – | –"
            print(f"| {objective} | {way} | {cells} |")
    print("\n| infilled by causal masking less | exact, 95 % interval | of seeds | bits per byte | of seeds |")
    print("|---|---|---|---|---|")
    for kind, (objective, way) in itertools.product(kinds, itertools.product(records, ("left to right", "reranked"))):
        ours = "causal masking", f"{kind}, infilled"
        theirs = objective, f"{kind}, {way}"
        n_bytes = np.array(first["bytes"][kind], float)
        hits = exact[ours] - exact[theirs]
        cells = format_interval(hits.mean(1).tolist(), mean_interval(hits.mean(0)), unit="{:+.1%}".format)
        if theirs in bits:
            spent = bits[ours] - bits[theirs]
            rates = (spent.sum(1) / n_bytes.sum()).tolist()
            cells += " | " + format_interval(rates, ratio_interval(spent.mean(0), n_bytes), unit="{:+.3f}".format)
        else:
            cells += " | – | –"
        print(f"| {kind}, {way}, trained by {objective} | {cells} |")
    valid = {name: np.array([r["valid"] for r in of_seeds]) for name, of_seeds in records.items()}
    price = valid["causal masking"] - valid["left to right"]
    rows = ", ".join(
        f"{name} {rates.mean():.4f} ({rates.min():.4f} to {rates.max():.4f})" for name, rates in valid.items()
    )
    print(
        f"\nheld out, left to right, bits per byte: {rows}; the objective costs {json.dumps(price.round(4).tolist())} by seed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="all there are without it")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = prepared(arguments.run, arguments.out)
    config = dataclasses.replace(demo().model, vocab_size=-(-tokenizer.vocab_size // 64) * 64)
    records: dict[str, list[JsonObject]] = {name: [] for name in OBJECTIVES}
    for seed in range(arguments.seeds):
        for name in OBJECTIVES:
            records[name].append(trained(arguments.run, arguments.out, name, seed, config, tokenizer, arguments.tokens))
    table(records)


if __name__ == "__main__":
    main()
