"""What a request changes in the model's scores before a token is drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gpt.configuration import SamplingConfig
from gpt.errors import UserError

_FIELDS = {"logit_bias", "banned_tokens", "forced_tokens", "repetition_penalty", "presence_penalty",
           "frequency_penalty", "min_new_tokens", "json_schema", "regex"}


class Grammar(Protocol):
    """Says which tokens a text may go on with: gpt/generation/grammar.py."""

    def allowed(self) -> Tensor:
        """What may come next, (tokens,) bool; ids beyond are not allowed."""

    def accept(self, token: int) -> None:
        """This came."""


class Controls:
    """Biases, penalties, bans and a grammar, applied to one request's scores as its text grows."""

    def __init__(self, config: SamplingConfig, prompt: Sequence[int], stop_tokens: Sequence[int],
                 vocab_size: int, device: torch.device, grammar: Grammar | None = None):
        self._config, self._grammar, self._made = config, grammar, 0
        self._stops = torch.tensor([*stop_tokens], dtype=torch.int64, device=device)
        self._bias = torch.zeros(vocab_size, device=device)
        self._bias[[*config.logit_bias]] = torch.tensor(
            [*config.logit_bias.values()], dtype=torch.float32, device=device)
        self._bias[config.banned_tokens] = -torch.inf
        self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._seen[list(prompt)] = True
        self._counts = torch.zeros(vocab_size, device=device)

    @staticmethod
    def needed(config: SamplingConfig) -> bool:
        """Whether a request changes the scores at all."""
        return config.model_dump(include=_FIELDS) != SamplingConfig().model_dump(include=_FIELDS)

    def apply(self, scores: Tensor) -> Tensor:
        """(V,) float32 -> (V,). A text that cannot go on ends: stop tokens alone are then left.

        Raises UserError if there are none, either.
        """
        config = self._config
        if self._made < len(config.forced_tokens):
            return self._only(scores, torch.tensor(config.forced_tokens[self._made]))
        changed = penalise_repetition(scores + self._bias, config.repetition_penalty, self._seen)
        changed = changed - config.frequency_penalty * self._counts
        changed = changed - config.presence_penalty * (self._counts > 0)
        if self._grammar is not None:
            allowed = self._grammar.allowed().to(changed.device)
            changed[:len(allowed)].masked_fill_(~allowed[:len(changed)], -torch.inf)
            changed[len(allowed):] = -torch.inf
        if self._made < config.min_new_tokens:
            changed.index_fill_(0, self._stops, -torch.inf)
        if changed.max() > -torch.inf:
            return changed
        if not len(self._stops):
            raise UserError(f"no token is left to choose after {self._made} new tokens: allow more "
                            "in banned_tokens, json_schema or regex")
        return self._only(scores, self._stops)

    def accept(self, token: int) -> None:
        """A token has been chosen."""
        self._made += 1
        self._seen[token:token + 1] = True  # a slice: a GPU fills it without being sent a value
        self._counts[token] += 1
        if self._grammar is not None:
            self._grammar.accept(token)

    @staticmethod
    def _only(scores: Tensor, tokens: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_fill_(0, tokens.to(scores.device), 0.0)


def penalise_repetition(scores: Tensor, penalty: float, seen: Tensor) -> Tensor:
    """Make tokens that occurred less likely.  Source: arXiv:1909.05858, section 4.1.

    seen: (V,) bool.
    """
    if penalty == 1.0:
        return scores
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)
