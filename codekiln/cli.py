"""The command: every verb, thin; the only place where names become objects.

Heavy imports wait in the verbs that need them, so that `--help` answers at once and serving needs no training code.
"""
# ruff: noqa: PLC0415

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codekiln.errors import CodekilnError
from codekiln.extras import import_optional

if TYPE_CHECKING:
    from rich.console import Console

    from codekiln.files import JsonObject
    from codekiln.generate.sampling import SamplingParams
    from codekiln.recipe import Recipe, StagedRecipe
    from codekiln.tokenizer.bpe import Tokenizer
    from codekiln.train.loop import RuntimeConfig


HOLE = "<HOLE>"


def parse_path(text: str | Path) -> Path:
    """A path of the command line. An empty one is refused: it would mean the current folder."""
    if not str(text) or (isinstance(text, str) and not text.strip()):
        raise typer.BadParameter("it is empty: name a file or a folder")
    return Path(text)


def parse_name(text: str) -> str:
    """A name of the command line, which may be a path, so an empty one is refused as well."""
    if not text.strip():
        raise typer.BadParameter("it is empty")
    return text


parse_path.__name__, parse_name.__name__ = "path", "name"  # which the help shows
MODEL = Annotated[Path, typer.Argument(help="A run or a model folder.", show_default=False, parser=parse_path)]
OUT = Annotated[
    Path, typer.Option("--out", help="The run directory; what stands there is gone on with.", parser=parse_path)
]
CODE = Annotated[
    Path | None,
    typer.Option(help="A folder of code instead of the Python installed here.", show_default=False, parser=parse_path),
]
LICENSE = Annotated[
    str | None, typer.Option(help="SPDX licence of all code in --code, if it is yours to say.", show_default=False)
]
SET = Annotated[
    list[str] | None, typer.Option("--set", help="For experiments: field=value of the recipe.", show_default=False)
]
DEVICE = Annotated[str, typer.Option(help="cpu or cuda.")]
MICRO = Annotated[int, typer.Option(help="Tokens that go through the model at once.", min=1)]
LOGGER = Annotated[
    list[str] | None,
    typer.Option("--watch", help="Tell metrics to tensorboard or wandb too.", show_default=False),
]
COMPILE = Annotated[
    bool | None, typer.Option(help="torch.compile; left out, where a C++ compiler is found.", show_default=False)
]
NEW_TOKENS = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", help="Where an answer is cut; 64, or what the model can make.", min=1, show_default=False
    ),
]
TEMPERATURE = Annotated[float, typer.Option(help="0 is greedy.")]
TOP_P = Annotated[float, typer.Option(help="Nucleus of the probability that is drawn from.")]
SEED = Annotated[int, typer.Option(help="The same seed draws the same tokens.", min=0, max=2**63 - 1)]
JSON = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
FORCE = Annotated[bool, typer.Option("--force", help="Replace an output file that Codekiln did not write.")]
TOKENIZER_FILE = Annotated[
    Path | None,
    typer.Option("--file", help="Read from this file; - is standard input.", show_default=False, parser=parse_path),
]

