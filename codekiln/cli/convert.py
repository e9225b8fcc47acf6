"""Commands that convert models: import, export."""
# ruff: noqa: PLC0415

from pathlib import Path
from typing import Annotated

import typer

from codekiln.cli.options import Force, ModelArgument, parse_name, parse_path, print_note


def import_(
    source: Annotated[str, typer.Argument(help="Model folder or Hub id.", show_default=False, parser=parse_name)],
    out: Annotated[Path, typer.Option(help="Output folder, new or empty.", show_default=False, parser=parse_path)],
) -> None:
    """Convert a Hugging Face checkpoint (CodeGen, InCoder, GPT-J, Llama, Qwen2, Qwen3, LFM2, StarCoder2)."""
    from codekiln.convert.models import import_model, resolve_model

    for note in import_model(resolve_model(source), out):
        print_note(note)
    typer.echo(f"Saved to {out}. Try: codekiln complete {out} 'def '")


def export(
    model: ModelArgument,
    to: Annotated[
        str,
        typer.Option(help="hf for Transformers, gguf for llama.cpp, gptj for software with GPT-J.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Output folder, or GGUF file.", show_default=False, parser=parse_path)],
    dtype: Annotated[str, typer.Option(help="Tensor type of a GGUF file: f32, f16 or q8_0.")] = "f16",
    force: Force = False,
) -> None:
    """Export a model to Hugging Face, GPT-J or GGUF format."""
    from codekiln.convert.models import export_model, resolve_model

    export_model(resolve_model(str(model)), out, to, dtype=dtype, force=force)
    typer.echo(f"Saved {model} to {out} ({to})")


COMMANDS = (import_, export)
