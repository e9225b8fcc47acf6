"""llama.cpp's `/infill`, `/completion`, `/props`, `/tokenize` and `/detokenize`, which llama.vim and llama.vscode use.

Its server's README and source define the fields. JSON is compact: llama.vim searches answers for `"content":"`.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator, Field

from codekiln import __version__
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, Completion, CompletionChunk, CompletionParams, InfillRequest
from codekiln.generate.context import ContextFile, RepositoryContext
from codekiln.generate.copying import WITHHELD
from codekiln.generate.sampling import SamplingParams
from codekiln.serve.errors import error_body
from codekiln.serve.openapi import describe, describe_completion
from codekiln.serve.protocols.openai import MAX_SAMPLES, Name, StopStrings, WireModel
from codekiln.serve.provenance import ProvenanceField
from codekiln.serve.service import Answer, CompletionService, Prompt, Query, Refusal
from codekiln.serve.streaming import EVENT_STREAM, StreamedResponse

SAMPLERS = ("penalties", "top_k", "top_p", "min_p", "temperature")  # on, unless a request lists others
# Without a field that this server takes, these samplers change nothing in llama.cpp either.
NEUTRAL_SAMPLERS = ("dry", "top_n_sigma", "typ_p", "xtc")
INFILL = "infill"
# The sampler "infill" of llama.cpp keeps tokens with a probability above 1 / (1 + their number): a second token is kept if it
# is at least half as likely as the first one. It also ends a hole where no token is likely, and this server does not.
INFILL_MIN_P = 0.5
MAX_EXTRA = 256
MAX_RESPONSE_FIELDS = 100
DATA_EVENT = "data: {}\n\n"


def _as_samplers(value: Any) -> Any:
    known = (*SAMPLERS, *NEUTRAL_SAMPLERS, INFILL)
    if not isinstance(value, list) or not all(name in known for name in value):
        raise ValueError(f"must be a list of names among {', '.join(known)}")
    return value


def _as_prompt(value: Any) -> Any:
    if not isinstance(value, str) and not (isinstance(value, list) and all(type(each) is int for each in value)):
        raise ValueError("must be a text or a list of token ids")
    return value


Samplers = Annotated[list[str], BeforeValidator(_as_samplers)]
Milliseconds = Annotated[int, Field(ge=0, le=3_600_000)]


class ExtraFile(WireModel):
    """A part of another file. `time` is taken and has no effect: the last file of the list is the most relevant one."""

    text: str
    filename: str = ""
    time: Any = None


class GenerationRequest(WireModel):
    """The fields that `/infill` and `/completion` share. Samplers are applied in this server's order, not in the list's.

    `penalty_last_n` 0 switches the penalties off, as Tabby requests; they are for all tokens otherwise.

    `id_slot` is the client's: a newer request in a slot ends an older one, unless it only fills the cache (`n_predict` 0).
    """

    model: Name | None = None
    id_slot: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    n_predict: Annotated[int, Field(ge=-1, le=100_000)] = -1
    n_indent: Annotated[int, Field(ge=0, le=1000)] = 0
    stop: StopStrings = Field(default_factory=list)
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    penalty_last_n: Literal[0] | None = None
    seed: Annotated[int, Field(ge=-1, lt=2**63)] = 0
    samplers: Samplers | None = None
    cache_prompt: bool = True
    t_max_prompt_ms: Milliseconds = 0
    t_max_predict_ms: Milliseconds = 0
    response_fields: Annotated[list[Name], Field(max_length=MAX_RESPONSE_FIELDS)] | None = None
    n_cmpl: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    provenance: ProvenanceField = False

    def params(self, completer: Completer) -> CompletionParams:
        """How the prompt is completed. More new tokens than the model allows are as many as it allows."""
        names = SAMPLERS if self.samplers is None else self.samplers
        has_penalties = "penalties" in names and self.penalty_last_n is None
        sampling = SamplingParams(
            temperature=self.temperature if "temperature" in names else 1.0,
            top_k=max(0, self.top_k) if "top_k" in names else 0,
            top_p=self.top_p if "top_p" in names else 1.0,
            min_p=max(self.min_p if "min_p" in names else 0.0, INFILL_MIN_P if INFILL in names else 0.0),
            repetition_penalty=self.repeat_penalty if has_penalties else 1.0,
            frequency_penalty=self.frequency_penalty if has_penalties else 0.0,
            presence_penalty=self.presence_penalty if has_penalties else 0.0,
            seed=secrets.randbits(63) if self.seed == -1 else self.seed,
        )
        return CompletionParams(
            sampling=sampling,
            max_new_tokens=None if self.n_predict == -1 else completer.limit_new_tokens(self.n_predict),
            stop=tuple(self.stop),
            n=self.n_cmpl,
        )


class InfillBody(GenerationRequest):
    """The fields of `/infill`. `prompt` is the beginning of the current line, which follows `input_prefix`."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[ExtraFile], Field(max_length=MAX_EXTRA)] = Field(default_factory=list)
    prompt: str = ""