app = typer.Typer(
    help="Source code in, code models out.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.command()
def demo(
    out: OUT = Path("runs/demo"),
    code: CODE = None,
    license: LICENSE = None,
    settings: SET = None,
    device: DEVICE = "cpu",
    micro_batch_tokens: MICRO = 2048,
    compile: COMPILE = None,
    loggers: LOGGER = None,
) -> None:
    """Make a small model of the Python code on this machine, and show what it can do."""
    build("demo", out, None, code, license, settings, device, micro_batch_tokens, compile, loggers=loggers)
    if _is_first_rank():
        _show(out)


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="A recipe's name.", show_default=False)],
    out: OUT,
    until: Annotated[str | None, typer.Option(help="The last stage to do.", show_default=False)] = None,
    code: CODE = None,
    license: LICENSE = None,
    settings: SET = None,
    device: DEVICE = "cpu",
    micro_batch_tokens: MICRO = 2048,
    compile: COMPILE = None,
    tensor_parallel: Annotated[
        int, typer.Option(help="Ranks that share a layer, of those torchrun starts.", min=1)
    ] = 1,
    activation_checkpointing: Annotated[
        bool, typer.Option(help="Compute blocks anew in the backward pass: less memory.")
    ] = False,
    loggers: LOGGER = None,
) -> None:
    """Build a recipe, all stages; started again it goes on where it was. On many ranks: torchrun -m codekiln build …"""
    from codekiln.train.loop import RuntimeConfig

    runtime = RuntimeConfig(device, micro_batch_tokens, compile, tensor_parallel, activation_checkpointing)
    _build(_recipe(recipe, code, license, settings), out, runtime, until, loggers)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name.", show_default=False)],
    gpus: Annotated[int, typer.Option(help="How many.", min=1)] = 8,
    accelerator: Annotated[str, typer.Option(help="h100, a100, v100 or tpu-v4-like.")] = "h100",
    tensor_parallel: Annotated[int, typer.Option(help="Ranks that share a layer.", min=1)] = 1,
    settings: SET = None,
    as_json: JSON = False,
) -> None:
    """Say what training a recipe takes on many accelerators: memory, traffic, days, cost. None of them is needed."""
    from codekiln.planning.summary import estimate_recipe, format_summary, format_table

    found = estimate_recipe(_recipe(recipe, None, None, settings), accelerator, gpus, tensor_parallel, settings or [])
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(
        f"{found['recipe']}: {found['parameters']:,} parameters, {found['tokens_per_step']:,} tokens a step, "
        f"{found['gpus']} x {found['accelerator']}; GB a rank:\n"
    )
    typer.echo("\n".join([*format_table(found), "", *format_summary(found)]))


@app.command()
def finetune(
    model: Annotated[
        str, typer.Argument(help="A run, a model folder or a hub id.", show_default=False, parser=parse_name)
    ],
    code: Annotated[Path, typer.Option(help="A folder of code.", show_default=False, parser=parse_path)],
    out: OUT,
    lora: Annotated[bool, typer.Option(help="Learn a low-rank change instead of all weights.")] = False,
    license: LICENSE = None,
    settings: SET = None,
    device: DEVICE = "cpu",
    micro_batch_tokens: MICRO = 2048,
    compile: COMPILE = None,
    activation_checkpointing: Annotated[
        bool, typer.Option(help="Compute blocks anew in the backward pass: less memory.")
    ] = False,
    loggers: LOGGER = None,
) -> None:
    """Train a model on a folder of your code, by the objective that its tokenizer has control tokens for."""
    import_optional("codekiln.corpus.pipeline", "corpus")
    from codekiln.convert.models import resolve_model
    from codekiln.recipe import apply_overrides
    from codekiln.recipes.finetune import finetune as finetune_recipe
    from codekiln.train.loop import RuntimeConfig

    recipe = finetune_recipe(resolve_model(model), code, license, lora=lora)
    runtime = RuntimeConfig(device, micro_batch_tokens, compile, activation_checkpointing=activation_checkpointing)
    _build(apply_overrides(recipe, settings or []), out, runtime, None, loggers)
    if _is_first_rank():
        typer.echo(f"the model is in {out}: try `codekiln complete {out} 'def '`")


