"""The playground in a real Chromium, against the real command with a small random model.

Each test also fails if the page reports an error, breaks its security policy, or sends a request to another host.
Chromium reports a request that the policy forbids as an error.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY as GREEDY_SAMPLING
from codekiln.tokenizer.bpe import Tokenizer
from tests.small import ROOT, save_random_model
from tests.test_provenance import File, index_files

pytestmark = pytest.mark.process

PLAYGROUND = ROOT / "codekiln" / "serve" / "playground"
README_RUN = "CODEKILN_README_RUN"  # a run whose model writes the text in the README's pictures
SOURCES_PICTURES = "CODEKILN_SOURCES_PICTURES"  # a folder for pictures of the sources
HOLE = "▢"  # a hole in the texts of these tests
TIMEOUT_MS = 15_000  # other work may slow this machine down
GREEDY = {"temperature": "0", "max_tokens": "12"}

# The document without what is only shown: ghost text, and the labels of holes.
READ_DOCUMENT = """hole => [...document.querySelectorAll(".cm-line")].map(line => {
    const copy = line.cloneNode(true)
    copy.querySelectorAll(".ghost").forEach(element => element.remove())
    copy.querySelectorAll(".hole").forEach(element => element.replaceWith(hole))
    return copy.textContent
}).join("\\n")"""
RECORD_GHOSTS = """() => {
    window.ghosts = []
    new MutationObserver(() => {
        const text = document.querySelector(".ghost")?.textContent ?? ""
        if (text !== window.ghosts.at(-1)) window.ghosts.push(text)
    }).observe(document.querySelector(".cm-content"), {childList: true, subtree: true, characterData: true})
}"""


class Server:
    """`codekiln serve` on a model. It can be started again on the same port."""

    def __init__(self, model: Path) -> None:
        self._model, self._port = model, 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "codekiln", "serve", str(self._model), "--port", str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline().split("127.0.0.1:")[1].split()[0])

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=20)

    def completion(self, prompt: str, suffix: str = "", **fields: Any) -> str:
        """The text that the page should show: one greedy completion, requested without a browser and without streaming."""
        body = {
            "prompt": prompt,
            "max_tokens": 12,
            "temperature": 0,
            **({"suffix": suffix} if suffix else {}),
            **fields,
        }
        answer = httpx.post(self.url + "/v1/completions", json=body, timeout=60)
        return str(answer.json()["choices"][0]["text"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Iterator[Server]:
    started = Server(save_random_model(tmp_path_factory.mktemp("playground"), tokenizer))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", playwright.chromium.executable_path)
        chromium = next(filter(None, map(shutil.which, names)), None)
        if chromium is None:
            pytest.skip("Chromium is not installed (playwright install chromium, or Debian: apt install chromium)")
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


def watch(page: Page, url: str) -> list[str]:
    """What the page reports from now on: errors, warnings, and requests to other hosts."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: None if request.url.startswith(url) else problems.append(request.url))
    return problems


