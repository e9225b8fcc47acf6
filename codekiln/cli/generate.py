"""Commands that generate text: complete, infill, serve."""
# ruff: noqa: PLC0415

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, assert_never

import typer

from codekiln.cli.options import (
    BackendName,
    BackendOption,
    InputFiles,
    InputText,
    Json,
    MaxNewTokens,
    MinP,
    ModelArgument,
    Seed,
    Temperature,
    TopK,
    TopP,
    Weights,
    WeightsName,
    parse_path,
    print_note,
    read_input,
    read_inputs,
)
from codekiln.errors import CodekilnError, ConfigError
from codekiln.extras import import_optional
from codekiln.files import JsonObject, sha256_of, shorten
from codekiln.progress import ProgressTask, progress_bar
from codekiln.threads import run_in_own_thread

if TYPE_CHECKING:
    from codekiln.generate.complete import Completer, Completion
    from codekiln.generate.context import RepositoryContext
    from codekiln.generate.copying import CopyLimits
    from codekiln.generate.infilling import FilledDocument
    from codekiln.generate.provenance import Stretch, Tracer
    from codekiln.generate.sampling import SamplingParams
    from codekiln.generate.workspace import Workspace

HOLE = "<HOLE>"
GGUF_DTYPE = "q8_0"  # of --backend llama.cpp

Stop = Annotated[
    list[str] | None, typer.Option(help="End before this text (repeatable).", show_default=False, metavar="TEXT")
]
Provenance = Annotated[
    bool,
    typer.Option(
        "--provenance",
        help="Also report which parts of the new text are in the training documents, with path and license.",
    ),
]
Result = TypeVar("Result")
MaxCopied = Annotated[
    list[str] | None,
    typer.Option(
        "--max-copied-tokens",
        help="End a completion before more tokens in a row are a copy of training documents. permissive=N and other=N are for "
        "documents of one class of licenses (repeatable).",
        show_default=False,
        metavar="N",
    ),
]
HasRecall = Annotated[
    bool,
    typer.Option(
        "--recall",
        help="Mix in what followed the same tokens in the input, and in the training documents if the run has an index.",
    ),
]
Indexed = Annotated[
    Path | None,
    typer.Option(
        help="Folder of `codekiln corpus index`: it is searched instead of the training documents, and recalled as own code.",
        show_default=False,
        parser=parse_path,
    ),
]
Count = Annotated[int, typer.Option("-n", help="Number of candidates to draw.", min=1)]


def complete(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Argument(help="Prompt text.", show_default=False)] = None,
    files: InputFiles = None,
    n: Count = 1,
    stop: Stop = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.2,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    weights: Weights = "float32",
    backend: BackendOption = "pytorch",
    has_recall: HasRecall = False,
    has_provenance: Provenance = False,
    max_copied: MaxCopied = None,
    indexed: Indexed = None,
    as_json: Json = False,
) -> None:
    """Complete a prompt, or several files. With --json, prints one line for each input.

    Of several candidates, those that --max-copied-tokens ended are left out, unless all are.
    """
    from codekiln.generate.complete import CompletionParams, InfillRequest

    inputs = read_inputs(prompt, files or ())
    sampling = _sampling(temperature, top_p, top_k, min_p, seed)
    params = CompletionParams(max_new_tokens=max_new_tokens, sampling=sampling, stop=tuple(stop or ()), n=n)
    limits = _copy_limits(max_copied)
    tracer = _open_wanted_tracer(
        model, indexed, is_searched=has_provenance or limits is not None, has_recall=has_recall
    )
    completer = load_completer(model, backend, weights, default="float32")
    if has_recall:
        use_recall(completer, model, tracer, is_own=indexed is not None)
    _limit_copies(completer, tracer, limits)
    shown = tracer if has_provenance else None
    if len(inputs) == n == 1 and not as_json:
        for chunk in completer.stream([InfillRequest(inputs[0].text)], params):
            typer.echo(chunk.text, nl=False)
            if chunk.completion is not None:
                completion = chunk.completion
        typer.echo("")
        for note in _notes(completion, limits, _find(shown, completion, completion.text, inputs[0].text)):
            print_note(note)
        return
    jobs = [completer.submit(InfillRequest(each.text), params) for each in inputs]
    with _printer("Complete", inputs, as_json=as_json) as printer:
        while not all(job.is_finished for job in jobs):
            completer.step()
            for number, job in enumerate(jobs):
                if job.is_finished and not printer.has(number):
                    found = sorted(job.completions.values(), key=lambda each: each.mean_logprob, reverse=True)
                    found = [each for each in found if not each.is_withheld] or found
                    traces = [_find(shown, each, each.text, inputs[number].text) for each in found]
                    records = [_record(each) | _provenance(trace) for each, trace in zip(found, traces, strict=True)]
                    notes = [n for each, trace in zip(found, traces, strict=True) for n in _notes(each, limits, trace)]
                    printer.add(number, _texts(found), {"completions": records}, notes)


