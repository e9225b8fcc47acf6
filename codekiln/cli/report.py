"""Commands that read runs: report, compare."""

import json
from pathlib import Path
from typing import Annotated

import typer

from codekiln.cli.options import Force, Json, RunArgument, parse_path, print_table
from codekiln.extras import import_optional


def report(run: RunArgument) -> None:
    """Write the model card (CARD.md) and the HTML report (report.html) of a finished run."""
    for path in write_reports(run):
        typer.echo(path)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories (running or finished).", show_default=False, parser=parse_path),
    ],
    out: Annotated[Path, typer.Option(help="Output HTML file.", parser=parse_path)] = Path("comparison.html"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compare runs: curves, results and recipe differences."""
    module = import_optional("codekiln.report.compare", "report")
    found = module.read_runs(runs)
    module.write_comparison(found, out, force=force)
    comparison = module.compare_runs(found)
    if as_json:
        typer.echo(json.dumps({"page": str(out)} | comparison))
        return
    print_table(module.totals_table(comparison))
    if comparison["recipe"]:
        typer.echo()
        print_table(module.recipe_table(comparison))
    typer.echo(out)


COMMANDS = (report, compare)


def write_reports(run: Path) -> list[Path]:
    """Writes CARD.md and report.html of a finished run."""
    card = import_optional("codekiln.report.card", "report")
    return [card.write_card(run), card.write_report(run)]
