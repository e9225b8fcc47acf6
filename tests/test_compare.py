"""Comparison of runs, and the charts of a report."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from codekiln.files import read_json, write_json, write_record
from codekiln.metrics_log import MetricsRow, read_metrics
from codekiln.report.charts import training_charts
from codekiln.report.compare import compare_runs, read_runs, totals_table, write_comparison
from codekiln.runs import read_stage_record
from tests.command import assert_refused, codekiln
from tests.small import run_program


@pytest.fixture
def stopped(small_run: Path, tmp_path: Path) -> Path:
    """A killed run, with seven complete rows and an incomplete one. Its recipe differs in three fields."""
    run = tmp_path / "stopped"
    run.mkdir()
    lines = (small_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:8]) + lines[8][:20], encoding="utf-8")
    recipe = read_json(small_run / "recipe.json")
    recipe["train"]["seed"] = 1
    recipe["corpus"]["sources"][0]["license"] = "Apache-2.0"
    del recipe["model"]["rope_base"]
    write_record(run / "recipe.json", recipe)
    return run


class Page(HTMLParser):
    """The cells of all tables by row, and every address that the page would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("td", "th") and data.strip():
            self.rows[-1].append(data)


def traces(chart: str) -> list[dict[str, Any]]:
    """The traces that Plotly draws."""
    start = re.search(r'Plotly\.newPlot\(\s*"[^"]+",\s*', chart)
    assert start is not None
    found: list[dict[str, Any]] = json.JSONDecoder().raw_decode(chart[start.end() :])[0]
    return found


def row(step: int, **fields: Any) -> MetricsRow:
    """A row of a log with changed fields."""
    found: MetricsRow = {
        "step": step,
        "tokens": 100 * (step + 1),
        "loss": 1.0,
        "grad_norm": 1.0,
        "lr": 0.1,
        "lr_scale": 1.0,
        "seconds": 0.5,
        "tokens_per_second": 200.0,
        "matmul_efficiency": 0.1,
    }
    found.update(fields)  # type: ignore[typeddict-item]
    return found


def test_totals_of_a_finished_run_are_those_of_its_stage(small_run: Path) -> None:
    found = compare_runs(read_runs([small_run]))["runs"]["run"]
    assert found == {key: read_stage_record(small_run, "train")["result"][key] for key in found}


def test_killed_run_needs_only_its_recipe_and_metrics(small_run: Path, stopped: Path) -> None:
    found = compare_runs(read_runs([small_run, stopped]))["runs"]["stopped"]
    rows = read_metrics(small_run / "metrics.jsonl")[:7]
    assert (found["steps"], found["tokens"]) == (7, rows[-1]["tokens"])
    assert found["validation_bits_per_byte"] == rows[4]["validation_bits_per_byte"], (
        "the last validation is that of step 5"
    )


def test_differing_fields_are_named_by_their_paths(small_run: Path, stopped: Path) -> None:
    assert compare_runs(read_runs([small_run, stopped]))["recipe"] == {
        "corpus.sources[0].license": {"run": "MIT", "stopped": "Apache-2.0"},
        "model.rope_base": {"run": 10_000.0},
        "train.seed": {"run": 0, "stopped": 1},
    }
    assert compare_runs(read_runs([small_run]))["recipe"] == {}