def infill(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Argument(help="Text before the hole.", show_default=False)] = None,
    suffix: Annotated[str | None, typer.Argument(help="Text after the hole.", show_default=False)] = None,
    files: InputFiles = None,
    marker: Annotated[str, typer.Option(help="Marks a hole in a file or on standard input.")] = HOLE,
    context: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another file of the repository, for the model to read; the most relevant one last (repeatable).",
            show_default=False,
            parser=parse_path,
        ),
    ] = None,
    mode: Annotated[
        Literal["line", "block", "scope", "hole"],
        typer.Option(help="Where a hole ends: with its line, its block, its indentation, or where the model ends it."),
    ] = "hole",
    n: Count = 1,
    rank: Annotated[
        Literal["total", "mean", "suffix"],
        typer.Option(help="Rank candidates by total or mean log-probability, or by that of the text after the hole."),
    ] = "mean",
    retries: Annotated[
        int, typer.Option(help="Draw candidates that the token limit cut off again, up to this often.", min=0)
    ] = 0,
    is_raw: Annotated[bool, typer.Option("--raw", help="Without post-processing.")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.2,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    weights: Weights = "float32",
    backend: BackendOption = "pytorch",
    has_recall: HasRecall = False,
    has_provenance: Provenance = False,
    max_copied: MaxCopied = None,
    indexed: Indexed = None,
    as_json: Json = False,
) -> None:
    """Fill in the middle: give prefix and suffix, or files with <HOLE> markers. Prints the whole text.

    With --json, prints one line for each input, with all candidates.
    """
    from codekiln.generate.complete import CompletionParams
    from codekiln.generate.infilling import HoledDocument, InfillSettings
    from codekiln.generate.infilling import infill as infill_documents
    from codekiln.generate.postprocess import PostProcessing

    if prompt is not None and suffix is None:
        raise typer.BadParameter("give the text before the hole and the text after it, or --file with markers")
    if not marker:
        raise typer.BadParameter("--marker is empty: give the text that marks a hole")
    inputs = read_inputs(prompt, files or ())
    others = [read_input(path) for path in context or ()]
    documents = []
    for each in inputs:
        parts = each.text.split(marker) if suffix is None else [each.text, suffix]
        if len(parts) < 2:
            name = each.file or "the text"
            raise ConfigError(f"{name} has no hole: put {marker} where it is, or choose another mark with --marker")
        documents.append(HoledDocument(tuple(parts), _context(others, each.file)))
    sampling = _sampling(temperature, top_p, top_k, min_p, seed)
    settings = InfillSettings(
        params=CompletionParams(max_new_tokens=max_new_tokens, sampling=sampling, n=n),
        postprocessing=PostProcessing.raw(mode) if is_raw else PostProcessing(mode=mode),
        rank_by=rank,
        n_retries=retries,
    )
    limits = _copy_limits(max_copied)
    tracer = _open_wanted_tracer(
        model, indexed, is_searched=has_provenance or limits is not None, has_recall=has_recall
    )
    completer = load_completer(model, backend, weights, default="float32")
    if has_recall:
        use_recall(completer, model, tracer, is_own=indexed is not None)
    _limit_copies(completer, tracer, limits)
    shown = tracer if has_provenance else None
    with _printer("Infill", inputs, as_json=as_json) as printer:

        def report(number: int, filled: "FilledDocument") -> None:
            traces = _trace_holes(shown, filled)
            notes = [*filled.notes, *(note for found in traces for note in _provenance_notes(found[:1]))]
            printer.add(number, filled.text, _filled_record(filled, traces), notes)

        infill_documents(completer, documents, settings, report)


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
    recognize_fim: Annotated[
        bool,
        typer.Option(
            "--recognize-fim", help="Prompts in the infilling template of another model get the format of this model."
        ),
    ] = False,
    postprocess: Annotated[
        Literal["line", "block", "scope", "hole", "off"],
        typer.Option(
            help="Clean completions of holes, and end them with their line, their block, their indentation, or where the model "
            "ends them. A stream then sends a text whole, when it has ended.",
        ),
    ] = "off",
    is_open: Annotated[
        bool, typer.Option("--open", help="Answer other machines without API keys (anybody can use the model).")
    ] = False,
    has_index: Annotated[
        bool,
        typer.Option("--index/--no-index", help="Report where completions come from, if the run has an index."),
    ] = True,
    max_copied: MaxCopied = None,
    indexed: Indexed = None,
    has_recall: HasRecall = False,
    workspace_folder: Annotated[
        Path | None,
        typer.Option(
            "--workspace",
            help="Folder whose code is recalled, and followed while it changes (implies --recall).",
            show_default=False,
            parser=parse_path,
        ),
    ] = None,
    weights: Weights = "auto",
    backend: BackendOption = "pytorch",
) -> None:
    """Serve completions to editors and SDKs, and a playground."""
    from codekiln.generate.postprocess import PostProcessing

    server = import_optional("codekiln.serve.server", "serve")
    api_keys = server.read_keys(api_key_file)
    if host not in server.LOOPBACK and not api_keys and not is_open:
        raise ConfigError(
            f"other machines could use the model on {host} without an API key: "
            "give --api-key-file, set CODEKILN_API_KEY, or allow it with --open"
        )
    if indexed is not None and not has_index:
        raise typer.BadParameter("--indexed names an index, and --no-index wants none: leave one out")
    limits = _copy_limits(max_copied)
    name = model.resolve().name
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(server.listen(host, port))
        with server.refusing_requests(listening):
            tracer = _open_served_index(model, indexed) if has_index else None
            if limits is not None and tracer is None:
                raise ConfigError(
                    f"--max-copied-tokens needs the index of the training documents, and {model} has none: "
                    "serve a run whose recipe has an index, without --no-index"
                )
            # In threads that end, because the engine has a thread of its own.
            completer = _wait_for(lambda: load_completer(model, backend, weights, default="auto"))
            workspace = stack.enter_context(_open_workspace(workspace_folder, completer))
            if has_recall or workspace is not None:
                use_recall(completer, model, tracer, workspace, is_own=indexed is not None)
            _limit_copies(completer, tracer, limits)
            _wait_for(completer.warm_up)
        application = server.make_app(
            completer,
            name,
            host,
            allowed_hosts=allowed_hosts or (),
            max_body_bytes=max_body_bytes,
            api_keys=api_keys,
            recognize_fim=recognize_fim,
            postprocessing=None if postprocess == "off" else PostProcessing(mode=postprocess),
            training=server.Training(tracer=tracer, withheld="" if limits is None else limits.reason),
        )
        shown = f"[{host}]" if ":" in host else host
        agreement = ""
        if completer.agreement is not None:
            only = "only " if completer.precision == "float32" else ""
            agreement = f" (int8 predicts {only}{completer.agreement:.1%} of tokens as float32 does)"
        typer.echo(f"{name} on http://{shown}:{listening.getsockname()[1]} (Ctrl-C stops it)")
        typer.echo(f"Weights: {completer.precision}{agreement}", err=True)
        if workspace is not None and not workspace.wait(0):
            typer.echo(f"Workspace: {workspace.folder} is being indexed", err=True)
        sys.stdout.flush()
        server.serve(application, listening)


