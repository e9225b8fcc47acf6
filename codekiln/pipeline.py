"""Builds a recipe into a run directory: eight stages, each of which resumes, and is skipped once it is finished."""

import dataclasses
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch

from codekiln.convert.models import load_tokenizer
from codekiln.corpus.documents import DROPPED, MANIFEST, Document, read_documents, read_manifest
from codekiln.corpus.engine import CorpusOptions
from codekiln.corpus.pipeline import build_corpus, read_fingerprints
from codekiln.corpus.sample import balanced_sample
from codekiln.errors import ConfigError, MissingFileError
from codekiln.evaluate.config import MEMORIZATION
from codekiln.evaluate.memorization import evaluate_memorization
from codekiln.evaluate.recall import fit_and_measure
from codekiln.evaluate.run import evaluate_infilling, sample_report_functions
from codekiln.files import JsonObject, first_difference, require_free_space, sha256_of, to_record
from codekiln.folders import claim_folder, folder_lock, refuse_links, require_separate
from codekiln.generate.complete import Completer
from codekiln.generate.recall import run_gate
from codekiln.index.build import MANIFEST as INDEX_MANIFEST
from codekiln.index.search import INDEX_FOLDER, open_run_index
from codekiln.indexing import index_tokens
from codekiln.metrics_log import METRICS_FILE, MetricSink, read_metrics, summarize
from codekiln.model.huggingface import TOKENIZER, read_config, require_vocabulary, save_model, stop_token_ids_in
from codekiln.model.tensors import named_weights
from codekiln.recipe import InheritedTokenizer, PretrainedTokenizer, Recipe, StagedRecipe
from codekiln.runs import (
    RECIPE_FILE,
    STAGE_NAMES,
    STAGE_OUTPUTS,
    read_stage_record,
    require_same_recipe,
    require_stage_output,
    stage_path,
    write_recipe,
    write_stage_record,
)
from codekiln.tokenizer.bpe import Tokenizer, hugging_face_configs
from codekiln.tokenizer.codegen import PRETRAINED, load_pretrained, with_white_space
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.config import RuntimeConfig
from codekiln.train.loggers import build_loggers
from codekiln.train.loop import micro_batch_sequences, train
from codekiln.train.lora import iter_merged_weights
from codekiln.train.parallel import EXIT, World, init_distributed, iter_full_tensors
from codekiln.train.prepare import prepare_shards

# Disk space: weights and optimizer state in float32, in two checkpoints and one that is being written.
BYTES_PER_PARAMETER = 36
BYTES_PER_PERMANENT_CHECKPOINT = 12  # per parameter


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process that builds a recipe."""

    recipe: Recipe
    record: JsonObject  # the recipe as JSON
    run: Path
    runtime: RuntimeConfig
    world: World
    corpus: CorpusOptions
    sinks: Sequence[MetricSink] = ()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`inputs` identifies what a stage is made from; it runs again if its record or its output file is missing.

    `is_on` is false for a stage that the recipe leaves out: it writes a record and nothing else.
    """

    name: str
    inputs: Callable[[Job], JsonObject]
    run: Callable[[Job, JsonObject], JsonObject]
    is_on: Callable[[Job], bool] = lambda job: True


def build(
    recipe: Recipe,
    run: Path,
    runtime: RuntimeConfig,
    *,
    stop_after: str | None = None,
    loggers: Sequence[str] = (),
    corpus: CorpusOptions | None = None,
) -> None:
    """Runs all stages of a recipe in the folder `run`, or those up to `stop_after`. Raises CodekilnError or OSError.

    Finished stages are skipped, unfinished ones resume. Under torchrun all ranks train, and rank 0 does the other stages.
    `loggers` names where metrics go in addition to metrics.jsonl. If the code of the corpus has changed since it was built,
    the run is refused, unless `corpus.keep` is set.
    """
    if stop_after is not None and stop_after not in STAGE_NAMES:
        raise ConfigError(f"unknown stage {stop_after!r}: choose from {', '.join(STAGE_NAMES)}")
    with init_distributed(runtime.device, tensor_parallel=runtime.tensor_parallel) as world:
        job = Job(
            recipe=recipe,
            record=to_record(recipe),
            run=run,
            runtime=runtime,
            world=world,
            corpus=corpus or CorpusOptions(),
        )
        if not world.is_main:
            world.serve_commands({"train": lambda inputs: _train(job, inputs)})
            return
        job = dataclasses.replace(job, sinks=build_loggers(loggers, run))
        _open_run(job)
        with folder_lock(run):
            require_same_recipe(run, job.record)
            if not (run / RECIPE_FILE).exists():
                require_free_space(run, _needed_bytes(recipe))
                write_recipe(run, job.record)
            if (
                job.corpus.keep_dropped
                and stage_path(run, "corpus").is_file()
                and not (run / "corpus" / DROPPED).is_dir()
            ):
                raise ConfigError(
                    f"the corpus of {run} is complete, without dropped files: use another --out to keep them"
                )
            if not job.corpus.keep:
                _require_same_sources(job)
            for stage in STAGES:
                _run_stage(stage, job)
                if stage.name == stop_after:
                    break
        world.send_command(EXIT)