@contextmanager
def opened_page(browser: Browser, url: str, *, expected_errors: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
    """The playground in a context of its own. Other errors than `expected_errors` fail the test."""
    context = browser.new_context(**options)
    page = context.new_page()
    problems = watch(page, url)
    page.goto(url)
    expect(page.locator("[name=model] option")).to_have_count(1)
    yield page
    context.close()
    assert [problem for problem in problems if not any(part in problem for part in expected_errors)] == []


@pytest.fixture(scope="module")
def reused_page(browser: Browser, server: Server) -> Page:
    opened = browser.new_page()
    opened.goto(server.url)
    return opened


@pytest.fixture
def page(reused_page: Page, server: Server) -> Iterator[Page]:
    """The playground, loaded again in a page that other tests used: a new page takes twice as long."""
    reused_page.evaluate("settings => localStorage.setItem('codekiln.settings', settings)", json.dumps(GREEDY))
    problems = watch(reused_page, server.url)
    reused_page.goto(server.url)
    expect(reused_page.locator("[name=model] option")).to_have_count(1)
    yield reused_page
    reused_page.unroute_all()
    assert problems == []


def configure(page: Page, **values: str | bool) -> None:
    """Sets fields of the settings by their names."""
    page.locator("details").evaluate("element => { element.open = true }")
    for name, value in values.items():
        field = page.locator(f"[name={name}]")
        if isinstance(value, bool):
            field.set_checked(value)
        else:
            field.fill(value)
    page.locator(".cm-content").focus()


def write(page: Page, text: str) -> None:
    """Replaces the document. The cursor is at its end."""
    page.locator(".cm-content").focus()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(text)


def write_around_cursor(page: Page, before: str, after: str) -> None:
    write(page, before + after)
    for _ in after:
        page.keyboard.press("ArrowLeft")


def expect_document(page: Page, text: str) -> None:
    """Waits until the document is `text`, with `HOLE` for each hole."""
    page.wait_for_function(f"([hole, text]) => ({READ_DOCUMENT})(hole) === text", arg=[HOLE, text], timeout=TIMEOUT_MS)


def answer_with(route: Route, *choices: dict[str, Any]) -> None:
    """Answers a request with events in OpenAI's format, for text that the small model does not write."""
    data = "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices)
    route.fulfill(content_type="text/event-stream", body=data + "data: [DONE]\n\n")


def test_policy_is_strict_and_its_nonce_is_new_in_each_response(server: Server) -> None:
    first, second = httpx.get(server.url), httpx.get(server.url)
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    nonce = first.text.split('nonce="')[1].split('"')[0]
    assert len(nonce) >= 20 and f"'nonce-{nonce}'" in policy
    assert nonce not in second.text and nonce not in second.headers["content-security-policy"]
    assert first.headers["cache-control"] == "no-store"
    assert httpx.get(server.url + "/src/main.js").status_code == 404


def test_typing_shows_ghost_text_and_tab_accepts_it(page: Page, server: Server) -> None:
    ghost = page.locator(".ghost")
    expected = server.completion("def open_door(na", "\n    return name")
    write_around_cursor(page, "def open_door(n", "\n    return name")
    page.keyboard.type("a")
    expect(ghost).to_have_text(expected)
    expect_document(page, "def open_door(na\n    return name")
    expect(page.locator("#status")).to_have_text(re.compile(r"^first text \d+ ms · total \d+ ms · \d+ tokens?$"))
    page.keyboard.press("Tab")
    expect_document(page, f"def open_door(na{expected}\n    return name")
    page.keyboard.press("Control+z")
    expect_document(page, "def open_door(na\n    return name")


def test_typing_on_shortens_the_ghost_text_or_removes_it(page: Page, server: Server) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if request.method == "POST" else None)
    ghost = page.locator(".ghost")
    expected = server.completion("x = ")
    write(page, "x = ")
    expect(ghost).to_have_text(expected)
    n_requests = len(requests)
    page.keyboard.insert_text(expected[:2])
    expect(ghost).to_have_text(expected[2:])
    page.wait_for_timeout(300)  # longer than the pause before a request
    assert len(requests) == n_requests
    page.keyboard.press("Escape")
    expect(ghost).to_have_count(0)
    expect_document(page, "x = " + expected[:2])

    page.keyboard.press("Control+Space")
    expect(ghost).to_have_text(server.completion("x = " + expected[:2]))
    page.keyboard.press("ArrowLeft")
    expect(ghost).to_have_count(0)


def test_a_word_of_the_ghost_text_is_accepted(page: Page) -> None:
    choice = {"index": 0, "text": " first_word(second)", "finish_reason": "stop"}
    page.route("**/v1/completions", lambda route: answer_with(route, choice))
    write(page, "x =")
    ghost = page.locator(".ghost")
    for rest in ("(second)", "second)", ")"):
        expect(ghost).to_be_visible()
        page.keyboard.press("Control+ArrowRight")
        expect(ghost).to_have_text(rest)
    expect_document(page, "x = first_word(second")


