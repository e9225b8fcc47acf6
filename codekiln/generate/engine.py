"""The engine: requests join and leave a running batch, and each step computes one batch of tokens.

A step reads the next tokens of all running sequences, and the next part of the prompts that are not yet read. The samples of
one prompt share its keys, values and inputs of short convolutions. A prompt that begins as an earlier one does is not read
again (prefix cache). Drafts of several tokens are verified in one step. None of this changes what is generated. Recall does
(see `recall`): what followed the same tokens elsewhere is mixed into the distribution of the next token, and gives longer
drafts.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from codekiln.errors import PromptError
from codekiln.generate.prefix_cache import PrefixCache, Range, common_length
from codekiln.generate.recall import Recall, RequestText, SampleText, TokenKinds, next_draft_limit
from codekiln.generate.sampling import Row, SamplingParams, TokenLogprobs, sample, token_logprobs
from codekiln.machine import memory_bytes
from codekiln.model.cache import MAX_KERNEL_CHUNK, BatchAttention, KVPool
from codekiln.model.chunk import Chunk
from codekiln.model.decoder import Decoder

FinishReason = Literal["stop", "length"]
# Tokens of a step, on CPUs and on GPUs; longer prompts are read in several steps, between which other requests continue.
MAX_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
MAX_LOGITS = 2**28  # of a step in which all tokens are scored: 1 GB in float32
MAX_ROWS = 256  # sequences that generate at the same time
# The pool holds as many tokens as a number of full contexts; or fewer, but at least one context, so that it needs no more than
# a part of the memory of the machine, or of the free memory of the GPU. The largest pool of these limits counts: models whose
# contexts are small keep the prefixes of more editors.
POOL_CONTEXTS = {"cpu": ((8, 0.4), (32, 0.1)), "cuda": ((64, 0.4),)}
MIN_SHARED_TOKENS = 32  # for which a request waits until another one has read them
FIRST_DRAFT = 2  # tokens; the limit follows how many are right
MAX_DRAFTING_ROWS = 4  # with more sequences a step is limited by computation, and drafts do not pay


@dataclass(eq=False)
class Request:
    """A prompt and its samples. Made by `Engine.add`.

    `prompt_logprobs` are those of `prompt[score_from:]`, if they were requested.
    """

    prompt: Sequence[int]
    sampling: SamplingParams
    max_new_tokens: int
    cache_key: str
    score_from: int | None
    text: RequestText
    sequences: list["Sample"] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    n_cached_tokens: int = 0
    prefix: Range | None = None

    def add_samples(self, n: int) -> "Request":
        """The request, with `n` samples that are not yet generated."""
        self.sequences = [Sample(self, index) for index in range(n)]
        return self

    @property
    def is_finished(self) -> bool:
        """Whether all samples have ended."""
        return all(each.is_finished for each in self.sequences)

    @property
    def is_read(self) -> bool:
        """Whether the model has read the whole prompt."""
        return self.prefix is not None and len(self.prefix.tokens) >= len(self.prompt)


@dataclass(eq=False)
class Sample:
    """One sequence of a request, numbered by `index`. `own` holds its tokens, or all of the prompt too if it is alone."""

    request: Request
    index: int
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    is_cancelled: bool = False
    own: Range | None = None
    text: SampleText | None = None
    draft_limit: int = FIRST_DRAFT

    @property
    def is_finished(self) -> bool:
        """Whether it has ended or was cancelled."""
        return self.finish_reason is not None or self.is_cancelled

    def cancel(self) -> None:
        """Ends it, unless it has ended."""
        if not self.is_finished:
            self.is_cancelled = True

    def append(self, token: int, logprobs: TokenLogprobs | None, stop_token_ids: frozenset[int]) -> "NewToken":
        """Adds a token, which may be the last one."""
        self.tokens.append(token)
        if token in stop_token_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.request.max_new_tokens:
            self.finish_reason = "length"
        return NewToken(self, token, logprobs, self.finish_reason)


@dataclass(frozen=True)
class NewToken:
    """A token of a sample, with its log-probabilities if they were requested. The last one has the reason of the end."""

    sample: Sample
    token: int
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class _Work:
    """Tokens to read in a step: a part of a prompt (without a sample), or the last token of a sample and its draft."""

    request: Request
    sample: Sample | None
    tokens: Sequence[int]
    chunk: Chunk
    # Places, counted from the first of `tokens`, whose logits are needed.
    n_logits: int

    @property
    def n_draft(self) -> int:
        return len(self.tokens) - 1


@dataclass
class EngineStats:
    """Counts since the engine was made."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0


