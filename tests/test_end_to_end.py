"""The whole data flow: a file becomes corpus, tokens and a model, and its hidden line is infilled over HTTP."""

import dataclasses
from pathlib import Path

import httpx
import pytest

from codekiln.corpus.documents import read_documents
from codekiln.overrides import apply_overrides
from codekiln.pipeline import build
from codekiln.train.config import RuntimeConfig
from codekiln.train.objectives import SpmInfill
from tests.small import running_server, small_recipe, with_train, write_tree

pytestmark = pytest.mark.process


@pytest.mark.timeout(600)
def test_memorized_document_is_infilled_over_http(tmp_path: Path) -> None:
    recipe = small_recipe(write_tree(tmp_path / "code"), total_tokens=200_000)
    recipe = with_train(recipe, objective=SpmInfill(fim_rate=1.0, line_rate=1.0, max_lines=1, middle_loss_weight=10.0))
    recipe = apply_overrides(recipe, ["train.save_every=1000", "train.eval_every=1000", "infilling.n_problems=1"])
    run = tmp_path / "run"
    build(dataclasses.replace(recipe, n_report_samples=0), run, RuntimeConfig(compile=False))

    document = next(read_documents(run / "corpus", "train"))
    source = tmp_path / "code" / document.repository / document.path
    assert document.text == source.read_text(encoding="utf-8")
    lines = document.text.splitlines(keepends=True)
    hidden = next(n for n, line in enumerate(lines) if line.startswith("    steps = "))
    body = {
        "prompt": "".join(lines[:hidden]),
        "suffix": "\n" + "".join(lines[hidden + 1 :]),
        "max_tokens": 60,
        "temperature": 0,
    }

    with running_server(run) as server:
        answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60).json()
    assert answer["choices"][0] == {
        "index": 0,
        "text": lines[hidden].rstrip("\n"),
        "logprobs": None,
        "finish_reason": "stop",
    }
