"""A recipe is everything that decides what a model becomes; building it leaves a run directory with the whole lineage.

Each stage writes its record last. Started again it does nothing if the record fits, goes on if it is unfinished, and
refuses, naming the field, if the record is of another recipe.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from codekiln.convert.models import load_tokenizer
from codekiln.corpus.documents import MANIFEST, Document, read_documents, read_manifest
from codekiln.corpus.pipeline import CorpusConfig, build_corpus
from codekiln.corpus.sample import balanced_sample
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.evaluate.functions import sample_functions
from codekiln.evaluate.infilling import InfillingConfig, aggregate, evaluate, sample_problems
from codekiln.files import JsonObject, first_difference, read_json, require_free_space, sha256_of, write_json
from codekiln.folders import claim_folder, refuse_links, require_separate
from codekiln.generate.complete import Completer, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.model.configs import ModelConfig
from codekiln.model.huggingface import CONFIG, TOKENIZER, read_config, save_model
from codekiln.model.tensors import named_weights
from codekiln.tokenizer.bpe import Tokenizer, hugging_face_configs
from codekiln.tokenizer.codegen import PRETRAINED, load_pretrained
from codekiln.tokenizer.training import TokenizerConfig, train_tokenizer
from codekiln.train.loggers import build_loggers
from codekiln.train.loop import RuntimeConfig, TrainConfig, train
from codekiln.train.lora import iter_merged_weights
from codekiln.train.metrics import MetricSink, read_metrics, summarize
from codekiln.train.parallel import EXIT, World, init_distributed, iter_full_tensors
from codekiln.train.prepare import prepare_shards

MAX_SAMPLES_SHOWN = 4  # problems of each kind that are kept in the record to be shown, in the order they were drawn


@dataclass(frozen=True)
class PretrainedTokenizer:
    """A tokenizer that is there already: "codegen" or "codegen-nl", or that of a model's folder."""

    name: str

    def load(self) -> Tokenizer:
        if self.name in PRETRAINED:
            return load_pretrained(self.name)
        folder = Path(self.name)
        return load_tokenizer(folder, read_config(folder)[1])[0]


@dataclass(frozen=True)
class Recipe:
    """All plans of a model, first stage to last. `min_free_bytes` is the room on the disk that a run takes.

    Training begins with the weights of the model directory `start`, if there is one. `infilling` None measures none, for
    models that cannot.
    """

    name: str
    corpus: CorpusConfig
    tokenizer: TokenizerConfig | PretrainedTokenizer
    model: ModelConfig
    train: TrainConfig
    infilling: InfillingConfig | None
    init_from: Path | None = None
    n_report_samples: int = 4
    min_free_bytes: int = 600_000_000

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, TokenizerConfig) and self.model.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"the model has {self.model.vocab_size} rows for {self.tokenizer.vocab_size} tokens: "
                "raise model.vocab_size or lower tokenizer.vocab_size"
            )
        if self.infilling is not None and 2 * self.infilling.max_new_tokens >= self.model.context_length // 2:
            raise ValueError(
                f"infilling.max_new_tokens is {self.infilling.max_new_tokens}: samples are made with twice as many, which "
                f"must be below half of the context of {self.model.context_length}"
            )


@dataclass(frozen=True)
class StagedRecipe:
    """Recipes one after the other, each on the weights of the one before; moments and steps begin anew (CodeGen, 2.3)."""

    name: str
    recipes: tuple[Recipe, ...]


# Weights and moments in float32, two checkpoints and one being written.
BYTES_PER_PARAMETER = 36
BYTES_PER_CHECKPOINT = 12
STAGES = ("corpus", "tokenizer", "tokens", "train", "evaluation", "functions")


def build_stages(chain: StagedRecipe, out: Path, runtime: RuntimeConfig, *, loggers: Sequence[str] = ()) -> list[Path]:
    """Builds every recipe of a chain into a run below `out`, and tells these in order. What is interrupted resumes."""
    claim_folder(out, "staged run")
    runs: list[Path] = []
    for k, recipe in enumerate(chain.recipes):
        run = out / f"{k + 1}-{recipe.name}"
        start = (runs[-1] / "model").absolute() if runs else recipe.init_from
        build(dataclasses.replace(recipe, init_from=start), run, runtime, loggers=loggers)
        runs.append(run)
    return runs