def _build(
    wanted: "Recipe | StagedRecipe", out: Path, runtime: "RuntimeConfig", until: str | None, loggers: list[str] | None
) -> None:
    """Builds a recipe or a chain, and writes the card of each run."""
    from codekiln.recipe import StagedRecipe, build_stages
    from codekiln.recipe import build as build_recipe
    from codekiln.train.loop import Preempted, has_cxx_compiler

    if runtime.compile is None and runtime.device == "cpu" and not has_cxx_compiler():
        _note("no C++ compiler is found here: training runs uncompiled, at about two thirds of the speed")
    try:
        if isinstance(wanted, StagedRecipe):
            if until is not None:
                raise typer.BadParameter(f"--until is for a single recipe: {wanted.name} has {len(wanted.recipes)}")
            runs = build_stages(wanted, out, runtime, loggers=loggers or [])
        else:
            build_recipe(wanted, out, runtime, until=until, loggers=loggers or [])
            runs = [out]
    except KeyboardInterrupt as stopped:
        is_asked = isinstance(stopped, Preempted)
        _note(
            f"{'asked to end' if is_asked else 'interrupted'}; nothing is lost, and the same command goes on from here"
        )
        sys.stdout.flush()
        # The corpus engine's threads do not survive an orderly end: they abort it.
        os._exit(0 if is_asked else 130)
    if until is None and _is_first_rank():
        for run in runs:
            _card(run)


def _is_first_rank() -> bool:
    """Of those that torchrun started; the one that tells."""
    return os.environ.get("RANK", "0") == "0"


@app.command()
def card(run: MODEL) -> None:
    """Write CARD.md and report.html of a finished run."""
    for path in _card(run):
        typer.echo(path)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Runs, at work, interrupted or finished.", show_default=False, parser=parse_path),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.", parser=parse_path)] = Path("comparison.html"),
    force: FORCE = False,
    as_json: JSON = False,
) -> None:
    """Lay runs beside each other: a page of their curves, what they came to, where their recipes differ."""
    compare = import_optional("codekiln.report.compare", "report")
    found = compare.read_runs(runs)
    compare.write_comparison(found, out, force=force)
    comparison = compare.stats(found)
    if as_json:
        typer.echo(json.dumps({"page": str(out)} | comparison))
        return
    _show_table(compare.totals_table(comparison))
    if comparison["recipe"]:
        typer.echo()
        _show_table(compare.recipe_table(comparison))
    typer.echo(out)


