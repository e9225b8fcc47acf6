"""Serves a completer that counts its steps, on a free port, which it prints.

The prompt selects what each step does: "fast" sends 5,000 characters, "slow" one after 10 ms, "silent" nothing after 10 ms.
The prompt "count" is answered with the number of steps so far.
"""
# ruff: noqa: T201 - prints its result

import time
from collections.abc import Iterator, Sequence
from typing import cast

from codekiln.generate.complete import Completer, Completion, CompletionChunk, InfillRequest
from codekiln.generate.sampling import SamplingParams
from codekiln.serve.server import listen, make_app, serve

TEXTS = {"fast": "x" * 5000, "slow": "x", "silent": ""}


class Counter:
    """As much of a completer as the server uses."""

    max_new_tokens_limit = 4096
    can_infill = True

    def __init__(self) -> None:
        self.n_steps = 0

    def stream(
        self,
        requests: Sequence[InfillRequest],
        *,
        max_new_tokens: int | None,
        sampling: SamplingParams,
        stop: Sequence[str] = (),
    ) -> Iterator[CompletionChunk]:
        return self._chunks(requests[0].prompt, max_new_tokens or 1)

    def _chunks(self, prompt: str, n: int) -> Iterator[CompletionChunk]:
        if prompt != "count":
            for _ in range(n):
                self.n_steps += 1
                time.sleep(0 if prompt == "fast" else 0.01)
                yield CompletionChunk(0, TEXTS[prompt])
        yield CompletionChunk(0, "", Completion(str(self.n_steps), "stop", 1, 1))


if __name__ == "__main__":
    listening = listen("127.0.0.1", 0)
    print(listening.getsockname()[1], flush=True)
    serve(make_app(cast(Completer, Counter()), "counter", "127.0.0.1"), listening)
