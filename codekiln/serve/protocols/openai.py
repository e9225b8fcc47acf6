"""OpenAI's `/v1/completions`, with vLLM's names for what OpenAI does not have, and `/v1/models`."""

import codecs
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, Completion, CompletionChunk, CompletionParams, InfillRequest
from codekiln.generate.sampling import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS, SamplingParams, TokenLogprobs
from codekiln.serve.provenance import ProvenanceField
from codekiln.serve.service import Answer, CompletionService, Hole, Prompt, Query, Refusal
from codekiln.serve.streaming import EVENT_STREAM, StreamedResponse

MAX_PROMPTS = 16
MAX_SAMPLES = 256  # of all prompts of a request
MAX_STOP_STRINGS = 32
MAX_STOP_CHARACTERS = 1_000


def _as_prompts(value: Any) -> Any:
    """Prompts as a list: a text, texts, token ids, or lists of them. Raises ValueError that names what is wrong."""
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(each) is int for each in value)):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of texts")
    if not 1 <= len(value) <= MAX_PROMPTS:
        raise ValueError(f"must have 1 to {MAX_PROMPTS} texts (got {len(value)})")
    is_ids = [isinstance(each, list) and all(type(token) is int for token in each) for each in value]
    if not all(isinstance(each, str) for each in value) and not all(is_ids):
        raise ValueError("must be a list of texts, of token ids, or of lists of token ids")
    return value


def _as_stop_strings(value: Any) -> Any:
    """A stop string or several, as a list. Raises ValueError that names what is wrong with the form that was meant."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("must be a text or a list of texts")
    if len(texts) > MAX_STOP_STRINGS:
        raise ValueError(f"must have at most {MAX_STOP_STRINGS} texts (got {len(texts)})")
    if not all(1 <= len(text) <= MAX_STOP_CHARACTERS for text in texts):
        raise ValueError(f"must have texts of 1 to {MAX_STOP_CHARACTERS} characters")
    return texts


def _as_biases(value: Any) -> Any:
    """The keys of JSON objects are texts."""
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and biases")
    if not all(isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 for key in value):
        raise ValueError("must have token ids as keys")
    return {int(key): bias for key, bias in value.items()}


Prompts = Annotated[
    list[str] | list[list[int]],
    BeforeValidator(_as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
StopStrings = Annotated[list[str], BeforeValidator(_as_stop_strings, json_schema_input_type=str | list[str])]
Biases = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_as_biases, json_schema_input_type=dict[str, float]),
    Field(max_length=MAX_LOGIT_BIAS),
]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(max_length=1000)]


class WireModel(BaseModel):
    """A request. null means "not set". A field that this server cannot honor is refused by name, and never ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class StreamOptions(WireModel):
    """Whether the last event of a stream reports the token counts."""

    include_usage: bool = False


