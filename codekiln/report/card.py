"""The model card, CARD.md, in the form of published cards, and report.html, both from the records of a run."""

import html
from pathlib import Path
from typing import Any

from codekiln.corpus.documents import MANIFEST, read_manifest
from codekiln.corpus.steps.exact import DUPLICATE
from codekiln.corpus.steps.filters import REASONS
from codekiln.corpus.steps.near import NEAR_DUPLICATE
from codekiln.evaluate.config import MEMORIZATION
from codekiln.files import JsonObject, atomic_write, read_json
from codekiln.folders import require_made
from codekiln.metrics_log import METRICS_FILE, read_metrics
from codekiln.report.charts import bar_chart, training_charts, write_page
from codekiln.runs import STAGE_NAMES, StageRecord, read_recipe, read_stage_record, require_stage_output
from codekiln.train.config import MUON_MOMENTUM

CARD, REPORT = "CARD.md", "report.html"
EVALUATIONS, RESULTS = "evaluation", "results.json"  # where `codekiln evaluate` writes
NOT_RECORDED = "not recorded"


def write_card(run: Path) -> Path:
    """Writes CARD.md of a finished run."""
    stages = {name: read_stage_record(run, name) for name in ("tokens", "train", "evaluation", "recall")}
    require_made(run, "run")
    recipe, manifest = read_recipe(run), _read_manifest(run)
    lines = [f"# {recipe['name']}", ""]
    sections = _sections(recipe, manifest, stages)
    sections["Results"] |= _benchmark_lines(run)
    for heading, entries in sections.items():
        lines += [f"## {heading}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in entries.items()]
        lines.append("")
    with atomic_write(run / CARD) as temp_path:
        temp_path.write_text("\n".join(lines), encoding="utf-8")
    return run / CARD


def write_report(run: Path) -> Path:
    """Writes report.html of a finished run. Text from the corpus is escaped."""
    require_made(run, "run")
    name, manifest = read_recipe(run)["name"], _read_manifest(run)
    lengths = read_stage_record(run, "tokens")["result"]["token_lengths"]
    charts = training_charts({name: read_metrics(run / METRICS_FILE)})
    evaluation = read_stage_record(run, "evaluation")["result"]
    charts["Token lengths"] = bar_chart(lengths[1:], x_title="bytes", y_title="tokens of the vocabulary")
    write_page(
        run / REPORT,
        "report.html.jinja",
        name=name,
        charts=charts,
        trained=read_stage_record(run, "train")["result"],
        manifest=manifest,
        funnel=_drop_funnel(manifest),
        evaluation={kind: entry for kind, entry in evaluation.items() if kind != MEMORIZATION},
        memorization=evaluation.get(MEMORIZATION),
        recall=_recall_rows(read_stage_record(run, "recall")["result"]),
        functions=read_stage_record(run, "functions")["result"]["functions"],
        seconds={name: read_stage_record(run, name)["seconds"] for name in STAGE_NAMES},
    )
    return run / REPORT


def _read_manifest(run: Path) -> JsonObject:
    """The manifest of the run's corpus, as the corpus stage wrote it. Raises CorruptFileError for another one."""
    require_stage_output(run, "corpus", run / "corpus" / MANIFEST)
    return read_manifest(run / "corpus")


def summarize_results(run: Path) -> dict[str, str]:
    """The results as text, with 95% intervals."""
    return _result_lines(read_stage_record(run, "train")["result"], read_stage_record(run, "evaluation")["result"])


def _tokenizer(tokenizer: JsonObject) -> str:
    if tokenizer["kind"] == "PretrainedTokenizer":
        return f"that of {tokenizer['name']}"
    if tokenizer["kind"] == "InheritedTokenizer":
        added = " with 38 more ids for runs of white space" if tokenizer["has_white_space"] else ""
        return f"that of the model that training started from{added}"
    return f"{tokenizer['vocab_size']:,} ids including special tokens; text split by {tokenizer['pattern']}"


_ARCHITECTURES = {
    "KilnConfig": "kiln: RMSNorm, rotary, grouped-query attention, SwiGLU; as Qwen3, Qwen2 or Llama",
    "Lfm2Config": "LFM2: RMSNorm, short gated convolutions and grouped-query attention, rotary, SwiGLU",
    "CodeGenConfig": "CodeGen: LayerNorm, attention and feed-forward layer in parallel, partly rotary, GELU; as GPT-J",
    "StarCoder2Config": "StarCoder2: LayerNorm, rotary, grouped-query attention, GELU",
    "InCoderConfig": "InCoder: LayerNorm, sinusoids, GELU, tied embeddings; as XGLM",
}


def _architecture(model: JsonObject) -> str:
    kind = str(model["kind"])
    described = _ARCHITECTURES.get(kind, kind)
    if kind == "Lfm2Config" and not model["tie_embeddings"]:
        described += "; vLLM computes wrong tokens for it, because it uses the embedding as the output layer"
    return described


def describe_schedule(schedule: JsonObject) -> tuple[str, str]:
    """The warm-up of a schedule and the rest of its course. A schedule without a text of its own is listed by fields."""
    match schedule["kind"]:
        case "WSD":
            warmup = f"{schedule['warmup_fraction']:.0%} of the steps"
            return warmup, f"constant, then linear to 0 over the last {schedule['decay_fraction']:.0%}"
        case "WarmupPolynomial":
            return f"{schedule['warmup_steps']:,} steps", f"polynomial to 0, power {schedule['power']:g}"
        case "WarmupCosine":
            steps = schedule["decay_steps"]
            within = "all other steps" if steps is None else f"{steps:,} steps"
            course = f"cosine to {schedule['min_lr_ratio']:.3g} of the peak within {within}, then constant"
            return f"{schedule['warmup_steps']:,} steps", course
        case kind:
            return NOT_RECORDED, _fields(kind, schedule)


def describe_optimizer(optimizer: JsonObject) -> dict[str, str]:
    """The optimizer, its betas and its learning rates. An optimizer without a text of its own is listed by fields."""
    betas = ", ".join(map(str, optimizer.get("betas", ()))) or NOT_RECORDED
    match optimizer["kind"]:
        case "AdamWConfig":
            return {"Optimizer": "AdamW", "Betas": betas, "Learning rate": f"{optimizer['lr']:g}"}
        case "MuonConfig":
            lr = f"{optimizer['muon_lr']:g} (Muon), {optimizer['adamw_lr']:g} (AdamW)"
            name = "Muon for matrices in blocks, AdamW for the rest"
            return {"Optimizer": name, "Betas": f"{betas}; Muon momentum {MUON_MOMENTUM}", "Learning rate": lr}
        case kind:
            return {"Optimizer": _fields(kind, optimizer), "Betas": betas, "Learning rate": NOT_RECORDED}


def _fields(kind: object, record: JsonObject) -> str:
    return f"{kind}: " + ", ".join(f"{name}={value}" for name, value in record.items() if name != "kind")


def _hyper_parameters(train: JsonObject, model: JsonObject, trained: JsonObject) -> dict[str, Any]:
    optimizer = train["optimizer"]
    context = train["context_length"] or model["context_length"]
    described = describe_optimizer(optimizer)
    warmup, course = describe_schedule(optimizer["schedule"])
    batch_tokens = (
        trained["tokens"] // trained["steps"]
    )  # with epochs, a small corpus makes it smaller than in the recipe
    accumulation = trained.get("micro_batches_per_step")
    return {
        "Optimizer": described["Optimizer"],
        "Betas": described["Betas"],
        "Eps": f"{optimizer['eps']:g}",
        "Batch size": f"{batch_tokens:,} tokens",
        "Context window": f"{context:,}",
        "Gradient accumulation": NOT_RECORDED if accumulation is None else f"micro-batches per step: {accumulation:,}",
        "Gradient clipping": f"global norm {optimizer['max_grad_norm']:g}",
        "Warm-up": warmup,
        "Learning rate": described["Learning rate"],
        "Weight decay": f"{optimizer['weight_decay']:g}, decoupled, on matrices",
        "Schedule": course,
        "Precision": trained["precision"],
        "Dropout": _dropout(train),
        "Z-loss": f"{train['z_loss']:g}",
    }


def _initialization(recipe: JsonObject) -> str:
    if recipe["init_from"] is not None:
        return f"the weights of {recipe['init_from']}"
    return f"from scratch (initialization: {recipe['train'].get('initialization', NOT_RECORDED)})"


def _dropout(train: JsonObject) -> str:
    """Not recorded in runs of versions without it."""
    if "dropout" not in train:
        return NOT_RECORDED
    return f"{train['dropout']:g}; {train['attention_dropout']:g} of the weights of attention"


def _de_duplication(steps: list[JsonObject], dropped: JsonObject) -> str:
    """The steps that compare documents, with their rules, and how many documents each reason dropped."""
    found = []
    for step in steps:
        if step["kind"] == "ExactDuplicates":
            key = "file extension and alphanumeric tokens" if step["key"] == "words" else "SHA-256 of the content"
            found.append(f"exact, by {key}: {_n_dropped(dropped, DUPLICATE)}")
        elif step["kind"] == "NearDuplicates":
            rule = f"near-duplicates (Jaccard similarity of five-word shingles from {step['threshold']:g})"
            found.append(f"{rule}: {_n_dropped(dropped, NEAR_DUPLICATE)}")
    return "; ".join(found) or "none"


def _filters(steps: list[JsonObject], dropped: JsonObject) -> str:
    """The filters with their thresholds, and how many documents each dropped."""
    found = []
    for filter_ in (each for step in steps for each in step.get("filters", ())):
        thresholds = [f"{name}={value}" for name, value in filter_.items() if name not in ("kind", "phrases")]
        reason = REASONS.get(filter_["kind"])
        counts = NOT_RECORDED if reason is None else _n_dropped(dropped, reason)
        found.append(f"{' '.join([filter_['kind'], *thresholds])}: {counts}")
    return "; ".join(found) or "none"


def _n_dropped(dropped: JsonObject, reason: str) -> str:
    return f"{dropped.get(reason, {}).get('documents', 0):,} dropped"


def _benchmark_lines(run: Path) -> dict[str, str]:
    """The metrics of every evaluation in the folder of the run, with 95% intervals."""
    lines = {}
    for path in sorted((run / EVALUATIONS).glob(f"*/{RESULTS}")):
        for name, entry in read_json(path)["benchmarks"].items():
            metrics = [
                f"{metric} {_format_metric(metric, result['interval'])}" for metric, result in entry["metrics"].items()
            ]
            lines[f"{name} ({path.parent.name})"] = "; ".join(metrics) or NOT_RECORDED
    return lines


def _format_metric(metric: str, interval: JsonObject | None) -> str:
    """Bits per byte as they are, and fractions as percentages."""
    if interval is None:
        return NOT_RECORDED
    if metric.startswith("bits_per_byte"):
        return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**interval)
    return _format_percent(interval)