class CompletionBody(GenerationRequest):
    """The fields of `/completion`."""

    prompt: Annotated[str | list[int], BeforeValidator(_as_prompt)]


class TokenizeBody(WireModel):
    """The fields of `/tokenize`. Special tokens that are spelled in the text are text."""

    content: str
    add_special: bool = False
    parse_special: Literal[False] = False
    with_pieces: bool = False


class DetokenizeBody(WireModel):
    """The fields of `/detokenize`."""

    tokens: list[int]


def add_llama_cpp(app: FastAPI, service: CompletionService) -> None:
    """Adds the routes to an application."""
    completer = service.completer

    async def infill(request: Request) -> Response:
        body = await service.parse(request, InfillBody)
        context = RepositoryContext(files=tuple(ContextFile(each.filename, each.text) for each in body.input_extra))
        prompt = service.hole(request, body.input_prefix + body.prompt, body.input_suffix, context)
        return await _respond(request, service, body, prompt)

    async def complete(request: Request) -> Response:
        body = await service.parse(request, CompletionBody)
        prompt = InfillRequest(body.prompt) if isinstance(body.prompt, str) else body.prompt
        return await _respond(request, service, body, prompt)

    def show_properties() -> Response:
        return JSONResponse(
            {
                "default_generation_settings": {"n_ctx": completer.context_length},
                "total_slots": 1,
                "model_alias": service.model_name,
                "model_path": service.model_name,
                "chat_template": "",
                "build_info": f"codekiln {__version__}",
            }
        )

    async def tokenize(request: Request) -> Response:
        body = await service.parse(request, TokenizeBody)
        return JSONResponse({"tokens": await run_in_threadpool(_tokenize, completer, body)})

    async def detokenize(request: Request) -> Response:
        body = await service.parse(request, DetokenizeBody)
        n = completer.tokenizer.vocab_size
        if wrong := [token for token in body.tokens if not 0 <= token < n]:
            raise Refusal(400, f"tokens: {wrong[0]} is not in the vocabulary: ids are 0 to {n - 1}", param="tokens")
        return JSONResponse({"content": await run_in_threadpool(completer.tokenizer.decode, body.tokens)})

    app.add_api_route(
        "/infill", infill, methods=["POST"], response_model=None, openapi_extra=describe_completion(InfillBody)
    )
    for path in ("/completion", "/completions"):
        app.add_api_route(
            path, complete, methods=["POST"], response_model=None, openapi_extra=describe_completion(CompletionBody)
        )
    app.add_api_route("/props", show_properties, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route(
        "/tokenize", tokenize, methods=["POST"], response_model=None, openapi_extra=describe(TokenizeBody)
    )
    app.add_api_route(
        "/detokenize", detokenize, methods=["POST"], response_model=None, openapi_extra=describe(DetokenizeBody)
    )


def _tokenize(completer: Completer, body: TokenizeBody) -> list[Any]:
    tokenizer = completer.tokenizer
    ids = [*(tokenizer.bos_ids if body.add_special else ()), *tokenizer.encode(body.content)]
    if not body.with_pieces:
        return ids
    return [{"id": token, "piece": _piece(tokenizer.token_bytes[token])} for token in ids]


def _piece(data: bytes) -> str | list[int]:
    """The text of a token, or its bytes if they are no text alone."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


async def _respond(request: Request, service: CompletionService, body: GenerationRequest, prompt: Prompt) -> Response:
    service.require_model(body.model or None)  # llama.vim sends an empty name
    slot = None
    if body.id_slot >= 0 and body.n_predict:
        address = "" if request.client is None else request.client.host
        slot = f"{address} {body.id_slot}"
    query = Query(prompts=[prompt], params=body.params(service.completer), slot=slot, has_cache=body.cache_prompt)
    response = _LlamaResponse(service, body, await service.answer(request, query))
    if body.stream:
        return StreamedResponse(response.events(), EVENT_STREAM)
    records = await response.whole()
    return JSONResponse(records[0] if body.n_cmpl == 1 else records)


class LineLimits:
    """Ends a text before a line that is indented less than `n_indent`, or after a line that ends when the time is over.

    Each space and tab counts as one. Empty lines do not end the text.
    """

    def __init__(self, n_indent: int, max_seconds: float) -> None:
        self._n_indent, self._max_seconds = n_indent, max_seconds
        self._held = ""  # indentation of a line of which nothing else is known
        self._is_line_start = False
        self.is_ended = False

    def add(self, text: str, seconds: float) -> str:
        """The text that can be sent. `seconds` is the time since the first token."""
        self._held += text
        sent = ""
        while self._held and not self.is_ended:
            if self._is_line_start and self._n_indent:
                line = self._held.lstrip(" \t")
                if not line:
                    break
                if line[0] not in "\r\n" and len(self._held) - len(line) < self._n_indent:
                    self.is_ended = True
                    break
            head, newline, self._held = self._held.partition("\n")
            sent += head + newline
            self._is_line_start = bool(newline)
            self.is_ended = bool(newline) and 0 < self._max_seconds < seconds
        return sent

    def rest(self) -> str:
        """The text that was held back, after the last token."""
        return "" if self.is_ended else self._held


@dataclass(eq=False)
class _Sample:
    """A completion as it is generated. `stop_type` is "none" until it has ended."""

    index: int
    limits: LineLimits
    text: str = ""
    n_tokens: int = 0
    stop_type: str = "none"
    stopping_word: str = ""
    ended: float = field(default_factory=time.monotonic)


class _LlamaResponse:
    """The answer to one request, whole or streamed."""

    def __init__(self, service: CompletionService, body: GenerationRequest, answer: Answer) -> None:
        self._completer, self._model_name = service.completer, service.model_name
        self._body, self._answer = body, answer
        self._samples = [
            _Sample(index, LineLimits(body.n_indent, body.t_max_predict_ms / 1000)) for index in range(body.n_cmpl)
        ]

    async def whole(self) -> list[JsonObject]:
        """The records of all samples. Raises Refusal if a newer request took the place of this one."""
        async with aclosing(self._pieces()) as pieces:
            async for _ in pieces:
                pass
        self._require_end()
        texts = {sample.index: await self._answer.postprocess(sample.index, sample.text) for sample in self._samples}
        await self._answer.trace(texts)
        return [self._final(sample, texts[sample.index], texts[sample.index]) for sample in self._samples]

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events: one per piece of text, and one per sample with its counts."""
        async with aclosing(self._pieces()) as pieces:
            async for sample, text in pieces:
                is_held = self._answer.cursor_of(sample.index) is not None
                if text and not is_held:
                    yield _event(self._partial(sample, text))
                if sample.stop_type != "none":
                    shown = await self._answer.postprocess(sample.index, sample.text)
                    if self._body.provenance:
                        await self._answer.trace({sample.index: shown})
                    yield _event(self._final(sample, shown if is_held else "", shown))
        try:
            self._require_end()
        except Refusal as refused:
            yield _event(error_body(refused.message, code=refused.code))

    def _require_end(self) -> None:
        if any(sample.stop_type == "none" for sample in self._samples):
            raise Refusal(409, "a newer request of this client took the place of this one", code="superseded")

    async def _pieces(self) -> AsyncGenerator[tuple[_Sample, str], None]:
        """The text of all samples as it comes, until all have ended. A prompt that takes too long has no text."""
        max_prompt_seconds = self._body.t_max_prompt_ms / 1000 if self._body.n_predict else 0
        async with aclosing(self._answer.chunks) as chunks:
            try:
                async with asyncio.timeout(max_prompt_seconds or None):
                    chunk = await anext(chunks, None)
            except TimeoutError:  # the part that was read stays in the cache
                for sample in self._samples:
                    self._end(sample, "limit")
                    yield sample, ""
                return
            while chunk is not None:
                sample = self._samples[chunk.index]
                if sample.stop_type == "none":
                    yield sample, self._add(sample, chunk)
                    if all(each.stop_type != "none" for each in self._samples):
                        return
                chunk = await anext(chunks, None)

    def _add(self, sample: _Sample, chunk: CompletionChunk) -> str:
        """The text to send for a chunk."""
        seconds = time.monotonic() - self._answer.started - (self._answer.first_token_seconds or 0)
        text = sample.limits.add(chunk.text, seconds)
        completion = chunk.completion
        sample.n_tokens += completion is None
        if completion is not None:
            text += sample.limits.rest()
            sample.n_tokens = completion.completion_tokens
        sample.text += text
        if sample.limits.is_ended:
            self._end(sample, "limit")
        elif completion is not None:
            self._end(sample, *self._stop_type(completion))
        return text

    def _stop_type(self, completion: Completion) -> tuple[str, str]:
        """Why a completion has ended, and the stop string if it was one."""
        if completion.finish_reason in ("length", WITHHELD):
            return "limit", ""
        rest = self._completer.tokenizer.decode(list(completion.tokens))[len(completion.text) :]
        word = next((word for word in self._body.stop if rest.startswith(word)), "")
        return ("word", word) if word else ("eos", "")

    def _end(self, sample: _Sample, stop_type: str, stopping_word: str = "") -> None:
        sample.stop_type, sample.stopping_word, sample.ended = stop_type, stopping_word, time.monotonic()

    def _partial(self, sample: _Sample, text: str) -> JsonObject:
        return {
            "index": sample.index,
            "content": text,
            "stop": False,
            "id_slot": self._body.id_slot,
            "tokens_predicted": sample.n_tokens,
            "tokens_evaluated": self._answer.prompt_tokens[0],
        }

    def _final(self, sample: _Sample, content: str, text: str) -> JsonObject:
        """The last record of a sample with this content. `text` is all text that the client has then."""
        first_token_seconds = self._answer.first_token_seconds
        n_read = n_cached = 0
        prompt_ms = (sample.ended - self._answer.started) * 1000
        if first_token_seconds is not None:
            n_cached = self._answer.request_of(sample.index).n_cached_tokens
            n_read = self._answer.prompt_tokens[0] - n_cached
            prompt_ms = first_token_seconds * 1000
        predict_ms = (sample.ended - self._answer.started) * 1000 - prompt_ms
        record: JsonObject = {
            "index": sample.index,
            "content": content,
            "id_slot": self._body.id_slot,
            "stop": True,
            "model": self._model_name,
            "tokens_predicted": sample.n_tokens,
            "tokens_evaluated": self._answer.prompt_tokens[0],
            "truncated": self._answer.n_cut_tokens > 0,
            "stop_type": sample.stop_type,
            "stopping_word": sample.stopping_word,
            "has_new_line": "\n" in text,
            "tokens_cached": n_cached,
            "timings": {
                "cache_n": n_cached,
                **_rates("prompt", n_read, prompt_ms),
                **_rates("predicted", sample.n_tokens, predict_ms),
            },
        }
        if (names := self._body.response_fields) is not None:
            record = {name: value for name in names if (value := _lookup(record, name)) is not None}
        completion = self._answer.completions.get(sample.index)
        return record | self._answer.traces.fields(sample.index, completion, is_wanted=self._body.provenance)


def _rates(name: str, n_tokens: int, milliseconds: float) -> JsonObject:
    """The times of a phase, in llama.cpp's names."""
    return {
        f"{name}_n": n_tokens,
        f"{name}_ms": milliseconds,
        f"{name}_per_token_ms": milliseconds / max(1, n_tokens),
        f"{name}_per_second": n_tokens / milliseconds * 1000 if milliseconds > 0 else 0.0,
    }


def _lookup(record: Any, path: str) -> Any:
    """The value at a path of names with slashes between them; None if there is none."""
    for name in path.split("/"):
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _event(record: JsonObject) -> str:
    return DATA_EVENT.format(json.dumps(record, separators=(",", ":"), ensure_ascii=False))
