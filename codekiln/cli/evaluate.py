"""The command evaluate: published benchmarks, problems made from a corpus, and samples from elsewhere."""
# ruff: noqa: PLC0415

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit, urlunsplit

import typer

from codekiln.cli.generate import HasRecall, load_completer, use_recall
from codekiln.cli.options import BackendName, BackendOption, Json, Seed, Weights, parse_path, print_table
from codekiln.errors import ConfigError, NoProblemsError
from codekiln.extras import import_optional

if TYPE_CHECKING:
    from codekiln.evaluate.evaluation import ProblemSet
    from codekiln.evaluate.sandbox.sandbox import Sandbox
    from codekiln.evaluate.settings import BenchmarkClass, Method, Settings
    from codekiln.files import JsonObject
    from codekiln.generate.complete import Completer

LevelName = Literal["auto", "namespaces", "landlock", "limits"]
ModeName = Literal["split", "compat"]
MethodName = Literal["left-to-right", "reranking", "infilling"]


def evaluate(  # noqa: PLR0915 - one step after the other
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Run directory or model folder; with --endpoint, the name of the model there.", show_default=False
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(help="Benchmarks, with commas between them; see docs/benchmarks.md.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the files of published benchmarks, or the file of the only one.",
            show_default=False,
            parser=parse_path,
        ),
    ] = None,
    code: Annotated[
        Path | None,
        typer.Option(
            help="Folder with code to make held-out problems from, or another run, of which the validation split is used "
            "(default: the validation split of the run).",
            show_default=False,
            parser=parse_path,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for samples, verdicts and results (default: evaluation/PRESET in the run, with -recall for "
            "--recall). An evaluation that was interrupted is continued.",
            show_default=False,
            parser=parse_path,
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Settings: greedy, codegen, incoder, incoder-left-to-right or incoder-reranking.")
    ] = "greedy",
    method: Annotated[
        MethodName | None, typer.Option(help="Method of InCoder (default: of the preset).", show_default=False)
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", help="Samples per problem (default: of the preset).", min=1, show_default=False)
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="Sampling temperature; repeat it for the best of several (default: of the preset).",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Number of problems of each benchmark (default: all, or 250 of a held-out set).",
            min=1,
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Score the samples in this file instead: JSON lines with task_id and completion.",
            show_default=False,
            parser=parse_path,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Address of a server with OpenAI's completions API, such as http://127.0.0.1:8080/v1.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder of another evaluation: print paired differences.", show_default=False, parser=parse_path
        ),
    ] = None,
    sandbox: Annotated[
        LevelName, typer.Option(help="Isolation of programs; see docs/sandbox.md. auto is the best of this machine.")
    ] = "auto",
    verdict: Annotated[
        ModeName,
        typer.Option(help="split: tests run in a process without the program; compat: as in the official harnesses."),
    ] = "split",
    is_check: Annotated[
        bool, typer.Option("--sandbox-check", help="Attack the sandbox of this machine, and print what held.")
    ] = False,
    seed: Seed = 0,
    has_recall: HasRecall = False,
    weights: Weights = "float32",
    backend: BackendOption = "pytorch",
    as_json: Json = False,
) -> None:
    """Measure a model on benchmarks. Programs that it writes run in a sandbox."""
    from codekiln.evaluate.answers import ModelAnswers
    from codekiln.evaluate.comparison import compare_results, read_results
    from codekiln.evaluate.evaluation import AnswerSource, Evaluation, Task
    from codekiln.evaluate.samples import StoredSamples
    from codekiln.evaluate.sandbox.sandbox import Sandbox

    if is_check:
        _check_sandbox(sandbox, verdict, as_json=as_json)
        return
    if on is None or (model is None) == (samples is None):
        raise typer.BadParameter(
            "give a model and --on BENCHMARKS; or --samples FILE and --on BENCHMARK; or --sandbox-check"
        )
    classes = _classes(on)  # before a model is loaded
    names = list(classes)
    if samples is not None:
        if len(names) != 1:
            raise typer.BadParameter("--samples is for one benchmark")
        _refuse_options(context, "--samples", GENERATION_OPTIONS)
    if endpoint is not None:
        _refuse_options(context, "--endpoint", ("weights", "backend", "has_recall"))
    # Read first: this evaluation may take hours, and may write to the same folder.
    other = None if against is None else read_results(against)
    folder = _output_folder(model, out, f"{preset}-recall" if has_recall else preset, is_local=endpoint is None)
    choice = _Choice(preset, method, n, tuple(temperature or ()), seed)
    chosen = {name: choice.settings(classes[name], can_infill=True) for name in names}
    completer, recall = None, None
    if model is not None and endpoint is None:
        completer = load_completer(Path(model), backend, weights, default="float32")
        recall = use_recall(completer, Path(model)) if has_recall else None
        chosen = {name: choice.settings(classes[name], can_infill=completer.can_infill) for name in names}
    make_sandbox = partial(Sandbox, mode=verdict, level=sandbox, packages=_packages(names))
    sets, left_out = _problem_sets(
        chosen,
        Path(model) if model is not None and endpoint is None else None,
        data,
        code,
        limit if samples is None else None,
        make_sandbox,
    )
    tasks: list[Task] = []
    stored: StoredSamples | tuple[()] = ()
    for found in sets:
        name, settings = found.name, chosen[found.name]
        source: AnswerSource | None = None
        if samples is not None:
            stored = StoredSamples(samples, name, found.problems)
            settings = stored.settings
            found = replace(found, problems=found.problems[:limit])  # noqa: PLW2901 - samples of other problems are left out
        elif completer is not None:
            source = ModelAnswers(completer, name, settings)
        elif endpoint is not None and model is not None:
            source = import_optional("codekiln.evaluate.endpoint", "endpoint").EndpointAnswers(
                endpoint, model, name, settings
            )
        tasks.append(Task(found, settings, source))
    evaluation = Evaluation(
        folder,
        _model_record(model, endpoint, samples, completer, backend, recall),
        make_sandbox,
        {"mode": verdict, "wanted": sandbox},
        tasks,
        left_out,
    )
    results = evaluation.run(stored)
    page = import_optional("codekiln.report.evaluation_page", "report").write_evaluation_page(folder, tasks)
    differences = {} if other is None else compare_results(results["benchmarks"], other)
    if as_json:
        typer.echo(json.dumps(results | ({} if other is None else {"differences": differences}), indent=1))
        return
    _print_results(results)
    typer.echo(f"{folder}: results.json, and {page.name} with the problems")
    if other is not None:
        _print_differences(differences)


