"""A run told from its records: CARD.md in the form of published model cards, and report.html."""

import html
from pathlib import Path
from typing import Any

from codekiln.corpus.documents import read_manifest
from codekiln.files import JsonObject, atomic_write, read_json
from codekiln.folders import require_made
from codekiln.recipe import STAGES, read_stage_record
from codekiln.report.charts import bar_chart, training_charts, write_page
from codekiln.train.metrics import read_metrics

CARD, REPORT = "CARD.md", "report.html"
NOT_RECORDED = "/"


def write_card(run: Path) -> Path:
    """Writes CARD.md of a finished run."""
    stages = {name: read_stage_record(run, name) for name in ("tokens", "train", "evaluation")}
    require_made(run, "run")
    recipe, manifest = read_json(run / "recipe.json"), read_manifest(run / "corpus")
    lines = [f"# {recipe['name']}", ""]
    for heading, entries in _sections(recipe, manifest, stages).items():
        lines += [f"## {heading}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in entries.items()]
        lines.append("")
    with atomic_write(run / CARD) as temp_path:
        temp_path.write_text("\n".join(lines), encoding="utf-8")
    return run / CARD


def write_report(run: Path) -> Path:
    """Writes report.html, one file that needs no network. Everything from the corpus is escaped."""
    require_made(run, "run")
    name, manifest = read_json(run / "recipe.json")["name"], read_manifest(run / "corpus")
    lengths = read_stage_record(run, "tokens")["result"]["token_lengths"]
    charts = training_charts({name: read_metrics(run / "metrics.jsonl")})
    charts["Token lengths"] = bar_chart(lengths[1:], x_title="bytes", y_title="tokens of the vocabulary")
    write_page(
        run / REPORT,
        "report.html.jinja",
        name=name,
        charts=charts,
        trained=read_stage_record(run, "train")["result"],
        manifest=manifest,
        funnel=_drop_funnel(manifest),
        evaluation=read_stage_record(run, "evaluation")["result"],
        functions=read_stage_record(run, "functions")["result"]["functions"],
        seconds={name: read_stage_record(run, name)["seconds"] for name in STAGES},
    )
    return run / REPORT


def summarize_results(run: Path) -> dict[str, str]:
    """The measured results in words, with 95 % intervals."""
    return _result_lines(read_stage_record(run, "train")["result"], read_stage_record(run, "evaluation")["result"])


def _tokenizer(tokenizer: JsonObject) -> str:
    if tokenizer["kind"] == "PretrainedTokenizer":
        return f"that of {tokenizer['name']}"
    return f"{tokenizer['vocab_size']:,} ids, control tokens among them; text split at {tokenizer['pattern']}"


_ARCHITECTURES = {
    "KilnConfig": "kiln: RMSNorm, rotary, grouped-query attention, SwiGLU; the shape of Qwen3, Qwen2 or Llama",
    "CodeGenConfig": "CodeGen: LayerNorm, attention and feed-forward layer in parallel, partly rotary, GELU; GPT-J's shape",
    "InCoderConfig": "InCoder: LayerNorm, sinusoids, GELU, tied head; XGLM's shape",
}


def _schedule(schedule: JsonObject) -> tuple[str, str]:
    """The warm-up of a schedule and its course, in words."""
    if schedule["kind"] == "WSD":
        course = f"flat, then linearly to 0 over the last {schedule['decay_fraction']:.0%}"
        return f"{schedule['warmup_fraction']:.0%} of the steps", course
    warmup = f"{schedule['warmup_steps']:,} steps"
    if schedule["kind"] == "WarmupPolynomial":
        return warmup, f"polynomial to 0, power {schedule['power']:g}"
    anneal = "all the others" if schedule["decay_steps"] is None else f"{schedule['decay_steps']:,} steps"
    return warmup, f"cosine to {schedule['min_lr_ratio']:.3g} of the peak within {anneal}, then flat"


def _hyper_parameters(train: JsonObject, model: JsonObject, trained: JsonObject) -> dict[str, Any]:
    optimizer = train["optimizer"]
    is_muon = optimizer["kind"] == "MuonConfig"
    betas = f"{optimizer['betas'][0]}, {optimizer['betas'][1]}"
    rates = f"{optimizer['muon_lr']:g} (Muon), {optimizer['adamw_lr']:g} (AdamW)" if is_muon else None
    warmup, course = _schedule(optimizer["schedule"])
    return {
        "Optimizer": "Muon for matrices in blocks, AdamW for the rest" if is_muon else "AdamW",
        "Betas": f"{betas}; Muon's momentum {optimizer['momentum']}" if is_muon else betas,
        "Eps": f"{optimizer['eps']:g}",
        "Batch size": f"{train['global_batch_size'] * (train['context_length'] or model['context_length']):,} tokens",
        "Context window": f"{train['context_length'] or model['context_length']:,}",
        "Gradient accumulation": "as memory asks; the batch is the same",
        "Gradient clipping": f"global norm {optimizer['max_grad_norm']:g}",
        "Warm-up": warmup,
        "Learning rate": rates or f"{optimizer['lr']:g}",
        "Weight decay": f"{optimizer['weight_decay']:g}, decoupled, on matrices",
        "Schedule": course,
        "Precision": trained["precision"],
    }


def _result_lines(trained: JsonObject, evaluation: JsonObject) -> dict[str, str]:
    results = {"Validation, left to right": _format_bpb(trained["validation_bits_per_byte"])}
    for kind, entry in evaluation.items():
        if not entry["problems"]:
            results[f"Infilling, {kind}"] = "not measured: nothing is held out"
            continue
        results[f"Infilling, {kind}"] = (
            f"exact match {_format_percent(entry['infill_exact_match'])} infilled, "
            f"{_format_percent(entry['left_to_right_exact_match'])} left to right (n = {entry['problems']}); "
            f"{_format_bpb(entry['infill_bits_per_byte'])} against {_format_bpb(entry['left_to_right_bits_per_byte'])} in the holes, "
            f"a difference of {_format_difference(entry['bits_per_byte_difference'])}"
        )
    return results


def _sections(recipe: JsonObject, manifest: JsonObject, stages: dict[str, JsonObject]) -> dict[str, dict[str, Any]]:
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
            "Held out": f"by {manifest['validation']['by']}: {', '.join(manifest['validation']['repositories']) or NOT_RECORDED}",
            "Licences": "; ".join(f"{row['license']} ({row['n']:,})" for row in manifest["licenses"]),
        },
        "Tokenizer": {
            "Technology": "byte-level BPE",
            "Details": f"{_tokenizer(recipe['tokenizer'])}; "
            f"{_bytes_per_token(stages['tokens']['result']):.2f} bytes a token on held-out text",
        },
        "Hyper-parameters": _hyper_parameters(train, model, trained),
        "Training": {
            "Initialization": "from scratch"
            if recipe["init_from"] is None
            else f"the weights of {recipe['init_from']}",
            "Strategy": " ".join([objective["kind"], *(f"{k}={v}" for k, v in objective.items() if k != "kind")])
            + (f"; LoRA of rank {train['lora']['rank']}" if train["lora"] is not None else ""),
            "Tokens and steps": f"{trained['tokens']:,} tokens in {trained['steps']:,} steps",
            "Hardware": trained["hardware"],
            "Time": f"{trained['seconds'] / 60:.1f} minutes, {trained['tokens_per_second']:,.0f} tokens a second, "
            f"{trained['matmul_efficiency']:.0%} of the matmul peak",
            "Carbon and cost": NOT_RECORDED,
        },
        "Results": _result_lines(trained, stages["evaluation"]["result"]),
    }


def _bytes_per_token(tokens: JsonObject) -> float:
    split = tokens["splits"]["heldout"]
    split = split if split["tokens"] else tokens["splits"]["train"]
    return float(split["text_bytes"] / max(1, split["tokens"]))


def _drop_funnel(manifest: JsonObject) -> list[JsonObject]:
    """What is left after each reason, largest drop first."""
    left = manifest["read"]["files"]
    rows = [{"reason": "read", "documents": left, "left": left, "bytes": manifest["read"]["bytes"], "examples": []}]
    for reason, entry in manifest["dropped"].items():
        left -= entry["documents"]
        rows.append({"reason": reason, "left": left} | entry)
    return rows


def _format_percent(entry: JsonObject) -> str:
    return f"{entry['value']:.1%} [{entry['low']:.1%}, {entry['high']:.1%}]"


def _format_difference(entry: JsonObject) -> str:
    return f"{entry['value']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"


def _format_bpb(value: float | None) -> str:
    return f"{value:.3f} bits a byte" if value is not None else "not measured: nothing is held out"


def _cell(value: object) -> str:
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