def require_room(prompt: Sequence[int], max_new_tokens: int, context_length: int) -> None:
    """Raises PromptError if the prompt is empty, or does not fit the context together with its new tokens."""
    if not prompt:
        raise PromptError("the prompt is empty: this model needs at least one token")
    if len(prompt) + max_new_tokens > context_length:
        raise PromptError(
            f"a prompt of {len(prompt)} tokens and {max_new_tokens} new tokens exceed the context of "
            f"{context_length}: shorten the prompt or request fewer new tokens"
        )


class Engine:
    """Generates tokens for many requests. Not thread-safe.

    `forbidden_token_ids` are never sampled; a sample ends with one of `stop_token_ids`. `token_bytes` are the texts of ids, for
    recall.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        stop_token_ids: frozenset[int],
        forbidden_token_ids: frozenset[int],
        token_bytes: Sequence[bytes] = (),
        pool_tokens: int | None = None,
        has_drafts: bool = True,
    ) -> None:
        self._decoder = decoder
        self.context_length = decoder.config.context_length
        self._stop_token_ids, self._has_drafts = stop_token_ids, has_drafts
        self._forbidden = torch.tensor(sorted(forbidden_token_ids), dtype=torch.long, device=decoder.device)
        self._stops = torch.tensor(sorted(stop_token_ids), dtype=torch.long, device=decoder.device)
        self._kinds = TokenKinds.of(decoder.config.vocab_size, forbidden_token_ids | stop_token_ids, token_bytes)
        self.recall = Recall()
        n_tokens = pool_tokens or _default_pool_tokens(decoder)
        self._max_batch_tokens = min(
            MAX_BATCH_TOKENS[decoder.device.type], max(512, MAX_LOGITS // decoder.config.vocab_size)
        )
        self._pool = KVPool(decoder.config, n_tokens, like=decoder.embedding)
        self._cache = PrefixCache(n_tokens)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self.stats = EngineStats()

    def warm_up(self) -> None:
        """Compiles what the first long text would wait for, or loads what was compiled."""
        if self._pool.has_kernels:
            from codekiln.model import cpu_kernels  # noqa: PLC0415 - an optional package

            cpu_kernels.compile_for_threads()

    @property
    def n_waiting(self) -> int:
        """Requests whose prompt is not yet being read."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Requests that take part in steps."""
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

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
        """A request for `n` samples, which waits until there is room. With 0 new tokens, the prompt is only read.

        `score_from` requests the log-probabilities of `prompt[score_from:]`. `text` is what recall searches, the prompt by
        default; it has what is before the tokens that are generated, or scored if none are. Raises PromptError if the prompt
        is empty, or does not fit the model's context together with its new tokens.
        """
        require_room(prompt, max_new_tokens, self.context_length)
        if (needed := len(prompt) + max_new_tokens) > self._cache.n_tokens:
            raise PromptError(
                f"a prompt of {len(prompt)} tokens and {max_new_tokens} new tokens need {needed} tokens of cache, "
                f"and there are {self._cache.n_tokens}: shorten the prompt or request fewer new tokens"
            )
        text = text or RequestText(tuple(prompt if max_new_tokens else prompt[:score_from]))
        request = Request(prompt, sampling, max_new_tokens, cache_key, score_from, text).add_samples(n)
        self._waiting.append(request)
        return request

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams, *, max_new_tokens: int
    ) -> list[list[int]]:
        """The new tokens of each prompt, generated together."""
        requests = [self.add(prompt, sampling, max_new_tokens=max_new_tokens) for prompt in prompts]
        while not all(each.is_finished for each in requests):
            self.step()
        return [each.sequences[0].tokens for each in requests]

    def cancel(self, sample: Sample) -> None:
        """Ends a sample. It takes part in no further step."""
        sample.cancel()

    @torch.inference_mode()
    def step(self) -> list[NewToken]:
        """Computes one batch. Returns the new tokens, in the order of the requests."""
        self._retire()
        self._admit()
        work = self._plan()
        if not work:
            return []
        self.stats.steps += 1
        attend = BatchAttention(self._pool, [each.chunk for each in work])
        device = self._decoder.device
        ids = torch.tensor([token for each in work for token in each.tokens], device=device)
        positions = torch.cat([_positions(each.chunk) for each in work]).to(device)
        hidden = self._decoder.hidden_states(ids, positions, attend)
        ends = list(itertools.accumulate(len(each.tokens) for each in work))
        needed = [i for each, end in zip(work, ends, strict=True) for i in range(end - each.n_logits, end)]
        logits = self._decoder.logits(hidden[needed] if len(needed) < len(ids) else hidden) if needed else hidden[:0]
        for each in work:
            self._store(each)
        new = list(self._advance(work, logits))
        self._retire()
        return new

    def _retire(self) -> None:
        """Frees the places of samples and requests that have ended."""
        for request in self._running:
            for each in request.sequences:
                if each.is_finished and each.own is not None and each.own is not request.prefix:
                    self._cache.drop(each.own)
                    each.own = None
            if request.is_finished and request.prefix is not None:
                self._cache.release(request.prefix)
                request.prefix = None
        self._running = [each for each in self._running if each.prefix is not None]
        if any(each.is_finished for each in self._waiting):
            self._waiting = deque(each for each in self._waiting if not each.is_finished)

    def _admit(self) -> None:
        """Gives waiting requests a place, in their order, while there is room."""
        n_rows = sum(len(each.sequences) for each in self._running)
        while self._waiting and (n_rows < MAX_ROWS or not self._running):
            request = self._waiting[0]
            if self._is_being_read(request):
                return
            if not self._place(request):
                if self._running:
                    return
                # Nothing will be freed by waiting: a cached prefix lies where the first sample needs the place.
                self._cache.drop_unused()
                if not self._place(request):
                    raise AssertionError("a request that fits the pool found no room in an empty one")
            self._waiting.popleft()
            self._running.append(request)
            n_rows += len(request.sequences)
            self.stats.prompt_tokens += len(request.prompt)
            self.stats.cached_prompt_tokens += request.n_cached_tokens

    def _is_being_read(self, request: Request) -> bool:
        """Whether a running request is reading much of the same prompt. It is then cheaper to wait for that."""
        for other in self._running:
            if other.prefix is not None and not other.is_read and other.cache_key == request.cache_key:
                n_common = common_length(other.prompt, request.prompt, len(request.prompt) - 1)
                if n_common - len(other.prefix.tokens) >= MIN_SHARED_TOKENS:
                    return True
        return False

    def _place(self, request: Request) -> bool:
        """Finds room for a prompt and its first sample. False if there is none."""
        if not self._place_prompt(request):
            return False
        first = request.sequences[0]
        if not request.max_new_tokens or self._has_room(first):
            return True
        assert request.prefix is not None
        self._cache.release(request.prefix)
        request.prefix, request.n_cached_tokens = None, 0
        return False

    def _place_prompt(self, request: Request) -> bool:
        """Finds a range for a prompt, and takes over or copies the tokens that another range has already."""
        is_alone = len(request.sequences) == 1
        needed = len(request.prompt) + (request.max_new_tokens if is_alone else 0)
        match = self._cache.find(request.prompt, request.cache_key)
        length = 0 if match is None else match.length
        if request.score_from is not None:
            # The logits of the token before the first that is scored are needed.
            length = min(length, max(request.score_from - 1, 0))
        if match is not None and length:
            found = match.range
            if not found.n_users and found.capacity >= needed and 2 * length >= len(found.tokens):
                del found.tokens[length:]
                self._cache.use(found)
                request.prefix, request.n_cached_tokens = found, length
                return True
            self._cache.use(found)  # so that it is not dropped to make room
        # Room to grow, so that the next prompt of an editing session continues in the same place.
        roomy = min(self.context_length, needed + max(64, needed // 4)) if is_alone else needed
        new = self._cache.allocate(roomy, request.cache_key) or self._cache.allocate(needed, request.cache_key)
        if match is not None and length:
            self._cache.release(match.range)
            if new is None and not self._running:
                new = self._cache.allocate(needed, request.cache_key)
                length = 0
        if new is None:
            return False
        if match is not None and length:
            self._pool.copy(match.range.start, new.start, length)
            new.tokens = list(request.prompt[:length])
            request.n_cached_tokens = length
        request.prefix = new
        return True

    def _plan(self) -> list[_Work]:
        """The tokens of the next step. Long chunks come last, as `BatchAttention` wants them."""
        reading = [each for each in self._running if not each.is_read]
        decoding = [each for each in self._running if each.is_read]
        work: list[_Work] = []
        for request in decoding:
            for each in request.sequences:
                if not each.is_finished and each.tokens and self._has_room(each):
                    work.append(self._next_tokens(each, is_drafting=len(decoding) <= MAX_DRAFTING_ROWS))
        budget = self._max_batch_tokens - sum(len(each.tokens) for each in work)
        for request in reading:
            if budget <= 0:
                break
            part = self._next_part(request, budget)
            work.append(part)
            budget -= len(part.tokens)
        return sorted(work, key=lambda each: len(each.tokens) > MAX_KERNEL_CHUNK)

    def _has_room(self, sample: Sample) -> bool:
        """Whether a sample has a range for its new tokens, which it gets as soon as there is room."""
        request = sample.request
        if sample.own is None:
            is_alone = len(request.sequences) == 1
            sample.own = request.prefix if is_alone else self._cache.allocate(request.max_new_tokens, "")
        return sample.own is not None

    def _next_part(self, request: Request, budget: int) -> _Work:
        prefix = request.prefix
        assert prefix is not None
        at = len(prefix.tokens)
        tokens = request.prompt[at : at + budget]
        is_last = at + len(tokens) == len(request.prompt)
        n_logits = 1 if is_last and request.max_new_tokens else 0
        if request.score_from is not None:
            n_logits = max(n_logits, min(len(tokens), at + len(tokens) - max(request.score_from - 1, 0)))
        return _Work(request, None, tokens, Chunk(len(tokens), prefix.start, at), n_logits)

    def _next_tokens(self, sample: Sample, *, is_drafting: bool) -> _Work:
        request, own = sample.request, sample.own
        assert own is not None
        tokens = [sample.tokens[-1]]
        if len(request.sequences) == 1:
            # The last token is still to be read, so one less than that can be drafted.
            most = request.max_new_tokens - len(sample.tokens) - 1
            if self._has_drafts and is_drafting and most > 0:
                text = self._text(sample)
                tokens += text.draft(self.recall, sample.tokens, min(most, sample.draft_limit))
            chunk = Chunk(len(tokens), own.start, len(own.tokens))
        else:
            assert request.prefix is not None
            chunk = Chunk(1, own.start, len(own.tokens), request.prefix.start, len(request.prompt))
        return _Work(request, sample, tokens, chunk, len(tokens))

    def _store(self, work: _Work) -> None:
        target = work.request.prefix if work.sample is None else work.sample.own
        assert target is not None
        target.tokens += work.tokens

    def _advance(self, work: Sequence[_Work], logits: Tensor) -> Iterator[NewToken]:
        """Samples the next tokens of all samples whose logits were computed."""
        candidates: list[_Candidate] = []
        at = 0
        for each in work:
            if each.sample is None:
                self._finish_part(each, logits[at : at + each.n_logits])
            candidates += _candidates(each, at)
            at += each.n_logits
        if not candidates:
            return
        places = [each.place for each in candidates]
        chosen = logits[places] if places != list(range(len(logits))) else logits
        rows = [each.row for each in candidates]
        if self.recall.gate is not None:
            found = [self._text(each.sample).find(self.recall, each.row.generated) for each in candidates]
            chosen = self.recall.mix(chosen, found, self._stops)
        tokens = sample(chosen.index_fill(1, self._forbidden, -torch.inf), rows)
        logprobs: list[TokenLogprobs] | None = None
        if any(row.sampling.logprobs is not None for row in rows):
            logprobs = token_logprobs(chosen, tokens, [row.sampling.logprobs or 0 for row in rows])
        for number, candidate in enumerate(candidates):
            if candidate.is_next:
                is_wanted = logprobs is not None and candidate.row.sampling.logprobs is not None
                yield self._append(
                    candidate.sample, tokens[number], logprobs[number] if logprobs and is_wanted else None
                )
        for part in work:
            if part.sample is not None and part.n_draft:
                self._settle(part)

    def _finish_part(self, work: _Work, logits: Tensor) -> None:
        """Scores a part of a prompt, and ends requests that want no new tokens."""
        request = work.request
        if request.score_from is not None:
            self._score(work, logits)
        if request.is_read and not request.max_new_tokens:
            for each in request.sequences:
                each.finish_reason = "length"

    def _settle(self, draft: _Work) -> None:
        """Removes the rejected tokens of a draft from the cache."""
        each = draft.sample
        assert each is not None and each.own is not None
        n_before = draft.chunk.n_before + 1 - len(draft.request.prompt)  # tokens that the sample had before
        n_accepted = len(each.tokens) - n_before - 1
        each.draft_limit = next_draft_limit(each.draft_limit, draft.n_draft, n_accepted)
        self.stats.drafted_tokens += draft.n_draft
        self.stats.accepted_tokens += n_accepted
        del each.own.tokens[len(each.own.tokens) - (draft.n_draft - n_accepted) :]

    def _append(self, owner: Sample, token: int, logprobs: TokenLogprobs | None) -> NewToken:
        self.stats.generated_tokens += 1
        return owner.append(token, logprobs, self._stop_token_ids)

    def _score(self, work: _Work, logits: Tensor) -> None:
        """Records the log-probabilities of the prompt's tokens after those that were read."""
        request = work.request
        assert request.score_from is not None
        first = work.chunk.n_before + len(work.tokens) - len(logits) + 1  # the token that the first logits predict
        targets = request.prompt[first : first + len(logits)]
        if targets:
            logits = logits[: len(targets)]
            if self.recall.is_scoring:
                logits = self._recall_targets(request, logits, first)
            n_top = request.sampling.logprobs or 0
            request.prompt_logprobs += token_logprobs(logits, targets, [n_top] * len(targets))

    def _recall_targets(self, request: Request, logits: Tensor, first: int) -> Tensor:
        """The logits of the mixture for the tokens of the prompt from `first` on, which is scored."""
        assert request.score_from is not None
        start, text = request.score_from, self._text(request.sequences[0])
        if request.max_new_tokens:  # its text is for the tokens after the prompt
            start, text = 0, SampleText(RequestText(), self._kinds)
        places = range(first, first + len(logits))
        found = [text.find(self.recall, request.prompt[start:place]) for place in places]
        targets = request.prompt[first : first + len(logits)]
        self.recall.add_rows(logits, found, targets, self._stops)
        return self.recall.mix(logits, found, self._stops)

    def _text(self, sample: Sample) -> SampleText:
        if sample.text is None:
            sample.text = SampleText(sample.request.text, self._kinds)
        return sample.text


def _default_pool_tokens(decoder: Decoder) -> int:
    """Tokens of the pool: at least one full context."""
    config, device = decoder.config, decoder.device
    limits = POOL_CONTEXTS[device.type]
    memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_bytes()
    n_bytes = KVPool.bytes_per_token(config, decoder.embedding.dtype) * config.context_length
    fitting = (n if memory is None else min(n, int(fraction * memory) // n_bytes) for n, fraction in limits)
    return max(1, *fitting) * config.context_length


def _positions(chunk: Chunk) -> Tensor:
    return torch.arange(chunk.position, chunk.position + chunk.n_new)


@dataclass(frozen=True)
class _Candidate:
    """A place whose next token is sampled: the row of the logits, and the tokens of the sample before it, with a draft."""

    place: int
    row: Row
    sample: Sample

    @property
    def is_next(self) -> bool:
        """Whether the sample continues here: it has not ended, and all tokens of the draft before this place were right."""
        return not self.sample.is_finished and list(self.row.generated) == self.sample.tokens


def _candidates(work: _Work, at: int) -> list[_Candidate]:
    """The places of a part of the batch whose first logits are in row `at`."""
    request = work.request
    if work.sample is None:
        if not request.is_read or not request.max_new_tokens:
            return []
        place = at + work.n_logits - 1
        samples = [each for each in request.sequences if not each.is_finished]
        return [_Candidate(place, Row(request.sampling, each.index, request.prompt, []), each) for each in samples]
    before = list(work.sample.tokens)
    rows = [
        Row(request.sampling, work.sample.index, request.prompt, [*before, *work.tokens[1 : 1 + k]])
        for k in range(len(work.tokens))
    ]
    return [_Candidate(at + k, row, work.sample) for k, row in enumerate(rows)]
