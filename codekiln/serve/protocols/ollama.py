"""Ollama's `/api/generate`, `/api/tags`, `/api/show` and `/api/version`.

A stream is newline-delimited JSON, and durations are in nanoseconds. Errors are `{"error": "..."}`.
"""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import wraps
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator
from starlette.exceptions import HTTPException

from codekiln import __version__
from codekiln.errors import CodekilnError
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, Completion, CompletionParams, InfillRequest
from codekiln.generate.sampling import SamplingParams
from codekiln.serve.openapi import describe, describe_completion
from codekiln.serve.protocols.openai import Name, Seed, StopStrings, WireModel
from codekiln.serve.provenance import ProvenanceField
from codekiln.serve.service import Answer, CompletionService, Query, Refusal
from codekiln.serve.streaming import StreamedResponse

NDJSON = "application/x-ndjson"
LATEST = ":latest"  # the tag that Ollama's clients add to a name without one
# Continue sends a suffix only if the template has this variable.
INFILL_TEMPLATE = "{{ .Prompt }}{{ .Suffix }}"
TEMPLATE = "{{ .Prompt }}"


class Options(WireModel):
    """The options of a request. `num_ctx` is the context that a client needs, up to that of the model.

    `num_predict` below 0 requests as many tokens as the model allows.
    """

    num_predict: Annotated[int, Field(ge=-2, le=100_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    stop: StopStrings = Field(default_factory=list)
    seed: Seed = 0
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    num_ctx: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_unknown(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            unknown = [name for name, value in fields.items() if value is not None and name not in cls.model_fields]
            if unknown:
                name = f"options.{unknown[0][:100]}"
                raise Refusal(400, f"{name}: this server does not have this option", param=name)
        return fields

    def params(self, completer: Completer) -> CompletionParams:
        """How the prompt is completed. More new tokens than the model allows are as many as it allows."""
        if self.num_ctx is not None and self.num_ctx > completer.context_length:
            raise Refusal(
                400,
                f"options.num_ctx: the context of this model is {completer.context_length}",
                param="options.num_ctx",
            )
        max_new_tokens = self.num_predict
        if max_new_tokens is not None:
            max_new_tokens = completer.max_new_tokens_limit if max_new_tokens < 0 else max_new_tokens
            max_new_tokens = completer.limit_new_tokens(max_new_tokens)
        sampling = SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=self.seed,
        )
        return CompletionParams(sampling=sampling, max_new_tokens=max_new_tokens, stop=tuple(self.stop))


class GenerateRequest(WireModel):
    """The fields of `/api/generate`. The model has no template, so a prompt is the same with and without `raw`.

    `keep_alive` is taken and has no effect: the model is always loaded.
    """

    model: Name
    prompt: str = ""
    suffix: str | None = None
    raw: bool = False
    stream: bool = True
    provenance: ProvenanceField = False
    options: Options = Options()
    keep_alive: float | Name | None = None
    format: Literal[""] = ""
    system: Literal[""] = ""
    template: Literal[""] = ""
    think: Literal[False] = False
    logprobs: Literal[False] = False


class ShowRequest(WireModel):
    """The fields of `/api/show`: `name` is the old one of `model`."""

    model: Name | None = None
    name: Name | None = None
    verbose: bool = False


Handler = Callable[[Request], Awaitable[Response]]


def add_ollama(app: FastAPI, service: CompletionService) -> None:
    """Adds the routes to an application."""
    completer, name = service.completer, service.model_name
    started = _now()
    details = {"parent_model": "", "format": "safetensors", "family": "codekiln", "families": ["codekiln"]}
    details |= {"parameter_size": "", "quantization_level": completer.precision}

    async def generate(request: Request) -> Response:
        body = await service.parse(request, GenerateRequest)
        service.require_model(body.model.removesuffix(LATEST))
        if not body.prompt and not body.suffix:  # clients load a model with an empty prompt
            record = {"model": body.model, "created_at": _now(), "response": "", "done": True, "done_reason": "load"}
            return JSONResponse(record)
        is_hole = body.suffix is not None
        prompt = service.hole(request, body.prompt, body.suffix) if is_hole else InfillRequest(body.prompt)
        query = Query(prompts=[prompt], params=body.options.params(completer))
        answer = await service.answer(request, query)
        if body.stream:
            return StreamedResponse(_lines(answer, body), NDJSON)
        completion = (await answer.whole())[0]
        return JSONResponse(_last_record(answer, completion, body, completion.text))

    async def show_model(request: Request) -> Response:
        body = await service.parse(request, ShowRequest)
        asked = body.model or body.name
        if asked is None:
            raise Refusal(400, "model: it is needed", param="model")
        service.require_model(asked.removesuffix(LATEST))
        return JSONResponse(
            {
                "modelfile": "",
                "parameters": "",
                "template": INFILL_TEMPLATE if completer.can_infill else TEMPLATE,
                "details": details,
                "model_info": {
                    "general.architecture": "codekiln",
                    "codekiln.context_length": completer.context_length,
                },
                "capabilities": ["completion", "insert"] if completer.can_infill else ["completion"],
                "modified_at": started,
            }
        )

    def list_models() -> Response:
        record = {"name": name, "model": name, "modified_at": started, "size": 0, "digest": "", "details": details}
        return JSONResponse({"models": [record]})

    app.add_api_route(
        "/api/generate",
        _with_errors(generate),
        methods=["POST"],
        response_model=None,
        openapi_extra=describe_completion(GenerateRequest),
    )
    app.add_api_route(
        "/api/show",
        _with_errors(show_model),
        methods=["POST"],
        response_model=None,
        openapi_extra=describe(ShowRequest),
    )
    app.add_api_route("/api/tags", list_models, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route(
        "/api/version",
        lambda: JSONResponse({"version": __version__}),
        methods=["GET", "HEAD"],
        response_model=None,
    )


def _with_errors(handler: Handler) -> Handler:
    """A handler whose errors have Ollama's shape."""

    @wraps(handler)
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as refused:
            return JSONResponse({"error": refused.message}, status_code=refused.status)
        except CodekilnError as refused:
            return JSONResponse({"error": str(refused)}, status_code=400)
        except HTTPException as failure:
            body = {"error": str(failure.detail)}
            return JSONResponse(body, status_code=failure.status_code, headers=failure.headers)

    return handle


async def _lines(answer: Answer, body: GenerateRequest) -> AsyncIterator[str]:
    """One line per chunk that has text, and a last one with the counts."""
    async with aclosing(answer.pieces()) as chunks:
        async for chunk in chunks:
            if chunk.completion is not None:
                if body.provenance:
                    await answer.trace({0: chunk.completion.text})
                yield json.dumps(_last_record(answer, chunk.completion, body, chunk.text)) + "\n"
            elif chunk.text:
                record = {"model": body.model, "created_at": _now(), "response": chunk.text, "done": False}
                yield json.dumps(record) + "\n"


def _last_record(answer: Answer, completion: Completion, body: GenerateRequest, text: str) -> JsonObject:
    total = time.monotonic() - answer.started
    prompt = min(total, answer.first_token_seconds or total)
    return {
        "model": body.model,
        "created_at": _now(),
        "response": text,
        "done": True,
        "done_reason": completion.finish_reason,
        "total_duration": _nanoseconds(total),
        "load_duration": 0,
        "prompt_eval_count": completion.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(prompt),
        "eval_count": completion.completion_tokens,
        "eval_duration": _nanoseconds(total - prompt),
    } | answer.traces.fields(0, completion, is_wanted=body.provenance)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