def _wait_for(work: Callable[[], Result]) -> Result:
    """`run_in_own_thread`. Ctrl-C ends the process at once: if Python shut down normally, the thread would crash it."""
    try:
        return run_in_own_thread(work)
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(130)


def _open_served_index(model: Path, indexed: Path | None) -> "Tracer | None":
    """The index for a server: `indexed`, or that of the run; None if it has none. Raises CodekilnError for one that cannot be
    used."""
    from codekiln.index.search import INDEX_FOLDER

    if indexed is None and not (model / INDEX_FOLDER).is_dir():
        return None
    try:
        tracer = _open_tracer(model, indexed)
    except CodekilnError as failure:
        advice = "without --indexed" if indexed is not None else "with --no-index"
        raise type(failure)(f"{failure}; or serve {advice}") from None
    tracer.find("x = 1\n" * 20)  # compiles the searches, which the first request would wait for
    return tracer


COMMANDS = (complete, infill, serve)


@contextlib.contextmanager
def _open_workspace(folder: Path | None, completer: "Completer") -> Iterator["Workspace | None"]:
    """A workspace that is being indexed; none without a folder."""
    if folder is None:
        yield None
        return
    from codekiln.generate.workspace import Workspace

    workspace = Workspace(folder, completer.tokenizer)
    workspace.start()
    try:
        yield workspace
    finally:
        workspace.stop()


