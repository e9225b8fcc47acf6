"""Commands that train: demo, train, finetune; and those that look ahead: plan, recipes."""
# ruff: noqa: PLC0415

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codekiln.cli.options import (
    ActivationCheckpointing,
    Code,
    Compile,
    Data,
    DecontaminateFiles,
    Device,
    EngineName,
    ExcludedLists,
    Json,
    KeepCorpus,
    KeepDropped,
    License,
    Loggers,
    Memory,
    MicroBatch,
    Out,
    Overrides,
    RayAddress,
    RecipeArgument,
    TensorParallel,
    exit_interrupted,
    is_main_rank,
    parse_name,
    parse_path,
    print_note,
    print_table,
)
from codekiln.cli.report import write_reports

if TYPE_CHECKING:
    from rich.console import Console

    from codekiln.corpus.engine import CorpusOptions, EngineKind
    from codekiln.recipe import Recipe, StagedRecipe
    from codekiln.recipes.papers import CardRow
    from codekiln.train.config import RuntimeConfig


def demo(
    out: Out = Path("runs/demo"),
    code: Code = None,
    license: License = None,
    decontaminate: DecontaminateFiles = None,
    exclude: ExcludedLists = None,
    overrides: Overrides = None,
    device: Device = "cpu",
    micro_batch_tokens: MicroBatch = 2048,
    compile: Compile = None,
    loggers: Loggers = None,
    engine: EngineName = "native",
    ray_address: RayAddress = None,
    memory: Memory = "2GB",
    keep_dropped: KeepDropped = False,
    keep_corpus: KeepCorpus = False,
) -> None:
    """Train a small model on the installed Python packages and show samples (about 15 minutes)."""
    from codekiln.train.config import RuntimeConfig

    runtime = RuntimeConfig(device=device, micro_batch_tokens=micro_batch_tokens, compile=compile)
    recipe = _recipe("demo", code, license, overrides, decontaminate, exclude)
    corpus = _corpus_options(engine, ray_address, memory, keep_dropped=keep_dropped, keep=keep_corpus)
    _train(recipe, out, runtime, None, loggers, corpus)
    if is_main_rank():
        _show_demo(out)


def train(
    recipe: RecipeArgument,
    out: Out,
    stop_after: Annotated[
        str | None,
        typer.Option(
            help="Stop after this stage: corpus, tokenizer, tokens, index, train, evaluation, recall or functions.",
            show_default=False,
        ),
    ] = None,
    code: Code = None,
    license: License = None,
    data: Data = None,
    decontaminate: DecontaminateFiles = None,
    exclude: ExcludedLists = None,
    overrides: Overrides = None,
    device: Device = "cpu",
    micro_batch_tokens: MicroBatch = 2048,
    compile: Compile = None,
    tensor_parallel: TensorParallel = 1,
    activation_checkpointing: ActivationCheckpointing = False,
    loggers: Loggers = None,
    engine: EngineName = "native",
    ray_address: RayAddress = None,
    memory: Memory = "2GB",
    keep_dropped: KeepDropped = False,
    keep_corpus: KeepCorpus = False,
) -> None:
    """Run all stages of a recipe; resumes if interrupted. For several GPUs: torchrun -m codekiln train …"""
    from codekiln.train.config import RuntimeConfig

    runtime = RuntimeConfig(
        device=device,
        micro_batch_tokens=micro_batch_tokens,
        compile=compile,
        tensor_parallel=tensor_parallel,
        activation_checkpointing=activation_checkpointing,
    )
    built = _recipe(recipe, code, license, overrides, decontaminate, exclude, data)
    corpus = _corpus_options(engine, ray_address, memory, keep_dropped=keep_dropped, keep=keep_corpus)
    _train(built, out, runtime, stop_after, loggers, corpus)


