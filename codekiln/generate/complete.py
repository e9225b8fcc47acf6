"""Text in, text out: complete a prompt, or fill the holes of a document."""

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from codekiln.errors import ConfigError, PromptError
from codekiln.generate.backends.backend import Backend, TokenRules, token_rules
from codekiln.generate.context import ContextIds, RepositoryContext, context_ids
from codekiln.generate.copying import WITHHELD, CopyGuard, CopyLimiter
from codekiln.generate.engine import Engine, FinishReason, NewToken, Request
from codekiln.generate.names import begins_in_name, begun_name, continued, longer_names
from codekiln.generate.precision import choose_precision
from codekiln.generate.recall import Recall, RequestText
from codekiln.generate.sampling import GREEDY, SamplingParams, TokenLogprobs, bits
from codekiln.model.decoder import Precision
from codekiln.model.huggingface import TOKENIZER, load_model, require_vocabulary, resolve_model_dir, stop_token_ids_in
from codekiln.model.make_decoder import make_decoder
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import N_FIM_SENTINELS

DEFAULT_MAX_NEW_TOKENS = 64
# The suffix gets at least this fraction of the context if it is long enough: the prefix says more about a hole.
SUFFIX_FRACTION = 0.25
CUTS = 8  # a prefix that is too long loses a multiple of this fraction of the room
EndReason = FinishReason | Literal["content_filter"]


@dataclass(frozen=True)
class InfillRequest:
    """Text around a hole. `suffix` None means that nothing is known of what follows: the prompt is completed.

    `context` has other files of the repository.
    """

    prompt: str
    suffix: str | None = None
    context: RepositoryContext | None = None


@dataclass(frozen=True)
class CutPrompt:
    """A prompt that fits the context, how many tokens it would have if nothing was left out, and all text for recall."""

    ids: list[int]
    n_tokens: int
    text: RequestText