@app.command()
def tokenizer(
    which: Annotated[
        str,
        typer.Argument(
            help="A run, a model folder, a tokenizer.json, or codegen, codegen-nl; with --train kiln, incoder.",
            show_default=False,
            parser=parse_name,
        ),
    ],
    inspect: Annotated[
        Path | None,
        typer.Option(help="Show how this file is cut; - is standard input.", show_default=False, parser=parse_path),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another tokenizer to compare with.", show_default=False)] = None,
    train: Annotated[
        Path | None, typer.Option(help="Train it on the corpus of this run.", show_default=False, parser=parse_path)
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Ids to train, all counted.", show_default=False)] = None,
    gpt2: Annotated[
        str | None, typer.Option(help="GPT-2's merges, for codegen: a file, folder or hub id.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write it to this folder, for Transformers too.", show_default=False, parser=parse_path),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Look at a tokenizer: the pieces of a file in colour, tokens a byte and a line, beside those of another.

    Or make one: CodeGen's, or with --train ours or one by InCoder's rule.
    """
    from codekiln.tokenizer.codegen import PRETRAINED
    from codekiln.tokenizer.inspect import boundary_agreement, statistics, token_texts

    if train is not None and out is None:
        raise typer.BadParameter("--train needs --out: where is it to be written?")
    if train is None and vocab_size is not None:
        raise typer.BadParameter("--vocab-size is for a tokenizer that is trained: name a run with --train")
    if gpt2 is not None and which not in PRETRAINED and against not in PRETRAINED:
        raise typer.BadParameter(f"--gpt2 is for {' and '.join(PRETRAINED)}")
    found = {which: _tokenizer(which, gpt2) if train is None else _trained(which, train, vocab_size)}
    if against is not None:
        found[against] = _tokenizer(against, gpt2)
    if out is not None:
        from codekiln.tokenizer.bpe import save_tokenizer

        save_tokenizer(out, found[which])
        _note(f"{which} is in {out}")
    if inspect is None:
        if out is None:
            raise typer.BadParameter("say what to do: --inspect FILE, or --out FOLDER")
        return
    data = sys.stdin.buffer.read() if str(inspect) == "-" else inspect.read_bytes()
    stats = {name: statistics(each, data) for name, each in found.items()}
    if as_json:
        typer.echo(json.dumps(stats))
        return
    cut = {name: token_texts(each, data) for name, each in found.items()}
    for name in found:
        _show_pieces(f"{name}: {inspect}", cut[name])
    _show_statistics(stats)
    if against is not None:
        typer.echo(
            f"{boundary_agreement(found[which], found[against], data):.0%} of the cuts of {which} are cuts of {against} too"
        )


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help="A model's folder, or its id on the hub.", show_default=False, parser=parse_name)
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.", show_default=False, parser=parse_path)],
) -> None:
    """Make a model folder of a released CodeGen, InCoder, GPT-J, Llama, Qwen2 or Qwen3."""
    from codekiln.convert.models import import_model, resolve_model

    for corrected in import_model(resolve_model(source), out):
        _note(corrected)
    typer.echo(f"{source} is in {out}: try `codekiln complete {out} 'def '`")


@app.command()
def export(
    model: MODEL,
    to: Annotated[
        str,
        typer.Option(help="hf, for Transformers; gguf, for llama.cpp; gptj, for what runs GPT-J.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option(help="The folder to write, or the GGUF file.", show_default=False, parser=parse_path)
    ],
    type_name: Annotated[str, typer.Option("--type", help="Of a GGUF file's matrices: f32, f16 or q8_0.")] = "f16",
    force: FORCE = False,
) -> None:
    """Write a model for elsewhere."""
    from codekiln.convert.models import export_model, resolve_model

    export_model(resolve_model(str(model)), out, to, type_name=type_name, force=force)
    typer.echo(f"{model} is in {out} ({to})")


@app.command()
def complete(
    model: MODEL,
    prompt: Annotated[str | None, typer.Argument(help="The text to go on with.", show_default=False)] = None,
    file: TOKENIZER_FILE = None,
    max_new_tokens: NEW_TOKENS = None,
    temperature: TEMPERATURE = 0.2,
    top_p: TOP_P = 0.95,
    seed: SEED = 0,
    as_json: JSON = False,
) -> None:
    """Go on with a text from an argument, a file or standard input."""
    from codekiln.generate.complete import Completer, InfillRequest

    text = _text(prompt, file)
    sampling = _sampling(temperature, top_p, seed)
    completion = None
    for chunk in Completer.load(model).stream([InfillRequest(text)], max_new_tokens=max_new_tokens, sampling=sampling):
        if not as_json:
            typer.echo(chunk.text, nl=False)
        completion = chunk.completion or completion
    assert completion is not None
    typer.echo(json.dumps({"text": completion.text, "is_finished": completion.is_finished}) if as_json else "")


@app.command()
def infill(
    model: MODEL,
    prompt: Annotated[str | None, typer.Argument(help="The text before the hole.", show_default=False)] = None,
    suffix: Annotated[str | None, typer.Argument(help="The text after it.", show_default=False)] = None,
    file: TOKENIZER_FILE = None,
    marker: Annotated[str, typer.Option(help="What stands for a hole in a file or standard input.")] = HOLE,
    max_new_tokens: NEW_TOKENS = None,
    temperature: TEMPERATURE = 0.2,
    top_p: TOP_P = 0.95,
    seed: SEED = 0,
    as_json: JSON = False,
) -> None:
    """Fill holes: a file or standard input with a marker for each, or the text before and after one as two arguments.

    Prints the whole text with its holes filled.
    """
    from codekiln.generate.complete import Completer

    if prompt is not None and suffix is None:
        raise typer.BadParameter("give the text before the hole and the text after it, or --file with the marker")
    if not marker:
        raise typer.BadParameter("--marker is empty: say what stands for a hole")
    text = _text(prompt, file)
    parts = text.split(marker) if suffix is None else [text, suffix]
    if len(parts) < 2:
        raise ValueError(f"the text has no hole: put {marker} where one is, or name your own mark with --marker")
    sampling = _sampling(temperature, top_p, seed)
    completions = Completer.load(model).infill(parts, max_new_tokens=max_new_tokens, sampling=sampling)
    whole = parts[0] + "".join(completion.text + part for completion, part in zip(completions, parts[1:], strict=True))
    if as_json:
        holes = [{"text": completion.text, "is_finished": completion.is_finished} for completion in completions]
        typer.echo(json.dumps({"text": whole, "holes": holes}))
    else:
        typer.echo(whole, nl=not whole.endswith("\n"))


@app.command()
def serve(
    model: MODEL,
    host: Annotated[str, typer.Option(help="Where to listen. There is no authentication.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8080,
) -> None:
    """Serve /v1/completions (prompt, suffix, stream) and a page to try it."""
    from codekiln.generate.complete import Completer

    server = import_optional("codekiln.serve.server", "serve")
    listening = server.listen(host, port)
    name = model.resolve().name
    application = server.make_app(Completer.load(model), name, host)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"{name} on http://{shown}:{listening.getsockname()[1]} (Ctrl-C ends it)")
    sys.stdout.flush()
    server.serve(application, listening)


def main() -> None:
    """Runs the command. Exit status 0 if it did what was asked, 2 for wrong usage, 130 for Ctrl-C, else 1."""
    try:
        app()
    except (CodekilnError, ValueError, OSError) as error:
        _note(f"error: {_told(error)}")
        raise SystemExit(1) from None


def _told(error: CodekilnError | ValueError | OSError) -> str:
    """The error in words; what the system said of a file is said with the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _recipe(name: str, code: Path | None, license: str | None, settings: list[str] | None) -> "Recipe | StagedRecipe":
    import_optional("codekiln.corpus.pipeline", "corpus")
    from codekiln.recipe import StagedRecipe, _apply_to_all, apply_overrides
    from codekiln.recipes import get_recipe

    if license is not None and code is None:
        raise typer.BadParameter("--license says under which licence the code in --code is: give both")
    recipe = get_recipe(name, code=code, license=license)
    if isinstance(recipe, StagedRecipe):
        return _apply_to_all(recipe, settings or [])
    return apply_overrides(recipe, settings or [])


def _tokenizer(name: str, gpt2: str | None) -> "Tokenizer":
    from codekiln.tokenizer.bpe import TOKENIZER_FILE, Tokenizer
    from codekiln.tokenizer.codegen import PRETRAINED, load_pretrained

    if name in PRETRAINED:
        return load_pretrained(name, gpt2)
    path = Path(name)
    return Tokenizer.load(path / TOKENIZER_FILE if path.is_dir() else path)


def _trained(name: str, run: Path, vocab_size: int | None) -> "Tokenizer":
    from codekiln.corpus.sample import balanced_sample
    from codekiln.recipes.tokenizers import TOKENIZERS
    from codekiln.tokenizer.training import train_tokenizer

    if name not in TOKENIZERS:
        raise ValueError(f"no tokenizer to train is called {name!r}: known are {', '.join(TOKENIZERS)}")
    plan = TOKENIZERS[name]
    plan = plan if vocab_size is None else dataclasses.replace(plan, vocab_size=vocab_size)
    sample = balanced_sample(run / "corpus", "train", plan.sample_bytes, plan.seed)
    return train_tokenizer(plan, [document.text for document in sample])


def _show_pieces(title: str, cut: list[str]) -> None:
    """Every piece on a ground of its own colour, or between bars where there is no colour; lines as the text has them."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.rule(title, style="dim")
    text = Text(overflow="fold")
    for k, chunk in enumerate(cut):
        text.append(chunk, style=f"black on {_GROUNDS[k % len(_GROUNDS)]}")
        if console.color_system is None:
            text.append("│")
        if chunk.endswith("⏎"):
            text.append("\n")
    console.print(text, soft_wrap=True)


_GROUNDS = ("cyan", "green", "yellow", "magenta", "bright_blue")  # which every terminal has


def _show_statistics(stats: dict[str, "JsonObject"]) -> None:
    """A column for each tokenizer."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    format_table = Table("", *stats)
    for name in ("vocab_size", "bytes", "lines", "tokens"):
        format_table.add_row(name.replace("_", " "), *(f"{entry[name]:,}" for entry in stats.values()))
    for name in ("tokens_per_byte", "bytes_per_token", "tokens_per_line"):
        format_table.add_row(name.replace("_", " "), *(f"{entry[name]:.3f}" for entry in stats.values()))
    longest = [
        "\n".join(f"{e['chunk'].replace(' ', '·')} × {e['times']}" for e in entry["longest"])
        for entry in stats.values()
    ]
    format_table.add_row("longest pieces", *map(Text, longest))
    Console(highlight=False).print(format_table)


def _show_table(rows: list[list[str]]) -> None:
    """The first row is the heading; a cell of more than forty characters is cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    format_table = Table(*rows[0], box=None, padding=(0, 2, 0, 0), pad_edge=False)
    format_table.columns[0].no_wrap = True
    for row in rows[1:]:
        format_table.add_row(*(Text(cell if len(cell) <= 40 else cell[:39] + "…", overflow="fold") for cell in row))
    Console(highlight=False, markup=False).print(format_table)


def _card(run: Path) -> list[Path]:
    card_module = import_optional("codekiln.report.card", "report")
    return [card_module.write_card(run), card_module.write_report(run)]


def _show(run: Path) -> None:
    """What the demo ends with: samples good and bad, results, and what to try next."""
    from rich.console import Console

    from codekiln.recipe import read_stage_record
    from codekiln.report.card import summarize_results

    console = Console(highlight=False, markup=False)
    for kind, entry in read_stage_record(run, "evaluation")["result"].items():
        samples = entry.get("samples", [])
        for is_right in (True, False):
            for sample in [s for s in samples if (s["infill"] == s["truth"]) is is_right][:1]:
                judged = "as it was" if is_right else f"it was: {sample['truth'].strip()}"
                _sample(console, f"{kind} hole in {sample['name']}", sample["prompt"], sample["infill"], judged)
    for function in read_stage_record(run, "functions")["result"]["functions"][:1]:
        judged = f"it was:\n{function['body'].rstrip()}"
        _sample(console, f"body of {function['name']}", function["before"], function["completion"], judged)
    console.rule(style="dim")
    for name, result in summarize_results(run).items():
        console.print(f"{name}: {result}", soft_wrap=True)
    console.print(f"\nHow it was made: {run / 'report.html'} and {run / 'CARD.md'}\nTry next:", soft_wrap=True)
    console.print(f"  codekiln infill {run} $'def mean(values):\\n    return ' $' / len(values)\\n'", soft_wrap=True)
    console.print(f"  codekiln serve {run}", soft_wrap=True)


def _sample(console: "Console", title: str, before: str, written: str, judged: str) -> None:
    """The last lines before a hole, what the model wrote, and what stood there."""
    console.rule(title, style="dim")
    console.print("".join(before.splitlines(keepends=True)[-5:]), end="", style="dim")
    console.print(written or "(nothing)", style="green" if judged == "as it was" else "red")
    console.print(f"({judged})", style="dim")


def _text(argument: str | None, file: Path | None) -> str:
    """The text of an argument, a file or standard input. Raises ValueError where it is not UTF-8."""
    if argument is not None and file is not None:
        raise typer.BadParameter("give the text as an argument or with --file, not both")
    if argument is not None:
        return argument
    if file is None and sys.stdin.isatty():
        raise typer.BadParameter("give the text as an argument, with --file, or on standard input")
    try:
        raw = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file or 'standard input'} is not UTF-8 (byte {error.start}): convert it first") from None


def _sampling(temperature: float, top_p: float, seed: int) -> "SamplingParams":
    from codekiln.generate.sampling import SamplingParams

    return SamplingParams(temperature, top_p, seed)


def _note(message: str) -> None:
    typer.echo(f"codekiln: {message}", err=True)
