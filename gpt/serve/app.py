"""The addresses, and how each request becomes an answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from gpt.generation import Worker
from gpt.serve.metrics import Metrics
from gpt.serve.models import Served
from gpt.serve.protocol.chats import ChatAnswer
from gpt.serve.protocol.completions import CompletionAnswer
from gpt.serve.protocol.errors import ApiError, as_api_error, stopping
from gpt.serve.protocol.fields import (
    ChatCompletion,
    Completion,
    Detokenize,
    Drawing,
    Response,
    Score,
    Tokenize,
)
from gpt.serve.protocol.look import Look, LookAnswer
from gpt.serve.protocol.openapi import Endpoint, Handler, described
from gpt.serve.protocol.responses import ResponseAnswer
from gpt.serve.protocol.scores import score
from gpt.serve.protocol.texts import Texts
from gpt.serve.reading import body_of, release
from gpt.serve.sending import Stream, as_json, events, unless_gone

STREAMED = ("application/json", "text/event-stream")

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

    models: by name. aliases: other names of the first one, which answers to any name if `any_name`.
    """

    def __init__(self, models: dict[str, Served], aliases: tuple[str, ...] = (),
                 any_name: bool = False):
        self._models, self._any_name, self._started = models, any_name, int(time.time())
        self._first = next(iter(models))
        self._aliases = dict.fromkeys(aliases, self._first)
        self._metrics = Metrics()
        self._worker = Worker(self._metrics.observe)
        self._metrics.watch(self._worker, models)
        self.endpoints = self._endpoints()

    def close(self) -> None:
        """Compute no more."""
        self._worker.close()

    def _endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("/v1/completions", "Texts that follow texts",
                     self.asks(Completion, CompletionAnswer), Completion, STREAMED),
            Endpoint("/v1/chat/completions", "Answers in a conversation",
                     self.asks(ChatCompletion, ChatAnswer), ChatCompletion, STREAMED),
            Endpoint("/v1/responses", "The same, in OpenAI's newer layout",
                     self.asks(Response, ResponseAnswer), Response, STREAMED),
            Endpoint("/v1/score", "Log-probabilities of a text", self._score, Score),
            Endpoint("/playground/tokens", "A text, and what could have stood in each place of it",
                     self.asks(Look, LookAnswer), Look, ("text/event-stream",)),
            Endpoint("/tokenize", "Text to token ids", self._tokenize, Tokenize),
            Endpoint("/detokenize", "Token ids to text", self._detokenize, Detokenize),
            Endpoint("/v1/models", "The models", self._list_models),
            Endpoint("/v1/models/{name}", "One of them", self._show_model),
            Endpoint("/tokenizer_info", "How texts begin and end", self._tokenizer_info),
            Endpoint("/health", "Whether the process lives", self._ready),
            Endpoint("/ready", "Whether it takes requests", self._ready),
            Endpoint("/metrics", "Counts, for Prometheus", self._show_metrics, None,
                     ("text/plain",)),
            Endpoint("/openapi.json", "This", self._openapi)]

    def routes(self) -> list[Route]:
        """All addresses."""
        return [Route(one.path.replace("{name}", "{name:path}"), self._told(one.handler),
                      methods=[one.method]) for one in self.endpoints]

    def _told(self, handler: Handler) -> Handler:
        """The same, counted, with errors as answers."""

        async def answer(request: Request) -> HttpResponse:
            try:
                response = await handler(request)
            except ClientDisconnect:
                response = HttpResponse(status_code=499)  # which nobody reads
            except (Exception, asyncio.CancelledError) as error:  # cancelled when the server stops
                told = as_api_error(error) if isinstance(error, Exception) else stopping()
                if told.status == 500:
                    _log.exception("%s %s", request.method, request.url.path)
                response = as_json(told.content, told.status, told.headers)
            finally:
                release(request)
            model = request.scope.get("model")
            if model is not None:
                self._metrics.requests.labels(model, response.status_code).inc()
            return response

        return answer

    def _model(self, name: str | None, request: Request) -> Served:
        """The model of a name; the first one, of none. Raises ApiError."""
        name = self._first if not name else self._aliases.get(name, name)
        served = self._models.get(self._first if self._any_name and name not in self._models
                                  else name)
        if served is None:
            raise ApiError(404, f"there is no model {name!r} here; there are "
                                f"{', '.join([*self._models, *self._aliases])}", "model",
                           "model_not_found")
        request.scope["model"] = served.name
        return served

    # ----- Texts

    def asks(self, fields: type[Any], make: Callable[[Any, Served, Worker], Answer]) -> Handler:
        """What answers requests for texts."""

        async def answer(request: Request) -> HttpResponse:
            body: Drawing = await body_of(request, fields)
            served = self._model(body.model, request)
            body.model = body.model or served.name
            begun = time.monotonic()  # long texts take a while to become tokens
            asked = await asyncio.to_thread(make, body, served, self._worker)
            await asked.texts.start()

            def end() -> None:
                self._ended(asked.texts, served, body, time.monotonic() - begun)

            if body.stream:
                return Stream(events(asked.parts(), named=fields is Response), end)
            try:
                return as_json(await unless_gone(request, asked.whole()))
            finally:
                end()

        return answer

    def _ended(self, texts: Texts, served: Served, body: Drawing, seconds: float) -> None:
        """Nothing more is wanted of a request."""
        texts.close()
        written = texts.usage["completion_tokens"]
        self._metrics.tokens.labels(served.name, "read").inc(texts.prompt_tokens)
        self._metrics.tokens.labels(served.name, "written").inc(written)
        asker = body.safety_identifier or body.user
        _log.info("%s%s: %d tokens read, %d written, %.2f s", served.name,
                  f", for {asker!r}" if asker else "", texts.prompt_tokens, written, seconds)

    async def _score(self, request: Request) -> HttpResponse:
        body = await body_of(request, Score)
        served = self._model(body.model, request)
        return as_json(await unless_gone(request, score(body, served, self._worker)))

    # ----- Everything else

    async def _list_models(self, request: Request) -> HttpResponse:
        return as_json({"object": "list", "data": [
            self._shown(name, served) for name, served in self._models.items()] + [
            self._shown(name, self._models[of]) for name, of in self._aliases.items()]})

    async def _show_model(self, request: Request) -> HttpResponse:
        name = request.path_params["name"]
        return as_json(self._shown(name, self._model(name, request)))

    def _shown(self, name: str, served: Served) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "gpt",
                "max_model_len": served.context, "converses": served.converses,
                "root": served.run, "checkpoint": served.checkpoint, "watched": served.watched}

    async def _tokenize(self, request: Request) -> HttpResponse:
        body = await body_of(request, Tokenize)
        served = self._model(body.model, request)
        lm = served.lm
        encode = lm.tokenizer.encode if body.add_special_tokens is False else lm.prompt_tokens
        control = (lm.tokenizer.specials.get(body.prompt)
                   if body.add_special_tokens is False else None)
        tokens = ([control] if control is not None
                  else await asyncio.to_thread(encode, body.prompt))
        return as_json({"tokens": tokens, "count": len(tokens), "max_model_len": served.context})

    async def _detokenize(self, request: Request) -> HttpResponse:
        body = await body_of(request, Detokenize)
        lm = self._model(body.model, request).lm
        return as_json({"prompt": lm.tokenizer.decode(body.tokens)})

    async def _tokenizer_info(self, request: Request) -> HttpResponse:
        tokenizer = self._model(None, request).lm.tokenizer
        names = {i: name for name, i in tokenizer.specials.items()}
        begin = tokenizer.begin_of_text
        return as_json({"eos_token": names[tokenizer.end_of_text],
                        "bos_token": None if begin is None else names[begin], "pad_token": None,
                        "chat_template": tokenizer.chat_template})

    async def _ready(self, request: Request) -> HttpResponse:
        return as_json({"status": "ready"})  # models are there before anything is listened to

    async def _show_metrics(self, request: Request) -> HttpResponse:
        return HttpResponse(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _openapi(self, request: Request) -> HttpResponse:
        return as_json(described(self.endpoints))
