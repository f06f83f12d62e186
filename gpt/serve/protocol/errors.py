"""What goes wrong, as OpenAI's clients expect to be told."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from gpt.errors import UserError, WorkFailed

LONGEST = 200  # characters of what was given that are repeated
MOST_TOLD = 10_000  # mistakes in one request, of which the first is told


class ApiError(Exception):
    """An answer that is an error. param: the field that is wrong. headers: of the answer."""

    def __init__(self, status: int, message: str, param: str | None = None,
                 code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            status, "invalid_request_error" if status < 500 else "server_error")
        self.content: dict[str, Any] = {"error": {
            "message": message, "type": kind, "param": param, "code": code}}


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _of_fields(error)
    if isinstance(error, UserError):
        field, colon, _ = str(error).partition(": ")
        return ApiError(400, str(error), field if colon and field.isidentifier() else None)
    if isinstance(error, WorkFailed):
        return ApiError(500, str(error))
    return ApiError(500, f"the server made a mistake: {type(error).__name__}; its log says more")


def busy() -> ApiError:
    """Too many texts wait already."""
    return ApiError(429, "too many requests wait; try again in a second", code="queue_full",
                    headers={"Retry-After": "1"})


def stopping() -> ApiError:
    """A text could not be finished before the server ends."""
    return ApiError(503, "the server stops, and cuts this text off; ask it again later",
                    code="server_stopping")


def _of_fields(error: ValidationError) -> ApiError:
    """The first field that is wrong, by name."""
    if error.error_count() > MOST_TOLD:  # a list of them takes a gigabyte for a body of eight MiB
        return ApiError(400, f"{error.error_count():,} values of the body are wrong or unknown")
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"] if not _names_a_type(part))
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"{path} is unknown here, or not supported; leave it out", path,
                        "unknown_parameter")
    said = problem["msg"].removeprefix("Value error, ")
    given = repr(problem["input"])
    shown = "" if not path else f" (given: {given[:LONGEST]}{'…' if len(given) > LONGEST else ''})"
    return ApiError(400, f"{path}: {said}{shown}" if path else said, path or None,
                    "missing_required_parameter" if problem["type"] == "missing"
                    else "invalid_value")


def _names_a_type(part: int | str) -> bool:
    """pydantic's places name the branch of a union that it tried, too."""
    return (isinstance(part, str) and not part.isidentifier()) or part in (
        "str", "constrained-str", "int")
