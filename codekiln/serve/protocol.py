"""Requests and responses of `/v1/completions`, as OpenAI's clients send and read them."""

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from codekiln.files import Record
from codekiln.generate.complete import Answer
from codekiln.generate.sampler import Sampling

MAX_TEXT = 1_000_000
MAX_PROMPTS = 16

Text = Annotated[str, Field(max_length=MAX_TEXT)]
One = Annotated[int, Field(ge=1, le=1)]
Nothing = Annotated[float, Field(ge=0, le=0)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class StreamOptions(BaseModel):
    """Of a streamed answer: whether a last event tells the tokens read and written."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """What is asked; null is what is not said. A field that this server cannot honour is refused by its name, not ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    suffix: Text | None = None
    model: Annotated[str, Field(max_length=1000)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    stop: Stop | Annotated[list[Stop], Field(max_length=8)] | None = None
    stream: bool = False
    n: One = 1
    echo: Literal[False] = False
    best_of: One = 1
    frequency_penalty: Nothing = 0.0
    presence_penalty: Nothing = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    logprobs: None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _said(cls, fields: Any) -> Any:
        return (
            {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields
        )

    def prompts(self) -> list[str]:
        """One prompt or several."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def stops(self) -> list[str]:
        """Stop strings, none of them empty."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.temperature, self.top_p, self.seed)


class Envelope:
    """What all chunks of one response share."""

    def __init__(self, model: str) -> None:
        self._shared = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def chunk(self, index: int, text: str, finish_reason: str | None) -> Record:
        """One event of a stream."""
        return self._shared | {"choices": [_choice(index, text, finish_reason)]}

    def whole(self, answers: list[Answer]) -> Record:
        """The response in one piece, with what was read and written."""
        choices = [_choice(i, answer.text, finish_of(answer)) for i, answer in enumerate(answers)]
        return self._shared | {"choices": choices, "usage": _usage(answers)}

    def last_chunk(self, answers: list[Answer]) -> Record:
        """The event behind all text of a stream: what was read and written."""
        return self._shared | {"choices": [], "usage": _usage(answers)}


def finish_of(answer: Answer) -> str:
    """`stop` where the model or a stop string ended it, else `length`."""
    return "stop" if answer.is_finished else "length"


def error(message: str, *, param: str | None = None) -> Record:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


def _usage(answers: list[Answer]) -> dict[str, int]:
    read, written = sum(a.n_prompt_tokens for a in answers), sum(a.n_new_tokens for a in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
