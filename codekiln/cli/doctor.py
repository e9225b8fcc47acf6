"""The command that looks at this machine: doctor."""
# ruff: noqa: PLC0415

import json
from pathlib import Path

import typer

from codekiln.cli.options import Json, print_table


def doctor(as_json: Json = False) -> None:
    """Show what this machine has, and how to get what is missing. Exits with 1 if something needed is missing."""
    from codekiln.doctor import check_machine, report

    found = report(check_machine(Path.cwd()))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        typer.echo(f"Codekiln {found['codekiln']}\n")
        rows = [[check["name"], check["status"], check["found"], check["advice"]] for check in found["checks"]]
        print_table([["", "status", "found", "what to do"], *rows], max_width=None)
    raise SystemExit(0 if found["ok"] else 1)


COMMANDS = (doctor,)