def _result_lines(trained: JsonObject, evaluation: JsonObject) -> dict[str, str]:
    results = {"Validation, left to right": _format_bpb(trained["validation_bits_per_byte"])}
    for kind, entry in evaluation.items():
        if kind == MEMORIZATION:
            continue
        if not entry["problems"]:
            results[f"Infilling, {kind}"] = "not measured (no held-out data)"
            continue
        skipped = f", {entry['skipped']} too long for the context" if entry["skipped"] else ""
        results[f"Infilling, {kind}"] = (
            f"exact match {_format_percent(entry['infill_exact_match'])} infilling, "
            f"{_format_percent(entry['left_to_right_exact_match'])} left to right (n = {entry['problems']}{skipped}); "
            f"the true text has {_format_bpb(entry['infill_bits_per_byte'])} infilling, "
            f"{_format_bpb(entry['left_to_right_bits_per_byte'])} left to right, "
            f"difference {_format_difference(entry['bits_per_byte_difference'])}"
        )
    return results


def _sections(recipe: JsonObject, manifest: JsonObject, stages: dict[str, StageRecord]) -> dict[str, dict[str, Any]]:
    model, train, trained = recipe["model"], recipe["train"], stages["train"]["result"]
    objective = train["objective"]
    sources = ", ".join(source["kind"] for source in recipe["corpus"]["sources"])
    read, kept, dropped = manifest["read"], manifest["kept"], manifest["dropped"]
    steps = recipe["corpus"]["steps"]
    held_out = manifest["validation"]
    return {
        "Model": {
            "Publisher": NOT_RECORDED,
            "Architecture": f"decoder-only ({_architecture(model)})",
            "Model size": f"{trained['parameters']:,} parameters: {model['n_layers']} layers, d_model {model['d_model']}, "
            f"{model['n_heads']} heads ({model['n_kv_heads']} for keys) of {model['d_head']}, d_ff {model['d_ff']}",
        },
        "Data pre-processing": {
            "Resources": f"{sources}: {read['files']:,} files, {read['bytes'] / 1e6:,.1f} MB read; "
            f"{kept['documents']:,} documents, {kept['text_bytes'] / 1e6:,.1f} MB kept",
            "De-duplication": _de_duplication(steps, dropped),
            "Filters": _filters(steps, dropped),
            "Steps": ", ".join(step["kind"] for step in steps),
            "Dropped": "; ".join(f"{reason}: {entry['documents']:,}" for reason, entry in dropped.items()) or "none",
            "Redacted": "; ".join(f"{rule}: {n:,}" for rule, n in manifest["redacted"].items()) or "nothing",
            "Copyright notices removed": f"{manifest['notices_removed']:,}",
        },
        "Tokenizer": {
            "Technology": "byte-level BPE",
            "Details": f"{_tokenizer(recipe['tokenizer'])}; "
            f"{_bytes_per_token(stages['tokens']['result']):.2f} bytes per token on held-out text",
        },
        "Hyper-parameters": _hyper_parameters(train, model, trained),
        "Training": {
            "Initialization": _initialization(recipe),
            "Strategy": " ".join([objective["kind"], *(f"{k}={v}" for k, v in objective.items() if k != "kind")])
            + (f"; LoRA of rank {train['lora']['rank']}" if train["lora"] is not None else ""),
            "Tokens and steps": f"{trained['tokens']:,} tokens in {trained['steps']:,} steps",
            "Hardware": trained["hardware"],
            "Time": f"{trained['seconds'] / 60:.1f} minutes, {trained['tokens_per_second']:,.0f} tokens per second, "
            f"{trained['matmul_efficiency']:.0%} of the matmul peak",
        },
        "Results": _result_lines(trained, stages["evaluation"]["result"])
        | {"Recall": _format_recall(stages["recall"]["result"])},
        "Corpus and costs": {
            "Licenses": "; ".join(f"{row['license']} ({row['documents']:,})" for row in manifest["licenses"]),
            "Languages": "; ".join(
                f"{row['language'] or 'unknown'}: {row['documents']:,} of {row['files_read']:,} files"
                for row in manifest["languages"]
            ),
            "Held out": f"by {held_out['by']}: {', '.join(held_out['names']) or NOT_RECORDED}"
            + _overlap_text(held_out["overlap"]),
            "Memorization": _format_memorization(stages["evaluation"]["result"].get(MEMORIZATION)),
            "Energy": NOT_RECORDED,
            "Cost": NOT_RECORDED,
        },
    }


