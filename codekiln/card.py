"""A run told from its records: CARD.md in the form of published model cards, and report.html."""

import html
from pathlib import Path
from typing import Any

from codekiln.charts import bar_chart, training_charts, write_page
from codekiln.corpus.documents import read_manifest
from codekiln.files import Record, read_record, replacing
from codekiln.folders import require_made
from codekiln.recipe import STAGES, stage_record
from codekiln.train.metrics import read_metrics

CARD, REPORT = "CARD.md", "report.html"
NOT_RECORDED = "/"


def write_card(run: Path) -> Path:
    """Writes CARD.md of a finished run."""
    stages = {name: stage_record(run, name) for name in ("tokens", "train", "evaluation")}
    require_made(run, "run")
    recipe, manifest = read_record(run / "recipe.json"), read_manifest(run / "corpus")
    lines = [f"# {recipe['name']}", ""]
    for heading, entries in _sections(recipe, manifest, stages).items():
        lines += [f"## {heading}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in entries.items()]
        lines.append("")
    with replacing(run / CARD) as draft:
        draft.write_text("\n".join(lines), encoding="utf-8")
    return run / CARD


def write_report(run: Path) -> Path:
    """Writes report.html, one file that needs no network. Everything from the corpus is escaped."""
    require_made(run, "run")
    name, manifest = read_record(run / "recipe.json")["name"], read_manifest(run / "corpus")
    lengths = stage_record(run, "tokens")["result"]["token_lengths"]
    charts = training_charts({name: read_metrics(run / "metrics.jsonl")})
    charts["Token lengths"] = bar_chart(lengths[1:], x_title="bytes", y_title="tokens of the vocabulary")
    write_page(
        run / REPORT,
        "report.html.jinja",
        name=name,
        charts=charts,
        trained=stage_record(run, "train")["result"],
        manifest=manifest,
        funnel=_funnel(manifest),
        evaluation=stage_record(run, "evaluation")["result"],
        functions=stage_record(run, "functions")["result"]["functions"],
        seconds={name: stage_record(run, name)["seconds"] for name in STAGES},
    )
    return run / REPORT


def results_of(run: Path) -> dict[str, str]:
    """The measured results in words, with 95 % intervals."""
    return _results(stage_record(run, "train")["result"], stage_record(run, "evaluation")["result"])


def _tokenizer(tokenizer: Record) -> str:
    if tokenizer["kind"] == "GivenTokenizer":
        return f"that of {tokenizer['name']}"
    return f"{tokenizer['vocab_size']:,} ids, control tokens among them; text split at {tokenizer['pattern']}"


_ARCHITECTURES = {
    "KilnConfig": "kiln: RMSNorm, rotary, grouped-query attention, SwiGLU; the shape of Qwen3, Qwen2 or Llama",
    "CodeGenConfig": "CodeGen: LayerNorm, attention and feed-forward layer in parallel, partly rotary, GELU; GPT-J's shape",
    "InCoderConfig": "InCoder: LayerNorm, sinusoids, GELU, tied head; XGLM's shape",
}


def _schedule(schedule: Record) -> tuple[str, str]:
    """The warm-up of a schedule and its course, in words."""
    if schedule["kind"] == "WarmupStableDecay":
        course = f"flat, then linearly to 0 over the last {schedule['decay_share']:.0%}"
        return f"{schedule['warmup_share']:.0%} of the steps", course
    warmup = f"{schedule['warmup_steps']:,} steps"
    if schedule["kind"] == "WarmupPolynomial":
        return warmup, f"polynomial to 0, power {schedule['power']:g}"
    anneal = "all the others" if schedule["anneal_steps"] is None else f"{schedule['anneal_steps']:,} steps"
    return warmup, f"cosine to {schedule['floor']:.3g} of the peak within {anneal}, then flat"


def _hyper_parameters(train: Record, model: Record, trained: Record) -> dict[str, Any]:
    optimizer = train["optimizer"]
    is_muon = optimizer["kind"] == "MuonPlan"
    betas = f"{optimizer['betas'][0]}, {optimizer['betas'][1]}"
    rates = f"{optimizer['muon_rate']:g} (Muon), {optimizer['adamw_rate']:g} (AdamW)" if is_muon else None
    warmup, course = _schedule(optimizer["schedule"])
    return {
        "Optimizer": "Muon for matrices in blocks, AdamW for the rest" if is_muon else "AdamW",
        "Betas": f"{betas}; Muon's momentum {optimizer['momentum']}" if is_muon else betas,
        "Eps": f"{optimizer['eps']:g}",
        "Batch size": f"{train['batch_rows'] * (train['context_length'] or model['context_length']):,} tokens",
        "Context window": f"{train['context_length'] or model['context_length']:,}",
        "Gradient accumulation": "as memory asks; the batch is the same",
        "Gradient clipping": f"global norm {optimizer['max_grad_norm']:g}",
        "Warm-up": warmup,
        "Learning rate": rates or f"{optimizer['rate']:g}",
        "Weight decay": f"{optimizer['weight_decay']:g}, decoupled, on matrices",
        "Schedule": course,
        "Precision": trained["precision"],
    }


def _results(trained: Record, evaluation: Record) -> dict[str, str]:
    results = {"Validation, left to right": _bits(trained["valid_bits_per_byte"])}
    for kind, entry in evaluation.items():
        if not entry["problems"]:
            results[f"Infilling, {kind}"] = "not measured: nothing is held out"
            continue
        results[f"Infilling, {kind}"] = (
            f"exact match {_share(entry['infill_exact_match'])} infilled, "
            f"{_share(entry['left_to_right_exact_match'])} left to right (n = {entry['problems']}); "
            f"{_bits(entry['infill_bits_per_byte'])} against {_bits(entry['left_to_right_bits_per_byte'])} in the holes, "
            f"a difference of {_signed(entry['bits_per_byte_difference'])}"
        )
    return results


def _sections(recipe: Record, manifest: Record, stages: dict[str, Record]) -> dict[str, dict[str, Any]]:
    model, train, trained = recipe["model"], recipe["train"], stages["train"]["result"]
    objective = train["objective"]
    sources = ", ".join(source["kind"] for source in recipe["corpus"]["sources"])
    read, kept, dropped = manifest["read"], manifest["kept"], manifest["dropped"]
    filters = "; ".join(
        " ".join([rule["kind"], *(f"{k}={v}" for k, v in rule.items() if k != "kind" and not isinstance(v, list))])
        for rule in recipe["corpus"]["rules"]
    )
    return {
        "Model": {
            "Publisher": NOT_RECORDED,
            "Architecture": f"decoder-only ({_ARCHITECTURES[model['kind']]})",
            "Model size": f"{trained['parameters']:,} parameters: {model['n_layers']} layers, d_model {model['d_model']}, "
            f"{model['n_heads']} heads ({model['n_kv_heads']} for keys) of {model['d_head']}, d_ff {model['d_ff']}",
        },
        "Data pre-processing": {
            "Resources": f"{sources}: {read['files']:,} files, {read['bytes'] / 1e6:,.1f} MB read; "
            f"{kept['documents']:,} documents, {kept['text_bytes'] / 1e6:,.1f} MB kept",
            "De-duplication": "exact, by ending and alphanumeric tokens: "
            f"{dropped.get('duplicate', {}).get('documents', 0):,} dropped",
            "Filters": filters,
            "Dropped": "; ".join(f"{reason}: {entry['documents']:,}" for reason, entry in dropped.items()) or "none",
            "E-mail addresses redacted": f"{manifest['emails_redacted']:,}",
            "Held out": f"by {manifest['heldout']['by']}: {', '.join(manifest['heldout']['repositories']) or NOT_RECORDED}",
            "Licences": "; ".join(f"{row['license']} ({row['n']:,})" for row in manifest["licenses"]),
        },
        "Tokenizer": {
            "Technology": "byte-level BPE",
            "Details": f"{_tokenizer(recipe['tokenizer'])}; "
            f"{_bytes_per_token(stages['tokens']['result']):.2f} bytes a token on held-out text",
        },
        "Hyper-parameters": _hyper_parameters(train, model, trained),
        "Training": {
            "Initialization": "from scratch" if recipe["start"] is None else f"the weights of {recipe['start']}",
            "Strategy": " ".join([objective["kind"], *(f"{k}={v}" for k, v in objective.items() if k != "kind")])
            + (f"; LoRA of rank {train['lora']['rank']}" if train["lora"] is not None else ""),
            "Tokens and steps": f"{trained['tokens']:,} tokens in {trained['steps']:,} steps",
            "Hardware": trained["hardware"],
            "Time": f"{trained['seconds'] / 60:.1f} minutes, {trained['tokens_per_second']:,.0f} tokens a second, "
            f"{trained['utilization']:.0%} of the matmul peak",
            "Carbon and cost": NOT_RECORDED,
        },
        "Results": _results(trained, stages["evaluation"]["result"]),
    }


def _bytes_per_token(tokens: Record) -> float:
    split = tokens["splits"]["heldout"]
    split = split if split["tokens"] else tokens["splits"]["train"]
    return float(split["text_bytes"] / max(1, split["tokens"]))


def _funnel(manifest: Record) -> list[Record]:
    """What is left after each reason, largest drop first."""
    left = manifest["read"]["files"]
    rows = [{"reason": "read", "documents": left, "left": left, "bytes": manifest["read"]["bytes"], "examples": []}]
    for reason, entry in manifest["dropped"].items():
        left -= entry["documents"]
        rows.append({"reason": reason, "left": left} | entry)
    return rows


def _share(entry: Record) -> str:
    return f"{entry['value']:.1%} [{entry['low']:.1%}, {entry['high']:.1%}]"


def _signed(entry: Record) -> str:
    return f"{entry['value']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"


def _bits(value: float | None) -> str:
    return f"{value:.3f} bits a byte" if value is not None else "not measured: nothing is held out"


def _cell(value: object) -> str:
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
