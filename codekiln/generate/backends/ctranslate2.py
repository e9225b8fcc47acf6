"""CTranslate2 as a backend for CPUs, the fastest for small models.

It has no cached prefixes, no seeds and no continuous batch: the samples of a request are computed together, and requests one
after the other. Its threads call back with each token. A queue brings the tokens to the thread that calls `step`.
"""

import contextlib
import queue
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2
import torch

from codekiln.generate.backends.backend import TokenRules, make_request, refuse_fields
from codekiln.generate.backends.ctranslate2_model import ComputeType, converted_model
from codekiln.generate.engine import EngineStats, NewToken, Request, Sample, require_room
from codekiln.generate.recall import RequestText
from codekiln.generate.sampling import SamplingParams, TokenLogprobs
from codekiln.model.huggingface import read_config
from codekiln.tokenizer.bpe import Tokenizer

MAX_BATCH = 32  # samples of a request that are computed together
_POLL_SECONDS = 0.2  # between two checks whether a batch has failed


@dataclass(frozen=True)
class _Token:
    sample: Sample
    token: int
    logprob: float | None


class CTranslate2Backend:
    """Generates tokens with CTranslate2 for the model of a directory. `compute_type` None: int8 if it agrees with float32."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, rules: TokenRules, compute_type: ComputeType | None = None
    ) -> None:
        self.context_length = read_config(folder)[1].context_length
        self.stats = EngineStats()
        self._rules = rules
        self._suppressed = [[str(i)] for i in sorted(rules.forbidden) if i < tokenizer.vocab_size]
        model = converted_model(folder, tokenizer)
        self.compute_type = compute_type or model.compute_type
        self._generator = ctranslate2.Generator(
            str(model.path),
            compute_type=self.compute_type,
            intra_threads=torch.get_num_threads(),
            max_queued_batches=-1,
        )
        self._batches: dict[Request, list[Any]] = {}  # with the results of CTranslate2, one for each sample
        # It aborts the process if it is destroyed while a batch is running.
        weakref.finalize(self, _finish, self._batches, self._generator)
        self._tokens: queue.SimpleQueue[_Token] = queue.SimpleQueue()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return all(request.is_finished for request in self._batches)

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
        """A request for `n` samples, which are computed as soon as those before them have ended.

        Raises ConfigError for a prompt that does not fit, and for what CTranslate2 cannot honor.
        """
        require_room(prompt, max_new_tokens, self.context_length)
        # There is one random generator for all requests. The seed 0 is the default, and means that none was requested.
        fields = {
            "logit_bias": bool(sampling.logit_bias),
            "min_p": bool(sampling.min_p) and not sampling.is_greedy,
            "presence_penalty": bool(sampling.presence_penalty),
            "frequency_penalty": bool(sampling.frequency_penalty),
            "logprobs": bool(sampling.logprobs) or (sampling.logprobs is not None and sampling.repetition_penalty != 1),
            "prompt_logprobs": score_from is not None,
            "seed": bool(sampling.seed) and not sampling.is_greedy,
        }
        refuse_fields("CTranslate2", fields)
        request = make_request(self.stats, prompt, sampling, max_new_tokens=max_new_tokens, n=n, cache_key=cache_key)
        if request.is_finished:
            return request
        self._batches[request] = [
            result
            for start in range(0, n, MAX_BATCH)
            for result in self._start(request.sequences[start : start + MAX_BATCH])
        ]
        return request

    def _start(self, samples: Sequence[Sample]) -> list[Any]:
        request = samples[0].request
        sampling = request.sampling
        results: list[Any] = self._generator.generate_batch(
            [[str(i) for i in request.prompt]] * len(samples),
            asynchronous=True,
            include_prompt_in_result=False,
            max_length=request.max_new_tokens,
            end_token=sorted(self._rules.stop),
            return_end_token=True,
            suppress_sequences=self._suppressed,
            repetition_penalty=sampling.repetition_penalty,
            sampling_topk=1 if sampling.is_greedy else sampling.top_k,
            sampling_topp=1 if sampling.is_greedy else sampling.top_p,
            sampling_temperature=1 if sampling.is_greedy else sampling.temperature,
            return_scores=sampling.logprobs is not None,
            callback=_receiver(samples, self._tokens),
        )
        return results

    def cancel(self, sample: Sample) -> None:
        """Ends a sample. CTranslate2 computes at most one more token of it."""
        sample.cancel()

    def step(self) -> list[NewToken]:
        """Waits for a token, and returns all that have been computed since the last step."""
        self._retire()
        new: list[NewToken] = []
        while not new and not self.is_idle:
            try:
                found = [self._tokens.get(timeout=_POLL_SECONDS)]
            except queue.Empty:
                self._raise_failures()
                continue
            while not self._tokens.empty():
                found.append(self._tokens.get())
            new = [self._append(each) for each in found if not each.sample.is_finished]
        self.stats.steps += bool(new)
        self._retire()
        return new

    def _append(self, found: _Token) -> NewToken:
        owner = found.sample
        self.stats.generated_tokens += 1
        is_wanted = owner.request.sampling.logprobs is not None and found.logprob is not None
        logprobs = TokenLogprobs(found.token, found.logprob or 0.0, ()) if is_wanted else None
        return owner.append(found.token, logprobs, self._rules.stop)

    def _retire(self) -> None:
        """Forgets batches that have ended."""
        for request, results in list(self._batches.items()):
            if request.is_finished and all(result.done() for result in results):
                del self._batches[request]

    def _raise_failures(self) -> None:
        """Raises the exception of a batch that has failed."""
        for results in self._batches.values():
            for result in results:
                if result.done():
                    result.result()


def _receiver(samples: Sequence[Sample], tokens: "queue.SimpleQueue[_Token]") -> Callable[[Any], bool]:
    """The function that a thread of CTranslate2 calls with each token. True ends the sample.

    It must not refer to the backend: the thread drops the last reference, and cannot destroy the generator that it belongs to.
    """

    def receive(result: Any) -> bool:
        each: Sample = samples[result.batch_id]
        tokens.put(_Token(each, result.token_id, result.log_prob))
        return each.is_finished

    return receive


def _finish(batches: dict[Request, list[Any]], _generator: Any) -> None:
    """Ends all batches, and waits for them."""
    for request in batches:
        for each in request.sequences:
            each.is_cancelled = True
    for results in batches.values():
        for result in results:
            with contextlib.suppress(RuntimeError):
                result.result()