def finetune(
    model: Annotated[
        str, typer.Argument(help="Run directory, model folder or Hub id.", show_default=False, parser=parse_name)
    ],
    code: Annotated[Path, typer.Option(help="Folder with source code.", show_default=False, parser=parse_path)],
    out: Out,
    lora: Annotated[bool, typer.Option(help="Train LoRA adapters instead of all weights.")] = False,
    license: License = None,
    decontaminate: DecontaminateFiles = None,
    exclude: ExcludedLists = None,
    overrides: Overrides = None,
    device: Device = "cpu",
    micro_batch_tokens: MicroBatch = 2048,
    compile: Compile = None,
    activation_checkpointing: ActivationCheckpointing = False,
    loggers: Loggers = None,
    engine: EngineName = "native",
    ray_address: RayAddress = None,
    memory: Memory = "2GB",
    keep_dropped: KeepDropped = False,
    keep_corpus: KeepCorpus = False,
) -> None:
    """Fine-tune a model on your code."""
    from codekiln.convert.models import resolve_model
    from codekiln.overrides import apply_overrides
    from codekiln.recipes.finetune import finetune as finetune_recipe
    from codekiln.train.config import RuntimeConfig

    built = finetune_recipe(resolve_model(model), code, license, lora=lora)
    recipe = _with_steps(built, decontaminate, exclude)
    runtime = RuntimeConfig(
        device=device,
        micro_batch_tokens=micro_batch_tokens,
        compile=compile,
        activation_checkpointing=activation_checkpointing,
    )
    corpus = _corpus_options(engine, ray_address, memory, keep_dropped=keep_dropped, keep=keep_corpus)
    _train(apply_overrides(recipe, overrides or []), out, runtime, None, loggers, corpus)
    if is_main_rank():
        typer.echo(f"Saved to {out}. Try: codekiln complete {out} 'def '")


