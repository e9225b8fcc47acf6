"""Commands that read runs: report, compare, verify."""
# ruff: noqa: PLC0415

import json
from dataclasses import asdict
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


def verify(run: RunArgument, as_json: Json = False) -> None:
    """Compare the files of a run with the checksums in its records. Exits with 1 if one is missing or damaged."""
    from codekiln.verification import runs_in, verify_run

    found = {path: verify_run(path) for path in runs_in(run)}
    has_faults = any(each.faults for each in found.values())
    if as_json:
        typer.echo(json.dumps({str(path): asdict(each) for path, each in found.items()}, indent=1))
    else:
        for path, each in found.items():
            for fault in each.faults:
                typer.echo(f"{path / fault.path}: {fault.fault} ({fault.message})")
            typer.echo(
                f"{path}: {each.n_files} files with {each.n_bytes / 1e6:,.1f} MB were compared, "
                f"{len(each.faults)} are missing or damaged; {len(each.unrecorded)} other files have no checksum"
            )
    raise SystemExit(1 if has_faults else 0)


COMMANDS = (report, compare, verify)


def write_reports(run: Path) -> list[Path]:
    """Writes CARD.md and report.html of a finished run."""
    card = import_optional("codekiln.report.card", "report")
    return [card.write_card(run), card.write_report(run)]
