"""POST /v1/chat/completions: answers in a conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from gpt.generation import Worker
from gpt.serve.models import Served
from gpt.serve.protocol.answers import FINISHED, frame, told_tokens
from gpt.serve.protocol.fields import ChatCompletion, config_of
from gpt.serve.protocol.texts import Prompt, Texts


class ChatAnswer:
    """What a request for an answer asks for, and how it is told."""

    def __init__(self, body: ChatCompletion, served: Served, worker: Worker):
        self._body, self._tokenizer = body, served.lm.tokenizer
        tokens, prefix = served.asked([(turn.role, turn.text) for turn in body.messages],
                                      body.chat_template_kwargs or {})
        most = (body.max_tokens if body.max_completion_tokens is None
                else body.max_completion_tokens)
        config = config_of(body.drawing(), served.context if most is None else most)
        self.texts = Texts(worker, served, [Prompt(tokens, prefix)], config, body.n or 1,
                           alternatives=body.top_logprobs or 0)

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        choices = await self.texts.finished()
        return frame("chatcmpl", "chat.completion", self._body.model) | {
            "choices": [{"index": choice.index, "finish_reason": FINISHED[choice.end],
                         "message": {"role": "assistant", "content": choice.text, "refusal": None},
                         "logprobs": self._logprobs(choice.made)} for choice in choices],
            "usage": self.texts.usage}

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it grows."""
        head = frame("chatcmpl", "chat.completion.chunk", self._body.model)
        head |= {"usage": None} if self._body.tells_usage else {}

        def part(index: int, delta: dict[str, str], **more: Any) -> dict[str, Any]:
            return head | {"choices": [{"index": index, "delta": delta, "logprobs": None,
                                        "finish_reason": None, **more}]}

        for choice in self.texts.choices:
            yield part(choice.index, {"role": "assistant", "content": ""})
        async for choice, piece, new in self.texts.pieces():
            if piece.text or (new and self._body.logprobs):
                yield part(choice.index, {"content": piece.text}, logprobs=self._logprobs(new))
            if piece.end is not None:
                yield part(choice.index, {}, finish_reason=FINISHED[choice.end])
        if self._body.tells_usage:
            yield head | {"choices": [], "usage": self.texts.usage}

    def _logprobs(self, made: Any) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return {"content": told_tokens(made, self._tokenizer), "refusal": None}