class CompletionRequest(WireModel):
    """The fields of `/v1/completions`. `user` is taken and has no effect: users are told apart by their API keys."""

    prompt: Prompts
    suffix: str | None = None
    model: Name | None = None
    max_tokens: Annotated[int, Field(ge=0, le=100_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Biases = {}
    seed: Seed = 0
    stop: StopStrings = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    best_of: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    provenance: ProvenanceField = False
    user: Name | None = None

    @property
    def n_drawn(self) -> int:
        """Samples per prompt, of which the best `n` are returned."""
        return self.n if self.best_of is None else self.best_of

    @model_validator(mode="after")
    def _check_pairs(self) -> "CompletionRequest":
        if self.n_drawn < self.n:
            raise Refusal(400, f"best_of: must be at least n (got {self.best_of} and {self.n})", param="best_of")
        if self.stream and self.n_drawn > self.n:
            raise Refusal(400, "best_of: a stream cannot be chosen from: leave out stream or best_of", param="best_of")
        if len(self.prompt) * self.n_drawn > MAX_SAMPLES:
            raise Refusal(400, f"n: at most {MAX_SAMPLES} samples can be requested for all prompts", param="n")
        if self.max_tokens == 0 and not self.echo:
            raise Refusal(400, "max_tokens: must be at least 1 without echo", param="max_tokens")
        if self.suffix is not None and (self.echo or not isinstance(self.prompt[0], str)):
            raise Refusal(400, "suffix: must be given with a text as prompt and without echo", param="suffix")
        return self

    def params(self) -> CompletionParams:
        """How the prompts are completed."""
        logprobs = self.logprobs
        if logprobs is None and self.n_drawn > self.n:
            logprobs = 0  # the best are chosen by them
        sampling = SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(sorted(self.logit_bias.items())),
            seed=self.seed,
            logprobs=logprobs,
        )
        return CompletionParams(
            sampling=sampling,
            max_new_tokens=self.max_tokens,
            stop=tuple(self.stop),
            n=self.n_drawn,
            has_prompt_logprobs=self.echo and self.logprobs is not None,
        )


def add_openai(app: FastAPI, service: CompletionService) -> None:
    """Adds the routes of models to an application. `/v1/completions` is shared with Tabby: see `complete`."""
    record: JsonObject = {"id": service.model_name, "object": "model", "created": 0, "owned_by": "codekiln"}

    def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [record]})

    def show_model(name: str) -> Response:
        service.require_model(name)
        return JSONResponse(record)

    app.add_api_route("/v1/models", list_models, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/v1/models/{name:path}", show_model, methods=["GET", "HEAD"], response_model=None)


async def complete(request: Request, body: CompletionRequest, service: CompletionService) -> Response:
    """The response to a completion request, whole or streamed."""
    service.require_model(body.model)
    suffix = body.suffix
    if suffix == "" and not service.completer.can_infill:
        suffix = None  # editors send an empty suffix at the end of a file
    prompts: list[Prompt] = []
    for prompt in body.prompt:
        if isinstance(prompt, str):
            is_hole = body.suffix is not None
            prompts.append(Hole(prompt, suffix, None, body.suffix or "") if is_hole else InfillRequest(prompt))
        else:
            prompts.append(prompt)
    query = Query(prompts=prompts, params=body.params(), is_cut=suffix is not None, is_raw=body.logprobs is not None)
    answer = await service.answer(request, query)
    response = CompletionResponse(service, body, answer)
    if body.stream:
        return StreamedResponse(_events(answer, response, body), EVENT_STREAM)
    return JSONResponse(response.whole(await answer.whole()))


async def _events(answer: Answer, response: "CompletionResponse", body: CompletionRequest) -> AsyncIterator[str]:
    """Server-sent events: one per chunk that has text or ends a completion, and the end mark."""
    async with aclosing(answer.pieces()) as chunks:
        async for chunk in chunks:
            if chunk.completion is not None and body.provenance:
                await answer.trace({chunk.index: chunk.completion.text})
            if (record := response.chunk(chunk)) is not None:
                yield _event(record)
    if body.stream_options is not None and body.stream_options.include_usage:
        yield _event(response.usage_chunk(list(answer.completions.values())))
    yield "data: [DONE]\n\n"


class CompletionResponse:
    """The bodies of one response, whole or streamed; they share an id and a time."""

    def __init__(self, service: CompletionService, body: CompletionRequest, answer: Answer) -> None:
        self._completer, self._body, self._answer = service.completer, body, answer
        self._streams: dict[int, _SampleText] = {}
        self._shared = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model_name,
        }

    def chunk(self, chunk: CompletionChunk) -> JsonObject | None:
        """One event of a stream; None if there is nothing to send."""
        is_first = chunk.index not in self._streams
        if is_first:
            self._streams[chunk.index] = self._begin(chunk.index)
        stream = self._streams[chunk.index]
        if chunk.logprobs is not None:
            stream.add(chunk.logprobs)
        if not chunk.text and chunk.completion is None and not (is_first and self._body.echo):
            return None
        prompt = self._prompt_text(chunk.index) if self._body.echo else ""
        text = (prompt if is_first else "") + chunk.text
        record = stream.take(len(text)) if self._body.logprobs is not None else None
        reason = None if chunk.completion is None else chunk.completion.finish_reason
        choice = _choice(chunk.index, text, record, reason)
        if chunk.completion is not None:
            choice |= self._provenance(chunk.index, chunk.completion, prompt)
        return self._shared | {"choices": [choice]}

    def whole(self, completions: Sequence[Completion]) -> JsonObject:
        """The whole response, with token counts."""
        body, choices, shown = self._body, list[JsonObject](), list[int]()
        for prompt_number in range(len(body.prompt)):
            first = prompt_number * body.n_drawn
            drawn = list(range(first, first + body.n_drawn))
            if body.n_drawn > body.n:
                drawn.sort(key=lambda i: (completions[i].is_withheld, -completions[i].mean_logprob))
            choices += [self._whole_choice(len(choices) + k, i, completions[i]) for k, i in enumerate(drawn[: body.n])]
            shown += drawn[: body.n]
        self._answer.set_header(shown)
        return self._shared | {"choices": choices, "usage": self._usage(completions)}

    def usage_chunk(self, completions: Sequence[Completion]) -> JsonObject:
        """The last event of a stream, with token counts."""
        return self._shared | {"choices": [], "usage": self._usage(completions)}

    def _whole_choice(self, index: int, number: int, completion: Completion) -> JsonObject:
        prompt = self._prompt_text(number) if self._body.echo else ""
        text = prompt + completion.text
        record = None
        if self._body.logprobs is not None:
            sample = self._begin(number)
            for logprobs in completion.logprobs:
                sample.add(logprobs)
            record = sample.take(len(text))
        choice = _choice(index, text, record, completion.finish_reason)
        return choice | self._provenance(number, completion, prompt)

    def _provenance(self, number: int, completion: Completion, prompt: str) -> JsonObject:
        """Codekiln's own fields. Places are those in the text with the prompt, if it is echoed."""
        return self._answer.traces.fields(number, completion, is_wanted=self._body.provenance, first=len(prompt))

    def _begin(self, number: int) -> "_SampleText":
        """The text of a sample before its first new token: the prompt, if it is echoed."""
        sample = _SampleText(self._completer)
        if self._body.echo and self._body.logprobs is not None:
            request = self._answer.request_of(number)
            sample.add(request.prompt[0])  # it has no probability
            for logprobs in request.prompt_logprobs:
                sample.add(logprobs)
        return sample

    def _prompt_text(self, number: int) -> str:
        prompt = self._body.prompt[number // self._body.n_drawn]
        return prompt if isinstance(prompt, str) else self._completer.tokenizer.decode(prompt)

    def _usage(self, completions: Sequence[Completion]) -> JsonObject:
        read = sum(self._answer.prompt_tokens)
        written = sum(completion.completion_tokens for completion in completions)
        cached = sum(completions[first].cached_tokens for first in range(0, len(completions), self._body.n_drawn))
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            # "cut_tokens" is Codekiln's own: tokens of the prompts that did not fit the context.
            "prompt_tokens_details": {"cached_tokens": cached, "cut_tokens": self._answer.n_cut_tokens},
        }


