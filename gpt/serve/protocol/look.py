"""POST /playground/tokens: a text token by token, and what could have stood in each place."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import Field

from gpt.generation import Generation, Worker
from gpt.serve.models import Served
from gpt.serve.protocol.answers import Characters, finite
from gpt.serve.protocol.errors import ApiError
from gpt.serve.protocol.fields import Alternatives, ChatMessage, Ids, Sampling, config_of
from gpt.serve.protocol.texts import Prompt, Texts


class Look(Sampling):
    """POST /playground/tokens"""

    stream: Literal[True]
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = Field(
        None, description="instead of a prompt: the text is an answer")
    written: Ids = Field([], description="token ids that the text begins with")
    alternatives: Alternatives = Field(10, description="tokens told for each place")
    n: Literal[1] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None


class LookAnswer:
    """A text that is looked at."""

    def __init__(self, body: Look, served: Served, worker: Worker):
        if body.prompt is not None and body.messages is not None:
            raise ApiError(400, "give prompt or messages, not both", "messages")
        self._tokenizer = served.lm.tokenizer
        tokens, prefix = ((served.prompt(body.prompt), None) if body.messages is None else
                          served.asked([(turn.role, turn.text) for turn in body.messages]))
        written = served.prompt(body.written) if body.written else []
        most = (served.context if body.max_tokens is None else body.max_tokens) + len(written)
        self.texts = Texts(
            worker, served, [Prompt([*tokens, *written], prefix, len(written))],
            config_of(body.drawing(), most), alternatives=body.alternatives, chances=True)
        self._characters = Characters(self._tokenizer)
        self._last = {}
        for token in written:
            self._last = {"last": self._characters.of(token)}

    async def whole(self) -> dict[str, Any]:
        """All tokens."""
        return {"tokens": [part async for part in self.parts()]}

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """Token by token. places: [id, text, probability as the model has it, chance with the
        settings, whether it ends the text] of those that could have been drawn. The first one comes
        with the text that the last token of `written` completes."""
        async for _, piece, _ in self.texts.pieces():
            yield self._told(piece.new, piece.end) | self._last
            self._last = {}

    def _told(self, new: Generation, end: str | None) -> dict[str, Any]:
        is_text = new.token in self._tokenizer.text_ids
        return {"token": new.token, "end": end, "logprob": finite(new.logprob),
                "text": self._characters.of(new.token) if is_text else
                self._tokenizer.token_text(new.token),
                "places": [[token, self._tokenizer.token_text(token), math.exp(logprob), chance,
                            token in self._tokenizer.stop_tokens]
                           for (token, logprob), chance
                           in zip(new.likeliest, new.chances, strict=True)]}