def test_page_shows_both_runs_and_loads_nothing(small_run: Path, stopped: Path, tmp_path: Path) -> None:
    runs = read_runs([small_run, stopped])
    write_comparison(runs, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.rows[:3] == totals_table(compare_runs(runs))
    assert ["train.seed", "0", "1"] in page.rows and ["model.rope_base", "10000.0", "–"] in page.rows
    assert page.loaded == []
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(re.findall(r"Plotly\.newPlot\(\s*\"", text)) == 7

    write_comparison(runs[:1], tmp_path / "one.html")
    assert "Where the recipes differ" not in (tmp_path / "one.html").read_text(encoding="utf-8")


def test_validation_is_drawn_by_tokens_and_by_time(small_run: Path, stopped: Path) -> None:
    runs = read_runs([small_run, stopped])
    charts = training_charts({run.name: run.rows for run in runs})
    for k, run in enumerate(runs):
        validated = [r for r in run.rows if "validation_bits_per_byte" in r]
        by_tokens, by_time = traces(charts["Validation"])[k], traces(charts["Validation by time"])[k]
        assert by_tokens["name"] == by_time["name"] == run.name
        assert by_tokens["y"] == by_time["y"] == [r["validation_bits_per_byte"] for r in validated]
        assert by_tokens["x"] == [r["tokens"] for r in validated]
        seconds = [sum(r["seconds"] for r in run.rows[: r["step"] + 1]) for r in validated]
        assert by_time["x"] == pytest.approx(seconds)


def test_smoothed_loss_is_the_mean_of_the_last_twenty_steps() -> None:
    losses = [10 / (step + 1) + step % 3 for step in range(50)]
    raw, smoothed = traces(training_charts({"a": [row(i, loss=loss) for i, loss in enumerate(losses)]})["Loss"])
    assert raw["y"] == losses
    slow = [sum(losses[max(0, i - 19) : i + 1]) / len(losses[max(0, i - 19) : i + 1]) for i in range(50)]
    assert smoothed["y"] == pytest.approx(slow)


def test_skipped_step_does_not_change_the_smoothed_loss() -> None:
    rows = [row(step, loss=2.0) for step in range(40)]
    rows[10] = row(10, loss=float("nan"), grad_norm=float("inf"), skipped="the loss is nan", documents=[3])
    rows[20] = row(20, loss=50.0, grad_norm=70.0, skipped="the gradient norm is 70")
    charts = training_charts({"a": rows})
    raw, smoothed = traces(charts["Loss"])
    assert raw["y"] == [2.0] * 19 + [50.0] + [2.0] * 19
    assert smoothed["y"] == pytest.approx([2.0] * 38)
    assert traces(charts["Gradient norm"])[0]["y"] == [1.0] * 19 + [70.0] + [1.0] * 19


def test_downsampling_keeps_spikes() -> None:
    rows = [row(step, grad_norm=1 + step % 7 / 10) for step in range(30_000)]
    rows[12_345]["grad_norm"] = 99.0
    rows[23_456]["grad_norm"] = 0.01
    trace = traces(training_charts({"long": rows})["Gradient norm"])[0]
    assert len(trace["x"]) <= 2000 and trace["x"] == sorted(trace["x"])
    drawn = dict(zip(trace["x"], trace["y"], strict=True))
    assert (drawn[1_234_600], drawn[2_345_700]) == (99.0, 0.01)


def test_missing_metrics_have_no_chart(small_run: Path, tmp_path: Path) -> None:
    shutil.copy(small_run / "recipe.json", tmp_path)
    rows = [row(0, validation_bits_per_byte=None), row(1)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in ({"format": 1}, *rows)), encoding="utf-8"
    )
    runs = read_runs([tmp_path])
    assert totals_table(compare_runs(runs))[1][-1] == "–"
    assert set(training_charts({"a": runs[0].rows})) == {
        "Loss",
        "Speed",
        "Efficiency",
        "Gradient norm",
        "Learning rate",
    }


def test_names_and_recipes_are_escaped(small_run: Path, stopped: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(stopped, hostile)
    recipe = read_json(hostile / "recipe.json")
    write_record(hostile / "recipe.json", recipe | {"name": "</script><script>alert(1)</script>"})
    write_comparison(read_runs([small_run, hostile]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<script>alert(1)" not in page
    assert "&lt;img src=x" in page and "&lt;script&gt;alert(1)" in page


def test_runs_with_the_same_name_are_named_by_their_paths(small_run: Path, tmp_path: Path) -> None:
    other = tmp_path / small_run.name
    shutil.copytree(small_run, other)
    assert [run.name for run in read_runs([small_run, other])] == [str(small_run), str(other)]


@pytest.mark.process
def test_compare_prints_the_table_and_writes_the_page(small_run: Path, stopped: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages" / "both.html"
    done = codekiln("compare", small_run, stopped, "--out", out)
    assert done.returncode == 0, done.stderr
    for cell in (cell for line in totals_table(compare_runs(read_runs([small_run, stopped]))) for cell in line):
        assert cell in done.stdout
    assert "train.seed" in done.stdout and str(out) in done.stdout.replace("\n", "")
    assert out.is_file()

    as_json = json.loads(codekiln("compare", small_run, stopped, "--out", out, "--json").stdout)
    assert as_json == {"page": str(out)} | compare_runs(read_runs([small_run, stopped]))


@pytest.mark.process
def test_folder_that_is_not_a_run_is_refused(small_run: Path, stopped: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert_refused(codekiln("compare", tmp_path, "--out", out), tmp_path, "recipe.json", stopped)
    assert_refused(codekiln("compare", small_run, small_run, "--out", out), small_run, "twice")
    (stopped / "metrics.jsonl").unlink()
    assert_refused(codekiln("compare", small_run, stopped, "--out", out), stopped, "metrics")
    write_json(stopped / "recipe.json", {"format": 1, "model": {"kind": "MothConfig", "n_wings": 4}})
    shutil.copy(small_run / "metrics.jsonl", stopped)
    assert_refused(codekiln("compare", stopped, "--out", out), "MothConfig", "KilnConfig")
    write_json(stopped / "recipe.json", {"format": 2, "model": {}})
    assert_refused(codekiln("compare", stopped, "--out", out), stopped / "recipe.json", "format 1")
    assert not out.exists()


@pytest.mark.process
@pytest.mark.parametrize("command", ["compare", "report"])
def test_missing_plotly_is_reported_with_its_extra(command: str, small_run: Path) -> None:
    done = run_program("run_without.py", "plotly", command, small_run, check=False)
    assert_refused(done, "plotly", "pip install 'codekiln[report]'")


def test_report_has_all_curves(small_run: Path) -> None:
    page = (small_run / "report.html").read_text(encoding="utf-8")
    for title in ("Loss", "Validation", "Speed", "Efficiency", "Gradient norm", "Learning rate", "Token lengths"):
        assert f"<b>{title}</b>" in page
    assert Page(small_run / "report.html").loaded == []