def use_recall(
    completer: "Completer",
    model: Path,
    tracer: "Tracer | None" = None,
    workspace: "Workspace | None" = None,
    *,
    is_own: bool = False,
) -> JsonObject:
    """Turns recall on, with the index of a run if it has one, and a workspace. `tracer` is open if that index is.

    If `is_own`, the index of `tracer` is that of a folder, which is recalled as a workspace is. The gate is that of the run, or
    else the one that was fitted on the model of the demo. Returns checksums of the gate and of the index of the run.
    """
    from codekiln.generate.recall import DEFAULT_GATE, Gate, Recall, Searched, SearchedTogether, run_gate
    from codekiln.index.build import MANIFEST as INDEX_MANIFEST
    from codekiln.index.search import INDEX_FOLDER

    own: list[Searched] = []
    if is_own and tracer is not None:
        own.append(tracer.index)
        tracer = None
    if tracer is None and (model / INDEX_FOLDER).is_dir():
        tracer = _open_tracer(model)
    path = run_gate(model)
    gate = Gate.load(path if path.is_file() else DEFAULT_GATE)
    if workspace is not None:
        own.append(workspace)
    corpus = None if tracer is None else tracer.index
    recall = Recall(gate, corpus=corpus, workspace=SearchedTogether(tuple(own)) if own else None)
    if workspace is not None:
        recall.names = workspace.names
    completer.use_recall(recall)
    return {
        "gate_sha256": sha256_of(path if path.is_file() else DEFAULT_GATE),
        "index_sha256": None if tracer is None else sha256_of(tracer.index.folder / INDEX_MANIFEST),
    }


def load_completer(folder: Path, backend: BackendName, weights: WeightsName, *, default: WeightsName) -> "Completer":
    """The model of a run or a model directory on a backend."""
    from codekiln.convert.models import export_model
    from codekiln.generate.backends.backend import token_rules
    from codekiln.generate.complete import Completer
    from codekiln.generate.model_cache import model_cache_path
    from codekiln.model.huggingface import (
        TOKENIZER,
        read_config,
        require_vocabulary,
        resolve_model_dir,
        stop_token_ids_in,
    )
    from codekiln.tokenizer.bpe import Tokenizer

    if backend == "pytorch":
        return Completer.load(folder, weights)
    if weights != default:
        raise typer.BadParameter(f"--weights is for --backend pytorch: {backend} chooses the precision itself")
    inner = resolve_model_dir(folder)
    tokenizer, (_, config) = Tokenizer.load(inner / TOKENIZER), read_config(inner)
    require_vocabulary(tokenizer.vocab_size, config)
    rules = token_rules(tokenizer, config.vocab_size, stop_token_ids_in(inner))
    match backend:
        case "ctranslate2":
            ctranslate2 = import_optional("codekiln.generate.backends.ctranslate2", "ctranslate2")
            generator = ctranslate2.CTranslate2Backend(inner, tokenizer, rules)
            return Completer(generator, tokenizer, rules, precision=generator.compute_type)
        case "llama.cpp":
            llama_cpp = import_optional("codekiln.generate.backends.llama_cpp", "llama-cpp")
            path = model_cache_path("llama.cpp", inner, GGUF_DTYPE).with_suffix(".gguf")
            if not path.is_file():
                export_model(inner, path, "gguf", dtype=GGUF_DTYPE)
            server = llama_cpp.LlamaCppBackend(path, tokenizer, rules, config.context_length)
            return Completer(server, tokenizer, rules, precision=GGUF_DTYPE)
        case _:
            assert_never(backend)


