"""From scores to one token: temperature, top-k, top-p, min-p, repetition penalty.

Every filter maps logits (V,) to logits (V,), with −inf for what can no longer be chosen. The order
is that of transformers: penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gpt.config import Section


class SamplingConfig(Section):
    """How the next token is chosen, and when to stop."""

    max_new_tokens: Annotated[int, Field(ge=0)] = Field(256, description="at most this many tokens")
    temperature: Annotated[float, Field(ge=0)] = Field(
        1.0, description="0: always the likeliest token; 1: the model's own distribution")
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        None, description="choose among the k likeliest tokens")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="choose among the fewest tokens whose probabilities reach p")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="choose among tokens at least p times as likely as the likeliest")
    repetition_penalty: Annotated[float, Field(gt=0)] = Field(
        1.0, description="divides the scores of tokens that occurred; 1: off (arXiv:1909.05858)")
    stop: list[str] = Field([], description="end before the first of these texts")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="the same seed gives the same text; none: a new one each time")
    slide: bool = Field(False, description="at the end of the context, go on from its last half")


def next_token(logits: Tensor, config: SamplingConfig, seen: Tensor,
               generator: torch.Generator) -> int:
    """Choose a token.  logits (V,) float32; seen: token ids so far, (n,) int64."""
    logits = penalise_repetition(logits, config.repetition_penalty, seen)
    if config.temperature == 0:
        return int(logits.argmax())
    probabilities = filtered_logits(logits, config).softmax(dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def filtered_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Logits after temperature, top-k, top-p and min-p.  (V,) -> (V,)"""
    logits = (logits - logits.max()) / config.temperature  # the maximum stays finite
    logits = keep_top_k(logits, config.top_k) if config.top_k is not None else logits
    logits = keep_top_p(logits, config.top_p) if config.top_p is not None else logits
    return keep_min_p(logits, config.min_p) if config.min_p is not None else logits


def penalise_repetition(logits: Tensor, penalty: float, seen: Tensor) -> Tensor:
    """Make tokens that occurred less likely.  Source: arXiv:1909.05858, section 4.1."""
    if penalty == 1.0 or not len(seen):
        return logits
    scores = logits[seen]
    return logits.scatter(0, seen, torch.where(scores > 0, scores / penalty, scores * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Exactly the k likeliest tokens; all of them if k exceeds the vocabulary."""
    if k >= logits.numel():
        return logits
    kept = logits.topk(k).indices
    return torch.full_like(logits, -torch.inf).scatter(0, kept, logits[kept])


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose probabilities add up to p.  Source: arXiv:1904.09751."""
    ordered, indices = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    reached_before = probabilities.cumsum(dim=-1) - probabilities >= p
    reached_before[0] = False
    return logits.index_fill(0, indices[reached_before], -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest.  Source: arXiv:2407.01082."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), -torch.inf)
