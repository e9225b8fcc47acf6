"""llama.cpp as a backend: its server in this process, on an exported GGUF file.

Each step asks for one token of up to `N_SLOTS` samples at the same time, and llama.cpp computes them as one batch. It keeps the
text of each slot, so only the last token is computed. Its streams are not used: they leave out the tokens
of a character that is not complete.
"""

import hashlib
import http.client
import json
import secrets
import struct
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import xllamacpp

from codekiln.errors import CodekilnError
from codekiln.files import JsonObject
from codekiln.generate.backends.backend import TokenRules, make_request, refuse_fields
from codekiln.generate.engine import EngineStats, NewToken, Request, Sample, require_room
from codekiln.generate.recall import RequestText
from codekiln.generate.sampling import SamplingParams, TokenLogprobs
from codekiln.tokenizer.bpe import Tokenizer

N_SLOTS = 4  # samples that are computed together; each has room for a whole context
TIMEOUT_SECONDS = 600.0  # of a step, which may read a long prompt


class LlamaCppError(CodekilnError):
    """llama.cpp did not answer, or answered with an error."""


class LlamaCppBackend:
    """Generates tokens with llama.cpp for the model in a GGUF file."""

    def __init__(self, path: Path, tokenizer: Tokenizer, rules: TokenRules, context_length: int) -> None:
        self.context_length = context_length
        self.stats = EngineStats()
        self._rules = rules
        self._vocab_size = tokenizer.vocab_size
        self._forbidden = [[i, False] for i in sorted(rules.forbidden) if i < tokenizer.vocab_size]
        # A token that is a complete character: llama.cpp hides the probabilities at a place where the token is not.
        self._letter = next(i for i, data in enumerate(tokenizer.token_bytes) if data == b"a")
        self._slots: list[Sample | None] = [None] * N_SLOTS
        self._cache_keys = [""] * N_SLOTS  # of the text that a slot holds
        self._waiting: list[Sample] = []
        # Other users of the machine can reach the port, so it needs a key.
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secrets.token_urlsafe()}"}
        self._server = _start(path, context_length, self._headers["Authorization"].removeprefix("Bearer "))
        self._connections = [_connection(self._server.listening_address) for _ in range(N_SLOTS)]
        self._threads = ThreadPoolExecutor(N_SLOTS, "llama.cpp")
        # The server waits for open connections when it is destroyed.
        weakref.finalize(self, _close, self._connections, self._threads)
        # It never ends if it is destroyed before its loop runs, so a first request waits for the loop.
        self._post(0, {"prompt": [self._letter], "n_predict": 1})

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return all(each is None or each.is_finished for each in (*self._slots, *self._waiting))

    def add(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        *,
        max_new_tokens: int,
        n: int = 1,
        cache_key: str = "",
        score_from: int | None = None,
        text: RequestText | None = None,
    ) -> Request:
        """A request for `n` samples, each of which waits for a slot.

        Raises ConfigError for a prompt that does not fit, and for what llama.cpp cannot honor: its presence and frequency
        penalties count the tokens of the prompt too.
        """
        require_room(prompt, max_new_tokens, self.context_length)
        fields = {
            "presence_penalty": bool(sampling.presence_penalty),
            "frequency_penalty": bool(sampling.frequency_penalty),
            "prompt_logprobs": score_from is not None,
        }
        refuse_fields("llama.cpp", fields)
        request = make_request(self.stats, prompt, sampling, max_new_tokens=max_new_tokens, n=n, cache_key=cache_key)
        self._waiting += (each for each in request.sequences if not each.is_finished)
        return request

    def cancel(self, sample: Sample) -> None:
        """Ends a sample. It takes part in no further step."""
        sample.cancel()

    def step(self) -> list[NewToken]:
        """One token of each sample that has a slot."""
        self._waiting = [each for each in self._waiting if not each.is_finished]
        for number, each in enumerate(self._slots):
            if each is None or each.is_finished:
                self._slots[number] = self._waiting.pop(0) if self._waiting else None
        running = [(number, each) for number, each in enumerate(self._slots) if each is not None]
        if not running:
            return []
        self.stats.steps += 1
        found = list(self._threads.map(lambda place: self._next_token(*place), running))
        return [self._append(each, logprobs) for (_, each), logprobs in zip(running, found, strict=True)]

    def _append(self, owner: Sample, found: TokenLogprobs) -> NewToken:
        self.stats.generated_tokens += 1
        logprobs = found if owner.request.sampling.logprobs is not None else None
        return owner.append(found.token, logprobs, self._rules.stop)

    def _next_token(self, slot: int, sample: Sample) -> TokenLogprobs:
        request = sample.request
        sampling = request.sampling
        ids = [*request.prompt, *sample.tokens]
        body = {
            "prompt": ids,
            "id_slot": slot,
            "n_predict": 1,
            "return_tokens": True,
            "cache_prompt": self._cache_keys[slot] == request.cache_key,
            "logit_bias": self._forbidden + [[token, bias] for token, bias in sampling.logit_bias],
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.context_length,
            # In the order of codekiln.generate.sampling.
            "samplers": ["penalties", "top_k"] if sampling.is_greedy else _SAMPLERS,
            "temperature": sampling.temperature,
            "top_k": 1 if sampling.is_greedy else sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "seed": _seed(sampling.seed, sample.index, len(sample.tokens)),
            "n_probs": 0 if sampling.logprobs is None else max(1, sampling.logprobs),
        }
        answer = self._post(slot, body)
        self._cache_keys[slot] = request.cache_key
        if not sample.tokens and sample.index == 0:
            request.n_cached_tokens = answer["timings"]["cache_n"]
            self.stats.cached_prompt_tokens += request.n_cached_tokens
        token: int = answer["tokens"][0]
        if sampling.logprobs is None:
            return TokenLogprobs(token, 0.0, ())
        if not answer.get("completion_probabilities"):
            answer = self._post(
                slot, body | {"n_probs": self._vocab_size, "logit_bias": [[self._letter, 1e4]], "samplers": []}
            )
        place = answer["completion_probabilities"][0]
        top = tuple((each["id"], each["logprob"]) for each in place["top_logprobs"])
        logprob = place["logprob"] if place["id"] == token else dict(top)[token]
        return TokenLogprobs(token, logprob, top[: sampling.logprobs])

    def _post(self, slot: int, body: JsonObject) -> JsonObject:
        """llama.cpp's answer. Raises LlamaCppError if it has another status than 200."""
        connection = self._connections[slot]
        try:
            connection.request("POST", "/completion", json.dumps(body), self._headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as failure:
            connection.close()  # the next request opens it again
            raise LlamaCppError(f"llama.cpp did not answer: {failure}") from failure
        if response.status != 200:
            raise LlamaCppError(
                f"llama.cpp answered with status {response.status}: {data[:200].decode(errors='replace')}"
            )
        found: JsonObject = json.loads(data)
        return found


_SAMPLERS = ["penalties", "temperature", "min_p", "top_k", "top_p"]


def _start(path: Path, context_length: int, key: str) -> "xllamacpp.Server":
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.kv_unified = N_SLOTS * context_length, N_SLOTS, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.warmup = params.ui = params.endpoint_slots = False
    params.cache_ram_mib = 0  # no prompts are kept outside of the slots
    params.verbosity = -1
    params.api_keys = [key]
    return xllamacpp.Server(params)


def _connection(address: str) -> http.client.HTTPConnection:
    host, _, port = address.removeprefix("http://").rpartition(":")
    return http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_SECONDS)


def _close(connections: Sequence[http.client.HTTPConnection], threads: ThreadPoolExecutor) -> None:
    threads.shutdown()
    for connection in connections:
        connection.close()


def _seed(seed: int, index: int, position: int) -> int:
    """llama.cpp's seed for a token: a number of 32 bits that depends on the arguments only."""
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, index, position), digest_size=4).digest()
    return int.from_bytes(digest)