def plan(
    recipe: RecipeArgument,
    gpus: Annotated[int, typer.Option(help="Number of accelerators.", min=1)] = 8,
    accelerator: Annotated[str, typer.Option(help="Accelerator: h100, a100, v100 or tpu-v4-like.")] = "h100",
    tensor_parallel: TensorParallel = 1,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Estimate memory, time and cost of training a recipe on a cluster. No GPU needed."""
    from codekiln.planning.summary import estimate_recipe, format_summary, format_table

    found = estimate_recipe(_recipe(recipe, None, None, overrides), accelerator, gpus, tensor_parallel, overrides or [])
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(
        f"{found['recipe']}: {found['parameters']:,} parameters, {found['tokens_per_step']:,} tokens per step, "
        f"{found['gpus']} x {found['accelerator']}; GB per rank:\n"
    )
    typer.echo("\n".join([*format_table(found), "", *format_summary(found)]))


COMMANDS = (demo, train, finetune, plan)

recipes_app = typer.Typer(help="List recipes; `recipes show NAME` prints every number and its source.")


@recipes_app.callback(invoke_without_command=True)
def list_recipes(context: typer.Context) -> None:
    """List the recipes."""
    if context.invoked_subcommand is not None:
        return
    from codekiln.recipes import RECIPES

    rows = [[name, entry.summary] for name, entry in RECIPES.items()]
    print_table([["recipe", "what it trains"], *rows], max_width=None)


@recipes_app.command("show")
def show_recipe(
    name: RecipeArgument,
    card: Annotated[
        bool,
        typer.Option("--card", help="Print what the paper states next to what the recipe sets, with the differences."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Print every number of a recipe with its source."""
    from codekiln.recipes import describe, papers

    if card:
        rows = list(papers.card_rows(name))
        if as_json:
            typer.echo(json.dumps([_card_record(row) for row in rows], ensure_ascii=False))
            return
        table = [
            [
                row.line.name,
                f"{row.stated} ({row.line.source})",
                "\n".join(f"{field} = {value}" for field, value in row.values.items()) or papers.NOTHING,
                row.line.difference,
            ]
            for row in rows
        ]
        print_table([["line", "the paper states", "Codekiln sets", "difference"], *table], max_width=None)
        return
    fields = list(describe(name))
    if as_json:
        typer.echo(json.dumps([{"field": f, "value": value, "source": source} for f, value, source in fields]))
        return
    listed = [[field, json.dumps(value, ensure_ascii=False), source] for field, value, source in fields]
    print_table([["field", "value", "source"], *listed], max_width=80)


def _card_record(row: "CardRow") -> dict[str, object]:
    return {
        "line": row.line.name,
        "stated": row.stated,
        "source": row.line.source,
        "values": {field: json.loads(value) for field, value in row.values.items()},
        "difference": row.line.difference,
    }


def _recipe(
    name: str,
    code: Path | None,
    license: str | None,
    overrides: list[str] | None,
    benchmarks: list[Path] | None = None,
    exclude: list[Path] | None = None,
    data: Path | None = None,
) -> "Recipe | StagedRecipe":
    from codekiln.overrides import apply_overrides
    from codekiln.recipe import StagedRecipe
    from codekiln.recipes import get_recipe

    if license is not None and code is None:
        raise typer.BadParameter("--license is the license of the code in --code: give both")
    if data is not None and code is not None:
        raise typer.BadParameter("--data and --code are both input: give one of them")
    recipe = get_recipe(name, code=code, license=license, data=data)
    if isinstance(recipe, StagedRecipe):
        stages = tuple(_with_steps(stage, benchmarks, exclude) for stage in recipe.recipes)
        return apply_overrides(replace(recipe, recipes=stages), overrides or [])
    return apply_overrides(_with_steps(recipe, benchmarks, exclude), overrides or [])


def _with_steps(recipe: "Recipe", benchmarks: list[Path] | None, exclude: list[Path] | None) -> "Recipe":
    """The recipe with steps that drop files with problems of benchmarks, and repositories in lists, if there are any."""
    steps = recipe.corpus.steps
    if exclude:
        from codekiln.corpus.steps.exclude import exclude as exclude_repositories

        steps = (exclude_repositories(exclude), *steps)
    if benchmarks:
        from codekiln.corpus.steps.decontaminate import decontaminate

        steps = (*steps, decontaminate(benchmarks))
    return replace(recipe, corpus=replace(recipe.corpus, steps=steps))


def _corpus_options(
    engine: "EngineKind", ray_address: str | None, memory: str, *, keep_dropped: bool, keep: bool
) -> "CorpusOptions":
    from codekiln.corpus.engine import CorpusOptions, Engine, parse_bytes

    chosen = Engine(kind=engine, ray_address=ray_address, memory_bytes=parse_bytes(memory))
    return CorpusOptions(engine=chosen, keep=keep, keep_dropped=keep_dropped)


def _train(
    recipe: "Recipe | StagedRecipe",
    out: Path,
    runtime: "RuntimeConfig",
    stop_after: str | None,
    loggers: list[str] | None,
    corpus: "CorpusOptions",
) -> None:
    """Builds a recipe and writes the card and the report of each run."""
    from codekiln.extras import import_optional
    from codekiln.recipe import StagedRecipe
    from codekiln.train.loop import has_cxx_compiler
    from codekiln.train.signals import Preempted

    pipeline = import_optional("codekiln.pipeline", "corpus")
    if runtime.compile is None and runtime.device == "cpu" and not has_cxx_compiler():
        print_note("no C++ compiler found; torch.compile is off (about two thirds of the speed)")
    try:
        if isinstance(recipe, StagedRecipe):
            if stop_after is not None:
                raise typer.BadParameter(f"--stop-after does not apply to {recipe.name}: it has several recipes")
            runs = pipeline.build_stages(recipe, out, runtime, loggers=loggers or [], corpus=corpus)
        else:
            pipeline.build(recipe, out, runtime, stop_after=stop_after, loggers=loggers or [], corpus=corpus)
            runs = [out]
    except KeyboardInterrupt as stopped:
        if isinstance(stopped, Preempted):
            exit_interrupted(status=0, reason="stopped by SIGTERM")
        exit_interrupted()
    if stop_after is None and is_main_rank():
        for run in runs:
            write_reports(run)


def _show_demo(run: Path) -> None:
    """What the demo ends with: correct and wrong samples, results, and what to try next."""
    from rich.console import Console

    from codekiln.report.card import summarize_results
    from codekiln.runs import read_stage_record

    console = Console(highlight=False, markup=False)
    for kind, entry in read_stage_record(run, "evaluation")["result"].items():
        for is_correct in (True, False):
            samples = [s for s in entry.get("samples", []) if (s["infill"] == s["reference"]) is is_correct]
            for sample in samples[:1]:
                title = f"{kind} hole in {sample['name']}"
                _show_sample(
                    console, title, sample["prompt"], sample["infill"], sample["reference"].strip(), is_correct
                )
    for function in read_stage_record(run, "functions")["result"]["functions"][:1]:
        title = f"body of {function['name']}"
        is_correct = function["completion"] == function["body"]
        reference = "\n" + function["body"].rstrip()
        _show_sample(console, title, function["before"], function["completion"], reference, is_correct)
    console.rule(style="dim")
    for name, result in summarize_results(run).items():
        console.print(f"{name}: {result}", soft_wrap=True)
    console.print(f"\nHow it was made: {run / 'report.html'} and {run / 'CARD.md'}\nTry next:", soft_wrap=True)
    console.print(f"  codekiln infill {run} $'def mean(values):\\n    return ' $' / len(values)\\n'", soft_wrap=True)
    console.print(f"  codekiln serve {run}", soft_wrap=True)


def _show_sample(console: "Console", title: str, prompt: str, text: str, reference: str, is_correct: bool) -> None:
    """The last lines before a hole, what the model wrote, and the reference."""
    console.rule(title, style="dim")
    console.print("".join(prompt.splitlines(keepends=True)[-5:]), end="", style="dim")
    console.print(text or "(nothing)", style="green" if is_correct else "red")
    console.print("(correct)" if is_correct else f"(reference: {reference})", style="dim")