def test_streamed_text_arrives_in_pieces_and_typing_cancels_it(page: Page, server: Server) -> None:
    configure(page, max_tokens="60", while_typing=False)
    expected = server.completion("def f(", max_tokens=60)
    write(page, "def f(")
    page.evaluate(RECORD_GHOSTS)
    with throttled(page, bytes_per_second=20_000):
        page.keyboard.press("Control+Space")
        expect(page.locator(".ghost")).to_have_text(expected)
    pieces = [piece for piece in page.evaluate("window.ghosts") if piece]
    assert len(pieces) >= 3 and pieces[-1] == expected
    assert all(later.startswith(earlier) for earlier, later in pairwise(pieces))

    page.keyboard.press("Escape")
    with throttled(page, bytes_per_second=20_000), page.expect_event("requestfailed") as failed:
        page.keyboard.press("Control+Space")
        expect(page.locator(".ghost")).to_be_visible()
        page.keyboard.type("§")  # not the beginning of the ghost text
    assert failed.value.failure == "net::ERR_ABORTED"
    expect(page.locator(".ghost")).to_have_count(0)
    expect(page.locator("#status")).to_have_text("")


@contextmanager
def throttled(page: Page, *, bytes_per_second: int) -> Iterator[None]:
    """The page receives answers at this speed."""
    conditions = {"offline": False, "latency": 0, "uploadThroughput": -1, "downloadThroughput": bytes_per_second}
    session = page.context.new_cdp_session(page)
    session.send("Network.emulateNetworkConditions", conditions)
    yield
    session.detach()


def test_refused_request_is_shown_with_advice(browser: Browser, server: Server) -> None:
    with opened_page(browser, server.url, expected_errors=("400 (Bad Request)", "401 (Unauthorized)")) as page:
        configure(page, max_tokens="4000")
        write(page, "x")
        expect(page.locator("#status")).to_have_text(
            re.compile(r"^Error \(HTTP 400\): max_tokens .*Change the setting")
        )
        expect(page.locator(".ghost")).to_have_count(0)

        page.route(
            "**/v1/completions", lambda route: route.fulfill(status=401, body='{"error": {"message": "no key"}}')
        )
        page.keyboard.press("Control+Space")
        expect(page.locator("#status")).to_have_text("Error (HTTP 401): no key. Enter the API key in the settings.")


def test_page_reconnects_when_the_server_is_back(browser: Browser, server: Server) -> None:
    with opened_page(browser, server.url, expected_errors=("ERR_CONNECTION_REFUSED", "503")) as page:
        configure(page, **GREEDY)
        server.stop()
        write(page, "x")
        expect(page.locator("#status")).to_contain_text("Start the server again. This page reconnects by itself.")
        server.start()
        expect(page.locator("#status")).to_have_text("Connected again.")
        expected = server.completion("x = ")
        page.keyboard.type(" = ")
        expect(page.locator(".ghost")).to_have_text(expected)


def test_holes_are_filled_from_left_to_right_and_undone_at_once(page: Page, server: Server) -> None:
    configure(page, while_typing=False)
    write(page, "def f(")
    page.keyboard.press("Control+Shift+H")
    page.keyboard.type(", removed")
    for _ in "removed":
        page.keyboard.press("Shift+ArrowLeft")
    page.get_by_role("button", name="Hole").click()
    page.keyboard.insert_text("):")
    with_holes = f"def f({HOLE}, {HOLE}):"
    expect_document(page, with_holes)
    expect(page.locator(".hole")).to_have_text(["hole 1", "hole 2"])

    first = server.completion("def f(", ", ):")
    second = server.completion(f"def f({first}, ", "):")
    page.keyboard.press("Control+Enter")
    expect_document(page, f"def f({first}, {second}):")
    expect(page.locator("#status")).to_have_text(re.compile(r"^first text \d+ ms"))
    marked = "".join(page.locator(".filled").all_inner_texts())
    assert marked.replace("\n", "") == (first + second).replace("\n", "")

    page.keyboard.press("Control+z")
    expect_document(page, with_holes)
    expect(page.locator(".filled")).to_have_count(0)
    page.keyboard.press("Control+y")
    expect_document(page, f"def f({first}, {second}):")


def test_holes_are_removed_like_characters_and_are_no_part_of_prompts(page: Page, server: Server) -> None:
    configure(page, while_typing=False)
    write(page, "a = ")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("There is no hole")
    page.keyboard.press("Control+Shift+H")
    page.keyboard.insert_text("\nb = ")
    page.keyboard.press("Control+Space")
    expect(page.locator(".ghost")).to_have_text(server.completion("a = \nb = "))
    for _ in "\nb = ":
        page.keyboard.press("Backspace")
    expect_document(page, f"a = {HOLE}")
    page.keyboard.press("Backspace")
    expect_document(page, "a = ")


