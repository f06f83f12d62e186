"""Addresses, and what /openapi.json says of them: made of the fields that requests are read by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from gpt.serve.protocol.fields import Body

Handler = Callable[[Any], Awaitable[Any]]  # from a request to an answer

_TEXT = {"type": ["string", "null"]}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {
    "type": "object", "required": ["message", "type", "param", "code"],
    "properties": {"message": {"type": "string"}, "type": {"type": "string"},
                   "param": _TEXT, "code": _TEXT}}}}
_STATUSES = ("400", "401", "404", "408", "413", "415", "429", "500", "503")


@dataclass(frozen=True)
class Endpoint:
    """An address. fields: what is sent to it; None: it is read."""

    path: str
    summary: str
    handler: Handler
    fields: type[Body] | None = None
    media: tuple[str, ...] = ("application/json",)

    @property
    def method(self) -> str:
        """Of HTTP."""
        return "GET" if self.fields is None else "POST"


def described(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole description."""
    _, schemas = models_json_schema([(one.fields, "validation") for one in endpoints if one.fields],
                                    ref_template="#/components/schemas/{model}")
    return {"openapi": "3.1.0", "info": {"title": "gpt", "version": "1"},
            "paths": {one.path: {one.method.lower(): _operation(one)} for one in endpoints},
            "components": {"schemas": schemas["$defs"] | {"Error": _ERROR}}}


def _operation(one: Endpoint) -> dict[str, Any]:
    error = {"description": "what is wrong, in OpenAI's error object", "content": _json("Error")}
    found: dict[str, Any] = {"summary": one.summary, "responses": {
        "200": {"description": "done", "content": {kind: {} for kind in one.media}},
        **dict.fromkeys(_STATUSES, error)}}
    if one.fields is not None:
        found["requestBody"] = {"required": True, "content": _json(one.fields.__name__)}
    if "{name}" in one.path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True,
                                "schema": {"type": "string"}}]
    return found


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