def _sampling(temperature: float, top_p: float, top_k: int, min_p: float, seed: int) -> "SamplingParams":
    from codekiln.generate.sampling import SamplingParams

    return SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed, logprobs=0)


def _context(others: Sequence[InputText], file: str | None) -> "RepositoryContext | None":
    """The other files for a document. Paths are relative to the current folder, which is taken for the repository."""
    from codekiln.generate.context import ContextFile, RepositoryContext

    if not others:
        return None
    files = tuple(ContextFile(_relative(each.file or ""), each.text) for each in others)
    return RepositoryContext(files=files, path=_relative(file or ""), repository=Path.cwd().name)


def _relative(file: str) -> str:
    """A path as a repository has it. Of a file outside of the current folder, only the name."""
    path = Path(file).absolute()
    inside = path.is_relative_to(Path.cwd()) and ".." not in path.parts
    return (path.relative_to(Path.cwd()).as_posix() if inside else path.name) if file else ""


class _Printer:
    """Prints the results in the order of the inputs, each as soon as those before it are printed."""

    def __init__(self, inputs: Sequence[InputText], progress: ProgressTask | None, *, as_json: bool) -> None:
        self._inputs, self._progress, self._as_json = inputs, progress, as_json
        self._waiting: dict[int, tuple[str, Sequence[str]]] = {}
        self._n_printed = 0
        self._known: set[int] = set()

    def has(self, number: int) -> bool:
        """Whether the result of an input is known."""
        return number in self._known

    def add(self, number: int, text: str, record: JsonObject, notes: Sequence[str] = ()) -> None:
        """The result of an input as text, and as a record for --json. Notes are for the user."""
        file = self._inputs[number].file
        self._known.add(number)
        if self._as_json:
            text = json.dumps({"file": file} | record)
        elif len(self._inputs) > 1:
            text = f"==> {file or 'standard input'} <==\n{text}"
        self._waiting[number] = text, [f"{file}: {note}" if file else note for note in notes]
        if self._progress is not None:
            self._progress.advance()
        while self._n_printed in self._waiting:
            text, notes = self._waiting.pop(self._n_printed)
            self._n_printed += 1
            for note in notes:
                print_note(note)
            typer.echo(text, nl=not text.endswith("\n"))
            sys.stdout.flush()


@contextlib.contextmanager
def _printer(title: str, inputs: Sequence[InputText], *, as_json: bool) -> Iterator[_Printer]:
    """Prints results, and shows a progress bar if there are several inputs."""
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar(title, len(inputs))) if len(inputs) > 1 else None
        yield _Printer(inputs, progress, as_json=as_json)


def _texts(completions: Sequence["Completion"]) -> str:
    """The texts of the samples of one prompt, with headings if there are several."""
    if len(completions) == 1:
        return completions[0].text
    return "\n".join(
        f"--- {number} of {len(completions)}, mean log-probability {each.mean_logprob:.2f} ---\n{each.text}"
        for number, each in enumerate(completions, start=1)
    )


def _record(completion: "Completion") -> JsonObject:
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "total_logprob": completion.total_logprob,
        "mean_logprob": completion.mean_logprob,
    }


def _open_wanted_tracer(model: Path, indexed: Path | None, *, is_searched: bool, has_recall: bool) -> "Tracer | None":
    """The tracer if an index is searched, or `indexed` is recalled. Raises BadParameter if `indexed` has no use."""
    if indexed is not None and not (is_searched or has_recall):
        raise typer.BadParameter("--indexed is for --provenance, --recall and --max-copied-tokens: give one of them")
    return _open_tracer(model, indexed) if is_searched or indexed is not None else None


