"""Mistral's `/v1/fim/completions`, and DeepSeek's path of OpenAI's completions.

Answers have the shape of chats. The text of a streamed chunk is in `delta.content`, and also in `text`, where clients of
OpenAI's completions look for it.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from codekiln.files import JsonObject
from codekiln.generate.complete import Completion, CompletionParams
from codekiln.generate.sampling import SamplingParams
from codekiln.serve.openapi import describe_completion
from codekiln.serve.protocols import openai
from codekiln.serve.protocols.openai import Name, Seed, StopStrings, WireModel
from codekiln.serve.provenance import ProvenanceField
from codekiln.serve.service import Answer, CompletionService, Query
from codekiln.serve.streaming import EVENT_STREAM, StreamedResponse


class FimRequest(WireModel):
    """The fields of `/v1/fim/completions`, with the penalties that Continue sends.

    `metadata` and `prompt_cache_key` are taken and have no effect: the cache is found by the prompt.
    """

    model: Name
    prompt: str
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    min_tokens: Literal[0] = 0
    temperature: Annotated[float, Field(ge=0, le=1.5)] = 0.2
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    stop: StopStrings = Field(default_factory=list)
    random_seed: Seed = 0
    stream: bool = False
    metadata: dict[str, Any] | None = None
    prompt_cache_key: Name | None = None
    provenance: ProvenanceField = False

    def params(self) -> CompletionParams:
        """How the prompt is completed."""
        sampling = SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=self.random_seed,
        )
        return CompletionParams(sampling=sampling, max_new_tokens=self.max_tokens, stop=tuple(self.stop))


def add_mistral(app: FastAPI, service: CompletionService) -> None:
    """Adds the routes to an application."""

    async def infill(request: Request) -> Response:
        body = await service.parse(request, FimRequest)
        service.require_model(body.model)
        prompt = service.hole(request, body.prompt, body.suffix)
        answer = await service.answer(request, Query(prompts=[prompt], params=body.params()))
        shared = {"id": f"fim-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.model_name}
        if body.stream:
            return StreamedResponse(_events(answer, shared, body), EVENT_STREAM)
        completion = (await answer.whole())[0]
        return JSONResponse(_whole(shared, completion, answer.traces.fields(0, completion, is_wanted=body.provenance)))

    async def complete(request: Request) -> Response:
        return await openai.complete(request, await service.parse(request, openai.CompletionRequest), service)

    app.add_api_route(
        "/v1/fim/completions",
        infill,
        methods=["POST"],
        response_model=None,
        openapi_extra=describe_completion(FimRequest),
    )
    app.add_api_route(
        "/beta/completions",
        complete,
        methods=["POST"],
        response_model=None,
        openapi_extra=describe_completion(openai.CompletionRequest),
    )


def _whole(shared: JsonObject, completion: Completion, fields: JsonObject) -> JsonObject:
    message = {"role": "assistant", "content": completion.text, "tool_calls": None}
    choice = {"index": 0, "message": message, "finish_reason": completion.finish_reason} | fields
    return shared | {"object": "chat.completion", "choices": [choice], "usage": _usage(completion)}


async def _events(answer: Answer, shared: JsonObject, body: FimRequest) -> AsyncIterator[str]:
    """Server-sent events: one per chunk that has text, the last one with the token counts, and the end mark."""
    async with aclosing(answer.pieces()) as chunks:
        async for chunk in chunks:
            if not chunk.text and chunk.completion is None:
                continue
            completion = chunk.completion
            choice: JsonObject = {
                "index": 0,
                "delta": {"role": "assistant", "content": chunk.text},
                "text": chunk.text,
                "finish_reason": None if completion is None else completion.finish_reason,
            }
            record = shared | {"object": "chat.completion.chunk", "choices": [choice]}
            if completion is not None:
                if body.provenance:
                    await answer.trace({0: completion.text})
                choice |= answer.traces.fields(0, completion, is_wanted=body.provenance)
                record["usage"] = _usage(completion)
            yield f"data: {json.dumps(record)}\n\n"
    yield "data: [DONE]\n\n"


def _usage(completion: Completion) -> JsonObject:
    read, written = completion.prompt_tokens, completion.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
