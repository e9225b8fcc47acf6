"""Requests and responses of `/v1/completions`, as OpenAI's clients send and read them."""

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from codekiln.files import JsonObject
from codekiln.generate.complete import Completion
from codekiln.generate.sampling import SamplingParams

MAX_PROMPTS = 16
MAX_STOP_STRINGS = 32
MAX_STOP_CHARACTERS = 1_000


def _as_prompts(value: Any) -> Any:
    """A prompt or several, as a list. Raises ValueError that names what is wrong with the form that was meant."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of texts")
    if not 1 <= len(value) <= MAX_PROMPTS:
        raise ValueError(f"must have 1 to {MAX_PROMPTS} texts (got {len(value)})")
    if not all(isinstance(text, str) for text in value):
        raise ValueError("must be a list of texts; token ids are not supported")
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


Prompts = Annotated[list[str], BeforeValidator(_as_prompts)]
StopStrings = Annotated[list[str], BeforeValidator(_as_stop_strings)]
ExactlyOne = Annotated[int, Field(ge=1, le=1)]
Zero = Annotated[float, Field(ge=0, le=0)]


class StreamOptions(BaseModel):
    """Whether the last event of a stream reports the token counts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """A request. null means "not set". A field that this server cannot honor is refused by name, and never ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Prompts
    suffix: str | None = None
    model: Annotated[str, Field(max_length=1000)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    stop: StopStrings = []
    stream: bool = False
    n: ExactlyOne = 1
    echo: Literal[False] = False
    best_of: ExactlyOne = 1
    frequency_penalty: Zero = 0.0
    presence_penalty: Zero = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    logprobs: None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}

    def sampling(self) -> SamplingParams:
        """How tokens are sampled."""
        return SamplingParams(temperature=self.temperature, top_p=self.top_p, seed=self.seed)


class CompletionResponse:
    """The bodies of one response, whole or streamed; they share an id and a time."""

    def __init__(self, model: str) -> None:
        self._shared = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def chunk(self, index: int, text: str, finish_reason: str | None) -> JsonObject:
        """One event of a stream."""
        return self._shared | {"choices": [_choice(index, text, finish_reason)]}

    def body(self, completions: list[Completion]) -> JsonObject:
        """The whole response, with token counts."""
        choices = [_choice(i, completion.text, completion.finish_reason) for i, completion in enumerate(completions)]
        return self._shared | {"choices": choices, "usage": _usage(completions)}

    def usage_chunk(self, completions: list[Completion]) -> JsonObject:
        """The last event of a stream, with token counts."""
        return self._shared | {"choices": [], "usage": _usage(completions)}


def error_body(message: str, *, param: str | None = None, code: str | None = None) -> JsonObject:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def _usage(completions: list[Completion]) -> dict[str, int]:
    read = sum(completion.prompt_tokens for completion in completions)
    written = sum(completion.completion_tokens for completion in completions)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