RECALL_SETTINGS = {
    "alone": "nothing (the model alone)",
    "request": "text of the document itself",
    "corpus": "the document and the training corpus",
    "workspace": "the document, the training corpus and other files of the same repository",
}


def _format_recall(result: JsonObject) -> str:
    lines = [
        f"{row['setting']}: {row['bits_per_byte']} bits per byte, exact single lines {row['exact']}"
        for row in _recall_rows(result)
    ]
    return "; ".join(lines) or "not measured"


def _recall_rows(result: JsonObject) -> list[JsonObject]:
    """What is mixed in, with the results on held-out documents and the difference from the model alone."""
    bits, infilling = result.get("bits_per_byte", {}), result.get("infilling", {})
    if not bits.get("documents") or not infilling.get("problems"):
        return []
    rows = []
    for setting, title in RECALL_SETTINGS.items():
        bits_entry, exact_entry = bits[setting], infilling[setting]
        is_alone = setting == "alone"
        rows.append(
            {
                "setting": title,
                "bits_per_byte": f"{bits_entry if is_alone else bits_entry['value']:.3f}",
                "bits_difference": "" if is_alone else _format_metric("bits_per_byte", bits_entry["difference"]),
                "exact": _format_percent(exact_entry if is_alone else exact_entry["value"]),
                "exact_difference": "" if is_alone else _format_percent(exact_entry["difference"]),
            }
        )
    return rows


