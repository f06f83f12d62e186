"""What is to be continued, how, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation.controls import Controls

End = Literal["stop", "length", "context", "error"]
Alternatives = tuple[tuple[int, float], ...]  # (token, log-probability), the likeliest first


@dataclass(frozen=True)
class Request:
    """A prompt of token ids, never empty, and how to continue it.

    prefix: how many of its tokens read each other in both directions, as the model was trained.
    alternatives: how many of the likeliest tokens are told beside each one; chances: and how likely
    each is to be drawn. scored: whether the prompt's own are told as well. written: how many of its
    last tokens count as made: of a text that is gone on with.
    """

    prompt: Sequence[int]
    config: SamplingConfig = field(default_factory=SamplingConfig)
    prefix: int = 0
    alternatives: int = 0
    scored: bool = False
    chances: bool = False
    written: int = 0

    def check(self, context: int, vocab_size: int) -> None:
        """Raises UserError for what a model of this context and vocabulary cannot do."""
        assert self.prompt, "a prompt is never empty: the end-of-text token stands for nothing"
        if len(self.prompt) > context and not self.config.slide:
            raise UserError(f"the prompt has {len(self.prompt)} tokens, the model reads {context} "
                            "(model.block_size); shorten the prompt, or give slide to go on from "
                            "its end")
        for name in ("logit_bias", "banned_tokens", "forced_tokens"):
            for token in getattr(self.config, name):
                if token >= vocab_size:
                    raise UserError(f"{name}: there is no token {token}; ids lie in 0 to "
                                    f"{vocab_size - 1}")


@dataclass(frozen=True)
class Generation:
    """One new token, and what the model thought of it.

    logprob: natural logarithm, before temperature, filters and controls.
    end: why it is the last one: a stop token, max_new_tokens, a full context, or an error, of which
    this is no token; None if it is not.
    likeliest: what the model would have had in its place. chances: the probability with which each
    of those is drawn, after temperature, filters and controls, where that is asked for: those that
    are drawn most are then among them. before: with the first token of a request that is scored,
    those of its prompt, all but the first.
    """

    token: int
    logprob: float
    end: End | None = None
    likeliest: Alternatives = ()
    chances: tuple[float, ...] = ()
    before: tuple[Generation, ...] = ()
    error: Exception | None = None


class Continuation:
    """A request that is being answered.

    context: how many tokens the model can look back on. tokens: the prompt and what follows it so
    far. start: where in them the context begins. read: where those begin that are unread.
    """

    def __init__(self, number: int, request: Request, context: int,
                 controls: Controls | None = None):
        self.number, self.config, self.controls = number, request.config, controls
        self.alternatives, self.chances = request.alternatives, request.chances
        self.scored, self._written = request.scored, request.written
        self.before: list[Generation] = []  # the tokens of a prompt that is scored, as it is read
        self.tokens = list(request.prompt)
        self.start = self.read = 0
        self._prompt_length, self._context = len(self.tokens) - self._written, context
        self._prefix = request.prefix
        if len(self.tokens) > context:
            self._slide()
        self._random = torch.Generator()
        if self.config.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(self.config.seed)
        self._uniforms: list[float] = []

    @property
    def unread(self) -> int:
        """How many tokens the model has not read."""
        return len(self.tokens) - self.read

    @property
    def prefix(self) -> int:
        """How many of the unread tokens read each other in both directions: of a prompt alone."""
        return max(0, self._prefix - self.start) if self.made == self._written else 0

    @property
    def whole(self) -> object:
        """What is alike for requests of which one prompt alone has to be read."""
        return (self.prefix, self.alternatives, self.scored, tuple(self.tokens[self.start:]))

    @property
    def made(self) -> int:
        """How many tokens are new."""
        return len(self.tokens) - self._prompt_length

    def uniform(self, ahead: int = 0) -> float:
        """The number in [0, 1) that decides the next token, or one `ahead` of it.

        A function of the seed and of how many tokens were made before.
        """
        while len(self._uniforms) <= self.made + ahead:
            self._uniforms.append(torch.rand(1, generator=self._random, dtype=torch.float64).item())
        return self._uniforms[self.made + ahead]

    def accept(self, token: int, stop_tokens: Sequence[int]) -> End | None:
        """Go on with a token, all before it having been read; why it is the last one, if it is."""
        self.read = len(self.tokens)
        self.tokens.append(token)
        if self.controls is not None:
            self.controls.accept(token)
        if token in stop_tokens:
            return "stop"
        if self.made >= self.config.max_new_tokens:
            return "length"
        if len(self.tokens) - self.start > self._context:
            if not self.config.slide:
                return "context"
            self._slide()
        return None

    def _slide(self) -> None:
        """Begin the context anew, with the last half of what fits into it."""
        self.start = self.read = len(self.tokens) - max(1, self._context // 2)