def build_stages(
    recipe: StagedRecipe,
    out: Path,
    runtime: RuntimeConfig,
    *,
    loggers: Sequence[str] = (),
    corpus: CorpusOptions | None = None,
) -> list[Path]:
    """Builds every recipe of a staged recipe into a run in the folder `out`. Returns the runs in order."""
    claim_folder(out, "staged run")
    runs: list[Path] = []
    for k, stage in enumerate(recipe.recipes):
        run = out / f"{k + 1}-{stage.name}"
        init_from = (runs[-1] / "model").absolute() if runs else stage.init_from
        build(dataclasses.replace(stage, init_from=init_from), run, runtime, loggers=loggers, corpus=corpus)
        runs.append(run)
    return runs


def _open_run(job: Job) -> None:
    """Creates the run or accepts it if Codekiln made it. Raises CodekilnError for anything else in the way."""
    for source in job.recipe.corpus.sources:
        for folder in source.folders:
            require_separate(job.run, folder)
    claim_folder(job.run, "run")
    refuse_links(job.run, ignored=frozenset({"wandb"}))  # W&B itself links its newest files


def _require_same_sources(job: Job) -> None:
    """Raises ConfigError if the code has changed since the corpus was built."""
    if not stage_path(job.run, "corpus").is_file():
        return
    built_from = read_stage_record(job.run, "corpus")["result"].get("sources")
    for before, source in zip(built_from or (), job.recipe.corpus.sources, strict=False):
        now = source.fingerprint()
        if before != now:
            unit = "files" if "files" in now else "repositories"
            counts = f" ({before[unit]} {unit} then, {now[unit]} now)" if unit in before and unit in now else ""
            raise ConfigError(
                f"the input in {now.get('folder')} has changed since the corpus of {job.run} was built{counts}: "
                "use another --out to train on it, or --keep-corpus to continue with the corpus as it is"
            )


def _needed_bytes(recipe: Recipe) -> int:
    n_permanent = recipe.train.n_permanent_checkpoints(recipe.model)
    per_parameter = BYTES_PER_PARAMETER + BYTES_PER_PERMANENT_CHECKPOINT * n_permanent
    return recipe.min_free_bytes + recipe.model.n_parameters * per_parameter


def _run_stage(stage: Stage, job: Job) -> None:
    """Runs a stage unless it is finished. Raises ConfigError if it was finished from other inputs.

    Raises CorruptFileError if its output is no longer the file that it wrote.
    """
    inputs = stage.inputs(job)
    name = STAGE_OUTPUTS[stage.name]
    output = job.run / name if name is not None and stage.is_on(job) else None
    record = stage_path(job.run, stage.name)
    if record.is_file() and (output is None or output.is_file()):
        found = read_stage_record(job.run, stage.name)
        if output is not None:
            require_stage_output(job.run, stage.name, output)
        if difference := first_difference(found["inputs"], inputs):
            raise ConfigError(
                f"the stage {stage.name} of {job.run} was made by another recipe ({difference}): "
                "use the same recipe, or another --out"
            )
        return
    start = time.perf_counter()
    result = stage.run(job, inputs) if stage.is_on(job) else {}
    write_stage_record(
        job.run,
        stage.name,
        inputs=inputs,
        seconds=time.perf_counter() - start,
        result=result,
        output_sha256=sha256_of(output) if output is not None else None,
    )


def _corpus(job: Job, inputs: JsonObject) -> JsonObject:
    manifest = build_corpus(
        job.recipe.corpus, job.run / "corpus", job.corpus.engine, keep_dropped=job.corpus.keep_dropped
    )
    keys = ("documents", "text_bytes")
    splits = {split: {key: entry[key] for key in keys} for split, entry in manifest["splits"].items()}
    return {"splits": splits, "sources": read_fingerprints(job.run / "corpus")}


def _tokenizer_inputs(job: Job) -> JsonObject:
    inputs = {"corpus": sha256_of(job.run / "corpus" / MANIFEST), "config": job.record["tokenizer"]}
    if isinstance(job.recipe.tokenizer, InheritedTokenizer):
        inputs["inherited"] = sha256_of(_inherited_tokenizer(job.recipe))
    return inputs