def test_a_change_of_the_text_stops_filling(page: Page) -> None:
    configure(page, max_tokens="100", while_typing=False)
    write(page, "x = ")
    page.keyboard.press("Control+Shift+H")
    with throttled(page, bytes_per_second=5_000), page.expect_event("requestfailed"):
        page.keyboard.press("Control+Enter")
        expect(page.locator(".hole")).not_to_have_text("hole 1")
        page.keyboard.type("y")
    expect(page.locator("#status")).to_have_text("No hole was filled: the text was changed.")
    expect(page.locator(".hole")).to_have_text("hole 1")
    expect_document(page, f"x = {HOLE}y")


def test_candidates_show_probabilities_and_are_chosen_with_keys(page: Page) -> None:
    """The events are written by hand, as OpenAI documents them."""
    configure(page, n="2", while_typing=False)
    body: dict[str, Any] = {}

    def respond(route: Route) -> None:
        body.update(json.loads(route.request.post_data or ""))
        answer_with_candidates(route)

    page.route("**/v1/completions", respond)
    write(page, "total = ")
    page.keyboard.press("Control+Shift+Enter")
    options = page.locator("#candidates [role=option]")
    expect(options.nth(1)).to_contain_text("token limit")  # the answer has arrived
    expect(options).to_have_count(2)
    assert {name: body[name] for name in ("prompt", "n", "logprobs", "stream")} == {
        "prompt": "total = ",
        "n": 2,
        "logprobs": 5,
        "stream": True,
    }
    expect(options.nth(0)).to_contain_text(re.compile(r"^1 · mean log-probability -0.35 · 2 tokens · \d+ ms · stop"))
    expect(options.nth(1)).to_contain_text(
        re.compile(r"^2 · mean log-probability -1.61 · 1 token · \d+ ms · token limit")
    )
    expect(page.locator(".ghost")).to_have_text("sum(x)")
    colors = page.locator(".token").evaluate_all("all => all.map(token => getComputedStyle(token).backgroundColor)")
    assert len(set(colors)) == 3

    page.keyboard.press("ArrowRight")
    expect(page.locator(".token-details")).to_have_text('Token 1: "sum" 50.0%. Alternatives: "max" 25.0%, "\\n" 12.5%')
    page.locator(".token").nth(2).hover()
    expect(page.locator(".token-details")).to_have_text('Token 1: "<b>0</b>" 20.0%.')

    page.keyboard.press("ArrowDown")
    expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".ghost")).to_have_text("<b>0</b>")
    page.keyboard.press("Enter")
    expect_document(page, "total = <b>0</b>")
    expect(page.locator("#candidates")).to_be_hidden()
    page.keyboard.type("!")  # the editor has the focus again
    expect_document(page, "total = <b>0</b>!")

    page.keyboard.press("Control+Shift+Enter")
    expect(options).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator("#candidates")).to_be_hidden()
    expect(page.locator(".ghost")).to_have_count(0)


def test_candidates_are_the_samples_of_the_server(page: Page, server: Server) -> None:
    configure(page, n="3", temperature="2", top_p="1", max_tokens="8", while_typing=False)
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.extend(json.loads(data) for data in [request.post_data] if data))
    write(page, "total = ")
    page.keyboard.press("Control+Shift+Enter")
    options = page.locator("#candidates [role=option]")
    expect(options).to_have_count(3)
    expect(page.locator("#status")).to_contain_text("total")
    answer = httpx.post(server.url + "/v1/completions", json=bodies[-1] | {"stream": False}, timeout=60).json()
    expected = [choice["text"] for choice in answer["choices"]]
    assert len(expected) == 3
    for number in range(3):
        expect(options.nth(number)).to_contain_text("mean log-probability")
        expect(options.nth(number).locator(".token")).to_have_count(8)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect_document(page, "total = " + expected[1])


