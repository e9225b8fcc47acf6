"""The server against its own description: generated requests, valid and not, never find an error of the server."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.small import running_server

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def url(small_run: Path) -> Iterator[str]:
    with running_server(small_run) as server:
        yield server.url


# The values at the limits of every field are hundreds of requests per path, so they are only sent to OpenAI's path, whose
# fields the others share.
EDITORS = "^/(infill|completions?|api/generate|v1/fim/completions|beta/completions)$"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--phases", "examples,fuzzing"), id="examples"),
        # A second proof, which takes a minute.
        pytest.param(("--phases", "coverage", "--exclude-path-regex", EDITORS), id="coverage", marks=pytest.mark.slow),
    ],
)
def test_generated_requests_are_answered_or_refused(url: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Schemathesis makes requests from the description. Headers of its own that no HTTP client could send are left out."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--max-examples", "10", "--seed", "1",
        "--checks", "not_a_server_error", "--request-timeout", "60", "--suppress-health-check", "all", "--no-color", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "POST" in done.stdout or "generated" in done.stdout


def test_description_names_every_route(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/models", "/health", "/metrics"} <= set(paths)
    properties = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    with contextlib.suppress(KeyError):
        properties = properties["anyOf"][0]
    assert {"prompt", "suffix", "n", "logprobs", "stream"} <= set(properties["properties"])


def test_description_has_the_field_and_the_header_of_provenance(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    routes = ("/v1/completions", "/beta/completions", "/v1/fim/completions", "/infill", "/completion", "/api/generate")
    for route in routes:
        described = paths[route]["post"]
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        for form in schema.get("anyOf", [schema]):
            assert form["properties"]["provenance"]["type"] == "boolean", route
            assert form["properties"]["provenance"]["default"] is False
            assert "provenance" not in form.get("required", [])
        assert "Codekiln-Provenance" in described["responses"]["200"]["headers"]
    assert "headers" not in paths["/tokenize"]["post"]["responses"].get("200", {})
