"""Commands for the corpus: explain, index, leaks, search, show."""
# ruff: noqa: PLC0415

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codekiln.cli.options import Json, Memory, RunArgument, exit_interrupted, parse_path, print_table, read_inputs
from codekiln.errors import MissingFileError
from codekiln.extras import import_optional

if TYPE_CHECKING:
    from codekiln.evaluate.leaks import Shared

app = typer.Typer(help="Explain what a corpus keeps and drops, and search it.", no_args_is_help=True)


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
def index(
    code: Annotated[Path, typer.Argument(help="Folder with source code.", show_default=False, parser=parse_path)],
    model: Annotated[
        Path,
        typer.Option(help="Run or model directory whose tokens are indexed.", show_default=False, parser=parse_path),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the index: new, or an earlier one.", show_default=False, parser=parse_path)
    ],
    license: Annotated[
        str | None,
        typer.Option(help="SPDX license of the code (default: what each folder declares).", show_default=False),
    ] = None,
    memory: Memory = "2GB",
) -> None:
    """Index any folder of code, without training: for `corpus search OUT`, and for --indexed of complete, infill and serve.

    Run it again after the code has changed: unchanged parts are kept.
    """
    from codekiln.corpus.engine import Engine, parse_bytes
    from codekiln.indexing import index_folder
    from codekiln.model.huggingface import TOKENIZER, resolve_model_dir

    tokenizer = resolve_model_dir(model) / TOKENIZER
    if not tokenizer.is_file():
        raise MissingFileError(f"{model} has no {TOKENIZER}: name a run or a model directory")
    engine = Engine(memory_bytes=parse_bytes(memory))
    try:
        manifest = index_folder(code, tokenizer, out, license=license, engine=engine)
    except KeyboardInterrupt:
        exit_interrupted()
    noun = "document" if manifest["documents"] == 1 else "documents"
    typer.echo(f"{manifest['tokens']:,} tokens in {manifest['documents']:,} {noun} are indexed in {out}")


@app.command()
def search(
    run: RunArgument,
    text: Annotated[str | None, typer.Argument(help="Text to search for.", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="File with the text; - for stdin.", show_default=False, parser=parse_path),
    ] = None,
    limit: Annotated[int, typer.Option(help="Number of places to print.", min=0)] = 10,
    as_json: Json = False,
) -> None:
    """Count the places of a text in the training documents of a run, or in an indexed folder, and show the first ones.

    The text is searched as it is, with its line ends and white space. Every occurrence is found.
    """
    from codekiln.tokenizer.bpe import TOKENIZER_FILE, Tokenizer

    index_search = import_optional("codekiln.index.search", "corpus")
    text_search = import_optional("codekiln.index.text_search", "corpus")

    wanted = read_inputs(text, () if file is None else (file,))[0].text
    tokenizer = Tokenizer.load(run / TOKENIZER_FILE)
    index = index_search.open_run_index(run, run / TOKENIZER_FILE)
    found = text_search.TextSearch(index, tokenizer.token_bytes, tokenizer.document_start).find(wanted, limit)
    if as_json:
        places = [
            vars(place.name) | {"line": place.line, "byte_offset": place.byte_offset, "excerpt": place.excerpt}
            for place in found.places
        ]
        typer.echo(json.dumps({"count": found.count, "places": places}, indent=1))
        return
    if found.places:
        rows = [
            [place.name.repository, f"{place.name.path}:{place.line}", place.name.license, place.excerpt]
            for place in found.places
        ]
        print_table([["repository", "path:line", "license", "text"], *rows], max_width=None)
    shown = f", {len(found.places):,} shown" if len(found.places) < found.count else ""
    places_found = f"{found.count:,} {'place' if found.count == 1 else 'places'}"
    typer.echo(f"{places_found}; {index.n_documents:,} documents were searched{shown}")


@app.command()
def leaks(
    run: RunArgument,
    benchmarks: Annotated[
        list[Path] | None,
        typer.Option(
            "--benchmark",
            help="JSONL file of a benchmark, whose texts are searched too (repeatable).",
            show_default=False,
            parser=parse_path,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what held-out documents, and the texts of benchmarks, share with the training documents of a run.

    Tokens are shared if they are in a match of at least 50 tokens. Texts of benchmarks have at least 20 words.
    """
    from codekiln.tokenizer.bpe import TOKENIZER_FILE, Tokenizer

    report = import_optional("codekiln.evaluate.leaks", "corpus")
    index_search = import_optional("codekiln.index.search", "corpus")

    index = index_search.open_run_index(run, run / TOKENIZER_FILE)
    split = report.find_split_leaks(index, run)
    tokenizer = Tokenizer.load(run / TOKENIZER_FILE)
    texts = report.find_benchmark_leaks(index, tokenizer, benchmarks) if benchmarks else []
    leaked = [text for text in texts if text.is_leaked]
    if as_json:
        record = {"held_out": [asdict(each) for each in split], "benchmarks": [asdict(each) for each in texts]}
        typer.echo(json.dumps(record, indent=1))
        return
    heading = ["repository", "tokens", "shared", "longest", "longest match"]
    rows = [[e.repository, *_shared_cells(e.shared), f"{e.document} = {_source(e.shared)}"] for e in split]
    print_table([heading, *rows], max_width=None)
    n_tokens, n_shared = (sum(getattr(each.shared, name) for each in split) for name in ("n_tokens", "n_shared"))
    typer.echo(
        f"{n_shared:,} of {n_tokens:,} held-out tokens are in matches of at least 50 tokens of the training split"
    )
    if texts:
        heading = ["benchmark", "text", "whole", "tokens", "shared", "longest", "longest match"]
        rows = [[e.benchmark, e.name, f"{e.n_whole:,}", *_shared_cells(e.shared), _source(e.shared)] for e in leaked]
        print_table([heading, *rows], max_width=None)
        n_whole = sum(text.n_whole > 0 for text in texts)
        typer.echo(
            f"{len(leaked):,} of {len(texts):,} texts share at least 50 tokens with the training documents, or are whole in "
            f"them ({n_whole:,})"
        )


def _shared_cells(shared: "Shared") -> list[str]:
    fraction = shared.n_shared / max(1, shared.n_tokens)
    return [f"{shared.n_tokens:,}", f"{shared.n_shared:,} ({fraction:.1%})", f"{shared.longest:,}"]


def _source(shared: "Shared") -> str:
    source = shared.source
    return "" if source is None else f"{source.repository}/{source.path} ({source.license})"


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