def _overlap_text(overlap: JsonObject | None) -> str:
    """What the held-out split shares with the training split; nothing if it was not compared."""
    if overlap is None:
        return ""
    return f"; {overlap['fraction']:.2%} of its words are in runs of {overlap['run_words']} words of the training split"


def _bytes_per_token(tokens: JsonObject) -> float:
    split = tokens["splits"]["validation"]
    split = split if split["tokens"] else tokens["splits"]["train"]
    return float(split["text_bytes"] / max(1, split["tokens"]))


def _drop_funnel(manifest: JsonObject) -> list[JsonObject]:
    """What is left after each reason to drop files, in the order of the steps."""
    left = manifest["read"]["files"]
    listed = {"step": "", "reason": "listed", "documents": left, "bytes": manifest["read"]["bytes"], "examples": []}
    rows = [listed | {"left": left}]
    for step in manifest["steps"]:
        for reason, entry in manifest["dropped"].items():
            if entry["step"] == step["step"]:
                left -= entry["documents"]
                rows.append(entry | {"reason": reason, "left": left})
    return rows


def _format_memorization(entry: JsonObject | None) -> str:
    if entry is None:
        return NOT_RECORDED
    if not entry["prompts"]:
        return f"not measured ({entry['reason']})"
    return (
        f"{_format_percent(entry['memorized'])} of {entry['tokens']:,} written tokens are in verbatim matches of at least "
        f"{entry['min_match_tokens']} tokens of the training documents ({entry['prompts']} held-out prompts, temperature "
        f"{entry['temperature']:g}, up to {entry['max_new_tokens']} new tokens each)"
    )


def _format_percent(entry: JsonObject) -> str:
    return f"{entry['value']:.1%} [{entry['low']:.1%}, {entry['high']:.1%}]"


def _format_difference(entry: JsonObject) -> str:
    return f"{entry['value']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"


def _format_bpb(value: float | None) -> str:
    return f"{value:.3f} bits per byte" if value is not None else "not measured (no held-out data)"


def _cell(value: object) -> str:
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
