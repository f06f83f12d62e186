"""POST /v1/completions: texts that follow texts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from gpt.generation import Generation, Worker
from gpt.serve.models import Served
from gpt.serve.protocol.answers import FINISHED, Choice, finite, frame
from gpt.serve.protocol.fields import Completion, config_of
from gpt.serve.protocol.texts import Prompt, Texts

MOST = 16  # tokens, where a request does not say: as OpenAI has it


class CompletionAnswer:
    """What a request for completions asks for, and how it is told."""

    def __init__(self, body: Completion, served: Served, worker: Worker):
        self._body, self._model, self._tokenizer = body, body.model, served.lm.tokenizer
        most = MOST if body.max_tokens is None else body.max_tokens
        self._count = body.n or 1
        self.texts = Texts(
            worker, served, [Prompt(served.prompt(one)) for one in prompts_of(body.prompt)],
            config_of(body.drawing(), most), body.best_of or self._count,
            alternatives=body.logprobs or 0, scored=bool(body.echo) and body.logprobs is not None)

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        choices = self._best(await self.texts.finished())
        return frame("cmpl", "text_completion", self._model) | {
            "choices": [self._told(choice, choice.made, choice.text, first=True) | {"index": i}
                        for i, choice in enumerate(choices)],
            "usage": self.texts.usage}

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it grows."""
        begun: set[int] = set()
        head = frame("cmpl", "text_completion", self._model)
        async for choice, piece, new in self.texts.pieces():
            first = choice.index not in begun
            begun.add(choice.index)
            if first or new or piece.text or piece.end:
                yield head | {"choices": [self._told(choice, new, piece.text, first)]} | (
                    {"usage": None} if self._body.tells_usage else {})
        if self._body.tells_usage:
            yield head | {"choices": [], "usage": self.texts.usage}

    def _best(self, choices: Sequence[Choice]) -> list[Choice]:
        """The n likeliest per token behind each prompt, of best_of."""
        each = len(choices) // len(self.texts.prompts)
        found: list[Choice] = []
        for start in range(0, len(choices), each):
            ordered = sorted(choices[start:start + each], key=lambda one: -one.likelihood)
            found += (ordered if self._body.best_of else choices[start:start + each])[:self._count]
        return found

    def _told(self, choice: Choice, made: Sequence[Generation], text: str, first: bool
              ) -> dict[str, Any]:
        """One choice, or what came of it. first: with the prompt, if that is to be echoed."""
        prompt = self.texts.prompt_of(choice).tokens if first and self._body.echo else []
        return {"index": choice.index, "text": self._tokenizer.decode(prompt) + text,
                "finish_reason": FINISHED[choice.end],
                "logprobs": None if self._body.logprobs is None else
                self._logprobs(choice, prompt[:1], [*(choice.before if prompt else ()), *made])}

    def _logprobs(self, choice: Choice, first: Sequence[int], made: Sequence[Generation]
                  ) -> dict[str, Any]:
        """first: a token that nothing predicts, before these."""
        found: dict[str, list[Any]] = {
            name: [] for name in ("text_offset", "token_logprobs", "tokens", "top_logprobs")}
        for new in [*(Generation(token, 0.0) for token in first), *made]:
            unknown = not found["tokens"] and bool(first)
            found["text_offset"].append(choice.pass_by(new.token))
            found["tokens"].append(self._tokenizer.token_text(new.token))
            found["token_logprobs"].append(None if unknown else finite(new.logprob))
            found["top_logprobs"].append(None if unknown else {
                self._tokenizer.token_text(token): finite(logprob)
                for token, logprob in (*new.likeliest, (new.token, new.logprob))})
        return found


def prompts_of(prompt: str | list[int] | list[str] | list[list[int]] | None
               ) -> list[str | list[int] | None]:
    """Each of the prompts that a request gives: a list of ids is one."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return [*prompt]
    return [prompt]  # type: ignore[list-item]
