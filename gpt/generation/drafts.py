"""Guesses of what follows: read by the model in one go, they save it steps where they are right.

A guess decides nothing (`Engine._accept`): with or without a draft, the tokens are the same, drawn
ones too. Source of the idea: Leviathan et al. 2023 (arXiv:2211.17192), who accept a guess by
chance so as to keep the distribution; drawing each token with its own random number, as here,
keeps the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from gpt.generation.native import fastest
from gpt.generation.request import Continuation
from gpt.generation.sampling import choose
from gpt.machine.device import Machine
from gpt.model import GPT, KVCache


class Draft(Protocol):
    """Guesses tokens, for as many engines as like."""

    def propose(self, continuation: Continuation, most: int) -> list[int]:
        """Up to `most` tokens that may follow."""

    def forget(self, continuation: Continuation) -> None:
        """A request has ended: what is known of it is of no more use."""


class PromptLookup:
    """Guesses that what followed the last few tokens before will follow them again.

    It pays where a text repeats itself or its prompt: code, summaries, answers with quotations.
    """

    def __init__(self, tokens: int = 8, longest: int = 3):
        """tokens: how many to guess. longest: so many of the last tokens, or fewer, are found."""
        self._tokens, self._longest = tokens, longest
        # By request: how much of its text is known, and where each ending in it was last seen.
        self._known: dict[Continuation, tuple[int, dict[tuple[int, ...], int]]] = {}

    def propose(self, continuation: Continuation, most: int) -> list[int]:
        """What followed the latest other place of the longest ending that has one."""
        tokens, longest = continuation.tokens, self._longest
        known, places = self._known.get(continuation, (1, {}))
        for end in range(known, len(tokens)):
            places |= {tuple(tokens[end - n:end]): end for n in range(1, min(longest, end) + 1)}
        self._known[continuation] = len(tokens), places
        for n in range(min(longest, len(tokens)), 0, -1):
            place = places.get(tuple(tokens[-n:]))
            if place is not None:
                followed = tokens[place:]  # and, where that is too little, what repeats goes on
                return [followed[i % len(followed)] for i in range(min(self._tokens, most))]
        return []

    def forget(self, continuation: Continuation) -> None:
        """Its text is of no more use."""
        self._known.pop(continuation, None)


class DraftModel:
    """Guesses what a smaller model of the same tokenizer would write.

    It draws with the same random numbers, so that models that agree about the probabilities agree
    about the tokens.
    """

    def __init__(self, model: GPT, machine: Machine, never: Sequence[int] = (), tokens: int = 4):
        """never: ids that stand for no text. tokens: how many to guess."""
        self._model, self._machine = fastest(model, machine.dtype), machine
        self._new_cache = model.new_cache
        self._never, self._tokens = [*never], tokens
        # By request: its cache, and the tokens that this has read.
        self._known: dict[Continuation, tuple[KVCache, list[int]]] = {}

    def propose(self, continuation: Continuation, most: int) -> list[int]:
        """The draft model's own continuation."""
        config, machine = self._model.config, self._machine
        context = continuation.tokens[continuation.start:]
        count = min(self._tokens, most, config.block_size - len(context))
        if count <= 0:
            return []
        cache, read = self._known.get(continuation) or (
            self._new_cache(1, config.block_size, machine.device, machine.dtype), [])
        shared = min(_agreement(read, context), len(context) - 1)
        cache.lengths[0], unread, guesses = shared, context[shared:], list[int]()
        while len(guesses) < count:
            logits = self._read(unread, cache)
            if not logits.logsumexp(dim=1).isfinite():
                break
            uniform = torch.tensor([continuation.uniform(len(guesses))], dtype=torch.float64)
            guesses += choose(logits, continuation.config, uniform).tolist()
            unread = guesses[-1:]
        self._known[continuation] = cache, context + guesses[:-1]
        return guesses

    def _read(self, tokens: Sequence[int], cache: KVCache) -> torch.Tensor:
        """The scores of what follows, (1, V) float32 on the CPU."""
        with self._machine.autocast():
            x = self._model.hidden(torch.tensor([tokens], device=self._machine.device), cache)
            logits = self._model.logits(x[:, -1]).float().cpu()
        logits[:, self._never] = -torch.inf
        return logits

    def forget(self, continuation: Continuation) -> None:
        """Free the space of a request's keys and values."""
        self._known.pop(continuation, None)


def _agreement(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common before they differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)))
