"""What /openapi.json says: made of the fields that requests are read by."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gpt.serve.fields import ChatCompletion, Completion, Detokenize, Response, Score, Tokenize

ASKED: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/completions": (Completion, "Texts that follow texts"),
    "/v1/chat/completions": (ChatCompletion, "Answers in a conversation"),
    "/v1/responses": (Response, "The same, in OpenAI's newer layout"),
    "/v1/score": (Score, "Log-probabilities of a text"),
    "/tokenize": (Tokenize, "Text to token ids"),
    "/detokenize": (Detokenize, "Token ids to text")}
READ = {"/v1/models": "The models", "/v1/models/{name}": "One of them",
        "/tokenizer_info": "How texts begin and end", "/health": "Whether the process lives",
        "/ready": "Whether it takes requests", "/metrics": "Counts, for Prometheus",
        "/openapi.json": "This"}
_ERROR = {"description": "what is wrong, in OpenAI's error object",
          "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}


def described() -> dict[str, Any]:
    """The whole description."""
    _, schemas = models_json_schema([(fields, "validation") for fields, _ in ASKED.values()],
                                    ref_template="#/components/schemas/{model}")
    text = {"type": ["string", "null"]}
    error = {"type": "object", "required": ["error"], "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"],
        "properties": {"message": {"type": "string"}, "type": {"type": "string"},
                       "param": text, "code": text}}}}
    paths: dict[str, Any] = {path: {"get": _operation(path, summary)}
                             for path, summary in READ.items()}
    for path, (fields, summary) in ASKED.items():
        paths[path] = {"post": _operation(path, summary) | {"requestBody": {
            "required": True, "content": {"application/json": {
                "schema": {"$ref": f"#/components/schemas/{fields.__name__}"}}}}}}
    return {"openapi": "3.1.0", "info": {"title": "gpt", "version": "1"}, "paths": paths,
            "components": {"schemas": schemas["$defs"] | {"Error": error}}}


def _operation(path: str, summary: str) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {}, "text/event-stream": {}}
    if path == "/metrics":
        content = {"text/plain": {}}
    found: dict[str, Any] = {"summary": summary, "responses": {
        "200": {"description": "done", "content": content},
        **dict.fromkeys(("400", "401", "404", "408", "413", "415", "429", "500", "503"), _ERROR)}}
    if "{name}" in path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True,
                                "schema": {"type": "string"}}]
    return found
