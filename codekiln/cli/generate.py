"""Commands that generate text: complete, infill, serve."""
# ruff: noqa: PLC0415

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codekiln.cli.options import (
    InputFile,
    Json,
    MaxNewTokens,
    ModelArgument,
    Seed,
    Temperature,
    TopP,
    Weights,
    parse_path,
    read_text,
)
from codekiln.errors import ConfigError
from codekiln.extras import import_optional

if TYPE_CHECKING:
    from codekiln.generate.complete import Completion
    from codekiln.generate.sampling import SamplingParams

HOLE = "<HOLE>"


def complete(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Argument(help="Prompt text.", show_default=False)] = None,
    file: InputFile = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.2,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Complete a prompt."""
    from codekiln.generate.complete import Completer, CompletionParams, InfillRequest

    request = InfillRequest(read_text(prompt, file))
    sampling = _sampling(temperature, top_p, seed)
    completion = None
    for chunk in Completer.load(model).stream(
        [request], CompletionParams(max_new_tokens=max_new_tokens, sampling=sampling)
    ):
        if not as_json:
            typer.echo(chunk.text, nl=False)
        completion = chunk.completion or completion
    assert completion is not None
    typer.echo(json.dumps(_record(completion)) if as_json else "")


def infill(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Argument(help="Text before the hole.", show_default=False)] = None,
    suffix: Annotated[str | None, typer.Argument(help="Text after the hole.", show_default=False)] = None,
    file: InputFile = None,
    marker: Annotated[str, typer.Option(help="Marks a hole in a file or on standard input.")] = HOLE,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.2,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fill in the middle: give prefix and suffix, or a file with <HOLE> markers. Prints the whole text."""
    from codekiln.generate.complete import Completer, CompletionParams

    if prompt is not None and suffix is None:
        raise typer.BadParameter("give the text before the hole and the text after it, or --file with markers")
    if not marker:
        raise typer.BadParameter("--marker is empty: give the text that marks a hole")
    text = read_text(prompt, file)
    parts = text.split(marker) if suffix is None else [text, suffix]
    if len(parts) < 2:
        raise ConfigError(f"the text has no hole: put {marker} where it is, or choose another mark with --marker")
    sampling = _sampling(temperature, top_p, seed)
    completions = Completer.load(model).infill(
        parts, CompletionParams(max_new_tokens=max_new_tokens, sampling=sampling)
    )
    filled = parts[0] + "".join(c.text + part for c, part in zip(completions, parts[1:], strict=True))
    if as_json:
        typer.echo(json.dumps({"text": filled, "holes": [_record(completion) for completion in completions]}))
    else:
        typer.echo(filled, nl=not filled.endswith("\n"))


def serve(
    model: ModelArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on. One that other machines reach needs API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65535)] = 8080,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            help="Further host name to answer to, for example of a container (repeatable).",
            show_default=False,
        ),
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(help="Largest body of a request.", min=1000)] = 1_000_000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with an API key in each line; CODEKILN_API_KEY adds one.", show_default=False, parser=parse_path
        ),
    ] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Answer other machines without API keys (anybody can use the model).")
    ] = False,
    weights: Weights = "auto",
) -> None:
    """Serve completions to editors and SDKs, and a playground."""
    from codekiln.generate.complete import Completer

    server = import_optional("codekiln.serve.server", "serve")
    api_keys = server.read_keys(api_key_file)
    if host not in server.LOOPBACK and not api_keys and not is_open:
        raise ConfigError(
            f"other machines could use the model on {host} without an API key: "
            "give --api-key-file, set CODEKILN_API_KEY, or allow it with --open"
        )
    listening = server.listen(host, port)
    name = model.resolve().name
    completer = Completer.load(model, weights)
    application = server.make_app(
        completer,
        name,
        host,
        allowed_hosts=allowed_hosts or (),
        max_body_bytes=max_body_bytes,
        api_keys=api_keys,
    )
    shown = f"[{host}]" if ":" in host else host
    agreement = "" if completer.agreement is None else f", {completer.agreement:.1%} of tokens as in float32"
    typer.echo(f"{name} on http://{shown}:{listening.getsockname()[1]} (Ctrl-C stops it)")
    typer.echo(f"Weights: {completer.precision}{agreement}", err=True)
    sys.stdout.flush()
    server.serve(application, listening)


COMMANDS = (complete, infill, serve)


def _sampling(temperature: float, top_p: float, seed: int) -> "SamplingParams":
    from codekiln.generate.sampling import SamplingParams

    return SamplingParams(temperature=temperature, top_p=top_p, seed=seed)


def _record(completion: "Completion") -> dict[str, str]:
    return {"text": completion.text, "finish_reason": completion.finish_reason}