def build(
    recipe: Recipe, run: Path, runtime: RuntimeConfig, *, until: str | None = None, loggers: Sequence[str] = ()
) -> None:
    """All stages into `run`, or those up to `until`. Raises OSError or ValueError in words for the user.

    What is interrupted resumes, and a stage that is done is kept. Of the ranks that torchrun started all train, and the first
    does the other stages. `loggers` names what metrics are told to beside the log.
    """
    if until is not None and until not in STAGES:
        raise ValueError(f"no stage is called {until!r}: they are {', '.join(STAGES)}")
    with init_distributed(runtime.device, tensor_parallel=runtime.tensor_parallel) as world:
        recipe_record = to_record(recipe)
        if not world.is_main:
            world.serve_commands({"train": lambda inputs: _train(recipe, run, runtime, inputs, world)})
            return
        sinks = build_loggers(loggers, run)
        room = recipe.min_free_bytes + recipe.model.n_parameters * (
            BYTES_PER_PARAMETER + BYTES_PER_CHECKPOINT * recipe.train.n_permanent_checkpoints(recipe.model)
        )
        for source in recipe.corpus.sources:
            if isinstance(source, LocalRepositories):
                require_separate(run, source.folder)
        claim_folder(run, "run")
        refuse_links(run, ignored=frozenset({"wandb"}))  # W&B links its newest files itself
        with _run_lock(run):
            _require_same_recipe(run, recipe_record)
            if not (run / "recipe.json").exists():
                require_free_space(run, room)
                write_json(run / "recipe.json", recipe_record)
            for done in _stages(recipe, run, runtime, recipe_record, world, sinks):
                if done == until:
                    break
        world.send_command(EXIT)


def _stages(
    recipe: Recipe,
    run: Path,
    runtime: RuntimeConfig,
    recipe_record: JsonObject,
    world: World,
    loggers: Sequence[MetricSink],
) -> Iterator[str]:
    """Does the stages in order and tells the name of each that is done."""
    corpus, tokens, tokenizer, weights = (run / path for path in _OUTPUTS)
    run_stage(
        run,
        "corpus",
        corpus,
        recipe_record["corpus"],
        lambda: _corpus_result(build_corpus(recipe.corpus, run / "corpus")),
    )
    yield "corpus"
    inputs: JsonObject = {"corpus": sha256_of(corpus)}
    plan = inputs | {"plan": recipe_record["tokenizer"]}
    run_stage(run, "tokenizer", tokenizer, plan, lambda: _tokenizer(recipe.tokenizer, run))
    yield "tokenizer"
    inputs |= {"tokenizer": sha256_of(tokenizer)}
    run_stage(run, "tokens", tokens, inputs, lambda: _tokens(run))
    yield "tokens"
    inputs |= {"tokens": sha256_of(tokens), "model": recipe_record["model"], "train": recipe_record["train"]}
    if recipe.init_from is not None:
        inputs |= {"init_from": _weight_checksums(recipe.init_from)}

    def work() -> JsonObject:
        world.send_command("train", inputs)
        return _train(recipe, run, runtime, inputs, world, loggers)

    run_stage(run, "train", weights, inputs, work)
    yield "train"
    judged: JsonObject = {"weights": _weight_checksums(run / "model"), "corpus": inputs["corpus"]}
    plan = judged | {"plan": recipe_record["infilling"]}
    infilling = recipe.infilling
    run_stage(run, "evaluation", None, plan, lambda: _evaluate(infilling, run) if infilling is not None else {})
    yield "evaluation"
    shown = judged | {"n": recipe.n_report_samples}
    run_stage(
        run, "functions", None, shown, lambda: _functions(recipe, infilling, run) if infilling else {"functions": []}
    )
    yield "functions"


def _weight_checksums(folder: Path) -> JsonObject:
    """Checksums of the files that hold a model's weights."""
    names = (path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern))
    return {path.name: sha256_of(path) for path in sorted(names)}


# What a finished stage leaves: where it is gone, the stage is done again.
_OUTPUTS = (f"corpus/{MANIFEST}", f"tokens/{MANIFEST}", TOKENIZER, f"model/{CONFIG}")


def run_stage(
    run: Path, name: str, output: Path | None, inputs: JsonObject, work: Callable[[], JsonObject]
) -> JsonObject:
    """The record of a stage: the one that stands if it fits and its output is there, else of the work done now."""
    path = run / "stages" / f"{name}.json"
    if path.is_file() and (output is None or output.is_file()):
        record = read_json(path)
        if difference := first_difference(record["inputs"], inputs):
            raise ValueError(
                f"{run} holds the stage {name} of another recipe ({difference}): go on with that recipe or name another --out"
            )
        return record
    begun = time.perf_counter()
    result = work()
    record = {"inputs": inputs, "seconds": round(time.perf_counter() - begun, 2), "result": result}
    write_json(path, record)
    return record


