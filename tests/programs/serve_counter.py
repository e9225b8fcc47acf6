"""Serves a completer that counts its steps, on a free port, which it prints.

The prompt selects what each step does: "fast" sends 5,000 characters, "slow" one after 10 ms, "silent" nothing after 10 ms.
The prompt "count" is answered with the number of steps so far.
"""
# ruff: noqa: T201 - prints its result

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from codekiln.generate.complete import (
    Completer,
    Completion,
    CompletionChunk,
    CompletionParams,
    CutPrompt,
    InfillRequest,
)
from codekiln.generate.complete import Job as RealJob
from codekiln.generate.recall import RequestText
from codekiln.serve.server import listen, make_app, serve

TEXTS = {"fast": "x" * 5000, "slow": "x", "silent": ""}


class Job:
    """A prompt, and how many steps it still has."""

    def __init__(self, prompt: str, n_steps: int) -> None:
        self.prompt, self.n_left = prompt, n_steps
        self.request = SimpleNamespace(n_cached_tokens=0)

    @property
    def is_finished(self) -> bool:
        return self.n_left < 0


class Counter:
    """As much of a completer as the server uses. Prompts are ids of characters."""

    max_new_tokens_limit = 4096
    context_length = 10_000
    can_infill = True
    precision = "float32"

    def __init__(self) -> None:
        self.n_steps = 0
        self.engine, self.tokenizer = SimpleNamespace(stats=None), SimpleNamespace(token_bytes=[], decode=lambda _: "")
        self._jobs: list[Job] = []

    def limit_new_tokens(self, max_new_tokens: int) -> int:
        return max_new_tokens

    def cut_prompt(self, request: InfillRequest, max_new_tokens: int) -> CutPrompt:
        return CutPrompt([ord(character) for character in request.prompt], len(request.prompt), RequestText())

    def check(self, prompt: Sequence[int], params: CompletionParams) -> None:
        """All prompts are taken."""

    def submit(self, prompt: CutPrompt, params: CompletionParams) -> Job:
        text = "".join(map(chr, prompt.ids))
        job = Job(text, 0 if text == "count" else params.max_new_tokens or 1)
        self._jobs.append(job)
        return job

    def cancel(self, job: Job) -> None:
        self._jobs.remove(job)

    def step(self) -> list[tuple[RealJob, CompletionChunk]]:
        found = []
        for job in list(self._jobs):
            job.n_left -= 1
            if job.is_finished:
                self._jobs.remove(job)
                found.append((job, CompletionChunk(0, "", Completion(str(self.n_steps), "stop", 1, 1))))
            else:
                self.n_steps += 1
                time.sleep(0 if job.prompt == "fast" else 0.01)
                found.append((job, CompletionChunk(0, TEXTS[job.prompt])))
        return cast("list[tuple[RealJob, CompletionChunk]]", found)


if __name__ == "__main__":
    listening = listen("127.0.0.1", 0)
    print(listening.getsockname()[1], flush=True)
    serve(make_app(cast(Completer, Counter()), "counter", "127.0.0.1"), listening)
