"""Commands for tokenizers: inspect, compare, train, export."""
# ruff: noqa: PLC0415

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codekiln.cli.options import Json, RunArgument, parse_name, parse_path, print_note, read_bytes
from codekiln.errors import ConfigError

if TYPE_CHECKING:
    from codekiln.files import JsonObject
    from codekiln.tokenizer.bpe import Tokenizer

app = typer.Typer(help="Inspect, compare, train or export a tokenizer.", no_args_is_help=True)

TokenizerArgument = Annotated[
    str,
    typer.Argument(
        help="Run directory, model folder, tokenizer.json, codegen or codegen-nl.",
        show_default=False,
        parser=parse_name,
    ),
]
TextFile = Annotated[Path, typer.Argument(help="File to tokenize; - for stdin.", show_default=False, parser=parse_path)]
Gpt2 = Annotated[
    str | None,
    typer.Option(help="GPT-2's merges, for codegen: a file, a folder or a Hub id.", show_default=False),
]
TokenizerOut = Annotated[
    Path, typer.Option("--out", help="Output folder (Hugging Face format).", show_default=False, parser=parse_path)
]
_BACKGROUNDS = ("cyan", "green", "yellow", "magenta", "bright_blue")  # every terminal has these colors


@app.command()
def inspect(tokenizer: TokenizerArgument, file: TextFile, gpt2: Gpt2 = None, as_json: Json = False) -> None:
    """Show the tokens of a file in color, with tokens per byte and per line."""
    _require_gpt2_use(gpt2, tokenizer)
    _show({tokenizer: _load(tokenizer, gpt2)}, file, as_json=as_json)


@app.command()
def compare(
    first: TokenizerArgument, second: TokenizerArgument, file: TextFile, gpt2: Gpt2 = None, as_json: Json = False
) -> None:
    """Compare two tokenizers on a file."""
    from codekiln.tokenizer.inspect import boundary_agreement

    _require_gpt2_use(gpt2, first, second)
    found = {name: _load(name, gpt2) for name in (first, second)}
    data = _show(found, file, as_json=as_json)
    if not as_json:
        share = boundary_agreement(found[first], found[second], data)
        typer.echo(f"{share:.0%} of {first}'s token boundaries are also boundaries of {second}")


@app.command()
def train(
    kind: Annotated[str, typer.Argument(help="kiln, or incoder for InCoder's rule.", show_default=False)],
    run: RunArgument,
    out: TokenizerOut,
    vocab_size: Annotated[
        int | None, typer.Option(help="Vocabulary size, including special tokens.", show_default=False)
    ] = None,
) -> None:
    """Train a tokenizer on the corpus of a run."""
    from codekiln.corpus.sample import balanced_sample
    from codekiln.recipes.tokenizers import TRAINABLE
    from codekiln.tokenizer.bpe import save_tokenizer
    from codekiln.tokenizer.training import train_tokenizer

    if kind not in TRAINABLE:
        raise ConfigError(f"unknown tokenizer {kind!r} to train: choose from {', '.join(TRAINABLE)}")
    config = TRAINABLE[kind]
    config = config if vocab_size is None else dataclasses.replace(config, vocab_size=vocab_size)
    sample = balanced_sample(run / "corpus", "train", config.sample_bytes, config.seed)
    save_tokenizer(out, train_tokenizer(config, [document.text for document in sample]))
    print_note(f"saved {kind} to {out}")


@app.command()
def export(tokenizer: TokenizerArgument, out: TokenizerOut, gpt2: Gpt2 = None) -> None:
    """Write a tokenizer as a folder that Transformers loads."""
    from codekiln.tokenizer.bpe import save_tokenizer

    _require_gpt2_use(gpt2, tokenizer)
    save_tokenizer(out, _load(tokenizer, gpt2))
    print_note(f"saved {tokenizer} to {out}")


def _require_gpt2_use(gpt2: str | None, *names: str) -> None:
    from codekiln.tokenizer.codegen import PRETRAINED

    if gpt2 is not None and not set(names) & set(PRETRAINED):
        raise typer.BadParameter(f"--gpt2 is for {' and '.join(PRETRAINED)}")


def _load(name: str, gpt2: str | None) -> "Tokenizer":
    from codekiln.tokenizer.bpe import TOKENIZER_FILE, Tokenizer
    from codekiln.tokenizer.codegen import PRETRAINED, load_pretrained

    if name in PRETRAINED:
        return load_pretrained(name, gpt2)
    path = Path(name)
    return Tokenizer.load(path / TOKENIZER_FILE if path.is_dir() else path)


def _show(found: dict[str, "Tokenizer"], file: Path, *, as_json: bool) -> bytes:
    """Prints the tokens of a file by each tokenizer, and statistics. Returns the bytes of the file."""
    from codekiln.tokenizer.inspect import statistics, token_texts

    data = read_bytes(file)
    stats = {name: statistics(tokenizer, data) for name, tokenizer in found.items()}
    if as_json:
        typer.echo(json.dumps(stats))
        return data
    for name, tokenizer in found.items():
        _show_tokens(f"{name}: {file}", token_texts(tokenizer, data))
    _show_statistics(stats)
    return data


def _show_tokens(title: str, tokens: list[str]) -> None:
    """Prints tokens on backgrounds of different colors, or separated by bars where there is no color."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.rule(title, style="dim")
    text = Text(overflow="fold")
    for k, token in enumerate(tokens):
        text.append(token, style=f"black on {_BACKGROUNDS[k % len(_BACKGROUNDS)]}")
        if console.color_system is None:
            text.append("│")
        if token.endswith("⏎"):
            text.append("\n")
    console.print(text, soft_wrap=True)


def _show_statistics(stats: dict[str, "JsonObject"]) -> None:
    """Prints a column for each tokenizer."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", *stats)
    for name in ("vocab_size", "bytes", "lines", "tokens"):
        table.add_row(name.replace("_", " "), *(f"{entry[name]:,}" for entry in stats.values()))
    for name in ("tokens_per_byte", "bytes_per_token", "tokens_per_line"):
        table.add_row(name.replace("_", " "), *(f"{entry[name]:.3f}" for entry in stats.values()))
    longest = [
        "\n".join(f"{e['token'].replace(' ', '·')} × {e['count']}" for e in entry["longest"])
        for entry in stats.values()
    ]
    table.add_row("longest tokens", *map(Text, longest))
    Console(highlight=False).print(table)