@dataclass(frozen=True, kw_only=True)
class CompletionParams:
    """How requests are completed. A completion ends before the first stop string.

    `max_new_tokens` None means `DEFAULT_MAX_NEW_TOKENS`, or the limit of the model if that is lower; 0 reads the prompt only.
    `has_prompt_logprobs` requests the log-probabilities of the prompt's tokens. Requests with different `cache_key` do not use
    each other's cached prefixes. A sample also ends if `stop_when` is true of its text, which is asked at line ends.
    """

    sampling: SamplingParams
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    has_prompt_logprobs: bool = False
    cache_key: str = ""
    stop_when: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Completion:
    """`finish_reason` is "length" if the token limit ended the text, "content_filter" if it would have copied too much of the
    training documents, and "stop" if anything else ended it.

    `tokens` are the ids that were generated, with the stop token, and `logprobs` theirs if they were requested.
    """

    text: str
    finish_reason: EndReason
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int = field(default=0, compare=False)

    @property
    def is_withheld(self) -> bool:
        """Whether it ended because the next token would have copied too much."""
        return self.finish_reason == WITHHELD

    @property
    def total_logprob(self) -> float:
        """The sum of the log-probabilities of its tokens."""
        return sum(each.logprob for each in self.logprobs)

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of its tokens; 0 if there are none."""
        return self.total_logprob / len(self.logprobs) if self.logprobs else 0.0


@dataclass(frozen=True)
class CompletionChunk:
    """A piece of streamed text of sample `index`. The last chunk of a sample carries its completion."""

    index: int
    text: str
    completion: Completion | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(eq=False)
class Job:
    """A request that is being completed. Made by `Completer.submit`. `completions` has those of its finished samples."""

    request: Request
    texts: list["StreamDecoder"]
    stop_when: Callable[[str], bool] | None = None
    guards: list[CopyGuard] = field(default_factory=list)  # of each sample, if copying is limited
    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[TokenLogprobs]] = field(default_factory=list)
    completions: dict[int, Completion] = field(default_factory=dict)
    n_open: int = 0

    def __post_init__(self) -> None:
        self.n_open = len(self.texts)
        self.tokens, self.logprobs = [[] for _ in self.texts], [[] for _ in self.texts]

    @property
    def is_finished(self) -> bool:
        """Whether all of its samples have ended."""
        return self.n_open == 0


AnyRequest = InfillRequest | CutPrompt | Sequence[int]


class Completer:
    """A model and its tokenizer. Not thread-safe. `engine` is the engine or another backend that follows the same `rules`.

    A caller that runs several jobs uses `submit`, `submit_score`, `cancel` and `step`. The other methods step until they are
    done, and the chunks of other jobs are lost.
    """

    def __init__(self, engine: Backend, tokenizer: Tokenizer, rules: TokenRules, *, precision: str) -> None:
        self.engine, self.tokenizer, self.precision = engine, tokenizer, precision
        self.agreement: float | None = None  # of int8 weights with float32, if it was measured
        self.copy_limiter: CopyLimiter | None = None  # for all jobs that are submitted later
        self.context_length = engine.context_length
        self._stop_token_ids = rules.stop
        self._jobs: dict[Request, Job] = {}

    @classmethod
    def of_model(
        cls,
        model: Transformer,
        tokenizer: Tokenizer,
        stop_token_ids: frozenset[int] = frozenset(),
        *,
        precision: Precision = "float32",
        has_drafts: bool = True,
        pool_tokens: int | None = None,
    ) -> "Completer":
        """A completer on PyTorch. `stop_token_ids` add to those of the tokenizer.

        Raises ConfigError if the tokenizer has more ids than the model.
        """
        require_vocabulary(tokenizer.vocab_size, model.config)
        rules = token_rules(tokenizer, model.config.vocab_size, stop_token_ids)
        engine = Engine(
            make_decoder(model, precision),
            stop_token_ids=rules.stop,
            forbidden_token_ids=rules.forbidden,
            token_bytes=tokenizer.token_bytes,
            pool_tokens=pool_tokens,
            has_drafts=has_drafts,
        )
        return cls(engine, tokenizer, rules, precision=precision)

    @property
    def has_recall(self) -> bool:
        """Whether recall changes the distribution of tokens."""
        return self._recall is not None

    @property
    def _recall(self) -> Recall | None:
        """The recall that changes the distribution of tokens, if there is one."""
        return self.engine.recall if isinstance(self.engine, Engine) and self.engine.recall.is_scoring else None

    def use_recall(self, recall: Recall) -> None:
        """Mixes what was written elsewhere into the distribution of tokens. Raises ConfigError for other backends."""
        if not isinstance(self.engine, Engine):
            raise ConfigError("recall works with the backend pytorch only")
        self.engine.recall = recall

    @property
    def can_infill(self) -> bool:
        """Whether the tokenizer has an infilling format."""
        return self.tokenizer.infill_format is not None

    @property
    def max_new_tokens_limit(self) -> int:
        """Less than half of the context, so that at least as much is left for the prompt."""
        return self.context_length // 2 - 1

    def limit_new_tokens(self, max_new_tokens: int) -> int:
        """`max_new_tokens`, or the limit of the model if that is lower."""
        return min(max_new_tokens, self.max_new_tokens_limit)

    @classmethod
    def load(cls, folder: Path, precision: Precision | Literal["auto"] = "float32") -> "Completer":
        """Loads a run or a model directory on PyTorch, to the GPU if there is one and the precision is not for CPUs.

        "auto" is bfloat16 on GPUs, and on CPUs the fastest precision that agrees with float32 (`choose_precision`). Raises
        CodekilnError or OSError naming the file that is missing or damaged.
        """
        inner = resolve_model_dir(folder)
        model, tokenizer = load_model(inner), Tokenizer.load(inner / TOKENIZER)
        if precision in ("auto", "bfloat16") and torch.cuda.is_available():
            model = model.to("cuda")
        agreement = None
        if precision == "auto":
            choice = choose_precision(model, tokenizer, inner)
            precision, agreement = choice.precision, choice.agreement
        completer = cls.of_model(model, tokenizer, stop_token_ids_in(inner), precision=precision)
        completer.agreement = agreement
        return completer

    def submit(self, request: AnyRequest, params: CompletionParams) -> Job:
        """Adds a request, as text, as a cut prompt or as token ids, to the running batch. `step` computes its tokens.

        Raises ConfigError if it cannot be completed.
        """
        limit = self.max_new_tokens_limit
        max_new_tokens = params.max_new_tokens
        if max_new_tokens is None:
            max_new_tokens = self.limit_new_tokens(DEFAULT_MAX_NEW_TOKENS)
        if not 0 <= max_new_tokens <= limit:
            raise ConfigError(
                f"max_new_tokens must be between 1 and {limit} for this model, less than half of its context "
                f"(got {max_new_tokens})"
            )
        if isinstance(request, InfillRequest):
            request = self.cut_prompt(request, max_new_tokens)
        prompt, text = _with_text(request)
        self.check(prompt, params)
        added = self.engine.add(
            prompt,
            params.sampling,
            max_new_tokens=max_new_tokens,
            n=params.n,
            cache_key=params.cache_key,
            score_from=0 if params.has_prompt_logprobs else None,
            text=None if params.has_prompt_logprobs else text,
        )
        job = Job(added, [StreamDecoder(params.stop) for _ in range(params.n)], params.stop_when)
        if self.copy_limiter is not None:
            job.guards = [self.copy_limiter.guard() for _ in range(params.n)]
        self._jobs[added] = job
        return job

    def submit_score(self, prompt: CutPrompt | Sequence[int], rest: Sequence[int], cache_key: str = "") -> Job:
        """Adds ids to be read. `job.request.prompt_logprobs` of the finished job are those of `rest` after the prompt."""
        ids, text = _with_text(prompt)
        added = self.engine.add(
            [*ids, *rest], GREEDY, max_new_tokens=0, cache_key=cache_key, score_from=len(ids), text=text
        )
        job = Job(added, [StreamDecoder(())])
        self._jobs[added] = job
        return job

    def warm_up(self) -> None:
        """Compiles what the first request would wait for."""
        if isinstance(self.engine, Engine):
            self.engine.warm_up()
        prompt = self.tokenizer.encode("x = 1\n")
        self.complete([prompt], CompletionParams(sampling=GREEDY, max_new_tokens=min(2, self.max_new_tokens_limit)))

    def check(self, prompt: Sequence[int], params: CompletionParams) -> None:
        """Raises ConfigError for an empty prompt, and for token ids that the tokenizer does not have."""
        if not prompt:
            raise PromptError("the prompt is empty: this model needs at least one token")
        n = self.tokenizer.vocab_size
        for name, ids in (("prompt", prompt), ("logit_bias", [token for token, _ in params.sampling.logit_bias])):
            if wrong := [token for token in ids if not 0 <= token < n]:
                raise ConfigError(f"{name}: token id {wrong[0]} is not in the vocabulary: ids are 0 to {n - 1}")

    def cancel(self, job: Job) -> None:
        """Ends a job. It has no further chunks."""
        for each in job.request.sequences:
            self.engine.cancel(each)
        self._jobs.pop(job.request, None)

    def step(self) -> list[tuple[Job, CompletionChunk]]:
        """One step of the engine: the new text of all jobs, with the index of the sample in its job."""
        found: list[tuple[Job, CompletionChunk]] = []
        for new in self.engine.step():
            job = self._jobs.get(new.sample.request)
            if job is not None and not job.texts[new.sample.index].is_stopped:
                found += [(job, chunk) for chunk in self._chunks(job, new)]
                if job.is_finished:
                    del self._jobs[job.request]
        for request in [each for each in self._jobs if each.is_finished]:  # those that were only read
            job = self._jobs.pop(request)
            job.n_open = 0
            found += [(job, CompletionChunk(i, "", self._completion(job, i, "length"))) for i in range(len(job.texts))]
        return found

    def _chunks(self, job: Job, new: NewToken) -> Iterator[CompletionChunk]:
        index, text = new.sample.index, job.texts[new.sample.index]
        is_end = new.token in self._stop_token_ids
        if job.guards and not is_end and not job.guards[index].allows(new.token):
            self.engine.cancel(new.sample)
            yield CompletionChunk(index, text.rest())
            text.is_stopped = True
            yield self._finish(job, index, WITHHELD)
            return
        job.tokens[index].append(new.token)
        if new.logprobs is not None:
            job.logprobs[index].append(new.logprobs)
        if is_end:
            yield self._finish(job, index, "stop", new.logprobs)
            return
        piece = text.add(self.tokenizer.token_bytes[new.token])
        if job.stop_when is not None and "\n" in piece and job.stop_when(text.sent):
            text.is_stopped = True
        if text.is_stopped:
            self.engine.cancel(new.sample)
            yield CompletionChunk(index, piece, None, new.logprobs)
            yield self._finish(job, index, "stop")
        elif new.finish_reason is not None:
            yield CompletionChunk(index, piece, None, new.logprobs)
            yield self._finish(job, index, new.finish_reason)
        else:
            yield CompletionChunk(index, piece, None, new.logprobs)

    def _finish(
        self, job: Job, index: int, reason: EndReason, logprobs: TokenLogprobs | None = None
    ) -> CompletionChunk:
        job.n_open -= 1
        rest = job.texts[index].rest()
        return CompletionChunk(index, rest, self._completion(job, index, reason), logprobs)

    def _completion(self, job: Job, index: int, reason: EndReason) -> Completion:
        tokens = tuple(job.tokens[index])
        job.completions[index] = Completion(
            text=job.texts[index].sent,
            finish_reason=reason,
            prompt_tokens=len(job.request.prompt),
            completion_tokens=len(tokens),
            tokens=tokens,
            logprobs=tuple(job.logprobs[index]),
            cached_tokens=job.request.n_cached_tokens,
        )
        return job.completions[index]

    def stream(self, requests: Sequence[AnyRequest], params: CompletionParams) -> Iterator[CompletionChunk]:
        """Decodes all requests together. Yields one chunk per token; its text may be empty while text is held back.

        Sample j of request i has the index `i * n + j`. Raises ConfigError when it is called, before the first chunk is
        requested.
        """
        return self._stream(self._submit_all(requests, params), params.n)

    def _submit_all(self, requests: Sequence[AnyRequest], params: CompletionParams) -> list[Job]:
        jobs: list[Job] = []
        try:
            for request in requests:
                jobs.append(self.submit(request, params))
        except ConfigError:
            for job in jobs:
                self.cancel(job)
            raise
        return jobs

    def _stream(self, jobs: list[Job], n: int) -> Iterator[CompletionChunk]:
        numbers = {id(job): i for i, job in enumerate(jobs)}
        try:
            while not all(job.is_finished for job in jobs):
                for job, chunk in self.step():
                    if id(job) in numbers:
                        yield replace(chunk, index=numbers[id(job)] * n + chunk.index)
        finally:
            for job in jobs:
                if not job.is_finished:
                    self.cancel(job)

    def complete(self, requests: Sequence[AnyRequest], params: CompletionParams) -> list[Completion]:
        """The completions of all requests, in order; `n` for each."""
        jobs = self._submit_all(requests, params)
        self.finish(jobs)
        return [job.completions[index] for job in jobs for index in range(params.n)]

    def finish(self, jobs: Sequence[Job]) -> None:
        """Steps until all of the jobs have ended."""
        for _ in self._stream(list(jobs), 1):
            pass

    def score(self, rows: Sequence[tuple[CutPrompt | Sequence[int], Sequence[int]]]) -> list[float]:
        """Bits of each row's continuation, the second of its two lists of ids, after its prompt, the first.

        Rows with the same prompt read it once.
        """
        numbers = {tuple(_with_text(prompt)[0]): number for number, (prompt, _) in reversed(list(enumerate(rows)))}
        first = sorted(numbers.values())
        others = sorted(set(range(len(rows))) - set(first))  # they find their prompts in the cache
        jobs: dict[int, Job] = {}
        for group in (first, others):
            jobs |= {number: self.submit_score(*rows[number]) for number in group}
            self.finish([jobs[number] for number in group])
        return [bits(jobs[number].request.prompt_logprobs) for number in range(len(rows))]

    def prompt_ids(self, request: InfillRequest, max_new_tokens: int) -> list[int]:
        """The ids of `cut_prompt`."""
        return self.cut_prompt(request, max_new_tokens).ids

    def cut_prompt(self, request: InfillRequest, max_new_tokens: int) -> CutPrompt:
        """The prompt in the model's infilling format, cut to the context: far text is left out, by whole lines if possible.

        Raises ConfigError for a suffix if the model cannot infill, and if the new tokens leave no room for a prompt.
        """
        context = self.context_ids(request.context, max_new_tokens)
        room = self.context_length - max_new_tokens - N_FIM_SENTINELS - len(context)
        if room < 1:
            raise PromptError(f"{max_new_tokens} new tokens leave no room in a context of {self.context_length}")
        prefix, suffix = self.tokenizer.encode_document(request.prompt), self.tokenizer.encode(request.suffix or "")
        n_all = len(prefix) + len(suffix)
        files = request.context.files if request.context is not None else ()
        others = [*(self.tokenizer.encode(file.text) for file in files if self.has_recall), suffix]
        is_in_word = begins_in_name(request.suffix or "")
        if not is_in_word:
            others += self._longer_names(request, prefix)
        text = RequestText(tuple(prefix), tuple(tuple(each) for each in others if each), is_in_word)
        n_suffix = min(len(suffix), max(int(room * SUFFIX_FRACTION), room - len(prefix)))
        suffix = suffix[:n_suffix]
        is_start = len(prefix) <= room - n_suffix
        if not is_start:
            # The same place is cut while a user types on, so that the cached prefix can be used again.
            n_kept = room - n_suffix
            step = max(1, n_kept // CUTS)
            n_dropped = math.ceil((len(prefix) - n_kept) / step) * step
            prefix = self._from_line_start(prefix[n_dropped:])
        n_cut = n_all - len(prefix) - len(suffix)
        prompt = prefix = [*context.header, *prefix]
        if request.suffix is not None:
            infill_format = self.tokenizer.infill_format
            if infill_format is None:
                raise ConfigError("this model cannot infill: its tokenizer has no infilling format (CodeGen has none)")
            prompt = infill_format.prompt(prefix, suffix)
        if context.before:
            ids = [*context.before, *prompt]
            return CutPrompt(ids, len(ids) + n_cut, text)
        # A start token belongs before every text of its family (Llama 3), also where the beginning of the prompt is cut off.
        has_bos = is_start or self.tokenizer.start_id is not None
        ids = [*self.tokenizer.bos_ids, *prompt] if has_bos else prompt
        return CutPrompt(ids, len(ids) + n_cut, text)

    def context_ids(self, context: RepositoryContext | None, max_new_tokens: int) -> ContextIds:
        """The other files of a repository as ids: at most half of what the new tokens leave of the context.

        It does not depend on the text around the hole, so that the cached prefix can be used again while a user types.
        """
        return context_ids(self.tokenizer, context, (self.context_length - max_new_tokens) // 2)

    def _longer_names(self, request: InfillRequest, prefix: Sequence[int]) -> list[list[int]]:
        """For recall, the names that begin as the text before the cursor ends, whose ids are `prefix`."""
        begun, recall = begun_name(request.prompt), self._recall
        if begun is None or recall is None:
            return []
        files = request.context.files if request.context is not None else ()
        texts = [request.prompt[: -len(begun)], request.suffix or "", *(file.text for file in files)]
        return continued(prefix, begun, longer_names(begun, texts, recall.names(begun)), self.tokenizer)

    def _from_line_start(self, ids: list[int]) -> list[int]:
        """The ids from the first complete line on, if that keeps at least half of them; else all."""
        table = self.tokenizer.token_bytes
        for i, token in enumerate(ids[: len(ids) // 2]):
            if table[token].endswith(b"\n"):
                return ids[i + 1 :]
        return ids


def _with_text(prompt: CutPrompt | Sequence[int]) -> tuple[list[int], RequestText | None]:
    return (prompt.ids, prompt.text) if isinstance(prompt, CutPrompt) else (list(prompt), None)


class StreamDecoder:
    """Bytes to text as they arrive. Holds back incomplete characters and text that may become a stop string."""

    def __init__(self, stop: Iterable[str]) -> None:
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.sent = ""
        self.is_stopped = False

    def add(self, data: bytes) -> str:
        """The text that can be sent now."""
        self._held += self._decoder.decode(data)
        found = [at for s in self._stop if (at := self._held.find(s)) != -1]
        if found:
            self.is_stopped = True
            return self._send(min(found), keep=False)
        return self._send(len(self._held) - self._possible_stop(), keep=True)

    def rest(self) -> str:
        """The text that was held back, after the last byte."""
        if not self.is_stopped:
            self._held += self._decoder.decode(b"", final=True)
        return self._send(0 if self.is_stopped else len(self._held), keep=False)

    def _send(self, n: int, *, keep: bool) -> str:
        fresh, self._held = self._held[:n], self._held[n:] if keep else ""
        self.sent += fresh
        return fresh

    def _possible_stop(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        lengths = (
            n for s in self._stop for n in range(min(len(s) - 1, len(self._held)), 0, -1) if self._held.endswith(s[:n])
        )
        return max(lengths, default=0)
