"""POST /v1/responses: text in, text out, in OpenAI's newer layout. Nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

from gpt.generation import Generation, Worker
from gpt.serve.models import Served
from gpt.serve.protocol.answers import told_tokens
from gpt.serve.protocol.fields import Response, config_of
from gpt.serve.protocol.texts import Prompt, Texts


class ResponseAnswer:
    """What a request for a response asks for, and how it is told."""

    def __init__(self, body: Response, served: Served, worker: Worker):
        self._body, self._tokenizer = body, served.lm.tokenizer
        self._told_logprobs = body.top_logprobs is not None or bool(body.include)
        turns = ([("user", body.input)] if isinstance(body.input, str)
                 else [(turn.role, turn.text) for turn in body.input])
        if body.instructions:
            turns.insert(0, ("system", body.instructions))
        tokens, prefix = served.asked(turns)
        most = served.context if body.max_output_tokens is None else body.max_output_tokens
        self.texts = Texts(worker, served, [Prompt(tokens, prefix)],
                           config_of(body.drawing(), most), alternatives=body.top_logprobs or 0)
        self._choice = self.texts.choices[0]
        self._id, self._item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self) -> dict[str, Any]:
        """The response as one object."""
        await self.texts.finished()
        return self._response(done=True)

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a response that grows."""
        number = -1

        def event(kind: str, **content: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": f"response.{kind}", "sequence_number": number, **content}

        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        yield event("created", response=self._response(done=False))
        yield event("in_progress", response=self._response(done=False))
        yield event("output_item.added", output_index=0, item=self._message(done=False))
        yield event("content_part.added", **place, part=self._content("", ()))
        async for _, piece, new in self.texts.pieces():
            if piece.text or (new and self._told_logprobs):
                yield event("output_text.delta", **place, delta=piece.text,
                            logprobs=self._logprobs(new))
        text, made = self._choice.text, self._choice.made
        yield event("output_text.done", **place, text=text, logprobs=self._logprobs(made))
        yield event("content_part.done", **place, part=self._content(text, made))
        yield event("output_item.done", output_index=0, item=self._message(done=True))
        yield event(self._status(), response=self._response(done=True))

    def _status(self) -> str:
        return "completed" if self._choice.end == "stop" else "incomplete"

    def _response(self, done: bool) -> dict[str, Any]:
        body, written = self._body, len(self._choice.made)
        status = self._status() if done else "in_progress"
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status,
            "error": None, "model": body.model, "instructions": body.instructions,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete"
            else None,
            "output": [self._message(done=True)] if done else [],
            "max_output_tokens": body.max_output_tokens, "metadata": body.metadata or {},
            "parallel_tool_calls": False, "previous_response_id": None, "reasoning": None,
            "store": False, "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}} if body.text is None else
            body.text.model_dump(by_alias=True, exclude_unset=True),
            "tool_choice": "none", "tools": [], "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled", "user": body.user,
            "usage": {"input_tokens": self.texts.prompt_tokens, "output_tokens": written,
                      "input_tokens_details": {"cached_tokens": 0},
                      "output_tokens_details": {"reasoning_tokens": 0},
                      "total_tokens": self.texts.prompt_tokens + written} if done else None}

    def _message(self, done: bool) -> dict[str, Any]:
        content = [self._content(self._choice.text, self._choice.made)] if done else []
        return {"id": self._item, "type": "message", "role": "assistant", "content": content,
                "status": self._status() if done else "in_progress"}

    def _content(self, text: str, made: Iterable[Generation]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [],
                "logprobs": self._logprobs(made)}

    def _logprobs(self, made: Iterable[Generation]) -> list[dict[str, Any]]:
        return told_tokens(made, self._tokenizer) if self._told_logprobs else []