COMMANDS = (evaluate,)
# Of a model that generates answers: stored samples have no use for them.
GENERATION_OPTIONS = ("endpoint", "preset", "method", "n", "temperature", "seed", "has_recall", "weights", "backend")


def _refuse_options(context: typer.Context, used: str, names: Sequence[str]) -> None:
    """Raises BadParameter that names the options of the command line that have no effect with the option `used`."""
    options = {each.name: each.opts[0] for each in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [options[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise typer.BadParameter(f"{', '.join(given)} has no effect with {used}: leave it out")


@dataclass(frozen=True)
class _Choice:
    """A preset and what the user changed of it."""

    preset: str
    method: "Method | None"
    n: int | None
    temperatures: tuple[float, ...]
    seed: int

    def settings(self, benchmark: "BenchmarkClass", *, can_infill: bool) -> "Settings":
        from codekiln.evaluate.settings import KS, preset_settings

        settings = preset_settings(self.preset, benchmark, can_infill=can_infill)
        return replace(
            settings,
            method=self.method or settings.method,
            n_samples=self.n or settings.n_samples,
            ks=settings.ks if self.n is None else tuple(k for k in KS if k <= self.n),
            temperatures=self.temperatures or settings.temperatures,
            seed=self.seed,
        )


def _output_folder(model: str | None, out: Path | None, name: str, *, is_local: bool) -> Path:
    from codekiln.runs import RECIPE_FILE

    if out is not None:
        return out
    if model is not None and is_local and (Path(model) / RECIPE_FILE).is_file():
        return Path(model) / "evaluation" / name
    raise ConfigError("name a folder for the samples and the results with --out")


def _classes(on: str) -> "dict[str, BenchmarkClass]":
    """The benchmarks that `--on` names, and what is asked in each."""
    names = list(dict.fromkeys(name.strip() for name in on.split(",") if name.strip()))
    if not names:
        raise typer.BadParameter("--on names no benchmark: see docs/benchmarks.md")
    return {name: _class_of(name) for name in names}


def _class_of(name: str) -> "BenchmarkClass":
    """What is asked in a benchmark. Raises ConfigError that lists the benchmarks if there is none with this name."""
    from codekiln.evaluate.suite import published_class, published_names

    known = published_names()
    if name in known:
        return published_class(name)
    held_out = import_optional("codekiln.evaluate.held_out.load", "corpus")
    if name not in held_out.held_out_names():
        known += held_out.held_out_names()
        raise ConfigError(f"there is no benchmark {name!r}: choose from {', '.join(known)}")
    found: BenchmarkClass = held_out.held_out_class(name)
    return found


def _problem_sets(
    chosen: "Mapping[str, Settings]",
    model: Path | None,
    data: Path | None,
    code: Path | None,
    limit: int | None,
    make_sandbox: "Callable[[], Sandbox]",
) -> "tuple[list[ProblemSet], dict[str, str]]":
    """The problems of benchmarks; of a run with a corpus, also those of which the corpus has no copy.

    A benchmark made from code that has no problem for it is left out, with a message: the second value has the reason for each.
    Raises NoProblemsError if none is left.
    """
    from codekiln.corpus.documents import MANIFEST
    from codekiln.evaluate.suite import published_names, published_problems

    has_corpus = model is not None and (model / "corpus" / MANIFEST).is_file()
    sets: list[ProblemSet] = []
    left_out: dict[str, str] = {}
    for name, settings in chosen.items():
        if name in published_names():
            sets.append(published_problems(name, data, settings, limit))
            continue
        held_out = import_optional("codekiln.evaluate.held_out.load", "corpus")
        place = model if has_corpus and code is None else code
        if place is None:
            raise ConfigError(
                f"{name} is made from code: give a run that has a corpus, or a folder of code with --code"
            )
        try:
            sets.append(held_out.held_out_problems(name, place, settings, limit, make_sandbox))
        except NoProblemsError as error:
            left_out[name] = str(error)
    if not sets:
        raise NoProblemsError("; ".join(left_out.values()))
    for message in left_out.values():
        typer.echo(f"Left out: {message}", err=True)
    if has_corpus:
        sets = import_optional("codekiln.evaluate.held_out.load", "corpus").with_clean_problems(sets, model)
    return sets, left_out


def _packages(names: list[str]) -> tuple[str, ...]:
    """Packages that programs may import, if they are installed. Those of MTPB also use pandas and scikit-learn.

    Also modules of the standard library that take long to import, so that they are imported once.
    """
    has_mtpb = any(name.startswith("mtpb") for name in names)
    return ("numpy", "doctest", *(("pandas", "sklearn") if has_mtpb else ()))


def _model_record(
    model: str | None,
    endpoint: str | None,
    samples: Path | None,
    completer: "Completer | None",
    backend: BackendName,
    recall: "JsonObject | None",
) -> "JsonObject":
    """What identifies the model: an evaluation does not continue with another one."""
    from codekiln.files import sha256_of
    from codekiln.model.huggingface import resolve_model_dir

    if samples is not None:
        return {"samples": samples.name, "sha256": sha256_of(samples)}
    if completer is None:
        return {"endpoint": _without_secrets(endpoint or ""), "name": model}
    inner = resolve_model_dir(Path(model or ""))
    files = sorted(path for pattern in ("*.safetensors", "*.bin", "tokenizer.json") for path in inner.glob(pattern))
    return {
        "name": Path(model or "").resolve().name,
        "backend": backend,
        "precision": completer.precision,
        "sha256": {path.name: sha256_of(path) for path in files},
    } | ({} if recall is None else {"recall": recall})


def _without_secrets(url: str) -> str:
    """An address without user, password and query, which may hold a key: results are shared."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _check_sandbox(level: LevelName, mode: ModeName, *, as_json: bool) -> None:
    from codekiln.evaluate.sandbox.check import check_sandbox

    check = check_sandbox(mode=mode, level=level)
    if as_json:
        typer.echo(json.dumps(asdict(check), indent=1))
    else:
        rows = [[row.kind, str(row.n_attacks), str(row.n_as_expected), "; ".join(row.wrong)] for row in check.rows]
        print_table([["programs", "number", "as expected", "not as expected"], *rows], max_width=None)
        typer.echo(f"Sandbox: {check.level}, {check.mode}")
    if not check.is_passed:
        raise ConfigError("some programs did what the sandbox should prevent, or were refused: see the table")


_COUNT_NOTES = {
    "problems_without_samples": "problems have no sample",
    "unanswered": "samples have no answer, because the prompt was refused",
    "cut_prompts": "prompts were cut",
}


def _print_results(results: "JsonObject") -> None:
    has_clean = any("clean" in found for found in results["benchmarks"].values())
    rows = [["benchmark", "metric", "value", "95% interval", "n", *(["clean (n)"] if has_clean else [])]]
    for name, found in results["benchmarks"].items():
        clean = found.get("clean", {}).get("metrics", {})
        for metric, value in found["metrics"].items():
            cells = _cells(clean[metric]) if metric in clean else ["", "", ""]
            shown = [f"{cells[0]} ({cells[2]})"] if cells[0] else [""]
            rows.append([name, metric, *_cells(value), *(shown if has_clean else [])])
        if not found["metrics"]:
            rows.append([name, "not scored", "", "", str(found["n_problems"]), *([""] if has_clean else [])])
    print_table(rows)
    for name, found in results["benchmarks"].items():
        counts = found["counts"]
        notes = [
            f"{value} programs {key}" for key, value in counts["verdicts"].items() if key not in ("passed", "failed")
        ]
        for key, text in _COUNT_NOTES.items():
            notes += [f"{counts[key]} {text}"] if counts[key] else []
        notes += [
            f"{value['scored_tokens']:,} tokens with {value['scored_bytes']:,} of {value['bytes']:,} bytes were scored"
            for value in found["metrics"].values()
            if "scored_bytes" in value
        ]
        notes += [
            f"{number} files were not read ({reason})" for reason, number in found["source"].get("skipped", {}).items()
        ]
        if "ceiling" in found["source"]:
            notes.append(f"its checker lets at most {found['source']['ceiling']:.4f} pass")
        if notes:
            typer.echo(f"{name}: {', '.join(notes)}")
    if levels := results["sandbox"]["levels"]:
        typer.echo(f"Sandbox: {', '.join(levels)}; {results['sandbox']['mode']}")


def _cells(metric: "JsonObject") -> list[str]:
    """The value, its interval, and the number of problems."""
    interval = metric["interval"]
    if interval is None:
        return ["-", "", str(metric["n_problems"])]
    value = f"{interval['value']:.3f}"
    temperature = f" (T {metric['temperature']:g})" if "temperature" in metric else ""
    return [value + temperature, f"{interval['low']:.3f}–{interval['high']:.3f}", str(metric["n_problems"])]


def _print_differences(differences: "JsonObject") -> None:
    rows = [["benchmark", "metric", "difference", "95% interval", "n"]]
    for name, by_metric in differences.items():
        rows += [[name, metric, *_cells(difference)] for metric, difference in by_metric.items()]
    print_table(rows)
