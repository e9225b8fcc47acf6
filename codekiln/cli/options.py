"""Arguments and options that several commands share, and how the command line prints."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from codekiln.errors import InvalidFileError

STDIN = Path("-")
FILE_COLUMNS = 200  # of a table that is printed into a file or a pipe


def parse_path(text: str | Path) -> Path:
    """A path. An empty one is refused: it would mean the current folder."""
    if isinstance(text, str) and not text.strip():
        raise typer.BadParameter("it is empty: name a file or a folder")
    return Path(text)


def parse_name(text: str) -> str:
    """A name, which may be a path, so an empty one is refused as well."""
    if not text.strip():
        raise typer.BadParameter("it is empty")
    return text


parse_path.__name__, parse_name.__name__ = "path", "name"  # the help shows these

ModelArgument = Annotated[
    Path, typer.Argument(help="Run directory or model folder.", show_default=False, parser=parse_path)
]
RunArgument = Annotated[Path, typer.Argument(help="Run directory.", show_default=False, parser=parse_path)]


def complete_recipe(incomplete: str) -> list[str]:
    """The recipes whose names begin so, for the completion of a shell."""
    from codekiln.recipes import RECIPES  # noqa: PLC0415

    return [name for name in RECIPES if name.startswith(incomplete)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="Name of a recipe; see `codekiln recipes`.", show_default=False, autocompletion=complete_recipe
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Run directory. An existing run is resumed.", parser=parse_path)]
Code = Annotated[
    Path | None,
    typer.Option(
        help="Folder with source code, one repository per folder in it (default: installed Python packages).",
        show_default=False,
        parser=parse_path,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the data sets of the paper, for recipes of CodeGen and InCoder; see docs/corpus.md.",
        show_default=False,
        parser=parse_path,
    ),
]
License = Annotated[
    str | None, typer.Option(help="SPDX license of the code in --code, for example MIT.", show_default=False)
]
DecontaminateFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--decontaminate",
        help="JSONL file of a benchmark; files that hold one of its problems are dropped (repeatable).",
        show_default=False,
        parser=parse_path,
    ),
]
ExcludedLists = Annotated[
    list[Path] | None,
    typer.Option(
        "--exclude",
        help="File with a repository in each line (owner/name); their files are dropped (repeatable).",
        show_default=False,
        parser=parse_path,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a recipe field, e.g. train.total_tokens=1000000 (repeatable).", show_default=False
    ),
]
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to train on.")]
MicroBatch = Annotated[int, typer.Option(help="Tokens per micro-batch; lower it to save memory.", min=1)]
Loggers = Annotated[
    list[str] | None,
    typer.Option("--logger", help="Also log metrics to tensorboard or wandb (repeatable).", show_default=False),
]
Compile = Annotated[
    bool | None, typer.Option(help="Use torch.compile (default: if a C++ compiler is found).", show_default=False)
]
TensorParallel = Annotated[int, typer.Option(help="Tensor-parallel size: ranks that share each layer.", min=1)]
ActivationCheckpointing = Annotated[
    bool, typer.Option(help="Recompute activations in the backward pass: less memory, about a third slower.")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        help="Maximum number of new tokens (default: 64, or the limit of the model).",
        min=1,
        show_default=False,
    ),
]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling probability.")]
WeightsName = Literal["auto", "float32", "int8", "bfloat16"]
Weights = Annotated[
    WeightsName,
    typer.Option(help="Precision of the weights; auto is the fastest that predicts the same tokens as float32."),
]
BackendName = Literal["pytorch", "ctranslate2", "llama.cpp"]
BackendOption = Annotated[
    BackendName, typer.Option("--backend", help="Software that generates tokens; see docs/usage.md.")
]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0, max=2**63 - 1)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that Codekiln did not write.")]
TopK = Annotated[int, typer.Option(help="Sample from this number of most likely tokens; 0 is all.", min=0)]
MinP = Annotated[float, typer.Option(help="Drop tokens below this fraction of the largest probability.")]
InputFiles = Annotated[
    list[Path] | None,
    typer.Option("--file", help="Input file; - for stdin (repeatable).", show_default=False, parser=parse_path),
]


EngineName = Annotated[Literal["native", "ray"], typer.Option("--engine", help="Engine that builds the corpus.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="Address of a Ray cluster (default: Ray on this machine).", show_default=False, metavar="HOST:PORT"
    ),
]
Memory = Annotated[str, typer.Option(help="Memory for building the corpus, on each machine.", metavar="SIZE")]
KeepDropped = Annotated[
    bool, typer.Option("--keep-dropped", help="Also write dropped files, with reasons, to corpus/dropped/.")
]
KeepCorpus = Annotated[
    bool,
    typer.Option("--keep-corpus", help="Continue with the corpus of the run although the code in --code has changed."),
]


def is_main_rank() -> bool:
    """Whether this process prints: rank 0 of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def exit_interrupted(*, status: int = 130, reason: str = "interrupted") -> NoReturn:
    """Ends the process after Ctrl-C. The threads of the corpus engine abort it if the interpreter shuts down in order."""
    print_note(f"{reason}. Progress is saved. Run the same command to resume.")
    sys.stdout.flush()
    os._exit(status)


def print_note(message: str) -> None:
    """Prints a line for the user on standard error."""
    typer.echo(f"codekiln: {message}", err=True)


@dataclass(frozen=True)
class InputText:
    """A text and the file that it is from; None for an argument and standard input."""

    file: str | None
    text: str


def read_inputs(argument: str | None, files: Sequence[Path]) -> list[InputText]:
    """The text of an argument, of files, or of standard input. Raises InvalidFileError naming one that is not valid UTF-8."""
    if argument is not None and files:
        raise typer.BadParameter("give the text as an argument or with --file, not both")
    if argument is not None:
        return [InputText(None, argument)]
    if not files and sys.stdin.isatty():
        raise typer.BadParameter("give the text as an argument, with --file, or on standard input")
    return [read_input(file) for file in files or (STDIN,)]


def read_input(file: Path) -> InputText:
    """The text of a file, or of standard input for `-`. Raises InvalidFileError if it is not valid UTF-8."""
    data, is_stdin = read_bytes(file), file == STDIN
    try:
        return InputText(None if is_stdin else str(file), data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        name = "standard input" if is_stdin else file
        raise InvalidFileError(f"{name} is not valid UTF-8 (byte {error.start}): convert it first") from None


def read_bytes(file: Path | None) -> bytes:
    """The bytes of a file, or of standard input for None and `-`."""
    return sys.stdin.buffer.read() if file is None or file == STDIN else file.read_bytes()


def print_table(rows: list[list[str]], *, max_width: int | None = 40) -> None:
    """Prints a table. The first row is the heading; cells longer than `max_width` are cut."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*rows[0], box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows[1:]:
        cut = [c if max_width is None or len(c) <= max_width else c[: max_width - 1] + "…" for c in row]
        table.add_row(*(Text(cell, overflow="fold") for cell in cut))
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_COLUMNS
    Console(highlight=False, markup=False, width=width).print(table)
