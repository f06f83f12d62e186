"""What is sent back: objects, streams of them, and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gpt.serve.protocol.errors import ApiError, as_api_error, stopping

T = TypeVar("T")


def as_json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text.encode(), status, headers, "application/json")


class Stream(StreamingResponse):
    """Server-sent events. end: called after them, also where nobody has read any."""

    def __init__(self, parts: AsyncIterator[bytes], end: Callable[[], None]):
        super().__init__(parts, media_type="text/event-stream",
                         headers={"Cache-Control": "no-cache"})
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            part = f"data: {json.dumps(stopping().content)}\n\n".encode()
            await send({"type": "http.response.body", "body": part, "more_body": False})
        finally:
            self._end()


async def events(objects: AsyncIterator[dict[str, Any]], named: bool) -> AsyncIterator[bytes]:
    """Objects as server-sent events, an error as the last one. named: each is called what its type
    says, and none says that it is the last. In ASCII: some clients end lines at U+2028, too.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
    """
    try:
        async for content in objects:
            name = f"event: {content['type']}\n" if named else ""
            yield f"{name}data: {json.dumps(content)}\n\n".encode()
        if not named:
            yield b"data: [DONE]\n\n"
    except Exception as error:
        content = as_api_error(error).content | ({"type": "error"} if named else {})
        yield f"data: {json.dumps(content)}\n\n".encode()


async def not_found(request: Request, error: Exception) -> Response:
    """For addresses and methods that are not there."""
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}; "
                                       "/openapi.json lists what is here")
    return as_json(told.content, told.status, dict(error.headers or {}))


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What comes of some work, which ends when the client is gone. Raises ClientDisconnect."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
