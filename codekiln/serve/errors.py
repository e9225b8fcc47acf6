"""Errors as clients read them."""

from codekiln.files import JsonObject

RETRY_SECONDS = 1


def error_body(message: str, *, param: str | None = None, code: str | None = None) -> JsonObject:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