def _inherited_tokenizer(recipe: Recipe) -> Path:
    """The file of the tokenizer that a recipe inherits. Raises ConfigError or MissingFileError if there is none."""
    if recipe.init_from is None:
        raise ConfigError(f"the recipe {recipe.name} inherits its tokenizer, and init_from names no model: name one")
    path = recipe.init_from / TOKENIZER
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist: the recipe {recipe.name} inherits the tokenizer of its model")
    return path


def _tokenizer(job: Job, inputs: JsonObject) -> JsonObject:
    """Trains on a sample in which all languages have equal shares, or copies another tokenizer."""
    config = job.recipe.tokenizer
    match config:
        case PretrainedTokenizer():
            load_pretrained_tokenizer(config).save(job.run / TOKENIZER)
            return {"pretrained": config.name}
        case InheritedTokenizer():
            tokenizer = Tokenizer.load(path := _inherited_tokenizer(job.recipe))
            (with_white_space(tokenizer) if config.has_white_space else tokenizer).save(job.run / TOKENIZER)
            return {"inherited": str(path)}
        case TokenizerConfig():
            sample = list(balanced_sample(job.run / "corpus", "train", config.sample_bytes, config.seed))
            train_tokenizer(config, [document.text for document in sample]).save(job.run / TOKENIZER)
            return {"documents": len(sample), "bytes": sum(len(document.text.encode()) for document in sample)}
        case _:
            assert_never(config)


def load_pretrained_tokenizer(config: PretrainedTokenizer) -> Tokenizer:
    """The tokenizer that a recipe names."""
    if config.name in PRETRAINED:
        return load_pretrained(config.name)
    folder = Path(config.name)
    return load_tokenizer(folder, read_config(folder)[1])[0]


def _tokens_inputs(job: Job) -> JsonObject:
    return {"corpus": sha256_of(job.run / "corpus" / MANIFEST), "tokenizer": sha256_of(job.run / TOKENIZER)}


def _tokens(job: Job, inputs: JsonObject) -> JsonObject:
    manifest = prepare_shards(job.run / "corpus", job.run / TOKENIZER, job.run / "tokens")
    token_bytes = Tokenizer.load(job.run / TOKENIZER).token_bytes
    lengths = [0] * (1 + max(len(token) for token in token_bytes))  # how many tokens have how many bytes
    for token in token_bytes:
        lengths[len(token)] += bool(token)
    keys = ("documents", "tokens", "text_bytes")
    splits = {name: {key: entry[key] for key in keys} for name, entry in manifest["splits"].items()}
    return {"splits": splits, "token_lengths": lengths}


def _index_inputs(job: Job) -> JsonObject:
    return _tokens_inputs(job) | {"tokens": sha256_of(job.run / "tokens" / MANIFEST), "config": job.record["index"]}


def _index(job: Job, inputs: JsonObject) -> JsonObject:
    assert job.recipe.index is not None
    manifest = index_tokens(job.run, job.recipe.index)
    return {"documents": manifest["documents"], "tokens": manifest["tokens"], "shards": len(manifest["shards"])}


def _train_inputs(job: Job) -> JsonObject:
    inputs = _tokens_inputs(job) | {
        "tokens": sha256_of(job.run / "tokens" / MANIFEST),
        "model": job.record["model"],
        "train": job.record["train"],
    }
    init_from = job.recipe.init_from
    return inputs if init_from is None else inputs | {"init_from": _weight_checksums(init_from)}


def _lead_training(job: Job, inputs: JsonObject) -> JsonObject:
    """Training on rank 0, which the other ranks join."""
    job.world.send_command("train", inputs)
    return _train(job, inputs)


