"""The routes, and how each request becomes an answer."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response as HttpResponse
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gpt.serve.answers import events, finite, token_text
from gpt.serve.chats import ChatAnswer
from gpt.serve.completions import CompletionAnswer
from gpt.serve.errors import ApiError, as_api_error
from gpt.serve.fields import (
    ChatCompletion,
    Completion,
    Detokenize,
    Drawing,
    Response,
    Score,
    Tokenize,
    config_of,
)
from gpt.serve.metrics import Metrics
from gpt.serve.models import Served
from gpt.serve.openapi import described
from gpt.serve.reading import body_of
from gpt.serve.responses import ResponseAnswer
from gpt.serve.texts import Prompt, Texts
from gpt.serve.worker import Worker

SEND_SECONDS = 60.0  # until a client has read on

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[HttpResponse]]
_log = logging.getLogger("gpt.serve")


class Answer(Protocol):
    """What a request asks for, whole or part by part."""

    texts: Texts

    async def whole(self) -> dict[str, Any]:
        """As one object."""

    def parts(self) -> AsyncIterator[dict[str, Any]]:
        """As it grows."""


class Api:
    """The server's answers.

    models: by name; the first one also answers to any other name, if `any_name`.
    """

    def __init__(self, models: dict[str, Served], any_name: bool = False):
        self._models, self._any_name, self._started = models, any_name, int(time.time())
        self._metrics = Metrics(models)
        self._worker = Worker(self._metrics.observe)
        self._metrics.watch(self._worker)

    def close(self) -> None:
        """Compute no more."""
        self._worker.close()

    def routes(self) -> list[Route]:
        """All addresses."""
        posts = {"/v1/completions": self._asks(Completion, CompletionAnswer),
                 "/v1/chat/completions": self._asks(ChatCompletion, ChatAnswer),
                 "/v1/responses": self._asks(Response, ResponseAnswer), "/v1/score": self._score,
                 "/tokenize": self._tokenize, "/detokenize": self._detokenize}
        gets = {"/v1/models": self._list_models, "/v1/models/{name:path}": self._show_model,
                "/tokenizer_info": self._tokenizer_info, "/health": self._ready,
                "/ready": self._ready, "/metrics": self._show_metrics,
                "/openapi.json": self._openapi}
        return [Route(path, self._told(handler), methods=[method])
                for method, handlers in (("POST", posts), ("GET", gets))
                for path, handler in handlers.items()]

    def _told(self, handler: Handler) -> Handler:
        """The same, counted, with errors as answers."""

        async def answer(request: Request) -> HttpResponse:
            try:
                response = await handler(request)
            except ClientDisconnect:
                response = HttpResponse(status_code=499)  # which nobody reads
            except Exception as error:
                told = as_api_error(error)
                if told.status == 500:
                    _log.exception("%s %s", request.method, request.url.path)
                response = as_json(told.content, told.status, told.headers)
            model = request.scope.get("model")
            if model is not None:
                self._metrics.requests.labels(model, response.status_code).inc()
            return response

        return answer

    def _model(self, name: str | None, request: Request) -> Served:
        """The model of a name; the first one, of none. Raises ApiError."""
        served = self._models.get(name or next(iter(self._models)))
        if served is None and self._any_name:
            served = next(iter(self._models.values()))
        if served is None:
            raise ApiError(404, f"there is no model {name!r} here; there are "
                                f"{', '.join(self._models)}", "model", "model_not_found")
        request.scope["model"] = served.name
        return served

    # ----- Texts

    def _asks(self, fields: type[Any], make: Callable[[Any, Served, Worker], Answer]) -> Handler:
        """A route whose requests ask for texts."""

        async def answer(request: Request) -> HttpResponse:
            body: Drawing = await body_of(request, fields)
            served = self._model(body.model, request)
            begun = time.monotonic()  # long texts take a while to become tokens
            asked = await asyncio.to_thread(make, body, served, self._worker)
            await asked.texts.start()

            def end() -> None:
                self._ended(asked, served, body, time.monotonic() - begun)

            if body.stream:
                return Stream(streamed(asked.parts(), named=fields is Response), end)
            try:
                return as_json(await unless_gone(request, asked.whole()))
            finally:
                end()

        return answer

    def _ended(self, asked: Answer, served: Served, body: Drawing, seconds: float) -> None:
        """Nothing more is wanted of a request."""
        asked.texts.close()
        written = sum(len(choice.made) for choice in asked.texts.choices)
        self._metrics.tokens.labels(served.name, "read").inc(asked.texts.prompt_tokens)
        self._metrics.tokens.labels(served.name, "written").inc(written)
        _log.info("%s%s: %d tokens read, %d written, %.2f s", served.name,
                  f", for {body.user!r}" if body.user else "", asked.texts.prompt_tokens, written,
                  seconds)

    # ----- Everything else

    async def _list_models(self, request: Request) -> HttpResponse:
        return as_json({"object": "list", "data": [
            self._shown(*each) for each in self._models.items()]})

    async def _show_model(self, request: Request) -> HttpResponse:
        name = request.path_params["name"]
        return as_json(self._shown(name, self._model(name, request)))

    def _shown(self, name: str, served: Served) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "gpt",
                "max_model_len": served.context, "converses": served.converses}

    async def _score(self, request: Request) -> HttpResponse:
        body = await body_of(request, Score)
        served = self._model(body.model, request)
        lm = served.lm
        begin = True if body.begin is None else body.begin
        tokens = await asyncio.to_thread(lm.prompt_tokens, body.text, begin)
        texts = Texts(self._worker, served, [Prompt(tokens)], config_of({}, 0), scored=True)
        try:
            await texts.start()
            choice = (await unless_gone(request, texts.finished()))[0]
        finally:
            texts.close()
        unknown = tokens[:len(tokens) - len(choice.before)] if not begin else []
        told = [*((i, None) for i in unknown), *((new.token, finite(new.logprob))
                                                 for new in choice.before)]
        return as_json({
            "object": "score", "model": body.model, "tokens": [i for i, _ in told],
            "texts": [token_text(lm.tokenizer, i) for i, _ in told],
            "logprobs": [logprob for _, logprob in told],
            "total": sum(logprob for _, logprob in told if logprob is not None)})

    async def _tokenize(self, request: Request) -> HttpResponse:
        body = await body_of(request, Tokenize)
        served = self._model(body.model, request)
        encode = (served.lm.tokenizer.encode if body.add_special_tokens is False
                  else served.prompt)
        tokens = await asyncio.to_thread(encode, body.prompt)
        return as_json({"tokens": tokens, "count": len(tokens), "max_model_len": served.context})

    async def _tokenizer_info(self, request: Request) -> HttpResponse:
        tokenizer = self._model(None, request).lm.tokenizer
        names = {i: name for name, i in tokenizer.specials.items()}
        begin = tokenizer.begin_of_text
        return as_json({"eos_token": names[tokenizer.end_of_text],
                        "bos_token": None if begin is None else names[begin], "pad_token": None,
                        "chat_template": tokenizer.chat_template})

    async def _detokenize(self, request: Request) -> HttpResponse:
        body = await body_of(request, Detokenize)
        lm = self._model(body.model, request).lm
        return as_json({"prompt": lm.tokenizer.decode(body.tokens)})

    async def _ready(self, request: Request) -> HttpResponse:
        return as_json({"status": "ready"})  # models are there before anything is listened to

    async def _show_metrics(self, request: Request) -> HttpResponse:
        return HttpResponse(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _openapi(self, request: Request) -> HttpResponse:
        return as_json(described())


class Stream(StreamingResponse):
    """Server-sent events. end: called after them, also where nobody has read any."""

    def __init__(self, parts: AsyncIterator[bytes], end: Callable[[], None]):
        super().__init__(parts, media_type="text/event-stream",
                         headers={"Cache-Control": "no-cache"})
        self._end, self._since = end, math.inf  # when it began to wait for its reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it; a reader that stops for SEND_SECONDS is left."""

        async def sent(message: Message) -> None:
            self._since = time.monotonic()
            await send(message)
            self._since = math.inf

        writing = asyncio.create_task(super().__call__(scope, receive, sent))
        try:
            while not (await asyncio.wait({writing}, timeout=SEND_SECONDS / 2))[0]:
                if time.monotonic() - self._since > SEND_SECONDS:
                    _log.warning("a client does not read on: its answer is cut off")
                    return
            writing.result()
        finally:
            writing.cancel()
            self._end()


async def streamed(parts: AsyncIterator[dict[str, Any]], named: bool) -> AsyncIterator[bytes]:
    """The parts of an answer as events, and an error as the last one."""
    try:
        async for part in events(parts, named):
            yield part
    except Exception as error:
        content = as_api_error(error).content | ({"type": "error"} if named else {})
        yield f"data: {json.dumps(content)}\n\n".encode()


async def not_found(request: Request, error: Exception) -> HttpResponse:
    """For addresses and methods that are not there."""
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}; "
                                       "/openapi.json lists what is here")
    return as_json(told.content, told.status, dict(error.headers or {}))


def as_json(content: object, status: int = 200, headers: dict[str, str] | None = None
            ) -> HttpResponse:
    """An answer."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return HttpResponse(text.encode(), status, headers, "application/json")


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