def answer_with_candidates(route: Route) -> None:
    def choice(index: int, tokens: dict[str, float], others: dict[str, float], finish: str | None) -> dict[str, Any]:
        logprobs = {
            "tokens": list(tokens),
            "token_logprobs": list(tokens.values()),
            "top_logprobs": [tokens | others],
            "text_offset": [0] * len(tokens),
        }
        return {"index": index, "text": "".join(tokens), "logprobs": logprobs, "finish_reason": finish}

    half, quarter, eighth, fifth = -0.6931, -1.3863, -2.0794, -1.6094
    answer_with(
        route,
        choice(0, {"sum": half}, {"max": quarter, "\n": eighth}, None),
        choice(1, {"<b>0</b>": fifth}, {}, "length"),
        choice(0, {"(x)": 0.0}, {}, "stop"),
    )


@pytest.fixture(scope="module")
def run_server(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a run whose index has what its model writes after `x = ` and after `def value_of(`."""
    run = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("sources") / "run"))
    completer = Completer.load(run)
    params = CompletionParams(max_new_tokens=40, sampling=GREEDY_SAMPLING)
    written = completer.complete([InfillRequest("def value_of("), InfillRequest("x = ")], params)
    licenses = ("MIT", "GPL-3.0-only")
    index_files(run, [File(f"{k}.py", licenses[k], [5, 6, *each.tokens[:30], 7]) for k, each in enumerate(written)])
    started = Server(run)
    yield started
    started.stop()


def test_sources_of_a_completion_are_shown_under_the_editor(browser: Browser, run_server: Server) -> None:
    with opened_page(browser, run_server.url) as page:
        configure(page, temperature="0", max_tokens="40", n="2", while_typing=False)
        sources = page.locator("#sources")
        expect(sources).to_be_hidden()
        body = {"prompt": "def value_of(", "max_tokens": 40, "temperature": 0, "provenance": True}
        choice = httpx.post(run_server.url + "/v1/completions", json=body, timeout=60).json()["choices"][0]
        parts = choice["provenance"]
        assert parts
        write(page, "def value_of(")
        page.keyboard.press("Control+Space")
        expect(sources).to_be_visible()
        assert page.locator("#sources > code").evaluate("element => element.textContent") == choice["text"]
        marked = page.locator("#sources mark").evaluate_all("all => all.map(mark => mark.textContent)")
        assert marked == [part["text"] for part in parts]
        noun = "part of this text is" if len(parts) == 1 else "parts of this text are"
        expect(sources.locator(".summary")).to_have_text(f"{len(parts)} {noun} verbatim in the training documents:")
        first = sources.locator("ol > li").first
        expect(first).to_contain_text(f"{parts[0]['n_tokens']} tokens")
        expect(first.locator("li").first).to_have_text("origin/0.py · MIT")
        page.keyboard.press("Tab")
        expect_document(page, "def value_of(" + choice["text"])
        expect(sources).to_be_visible()

        write(page, "x = ")
        page.keyboard.press("Control+Shift+Enter")
        expect(sources.locator("ol ul li").first).to_have_text("origin/1.py · GPL-3.0-only")
        page.keyboard.press("Escape")
        expect(sources).to_be_hidden()
        write(page, "def value_of(")
        page.keyboard.press("Control+Shift+h")
        page.keyboard.press("Control+Enter")
        expect(sources.locator("ol ul li").first).to_have_text("origin/0.py · MIT")
        if folder := os.environ.get(SOURCES_PICTURES):
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.screenshot(path=Path(folder) / f"sources-{scheme}.png")


def test_sources_count_characters_as_the_server_does(page: Page) -> None:
    """The event is written by hand: a character outside of the basic plane, markup, two places, and a limit for copies."""
    source = {"repository": "<b>owner</b>/name", "revision": "", "path": "a.py", "license": "MIT"}
    part = {"start": 3, "stop": 9, "text": "", "n_tokens": 17, "n_prompt_tokens": 4, "count": 1200}
    part |= {"licenses": {"MIT": 2, "unknown": 1}, "sources": [source]}
    choice = {"index": 0, "text": "😀é_verbatim", "finish_reason": "content_filter", "provenance": [part]}
    choice |= {"withheld": "it copied more than 17 tokens of training documents"}
    page.route("**/v1/completions", lambda route: answer_with(route, choice))
    write(page, "x =")
    sources = page.locator("#sources")
    assert page.locator("#sources mark").evaluate_all("all => all.map(mark => mark.textContent)") == []
    expect(sources.locator("mark")).to_have_text("verbat")
    expect(sources.locator("ol > li")).to_contain_text(
        "17 tokens, after 4 of the prompt in 1,200 places (MIT: 2, unknown: 1)"
    )
    expect(sources.locator("ol ul li")).to_have_text("<b>owner</b>/name/a.py · MIT")
    expect(sources.locator(".summary")).to_have_text(
        "The text ended early: it copied more than 17 tokens of training documents. "
        "1 part of this text is verbatim in the training documents:"
    )
    page.route("**/v1/completions", lambda route: answer_with(route, {"index": 0, "text": "y", "provenance": []}))
    page.keyboard.press("Control+Space")
    expect(sources.locator(".summary")).to_contain_text("No part of this text")
    expect(sources.locator("code")).to_be_hidden()


def test_generated_markup_is_shown_as_text(browser: Browser, server: Server) -> None:
    markup = "<img src=x onerror=alert(1)>"
    with opened_page(browser, server.url, expected_errors=("requires 'TrustedHTML'",)) as page:
        choice = {"index": 0, "text": markup, "finish_reason": "stop"}
        page.route("**/v1/completions", lambda route: answer_with(route, choice))
        write(page, "x = ")
        expect(page.locator(".ghost")).to_have_text(markup)
        page.keyboard.press("Tab")
        expect_document(page, "x = " + markup)
        assert page.locator("img[src=x]").count() == 0
        # The browser refuses to turn text into markup at all.
        assert page.evaluate("try { document.body.innerHTML = '<b>' } catch (error) { error.name }") == "TypeError"


def test_settings_are_kept_and_the_key_only_in_the_session(browser: Browser, server: Server) -> None:
    with opened_page(browser, server.url) as page:
        configure(
            page,
            temperature="0.5",
            n="7",
            top_p="0.5",
            api_key="secret",
            single_line=True,
            use_suffix=False,
            debounce="10",
        )
        page.get_by_label("Language").select_option("JavaScript")
        page.reload()
        for label, value in {
            "Temperature": "0.5",
            "Candidates": "7",
            "API key": "secret",
            "Language": "javascript",
        }.items():
            expect(page.locator("form").get_by_label(label)).to_have_value(value)
        expect(page.get_by_label("Single line")).to_be_checked()
        assert "secret" not in str(page.evaluate("JSON.stringify(localStorage)"))

        write_around_cursor(page, "x = ", " + 1")
        with page.expect_request("**/v1/completions") as sent:
            page.keyboard.press("Control+Space")
        body = json.loads(sent.value.post_data or "")
        assert sent.value.headers["authorization"] == "Bearer secret"
        assert [body[name] for name in ("prompt", "temperature", "top_p", "stop")] == ["x = ", 0.5, 0.5, ["\n"]]
        assert "suffix" not in body
        expect(page.locator("#status")).to_contain_text("total")
        other = page.context.new_page()  # another session of the same browser
        other.goto(server.url)
        expect(other.locator("[name=api_key]")).to_have_value("")
        expect(other.locator("[name=n]")).to_have_value("7")


def test_dark_and_light_follow_the_system_and_the_button(browser: Browser, server: Server) -> None:
    with opened_page(browser, server.url, color_scheme="dark") as page:

        def background() -> str:
            return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

        button = page.get_by_role("button", name="Dark")
        dark = background()
        expect(button).to_have_attribute("aria-pressed", "true")
        page.emulate_media(color_scheme="light")
        light = background()
        expect(button).to_have_attribute("aria-pressed", "false")
        assert (dark, light) == ("rgb(22, 24, 29)", "rgb(255, 255, 255)")
        button.press("Enter")
        assert background() == dark
        page.reload()
        assert background() == dark


def test_page_fits_a_width_of_400_pixels(browser: Browser, server: Server) -> None:
    with opened_page(browser, server.url, viewport={"width": 400, "height": 700}) as page:
        configure(page, while_typing=False)
        page.route("**/v1/completions", answer_with_candidates)
        write(page, "a_long_name = " * 20)
        page.keyboard.press("Control+Shift+Enter")
        expect(page.locator("#candidates [role=option]").nth(0)).to_contain_text("sum")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_keys_of_a_mac(browser: Browser, server: Server) -> None:
    with opened_page(browser, server.url) as page:
        page.add_init_script("Object.defineProperty(navigator, 'platform', {value: 'MacIntel'})")
        page.reload()
        expect(page.get_by_role("button", name="Fill ⌘Enter")).to_be_visible()
        page.locator(".cm-content").press("Meta+Enter")
        expect(page.locator("#status")).to_contain_text("There is no hole")


def test_escape_and_tab_leave_the_editor(page: Page) -> None:
    write(page, "")
    page.keyboard.press("Tab")
    expect_document(page, "    ")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    expect(page.locator("summary")).to_be_focused()


def test_every_control_has_a_name(page: Page) -> None:
    unnamed = """() => [...document.querySelectorAll("button, input, select, [role], .cm-content")].filter(element =>
        !element.labels?.length && !element.ariaLabel && !element.textContent.trim() && element.role !== "status"
    ).map(element => element.outerHTML)"""
    assert page.evaluate(unnamed) == []


def test_pictures_of_the_readme_are_made(browser: Browser, server: Server, tmp_path: Path) -> None:
    """With CODEKILN_README_RUN=runs/demo, that model writes the text, and the pictures are stored in docs/images."""
    run = os.environ.get(README_RUN)
    shown = server if run is None else Server(Path(run))
    folder = tmp_path if run is None else ROOT / "docs" / "images"
    try:
        take_pictures(browser, shown.url, folder)
    finally:
        if shown is not server:
            shown.stop()
    for name in ("playground.png", "playground-dark.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG") and (folder / name).stat().st_size > 10_000


def take_pictures(browser: Browser, url: str, folder: Path) -> None:
    """The pictures of the README: ghost text on the light page, and two filled holes on the dark one."""
    options: dict[str, Any] = {"viewport": {"width": 900, "height": 560}, "device_scale_factor": 1.25}
    with opened_page(browser, url, color_scheme="light", **options) as page:
        fold_settings(page, single_line=True, temperature="0")
        page.keyboard.insert_text("    with open(path)")
        expect(page.locator(".ghost")).to_be_visible()
        expect(page.locator("#status")).to_contain_text("total")
        page.screenshot(path=folder / "playground.png", caret="initial")
    with opened_page(browser, url, color_scheme="dark", **options) as page:
        fold_settings(page, single_line=True, while_typing=False, temperature="0")
        for text in ("    with open(path) as ", ":\n        return sum(len(line.split()) for line in "):
            page.keyboard.insert_text(text)
            page.keyboard.press("Control+Shift+h")
        page.keyboard.insert_text(")\n")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#status")).to_contain_text("total")
        page.screenshot(path=folder / "playground-dark.png", caret="initial")


def fold_settings(page: Page, **values: str | bool) -> None:
    configure(page, **values)
    page.locator("details").evaluate("element => { element.open = false }")
    page.locator(".cm-content").focus()


def test_bundle_is_built_from_the_sources(tmp_path: Path) -> None:
    """It is built again if npm and its registry are there. Otherwise the recorded checksums must be those of the files."""
    recorded = json.loads((PLAYGROUND / "checksums.json").read_text(encoding="utf-8"))
    names = {f"src/{path.name}" for path in (PLAYGROUND / "src").iterdir() if path.suffix in (".js", ".json")}
    assert set(recorded) == names | {"playground.js", "playground-licenses.txt"}
    for name, checksum in recorded.items():
        assert hashlib.sha256((PLAYGROUND / name).read_bytes()).hexdigest() == checksum, f"{name}: run make playground"

    npm = shutil.which("npm")
    if npm is None or subprocess.run([npm, "ping"], capture_output=True, timeout=60, check=False).returncode != 0:
        return
    sources = tmp_path / "src"
    shutil.copytree(PLAYGROUND / "src", sources, ignore=shutil.ignore_patterns("node_modules"))
    for command in ("ci", "--no-audit", "--no-fund"), ("run", "build"):
        done = subprocess.run([npm, *command], cwd=sources, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
    for name in ("playground.js", "playground-licenses.txt"):
        assert (tmp_path / name).read_bytes() == (PLAYGROUND / name).read_bytes(), f"{name}: run make playground"
