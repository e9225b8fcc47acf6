"""What all protocols share: how a request becomes tokens, who waits, who is answered together, and what is logged.

A protocol parses a body into `Query`, calls `CompletionService.answer`, and writes what comes back in its own form.
"""

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ValidationError

from codekiln.errors import CodekilnError
from codekiln.generate.complete import (
    DEFAULT_MAX_NEW_TOKENS,
    Completer,
    Completion,
    CompletionChunk,
    CompletionParams,
    CutPrompt,
    InfillRequest,
)
from codekiln.generate.context import RepositoryContext
from codekiln.generate.copying import N_REDRAWS
from codekiln.generate.engine import Request as EngineRequest
from codekiln.generate.infilling import LEFT_TO_RIGHT_NOTE
from codekiln.generate.postprocess import Cursor, PostProcessing
from codekiln.generate.recall import RequestText
from codekiln.serve.fim_templates import find_hole
from codekiln.serve.metrics import ServerMetrics
from codekiln.serve.provenance import Traces, Training
from codekiln.serve.worker import EngineWorker, Generation

MAX_OPEN = 64  # completion requests that wait or are being answered
MAX_PARSING = 2  # bodies that are parsed and tokenized at the same time
Body = TypeVar("Body", bound=BaseModel)
Prompt = InfillRequest | list[int]


class Refusal(CodekilnError):  # noqa: N818 - not a failure of the server
    """An answer with an error status. `param` is the field that is wrong."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass(frozen=True)
class Hole(InfillRequest):
    """A prompt for a hole. `after` is the text after it, which not every model sees."""

    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What a client wants: `n` samples of each prompt.

    A newer query in the same `slot` of a client ends an older one. `is_cut` cuts prompts that are too long; otherwise they
    are refused. Without `has_cache`, no cached prefix is used. With `is_raw`, completions are never post-processed.
    """

    prompts: Sequence[Prompt]
    params: CompletionParams
    slot: str | None = None
    is_cut: bool = True
    has_cache: bool = True
    is_raw: bool = False