class _SampleText:
    """The tokens of a sample, each with its place in the text."""

    def __init__(self, completer: Completer) -> None:
        self._token_bytes = completer.tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._n_decoded = self._n_taken = 0  # characters
        self._pending: list[tuple[TokenLogprobs | int, int]] = []

    def add(self, token: TokenLogprobs | int) -> None:
        """Appends a token; an id has no probability."""
        self._pending.append((token, self._n_decoded))
        data = self._token_bytes[token if isinstance(token, int) else token.token]
        self._n_decoded += len(self._decoder.decode(data))

    def take(self, n_characters: int) -> JsonObject:
        """OpenAI's lists for the tokens that begin in the next part of the text. Those after a stop string never do."""
        self._n_taken += n_characters
        taken = [pair for pair in self._pending if pair[1] < self._n_taken]
        self._pending = self._pending[len(taken) :]
        tops = [None if isinstance(each, int) else {self._text(t): value for t, value in each.top} for each, _ in taken]
        return {
            "tokens": [self._text(each if isinstance(each, int) else each.token) for each, _ in taken],
            "token_logprobs": [None if isinstance(each, int) else each.logprob for each, _ in taken],
            "top_logprobs": tops,
            "text_offset": [offset for _, offset in taken],
        }

    def _text(self, token: int) -> str:
        """The text of a token. Bytes that are no characters alone are replaced."""
        return self._token_bytes[token].decode("utf-8", errors="replace")


def _event(record: JsonObject) -> str:
    return f"data: {json.dumps(record)}\n\n"


def _choice(index: int, text: str, logprobs: JsonObject | None, finish_reason: str | None) -> JsonObject:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
