"""The command `codekiln`: one file per group of commands. The only place where names become objects.

Commands import what they need when they run, so that `--help` is fast, and serving needs no training code.
"""

import os
from typing import Annotated

import typer

from codekiln import __version__
from codekiln.cli import convert, corpus, doctor, evaluate, generate, report, tokenizer, train
from codekiln.errors import CodekilnError, RankError

# How often an OpenMP thread looks for work before it sleeps: some 0.05 ms, the time between two products of a small model.
# libgomp's default is 3 ms: on a busy machine, threads that wait so long take the cores from those that work.
SPIN_COUNT = "5000"

app = typer.Typer(
    help="Train, evaluate and serve code models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (train, generate, evaluate, report, convert, doctor):
    for command in group.COMMANDS:
        app.command(command.__name__.rstrip("_"))(command)
app.add_typer(train.recipes_app, name="recipes")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(corpus.app, name="corpus")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"codekiln {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train, evaluate and serve code models."""


def main() -> None:
    """Runs the command. Exit status 0 if it did what was asked, 2 for wrong usage, 130 for Ctrl-C, else 1.

    Errors that the user can fix are printed as one paragraph. Every other exception is a bug and shows its traceback.
    """
    # Read when PyTorch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    try:
        app()
    except RankError as error:  # rank 0 prints the error itself
        typer.echo(f"codekiln: {error}", err=True)
        raise SystemExit(1) from None
    except (CodekilnError, OSError) as error:
        typer.echo(f"codekiln: error: {_message(error)}", err=True)
        raise SystemExit(1) from None


def _message(error: CodekilnError | OSError) -> str:
    """The message of an error; what the system reported of a file, with the name of the file."""
    if isinstance(error, OSError) and not isinstance(error, CodekilnError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