@dataclass(eq=False)
class Answer:
    """The answer to a query, as it is generated."""

    prompt_tokens: list[int]  # of each prompt
    n_cut_tokens: int  # of all prompts: those that did not fit the context
    cursors: list[Cursor | None]  # of the prompts whose completions are post-processed
    params: CompletionParams
    traces: Traces
    state: dict[str, Any]  # of the request: what its middleware reads
    started: float = field(default_factory=time.monotonic)
    first_token_seconds: float | None = None
    completions: dict[int, Completion] = field(default_factory=dict)
    is_superseded: bool = False
    # Chunks, or None to end early.
    queue: asyncio.Queue[CompletionChunk | Exception | None] = field(default_factory=asyncio.Queue)
    chunks: AsyncGenerator[CompletionChunk, None] = field(init=False)
    generations: list[Generation] = field(default_factory=list)
    draw_again: Callable[[], Awaitable[None]] = field(init=False)

    @property
    def n_samples(self) -> int:
        """Of all prompts."""
        return len(self.prompt_tokens) * self.params.n

    @property
    def is_complete(self) -> bool:
        """Whether all samples have ended."""
        return len(self.completions) == self.n_samples

    def request_of(self, number: int) -> EngineRequest:
        """The request of a sample. It no longer changes where the sample has a chunk, but for its samples."""
        job = self.generations[number // self.params.n].job
        assert job is not None
        return job.request

    def cursor_of(self, number: int) -> Cursor | None:
        """Where the completion of a sample is post-processed, if it is."""
        return self.cursors[number // self.params.n]

    async def whole(self) -> list[Completion]:
        """All completions, in order, post-processed and traced. Those that copied too much are drawn again.

        Raises Refusal if the client has left or sent a newer request in the same slot.
        """
        await self.finish()
        await self.draw_again()
        found = [await self._postprocessed(i) for i in range(self.n_samples)]
        await self.trace({number: each.text for number, each in enumerate(found)})
        return found

    async def pieces(self) -> AsyncGenerator[CompletionChunk, None]:
        """The chunks for the client. A text that is post-processed comes whole, when its sample has ended."""
        async with aclosing(self.chunks) as chunks:
            async for chunk in chunks:
                if self.cursor_of(chunk.index) is None:
                    yield chunk
                elif chunk.completion is not None:
                    completion = await self._postprocessed(chunk.index)
                    yield dataclasses.replace(chunk, text=completion.text, completion=completion)

    async def _postprocessed(self, number: int) -> Completion:
        completion = self.completions[number]
        return dataclasses.replace(completion, text=await self.postprocess(number, completion.text))

    async def postprocess(self, number: int, text: str) -> str:
        """The text of a sample for the client. In a thread: the text around the cursor may be long."""
        cursor = self.cursor_of(number)
        return text if cursor is None else await run_in_threadpool(cursor.postprocess, text)

    async def finish(self) -> None:
        """Waits for all completions. Raises Refusal if the client has left or sent a newer request in the same slot."""
        async with aclosing(self.chunks) as chunks:
            async for _ in chunks:
                pass
        if not self.is_complete:
            raise Refusal(409, "a newer request of this client took the place of this one", code="superseded")

    async def trace(self, texts: Mapping[int, str]) -> None:
        """Finds where texts of samples come from. A response that begins later has the longest stretch in its header."""
        if self.traces.training.tracer is not None:
            await run_in_threadpool(self.traces.find, texts, self.completions)
            self.set_header(texts)

    def set_header(self, numbers: Iterable[int]) -> None:
        """The header is about these samples only."""
        if self.traces.training.tracer is not None:
            self.state["provenance"] = self.traces.header(numbers)


@dataclass(frozen=True)
class _Tokenized:
    """The prompts, where each is post-processed, and how many of their tokens were cut off."""

    prompts: list[CutPrompt]
    cursors: list[Cursor | None]
    n_cut_tokens: int


class CompletionService:
    """Answers queries about one model. `training` traces its completions.

    With `recognize_fim`, prompts without a suffix that are in the infilling template of another model are rendered in the
    format of this one. `postprocessing` is applied to completions of holes.
    """

    def __init__(
        self,
        completer: Completer,
        model_name: str,
        *,
        recognize_fim: bool = False,
        postprocessing: PostProcessing | None = None,
        training: Training | None = None,
    ) -> None:
        self.completer, self.model_name, self._training = completer, model_name, training or Training()
        self._recognize_fim, self._postprocessing = recognize_fim, postprocessing
        self.metrics = ServerMetrics()
        self._worker = EngineWorker(completer)
        self._parse_slots = asyncio.Semaphore(MAX_PARSING)
        self._n_open = self._n_tokenizing = 0
        self._slots: dict[str, Answer] = {}
        self._generations: dict[_Key, Generation] = {}

    def start(self) -> None:
        """Starts the engine."""
        self._worker.start()

    def stop(self) -> None:
        """Stops the engine."""
        self._worker.stop()

    async def parse(self, request: Request, kind: type[Body]) -> Body:
        """The body of a request. Raises Refusal that names the field that is wrong."""
        return await self.parse_any(request, lambda _: kind)

    async def parse_any(self, request: Request, kind_of: Callable[[Any], type[Body]]) -> Body:
        """The body of a request to a path that several protocols share. `kind_of` selects its type by its fields."""
        if not _is_json(request.headers.get("content-type", "")):
            raise Refusal(415, "Content-Type must be application/json")
        data = await request.body()
        async with self._parse_slots:
            return await run_in_threadpool(_parse_body, data, kind_of)

    def require_model(self, name: str | None) -> None:
        """Raises Refusal if a client asks for another model."""
        if name is not None and name != self.model_name:
            message = f"model {name[:100]!r} does not exist: this server has {self.model_name!r}"
            raise Refusal(404, message, param="model", code="model_not_found")

    def hole(self, request: Request, prefix: str, suffix: str | None, context: RepositoryContext | None = None) -> Hole:
        """The prompt for a hole. A model that cannot infill continues the prefix, and the answer has a note about it."""
        after = suffix or ""
        if self.completer.can_infill:
            return Hole(prefix, suffix, context, after)
        if after.strip():
            request.scope["state"]["note"] = LEFT_TO_RIGHT_NOTE
        return Hole(prefix, None, context, after)

    async def answer(self, request: Request, query: Query) -> Answer:
        """Starts to answer a query. Raises Refusal, or ConfigError if the model cannot do it."""
        if self._n_open + self._n_tokenizing >= MAX_OPEN:
            raise Refusal(429, f"{MAX_OPEN} requests are waiting: try again later", code="overloaded")
        user = request.scope.get("state", {}).get("user", "")
        self._n_tokenizing += 1
        try:
            async with self._parse_slots:
                tokenized = await run_in_threadpool(self._tokenize, query)
        finally:
            self._n_tokenizing -= 1
        cache_key = user if query.has_cache else f"{user} {time.monotonic_ns()}"
        params = dataclasses.replace(query.params, cache_key=cache_key)
        answer = self._make_answer(request, tokenized, params)
        slot = None if query.slot is None else f"{user} {query.slot}"
        answer.chunks = self._run(request, answer, tokenized.prompts, slot)
        answer.draw_again = partial(self._draw_again, request, answer, tokenized)
        return answer

    def _make_answer(self, request: Request, tokenized: _Tokenized, params: CompletionParams) -> Answer:
        lengths = [len(prompt.ids) for prompt in tokenized.prompts]
        traces = Traces(self._training, [prompt.text.before for prompt in tokenized.prompts], params.n)
        return Answer(lengths, tokenized.n_cut_tokens, tokenized.cursors, params, traces, request.scope["state"])

    async def _draw_again(self, request: Request, answer: Answer, tokenized: _Tokenized) -> None:
        """Draws completions that copied too much again, with other seeds. Greedy ones would be the same."""
        n, sampling = answer.params.n, answer.params.sampling
        if sampling.is_greedy:
            return
        for attempt in range(1, 1 + N_REDRAWS):
            withheld = [number for number in range(answer.n_samples) if answer.completions[number].is_withheld]
            for k, group in itertools.groupby(withheld, key=lambda number: number // n):
                numbers = list(group)
                other = dataclasses.replace(sampling, seed=(sampling.seed + attempt) % 2**63)
                params = dataclasses.replace(answer.params, sampling=other, n=len(numbers), has_prompt_logprobs=False)
                prompts = [tokenized.prompts[k]]
                alone = dataclasses.replace(tokenized, prompts=prompts, cursors=[tokenized.cursors[k]])
                again = self._make_answer(request, alone, params)
                again.chunks = self._run(request, again, prompts, None)
                await again.finish()
                answer.completions |= {number: again.completions[i] for i, number in enumerate(numbers)}

    def _tokenize(self, query: Query) -> _Tokenized:
        """The prompts as ids. Raises Refusal for one that is too long."""
        completer = self.completer
        limit = completer.max_new_tokens_limit
        max_new_tokens = query.params.max_new_tokens
        if max_new_tokens is None:
            max_new_tokens = completer.limit_new_tokens(DEFAULT_MAX_NEW_TOKENS)
        if max_new_tokens > limit:
            raise Refusal(400, f"max_tokens must be at most {limit} for this model", param="max_tokens")
        room = completer.context_length - max_new_tokens
        prompts: list[CutPrompt] = []
        cursors: list[Cursor | None] = []
        n_cut_tokens = 0
        for given in query.prompts:
            prompt = self._recognize(given)
            may_be_cut = isinstance(prompt, InfillRequest) and (query.is_cut or prompt is not given)
            if isinstance(prompt, InfillRequest):
                found = completer.cut_prompt(prompt, max_new_tokens)
                is_cut = found.n_tokens > len(found.ids)
            else:
                found = CutPrompt(list(prompt), len(prompt), RequestText(tuple(prompt)))
                is_cut = len(prompt) > room
            if is_cut and not may_be_cut:
                raise Refusal(
                    400,
                    f"prompt: it has {found.n_tokens} tokens, and this model has room for {room} besides the new tokens: "
                    "shorten it, or request fewer new tokens",
                    param="prompt",
                    code="context_length_exceeded",
                )
            completer.check(found.ids, query.params)
            n_cut_tokens += found.n_tokens - len(found.ids)
            prompts.append(found)
            cursors.append(None if query.is_raw else self._cursor_of(prompt))
        return _Tokenized(prompts, cursors, n_cut_tokens)

    def _cursor_of(self, prompt: Prompt) -> Cursor | None:
        """Where the completion of a prompt is post-processed; None if it is not, or if the prompt is no hole."""
        if self._postprocessing is None or not isinstance(prompt, Hole):
            return None
        return Cursor.of(prompt.prompt, prompt.after, self._postprocessing)

    def _recognize(self, prompt: Prompt) -> Prompt:
        """A prompt, or the text around the hole if it is in the template of another model and that is recognized."""
        if not self._recognize_fim or not isinstance(prompt, InfillRequest) or prompt.suffix is not None:
            return prompt
        found = find_hole(prompt.prompt)
        return prompt if found is None else Hole(found.prompt, found.suffix, found.context, found.suffix or "")

    async def _run(
        self, request: Request, answer: Answer, prompts: list[CutPrompt], slot: str | None
    ) -> AsyncGenerator[CompletionChunk, None]:
        """The chunks of all prompts. Generation ends when the client leaves or this generator is closed."""
        self._n_open += 1
        self.metrics.open.set(self._n_open)
        keys = [
            _Key(prompt, tuple(prompt.ids), _with_end(answer.params, cursor))
            for prompt, cursor in zip(prompts, answer.cursors, strict=True)
        ]
        if slot is not None:
            self._supersede(slot, answer)
        generations = answer.generations = [self._join(key) for key in keys]
        tasks = [asyncio.create_task(_wait_for_disconnection(request, answer))]
        for number, generation in enumerate(generations):
            tasks.append(asyncio.create_task(_forward(generation, number * answer.params.n, answer)))
        try:
            while not answer.is_complete and (item := await answer.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                if answer.first_token_seconds is None:
                    answer.first_token_seconds = time.monotonic() - answer.started
                    self.metrics.first_token.observe(answer.first_token_seconds)
                if item.completion is not None:
                    answer.completions[item.index] = item.completion
                    self.metrics.withheld.inc(item.completion.is_withheld)
                yield item
        finally:
            for task in tasks:
                task.cancel()
            for key, generation in zip(keys, generations, strict=True):
                self._leave(key, generation)
            if slot is not None and self._slots.get(slot) is answer:
                del self._slots[slot]
            self._n_open -= 1
            self.metrics.open.set(self._n_open)
            self._log(request, answer)

    def _supersede(self, slot: str, answer: Answer) -> None:
        """Ends the older answer in a slot."""
        older = self._slots.get(slot)
        if older is not None:
            older.is_superseded = True
            older.queue.put_nowait(None)
        self._slots[slot] = answer

    def _join(self, key: "_Key") -> Generation:
        """The generation for a prompt: one that is running for the same prompt and settings, or a new one."""
        found = self._generations.get(key)
        if found is None or found.is_finished:
            found = self._generations[key] = self._worker.submit(key.prompt, key.params)
        else:
            self.metrics.shared.inc()
        found.n_readers += 1
        return found

    def _leave(self, key: "_Key", generation: Generation) -> None:
        generation.n_readers -= 1
        if generation.n_readers:
            return
        if not generation.is_finished:
            self._worker.cancel(generation)
        if self._generations.get(key) is generation:
            del self._generations[key]

    def _log(self, request: Request, answer: Answer) -> None:
        """Adds times and counts to the metrics, and to the log line of the request."""
        self.metrics.duration.observe(time.monotonic() - answer.started)
        if not answer.is_complete:
            self.metrics.cancelled.inc()
        completions = answer.completions.values()
        first = answer.first_token_seconds
        state = "done" if answer.is_complete else "superseded" if answer.is_superseded else "cancelled"
        request.scope["state"]["summary"] = (
            f"{state} prompt_tokens={sum(answer.prompt_tokens)} "
            f"cached_tokens={sum(each.cached_tokens for each in completions)} "
            f"completion_tokens={sum(each.completion_tokens for each in completions)} "
            f"first_token={'-' if first is None else f'{first:.3f}s'}"
        )


@dataclass(frozen=True)
class _Key:
    """What makes two generations the same."""

    prompt: CutPrompt = dataclasses.field(hash=False)
    ids: tuple[int, ...]
    params: CompletionParams


def _with_end(params: CompletionParams, cursor: Cursor | None) -> CompletionParams:
    """The settings of a prompt: a completion ends where post-processing would cut it."""
    if cursor is None:
        return params
    return dataclasses.replace(params, stop=(*params.stop, *cursor.stop), stop_when=cursor)


async def _forward(generation: Generation, first_index: int, answer: Answer) -> None:
    """Puts the chunks of a generation into the queue of an answer, where its first sample has number `first_index`."""
    try:
        async for chunk in generation.read():
            answer.queue.put_nowait(dataclasses.replace(chunk, index=first_index + chunk.index))
    except Exception as failure:
        answer.queue.put_nowait(failure)


async def _wait_for_disconnection(request: Request, answer: Answer) -> None:
    """Ends an answer when its client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answer.queue.put_nowait(None)


def _parse_body(data: bytes, kind_of: Callable[[Any], type[Body]]) -> Body:
    try:
        fields = json.loads(data.decode("utf-8"))
        return kind_of(fields).model_validate(fields)
    except ValidationError as refused:
        first = refused.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])[:100] if first["loc"] else "body"
        message = f"{name}: {first['msg'].removeprefix('Value error, ')[:300]}"
        raise Refusal(400, message, param=name) from None
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"invalid JSON in UTF-8: {str(error)[:200]}") from None


def _is_json(content_type: str) -> bool:
    """Whether a Content-Type is application/json, in any case and with any parameters (RFC 9110, section 8.3)."""
    return content_type.partition(";")[0].strip().lower() == "application/json"
