"""Commands for the corpus: explain, show."""
# ruff: noqa: PLC0415

import json
from pathlib import Path
from typing import Annotated

import typer

from codekiln.cli.options import Json, RunArgument, parse_path, print_table

app = typer.Typer(help="Explain what a corpus keeps and drops.", no_args_is_help=True)


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="Source file.", show_default=False, parser=parse_path)],
    recipe: Annotated[str, typer.Option(help="Recipe whose steps are applied.")] = "demo",
    license: Annotated[
        str | None,
        typer.Option(help="SPDX license of the file (default: what its repository declares).", show_default=False),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Also say what became of the file in this run.", show_default=False, parser=parse_path),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which step keeps or drops a file, with the measured value and the limit."""
    from codekiln.corpus.explain import explain_file, explain_in_corpus
    from codekiln.recipe import StagedRecipe
    from codekiln.recipes import get_recipe

    found = get_recipe(recipe, code=file.absolute().parent)
    last = found.recipes[-1] if isinstance(found, StagedRecipe) else found
    rows = list(explain_file(file, last.corpus, license))
    if run is not None:
        rows.append(explain_in_corpus(file, run / "corpus"))
    if as_json:
        typer.echo(json.dumps([vars(row) for row in rows], indent=1))
        return
    table = [[row.step, row.outcome, row.measured] for row in rows]
    print_table([["step", "outcome", "measured"], *table], max_width=None)
    typer.echo(f"{file} is dropped: {rows[-1].outcome}" if rows[-1].is_dropped else f"{file} is kept")


@app.command()
def show(
    run: RunArgument,
    reason: Annotated[
        str | None, typer.Option(help="Show examples of files that were dropped for this reason.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how many files were dropped for each reason, or examples of one reason."""
    from codekiln.corpus.explain import show_drops

    found = show_drops(run / "corpus", reason)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        heading = ["reason", "files"] if reason is None else ["file", "measured"]
        rows = [[name, f"{value:,}" if reason is None else value] for name, value in found.items()]
        print_table([heading, *rows], max_width=None)
