"""Tabby's API for its agent and its editor plugins: `/v1/completions` with segments, and what they ask before and after.

The path is OpenAI's. A body with `segments` is Tabby's.
"""

import uuid
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from codekiln import __version__
from codekiln.generate.complete import CompletionParams
from codekiln.generate.context import ContextFile, RepositoryContext
from codekiln.generate.sampling import SamplingParams
from codekiln.serve.protocols.openai import CompletionRequest, Name, Seed, WireModel
from codekiln.serve.provenance import ProvenanceField
from codekiln.serve.service import CompletionService, Query

MAX_SNIPPETS = 256


class Declaration(WireModel):
    """The source of a name that is used near the cursor."""

    filepath: Name
    body: str


class Snippet(Declaration):
    """Code of another file that is similar to the code near the cursor. The most similar one comes first."""

    score: float = 0.0


class Segments(WireModel):
    """The text around the cursor, its place, and code of other files."""

    prefix: str
    suffix: str | None = None
    filepath: Name | None = None
    git_url: Name | None = None
    declarations: Annotated[list[Declaration], Field(max_length=MAX_SNIPPETS)] = Field(default_factory=list)
    relevant_snippets_from_changed_files: Annotated[list[Snippet], Field(max_length=MAX_SNIPPETS)] = Field(
        default_factory=list
    )
    relevant_snippets_from_recently_opened_files: Annotated[list[Snippet], Field(max_length=MAX_SNIPPETS)] = Field(
        default_factory=list
    )
    clipboard: str | None = None

    def context(self) -> RepositoryContext:
        """Code of other files, the most relevant last. The place counts only if there is some, as in training."""
        clipboard = [] if self.clipboard is None else [ContextFile("", self.clipboard)]
        found = [
            *reversed(self.relevant_snippets_from_recently_opened_files),
            *reversed(self.relevant_snippets_from_changed_files),
            *self.declarations,
        ]
        return RepositoryContext(
            files=(*clipboard, *(ContextFile(each.filepath, each.body) for each in found)),
            path=self.filepath or "",
            repository=(self.git_url or "").rstrip("/").removesuffix(".git").rpartition("/")[2],
        )


class TabbyRequest(WireModel):
    """The fields of a completion request. `language` and `user` are taken and have no effect."""

    segments: Segments
    language: Name | None = None
    user: Name | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    seed: Seed = 0
    mode: Literal["standard"] = "standard"
    provenance: ProvenanceField = False


def request_kind(fields: Any) -> type[CompletionRequest] | type[TabbyRequest]:
    """The protocol of a body of `/v1/completions`."""
    return TabbyRequest if isinstance(fields, dict) and "segments" in fields else CompletionRequest


async def complete(request: Request, body: TabbyRequest, service: CompletionService) -> Response:
    """The response to a completion request."""
    segments = body.segments
    prompt = service.hole(request, segments.prefix, segments.suffix, segments.context())
    params = CompletionParams(sampling=SamplingParams(temperature=body.temperature, seed=body.seed))
    answer = await service.answer(request, Query(prompts=[prompt], params=params))
    completion = (await answer.whole())[0]
    fields = answer.traces.fields(0, completion, is_wanted=body.provenance)
    choices = [{"index": 0, "text": completion.text} | fields]
    return JSONResponse({"id": f"cmpl-{uuid.uuid4()}", "choices": choices, "mode": body.mode})


def add_tabby(app: FastAPI, service: CompletionService) -> None:
    """Adds the routes to an application, without `/v1/completions`, which is shared."""

    def show_health() -> Response:
        version = {"build_date": "", "build_timestamp": "", "git_sha": "", "git_describe": f"codekiln {__version__}"}
        return JSONResponse(
            {
                "model": service.model_name,
                "device": "",  # this path needs no key, so it shows nothing of the machine
                "arch": "",
                "cpu_info": "",
                "cpu_count": 0,
                "cuda_devices": [],
                "version": version,
            }
        )

    async def take_event(request: Request) -> Response:
        await request.body()  # within the limit of sizes; nothing is stored
        return Response()

    def list_models() -> Response:
        return JSONResponse({"completion": [service.model_name], "chat": None, "embedding": None})

    def show_setting() -> Response:
        return JSONResponse({"disable_client_side_telemetry": True})

    app.add_api_route("/v1/health", show_health, methods=["GET", "HEAD", "POST"], response_model=None)
    app.add_api_route("/v1/events", take_event, methods=["POST"], response_model=None)
    app.add_api_route("/v1beta/models", list_models, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/v1beta/server_setting", show_setting, methods=["GET", "HEAD"], response_model=None)