def _open_tracer(model: Path, indexed: Path | None = None) -> "Tracer":
    """The tracer for the completions of a model, in `indexed` or in the index of its run.

    Raises CodekilnError if there is no index, or one of another tokenizer.
    """
    from codekiln.model.huggingface import TOKENIZER, resolve_model_dir

    provenance = import_optional("codekiln.generate.provenance", "corpus")
    tracer: Tracer = provenance.open_tracer(indexed or model, resolve_model_dir(model) / TOKENIZER)
    return tracer


def _copy_limits(values: Sequence[str] | None) -> "CopyLimits | None":
    """The limits of --max-copied-tokens: N for all licenses, or CLASS=N."""
    from codekiln.generate.copying import CopyLimits

    limits: dict[str, int] = {}
    for value in values or ():
        name, _, number = value.rpartition("=")
        if name not in ("", "permissive", "other") or not number.isascii() or not number.isdigit():
            raise typer.BadParameter(f"--max-copied-tokens is {value!r}: give N, permissive=N or other=N")
        limits |= dict.fromkeys([name] if name else ["permissive", "other"], int(number[:9]))
    return CopyLimits(permissive=limits.get("permissive"), other=limits.get("other")) if limits else None


def _limit_copies(completer: "Completer", tracer: "Tracer | None", limits: "CopyLimits | None") -> None:
    if tracer is not None and limits is not None:
        from codekiln.generate.copying import CopyLimiter

        is_permissive = import_optional("codekiln.corpus.licenses", "corpus").is_permissive
        completer.copy_limiter = CopyLimiter(tracer.index, limits, is_permissive)


def _find(tracer: "Tracer | None", completion: "Completion", text: str, prompt: str) -> "_Trace | None":
    """Where a text comes from, which a completion was before post-processing."""
    if tracer is None:
        return None
    return _Trace(text, tracer.find(text, completion.tokens, tracer.context_ids(prompt)))


@dataclass(frozen=True)
class _Trace:
    """A text, and its parts that are in the training documents."""

    text: str
    stretches: "Sequence[Stretch]"


def _trace_holes(tracer: "Tracer | None", filled: "FilledDocument") -> list[list[_Trace | None]]:
    """Where each candidate for each hole comes from."""
    prompt, traces = "", list[list[_Trace | None]]()
    for part, hole in zip(filled.parts, filled.holes, strict=False):
        prompt += part
        traces.append([_find(tracer, each.completion, each.text, prompt) for each in hole.candidates])
        prompt += hole.text
    return traces


def _notes(completion: "Completion", limits: "CopyLimits | None", trace: _Trace | None) -> list[str]:
    """What a person should know about a completion."""
    ended = [f"the completion ended early, because {limits.reason}"] if limits and completion.is_withheld else []
    return ended + _provenance_notes([trace])


def _provenance_notes(traces: Sequence[_Trace | None]) -> list[str]:
    """A line for each part of a text that is in the index, or one that says that there is none."""
    from codekiln.index.provenance import MIN_TOKENS

    known = [trace for trace in traces if trace is not None]
    if known and not any(trace.stretches for trace in known):
        return [f"no {MIN_TOKENS} tokens in a row are verbatim in the index"]
    return [
        f"{record['n_tokens']} tokens are verbatim in {record['count']:,} "
        f"{'place' if record['count'] == 1 else 'places'} of the index, for example "
        + ", ".join(f"{source['repository']}/{source['path']} ({source['license']})" for source in record["sources"])
        + f": {shorten(record['text'])}"
        for trace in known
        for record in (each.to_record(trace.text) for each in trace.stretches)
    ]


def _provenance(trace: _Trace | None) -> JsonObject:
    return {} if trace is None else {"provenance": [each.to_record(trace.text) for each in trace.stretches]}


def _filled_record(filled: "FilledDocument", traces: Sequence[Sequence[_Trace | None]]) -> JsonObject:
    holes = [
        {
            "candidates": [
                _record(each.completion)
                | {"text": each.text, "raw_text": each.completion.text}
                | ({} if each.suffix_logprob is None else {"suffix_logprob": each.suffix_logprob})
                | _provenance(trace)
                for each, trace in zip(hole.candidates, found, strict=True)
            ]
        }
        for hole, found in zip(filled.holes, traces, strict=True)
    ]
    return {"text": filled.text, "holes": holes, "notes": list(filled.notes)}