def read_stage_record(run: Path, name: str) -> JsonObject:
    """The record of a finished stage. Raises OSError where it is not finished."""
    path = run / "stages" / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no finished stage {name}: run `codekiln build` on it to the end")
    return read_json(path)


def to_record(value: Any) -> Any:
    """Plain JSON of a recipe and all in it; objects carry their class as `kind`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_record(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__} | fields
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [to_record(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def apply_overrides(recipe: Recipe, settings: list[str]) -> Recipe:
    """The recipe with `train.total_tokens=100000` and the like applied together.

    Raises ValueError for unknown fields.
    """
    changes: JsonObject = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: write it as field=value, for instance train.total_tokens=100000")
        *outer, last = path.split(".")
        inner = changes
        for name in outer:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(
                    f"--set {setting}: {name} is set as a whole before; set its fields or the whole, not both"
                )
        inner[last] = text
    changed: Recipe = _apply(recipe, changes, "")
    return changed


def _apply_to_all(chain: StagedRecipe, settings: list[str]) -> StagedRecipe:
    """The chain with the same applied to every recipe."""
    return dataclasses.replace(chain, recipes=tuple(apply_overrides(recipe, settings) for recipe in chain.recipes))


def _apply(value: Any, changes: JsonObject, prefix: str) -> Any:
    known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    fresh = {}
    for name, change in changes.items():
        if name not in known:
            raise ValueError(f"--set {prefix}{name}: unknown; known here are {', '.join(known)}")
        old = known[name]
        if isinstance(change, dict):
            if not dataclasses.is_dataclass(old):
                raise ValueError(f"--set {prefix}{name}: it has no fields of its own")
            fresh[name] = _apply(old, change, f"{prefix}{name}.")
        elif get_origin(hint := get_type_hints(type(value))[name]) is Literal:
            if change not in get_args(hint):
                raise ValueError(f"--set {prefix}{name}={change}: known are {', '.join(map(str, get_args(hint)))}")
            fresh[name] = change
        else:
            fresh[name] = _parse_value(
                change, old if old is not None else _default_for(type(value), name), prefix + name
            )
    return dataclasses.replace(value, **fresh)


def _default_for(kind: type, name: str) -> Any:
    """A value of the type of a field that is None now; None itself where it is no plain one."""
    allowed = get_args(get_type_hints(kind)[name])
    return next((example for example in (0, 0.0) if type(example) in allowed), None)


def _parse_value(text: str, old: Any, name: str) -> Any:
    """The text as a value of the old one's type."""
    if old is None:
        raise ValueError(f"--set {name}={text}: it is not set like this; make a recipe of your own in Python")
    try:
        new = json.loads(text)
    except json.JSONDecodeError:
        new = text
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    if isinstance(old, tuple) and isinstance(new, list):
        new = tuple(new)
    if type(new) is not type(old):
        raise ValueError(
            f"--set {name}={text}: it must be of type {type(old).__name__}, like {json.dumps(to_record(old))}"
        )
    return new


def _require_same_recipe(run: Path, recipe_record: JsonObject) -> None:
    path = run / "recipe.json"
    if path.is_file() and (difference := first_difference(read_json(path), recipe_record)):
        raise ValueError(
            f"{run} was made by another recipe ({difference}): go on with that recipe or name another --out"
        )