def _train(job: Job, inputs: JsonObject) -> JsonObject:
    """Training, on any rank. Rank 0 writes the model directory."""
    recipe, run, world = job.recipe, job.run, job.world
    tokenizer = Tokenizer.load(run / TOKENIZER)
    require_vocabulary(tokenizer.vocab_size, recipe.model)
    model = train(
        recipe.train,
        recipe.model,
        tokens=run / "tokens",
        tokenizer=tokenizer,
        run=run,
        runtime=job.runtime,
        inputs=inputs,
        init_from=recipe.init_from,
        world=world,
        sinks=job.sinks,
    )
    weights = iter_full_tensors(named_weights(model)) if recipe.train.lora is None else iter_merged_weights(model)
    if not world.is_main:
        for _ in weights:  # all ranks take part in gathering each weight
            pass
        return {}
    configs = hugging_face_configs(tokenizer, recipe.model.context_length)
    save_model(run / "model", model, run / TOKENIZER, configs, _token_ids(recipe, tokenizer), weights=weights)
    summary = summarize(read_metrics(run / METRICS_FILE))
    device = f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}, {job.runtime.device}"
    return {
        "parameters": recipe.model.n_parameters,
        **summary,
        "micro_batches_per_step": _micro_batches_per_step(job, summary["tokens"] // summary["steps"]),
        "hardware": device if world.world_size == 1 else f"{world.world_size} ranks, {device}",
        "precision": "float32" if job.runtime.device == "cpu" else "bfloat16 with float32 weights",
        "weights": _weight_checksums(run / "model"),
    }


def _micro_batches_per_step(job: Job, batch_tokens: int) -> int:
    """How often a rank accumulates gradients in a step, as the run ended."""
    context = job.recipe.train.seq_len(job.recipe.model)
    n_sequences = batch_tokens // context // job.world.dp_size
    return math.ceil(n_sequences / micro_batch_sequences(n_sequences, context, job.runtime))


def _token_ids(recipe: Recipe, tokenizer: Tokenizer) -> JsonObject:
    """The ids that begin and end a text. A fine-tuned model keeps all stop tokens of the model that it comes from."""
    stop = stop_token_ids_in(recipe.init_from) & tokenizer.special_ids if recipe.init_from is not None else frozenset()
    eos = [tokenizer.eos_id, *sorted(stop - {tokenizer.eos_id})]
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos if len(eos) > 1 else eos[0]}


def _evaluation_inputs(job: Job) -> JsonObject:
    inputs = _model_inputs(job) | {"config": job.record["infilling"]}
    return inputs if job.recipe.index is None else inputs | {"index": sha256_of(_index_manifest(job))}


def _evaluate(job: Job, inputs: JsonObject) -> JsonObject:
    config = job.recipe.infilling
    if config is None:
        return {}
    completer = Completer.load(job.run)
    result = evaluate_infilling(completer, _validation_documents(job.run), config)
    if job.recipe.index is not None:
        index = open_run_index(job.run, job.run / TOKENIZER)
        result[MEMORIZATION] = evaluate_memorization(completer, index, _validation_documents(job.run), config)
    return result


def _index_manifest(job: Job) -> Path:
    return job.run / INDEX_FOLDER / INDEX_MANIFEST


def _recall_inputs(job: Job) -> JsonObject:
    index = None if job.recipe.index is None else sha256_of(_index_manifest(job))
    return _model_inputs(job) | {"index": index, "config": job.record["infilling"]}


def _recall(job: Job, inputs: JsonObject) -> JsonObject:
    """Fits and measures recall. The gate is a file of the run."""
    assert job.recipe.infilling is not None
    index = open_run_index(job.run, job.run / TOKENIZER)
    completer = Completer.load(job.run)
    gate, result = fit_and_measure(completer, index, _validation_documents(job.run), job.recipe.infilling)
    gate.save(run_gate(job.run))
    return result


def _functions_inputs(job: Job) -> JsonObject:
    return _model_inputs(job) | {"n_report_samples": job.recipe.n_report_samples}


def _functions(job: Job, inputs: JsonObject) -> JsonObject:
    recipe = job.recipe
    if recipe.infilling is None:
        return {"functions": []}
    documents = _validation_documents(job.run)
    functions = sample_report_functions(Completer.load(job.run), documents, recipe.n_report_samples, recipe.infilling)
    return {"functions": functions}


def _model_inputs(job: Job) -> JsonObject:
    return {"weights": _weight_checksums(job.run / "model"), "corpus": sha256_of(job.run / "corpus" / MANIFEST)}


def _weight_checksums(folder: Path) -> JsonObject:
    """SHA-256 of each file that holds weights of a model directory."""
    names = (path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern))
    return {path.name: sha256_of(path) for path in sorted(names)}


def _validation_documents(run: Path) -> Iterator[Document]:
    n_documents = read_manifest(run / "corpus")["splits"]["validation"]["documents"]
    return read_documents(run / "corpus", "validation") if n_documents else iter(())


STAGES = (
    Stage(name="corpus", inputs=lambda job: dict(job.record["corpus"]), run=_corpus),
    Stage(name="tokenizer", inputs=_tokenizer_inputs, run=_tokenizer),
    Stage(name="tokens", inputs=_tokens_inputs, run=_tokens),
    Stage(
        name="index",
        inputs=_index_inputs,
        run=_index,
        is_on=lambda job: job.recipe.index is not None,
    ),
    Stage(name="train", inputs=_train_inputs, run=_lead_training),
    Stage(name="evaluation", inputs=_evaluation_inputs, run=_evaluate),
    Stage(
        name="recall",
        inputs=_recall_inputs,
        run=_recall,
        is_on=lambda job: job.recipe.index is not None and job.recipe.infilling is not None,
    ),
    Stage(name="functions", inputs=_functions_inputs, run=_functions),
)
assert tuple(stage.name for stage in STAGES) == STAGE_NAMES
