"""The server's description of itself, at `/openapi.json`."""

from typing import Any

from pydantic import BaseModel

from codekiln.files import JsonObject

_ERRORS = {
    "400": "A field is wrong or cannot be honored; `param` names it",
    "401": "An API key is needed",
    "404": "The model does not exist",
    "408": "The body did not arrive in time",
    "409": "A newer request of this client took the place of this one",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "429": "Too many requests are waiting; Retry-After has seconds",
}


_HEADERS = {
    "Codekiln-Note": "What the person who reads the completion should know",
    "Codekiln-Provenance": "The longest stretch that is verbatim in the training documents, if the server has their index and "
    'the answer is not streamed: tokens=42, count=3, license="MIT"',
}


def describe_completion(*bodies: type[BaseModel]) -> JsonObject:
    """The same as `describe`, for a route that answers with completions."""
    described = describe(*bodies)
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()}
    described["responses"] |= {"200": {"description": "Completions", "headers": headers}}
    return described


def describe(*bodies: type[BaseModel]) -> JsonObject:
    """What a route that reads its body itself adds to its description: the fields of one or several forms of the body."""
    schemas = [_inline(body.model_json_schema()) for body in bodies]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {status: {"description": text} for status, text in _ERRORS.items()},
    }


def _inline(schema: JsonObject) -> JsonObject:
    """A schema with its definitions in their places."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
            return {name: resolve(value) for name, value in node.items()}
        return [resolve(each) for each in node] if isinstance(node, list) else node

    resolved: JsonObject = resolve(schema)
    return resolved