@contextlib.contextmanager
def _run_lock(run: Path) -> Iterator[None]:
    """One process at a time works in a run. The lock goes with the process, however it ends."""
    with os.fdopen(os.open(run / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {run}: wait for it, or name another --out") from None
        yield


def _corpus_result(manifest: JsonObject) -> JsonObject:
    return {
        split: {key: entry[key] for key in ("documents", "text_bytes")} for split, entry in manifest["splits"].items()
    }


def _tokenizer(plan: TokenizerConfig | PretrainedTokenizer, run: Path) -> JsonObject:
    """Trains on a sample that is even over the corpus' languages, or takes what is given."""
    if isinstance(plan, PretrainedTokenizer):
        plan.load().save(run / TOKENIZER)
        return {"given": plan.name}
    sample = list(balanced_sample(run / "corpus", "train", plan.sample_bytes, plan.seed))
    tokenizer = train_tokenizer(plan, [document.text for document in sample])
    tokenizer.save(run / TOKENIZER)
    return {"documents": len(sample), "bytes": sum(len(document.text.encode()) for document in sample)}


def _tokens(run: Path) -> JsonObject:
    manifest = prepare_shards(run / "corpus", run / TOKENIZER, run / "tokens")
    tokenizer = Tokenizer.load(run / TOKENIZER)
    lengths = [0] * (1 + max(len(token) for token in tokenizer.token_bytes))
    for token in tokenizer.token_bytes:
        lengths[len(token)] += bool(token)
    splits = {
        name: {key: entry[key] for key in ("documents", "tokens", "text_bytes")}
        for name, entry in manifest["splits"].items()
    }
    return {"splits": splits, "token_lengths": lengths}


def _train(
    recipe: Recipe,
    run: Path,
    runtime: RuntimeConfig,
    inputs: JsonObject,
    world: World,
    loggers: Sequence[MetricSink] = (),
) -> JsonObject:
    tokenizer = Tokenizer.load(run / TOKENIZER)
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise ValueError(
            f"the model has {recipe.model.vocab_size} rows for {tokenizer.vocab_size} tokens: use the model's own tokenizer"
        )
    model = train(
        recipe.train,
        recipe.model,
        tokens=run / "tokens",
        tokenizer=tokenizer,
        run=run,
        runtime=runtime,
        inputs=inputs,
        init_from=recipe.init_from,
        world=world,
        loggers=loggers,
    )
    weights = iter_full_tensors(named_weights(model)) if recipe.train.lora is None else iter_merged_weights(model)
    if not world.is_main:
        for _ in weights:  # which the first rank writes
            pass
        return {}
    configs = hugging_face_configs(tokenizer, recipe.model.context_length)
    save_model(run / "model", model, run / TOKENIZER, configs, (tokenizer.bos_id, tokenizer.eos_id), weights=weights)
    where = f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}, {runtime.device}"
    return {
        "parameters": recipe.model.n_parameters,
        **summarize(read_metrics(run / "metrics.jsonl")),
        "hardware": where if world.world_size == 1 else f"{world.world_size} ranks, {where}",
        "precision": "float32" if runtime.device == "cpu" else "bfloat16 with float32 weights",
    }


def _evaluate(plan: InfillingConfig, run: Path) -> JsonObject:
    """Infilling of both kinds, on held-out documents; none where nothing is held out."""
    completer = Completer.load(run)
    result: JsonObject = {}
    for kind, problems in sample_problems(_validation_documents(run), plan).items():
        results = evaluate(completer, problems, plan, title=f"Measure: {kind} infilling")
        shown = [result for exact in (True, False) for result in _first(results, exact)]
        samples = [
            dataclasses.asdict(v.problem) | {"infill": v.infill, "left_to_right": v.left_to_right} for v in shown
        ]
        result[kind] = aggregate(results) | {"samples": samples}
    return result


def _first(results: list[Any], exact: bool) -> Iterator[Any]:
    """The first drawn verdicts that infilling got right, or wrong."""
    return islice((result for result in results if result.is_infill_exact is exact), MAX_SAMPLES_SHOWN)


def _functions(recipe: Recipe, plan: InfillingConfig, run: Path) -> JsonObject:
    """What the model makes of held-out functions: the body completed, and a hidden line infilled."""
    completer = Completer.load(run)
    shown = []
    for function in sample_functions(_validation_documents(run), recipe.n_report_samples, seed=plan.seed):
        lines = function.body.splitlines(keepends=True)
        reference = lines[function.hidden_line].rstrip("\n")
        prompt = function.before + "".join(lines[: function.hidden_line])
        suffix = "".join(["\n" * lines[function.hidden_line].endswith("\n"), *lines[function.hidden_line + 1 :]])
        limit = 2 * plan.max_new_tokens
        completion = completer.complete([InfillRequest(function.before)], max_new_tokens=limit, sampling=GREEDY)[0]
        infill = completer.complete([InfillRequest(prompt, suffix)], max_new_tokens=limit, sampling=GREEDY)[0]
        shown.append(
            {
                "name": function.name,
                "before": function.before,
                "body": function.body,
                "completion": completion.text,
                "hidden": reference,
                "prompt": prompt,
                "suffix": suffix,
                "infill": infill.text,
            }
        )
    return {"functions": shown}


def _validation_documents(run: Path) -> Iterator[Document]:
    has_any = read_manifest(run / "corpus")["splits"]["heldout"]["documents"]
    return read_documents(run / "corpus", "heldout") if has_any else iter(())
