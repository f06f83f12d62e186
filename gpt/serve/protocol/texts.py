"""The texts that one request asks for, written side by side with all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt.configuration import SamplingConfig
from gpt.generation import Generation, Job, Piece, Request, Worker
from gpt.serve.models import Served
from gpt.serve.protocol.answers import Choice
from gpt.serve.protocol.errors import ApiError, busy
from gpt.serve.protocol.fields import MOST_ALTERNATIVES_TOLD, MOST_CHOICES

NOTHING = Piece("", Generation(0, 0.0), "length")  # of a text of no tokens


@dataclass(frozen=True)
class Prompt:
    """Token ids. prefix: how many of them stand before a conversation's first answer. written: how
    many of the last ones were made before, of a text that is gone on with."""

    tokens: list[int]
    prefix: int | None = None
    written: int = 0


class Texts:
    """`count` texts behind each prompt, with seeds S, S + 1, …, as sample.py --num-samples has it.

    asks: what is told beside the tokens, as in Request. Where prompts are scored, all is computed
    in float32.
    """

    def __init__(self, worker: Worker, served: Served, prompts: Sequence[Prompt],
                 config: SamplingConfig, count: int = 1, **asks: Any):
        self._worker, self._served, self.prompts = worker, served, prompts
        self._config, self._count, self._asks = config, count, asks
        self._scored = bool(asks.get("scored"))
        self._pieces: asyncio.Queue[tuple[Job, Piece]] = asyncio.Queue()
        self._jobs: list[Job] = []
        self.choices = [Choice(i, served.lm.tokenizer) for i in range(count * len(prompts))]
        if len(self.choices) > MOST_CHOICES:
            raise ApiError(400, f"n: {len(self.choices)} texts are more than the {MOST_CHOICES} "
                                "that a request may ask for", "n")
        longest = min(served.context, served.context if self._scored else config.max_new_tokens)
        told = len(self.choices) * longest * int(asks.get("alternatives", 0))
        if told > MOST_ALTERNATIVES_TOLD:
            raise ApiError(400, f"{len(self.choices)} texts of up to {longest:,} tokens come to "
                                f"{told:,} alternatives; {MOST_ALTERNATIVES_TOLD:,} are told at "
                                "most: ask for fewer texts, tokens or logprobs", "logprobs")

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(len(prompt.tokens) for prompt in self.prompts)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of each prompt, and of all texts, those too that best_of leaves out; no stops."""
        written = sum(len(choice.made) for choice in self.choices)
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": written,
                "total_tokens": self.prompt_tokens + written}

    def prompt_of(self, choice: Choice) -> Prompt:
        """What a text follows."""
        return self.prompts[choice.index // self._count]

    async def start(self) -> None:
        """Have them written. Raises UserError for what the model cannot do, ApiError if too many
        texts wait already."""
        self._refuse_if_full()
        writer = self._served.writer
        if self._scored:  # whose weights may have to be read
            writer = await asyncio.to_thread(lambda: self._served.scorer)
        prepared = await asyncio.to_thread(
            lambda: [writer.prepare(request) for request in self._requests()])
        self._refuse_if_full()  # others have come meanwhile
        if self._config.max_new_tokens or self._scored:
            self._jobs = [Job(self._served.name, writer, each, self._pieces) for each in prepared]
        for job in self._jobs:
            self._worker.start(job)

    def _refuse_if_full(self) -> None:
        if self._worker.count(self._served.name, started=False) >= self._served.limits.max_queue:
            raise busy()

    def _requests(self) -> list[Request]:
        """Of a prompt that is scored and not continued, one token is written, and left out."""
        most = max(self._config.max_new_tokens, int(self._scored))
        seed = self._config.seed
        return [self._served.request(
            prompt.tokens, self._config.model_copy(update={
                "max_new_tokens": most, "seed": None if seed is None else seed + number}),
            prompt.prefix, written=prompt.written, **self._asks)
            for prompt in self.prompts for number in range(self._count)]

    async def pieces(self) -> AsyncIterator[tuple[Choice, Piece, list[Generation]]]:
        """(text, what came, its token if it is one) as it comes. Raises the error that ends one."""
        for choice in self.choices if not self._jobs else ():
            choice.end = NOTHING.end
            yield choice, NOTHING, []
        of = dict(zip(self._jobs, self.choices, strict=False))
        left = len(of)
        while left:
            job, piece = await self._pieces.get()
            if piece.new.error is not None:
                raise piece.new.error
            left -= piece.end is not None
            yield of[job], piece, of[job].add(piece, counts=self._config.max_new_tokens > 0)

    async def finished(self) -> list[Choice]:
        """All of them, whole."""
        async for _ in self.pieces():
            pass
        return self.choices

    def close(self) -> None:
        """Nobody wants them any more, if they are not finished."""
        for job in self._jobs:
            self._worker.cancel(job)
