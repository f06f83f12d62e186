"""What a client sends, within bounds: a body that is too long, too slow, too deep or no JSON is
refused before anything is made of it."""

from __future__ import annotations

import asyncio
import json
from typing import TypeVar

from starlette.requests import Request

from gpt.serve.protocol.errors import ApiError, busy
from gpt.serve.protocol.fields import Body

B = TypeVar("B", bound=Body)

LARGEST = 8 * 2**20  # bytes of a body
DEEPEST = 64  # objects and arrays in each other
MOST = 100_000  # objects and arrays in all
SMALL = 2**16  # bytes up to which a body always finds room
ROOM = 64 * 2**20  # bytes of all larger ones that are being read or made something of
SECONDS = 30.0  # until a body has arrived
_SQUARE = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes({*range(256)} - {*b"[]{}"})
_held: dict[int, int] = {}  # bytes of larger bodies, by request


async def body_of(request: Request, fields: type[B]) -> B:
    """The body of a request. Raises ApiError, pydantic's ValidationError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of another origin cannot send unasked
        raise ApiError(415, "send JSON, with the header Content-Type: application/json")
    try:
        data = await asyncio.wait_for(_bytes_of(request), SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not arrive in {SECONDS:.0f} seconds") from None
    return fields.model_validate(_parsed(data))


async def _bytes_of(request: Request) -> bytes:
    """All of it: a client that is cut off while it sends does not read why."""
    parts: list[bytes] = []
    size, fits = 0, True
    async for part in request.stream():
        size += len(part)
        fits = fits and size <= LARGEST and _hold(request, size)
        if fits:
            parts.append(part)
        else:
            parts.clear()
            release(request)
    if size > LARGEST:
        raise ApiError(413, f"the body is larger than {LARGEST:,} bytes")
    if not fits:
        raise busy()
    return b"".join(parts)


def _hold(request: Request, size: int) -> bool:
    """Whether there is room for so much of a body."""
    if size > SMALL:
        _held[id(request)] = size
    return size <= SMALL or sum(_held.values()) <= ROOM


def release(request: Request) -> None:
    """Nothing of the body is needed any more."""
    _held.pop(id(request), None)


def _parsed(data: bytes) -> object:
    brackets = _brackets(data)
    if brackets.count(b"[") > MOST:
        raise ApiError(400, f"the body holds more than {MOST:,} objects and arrays")
    if _is_deep(brackets):
        raise ApiError(400, f"the body nests objects and arrays more than {DEEPEST} deep")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refused)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise ApiError(400, "the body is not UTF-8, or names half a surrogate pair") from None
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is no JSON object")
    return value


def _brackets(data: bytes) -> bytes:
    """Those outside of strings, all square; in a time that grows as the body does, whatever it
    holds."""
    unescaped = data.replace(rb"\\", b"").replace(rb'\"', b"")
    outside = b"".join(unescaped.split(b'"')[::2])
    return outside.translate(_SQUARE, _OTHERS)


def _is_deep(brackets: bytes) -> bool:
    """Whether more than DEEPEST are in each other; of those that are never closed, whether there
    are as many."""
    for _ in range(DEEPEST):  # pairs that hold nothing go
        brackets = brackets.replace(b"[]", b"")
    return b"[]" in brackets or brackets.count(b"[") > DEEPEST


def _refused(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")
