"""Requests and responses of `/v1/completions`, as OpenAI's clients send and read them."""

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from codekiln.files import Record
from codekiln.generate.complete import Answer
from codekiln.generate.sampler import Sampling

MAX_TEXT = 1_000_000
MAX_PROMPTS = 16

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class CompletionRequest(BaseModel):
    """What is asked. A field that this server cannot honour is refused by its name, not ignored."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    suffix: Text | None = None
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    stop: Stop | Annotated[list[Stop], Field(max_length=8)] | None = None
    stream: bool = False
    n: Literal[1] = 1
    echo: Literal[False] = False
    logprobs: None = None
    user: str | None = None

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
        read, written = sum(a.n_prompt_tokens for a in answers), sum(a.n_new_tokens for a in answers)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return self._shared | {
            "choices": [_choice(i, a.text, finish_of(a)) for i, a in enumerate(answers)],
            "usage": usage,
        }


def finish_of(answer: Answer) -> str:
    """`stop` where the model or a stop string ended it, else `length`."""
    return "stop" if answer.is_finished else "length"


def error(message: str, *, param: str | None = None) -> Record:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
