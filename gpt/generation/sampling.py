"""From scores to tokens: temperature, top-k, top-p, min-p, and a draw that a seed decides.

Every filter maps logits (n, V) to logits (n, V), with −inf for what can no longer be chosen. A row
never depends on the others. The order is that of transformers: temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from gpt.configuration.section import Section
from gpt.errors import UserError

_LIKELIEST = 256  # of the vocabulary; they usually reach top_p, and sorting the rest costs more

TokenId = Annotated[int, Field(ge=0)]
Penalty = Annotated[float, Field(ge=-100, le=100)]


class SamplingConfig(Section):
    """How the next token is chosen, and when to stop."""

    max_new_tokens: Annotated[int, Field(ge=0)] = Field(256, description="at most this many tokens")
    min_new_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="no end before this many tokens")
    temperature: Annotated[float, Field(ge=0, le=1e4)] = Field(
        1.0, description="0: always the likeliest token; 1: the model's own distribution")
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        None, description="choose among the k likeliest tokens")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="choose among the fewest tokens whose probabilities reach p")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="choose among tokens at least p times as likely as the likeliest")
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = Field(
        1.0, description="divides the scores of tokens that occurred; 1: off (arXiv:1909.05858)")
    presence_penalty: Penalty = Field(
        0.0, description="taken off the scores of tokens that were generated before")
    frequency_penalty: Penalty = Field(
        0.0, description="taken off a token's score for each time it was generated before")
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-1e4, le=1e4)]] = Field(
        {}, description="added to the scores of token ids: ID=X")
    banned_tokens: list[TokenId] = Field([], description="token ids that are never chosen")
    forced_tokens: list[TokenId] = Field([], description="token ids that the text begins with")
    json_schema: str | None = Field(
        None, description="only text that is JSON of this schema; {} is any JSON")
    regex: str | None = Field(None, description="only text that this regular expression matches")
    stop: list[str] = Field([], description="end before the first of these texts")
    beams: Annotated[int, Field(ge=1)] = Field(
        1, description="instead of drawing, find the likeliest text by following so many at a time")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="the same seed gives the same text; none: a new one each time")
    slide: bool = Field(False, description="at the end of the context, go on from its last half")

    @property
    def filters(self) -> tuple[float | None, ...]:
        """What `choose` depends on: requests that agree on it can be drawn for together."""
        return self.temperature, self.top_k, self.top_p, self.min_p

    @field_validator("temperature")
    @classmethod
    def _not_all_but_zero(cls, temperature: float) -> float:
        if 0 < temperature < 1e-4:
            raise ValueError("give 0 for the likeliest token, or at least 0.0001")
        return temperature

    @model_validator(mode="after")
    def _fits_together(self) -> SamplingConfig:
        changed = sorted(name for name in self.model_fields_set - {"beams", "max_new_tokens"}
                         if getattr(self, name) != type(self).model_fields[name].default)
        if self.beams > 1 and changed:
            raise ValueError(f"beams follow the model's own probabilities; leave out {changed[0]}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens="
                             f"{self.max_new_tokens}")
        if self.json_schema is not None and self.regex is not None:
            raise ValueError("give json_schema or regex, not both")
        if self.min_new_tokens and (self.json_schema is not None or self.regex is not None):
            raise ValueError("min_new_tokens is not for json_schema and regex, which say where a "
                             "text may end")
        return self

    @field_validator("json_schema")
    @classmethod
    def _schema_is_json(cls, schema: str | None) -> str | None:
        if schema is not None and not isinstance(_parsed(schema), (dict, bool)):
            raise ValueError("a JSON schema is an object, such as {\"type\": \"object\"}")
        return schema


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON ({error})") from error


def choose(logits: Tensor, config: SamplingConfig, uniforms: Tensor) -> Tensor:
    """Draw a token for each row.  (n, V) float32, (n,) float64 -> (n,) int64

    uniforms: numbers in [0, 1) that decide the draws: the token at which the cumulative
    probability, added up from token 0, passes the number. What is drawn is thus a function of the
    row's scores and its number alone. At temperature 0 none is needed.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filtered_logits(logits, config).softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    drawn = uniforms.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, drawn, right=True).squeeze(1)


def log_probabilities(logits: Tensor) -> Tensor:
    """(n, V) -> (n, V). Raises UserError for NaN and for scores that are too large."""
    logprobs = logits.log_softmax(dim=-1)
    if logprobs[:, 0].isnan().any():  # one such score makes all of its row NaN
        raise UserError("the model's scores are not numbers (NaN), or too large: its weights are "
                        "damaged, or do not fit this number format; try dtype=float32")
    return logprobs


def filtered_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Logits after temperature, top-k, top-p and min-p.  (n, V) -> (n, V)"""
    # The largest becomes 0, and stays it: a tiny temperature makes none infinite.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / config.temperature
    logits = keep_top_k(logits, config.top_k) if config.top_k is not None else logits
    logits = keep_top_p(logits, config.top_p) if config.top_p is not None else logits
    return keep_min_p(logits, config.min_p) if config.min_p is not None else logits


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Exactly the k likeliest tokens; all of them if k exceeds the vocabulary."""
    if k >= logits.size(-1):
        return logits
    values, kept = logits.topk(k, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, kept, values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose probabilities add up to p.  Source: arXiv:1904.09751."""
    return torch.stack([_keep_top_p(row, p) for row in logits])


def _keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(V,) -> (V,)"""
    probabilities = logits.softmax(dim=0)
    for count in (min(_LIKELIEST, len(logits)), len(logits)):
        ordered, tokens = probabilities.topk(count)
        reached = ordered.cumsum(dim=0)
        if reached[-1] >= p:
            break
    dropped = reached - ordered >= p
    kept = logits[tokens].masked_fill(dropped, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(0, tokens, kept)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest.  Source: arXiv:2407.01082."""
    probabilities = logits.softmax(dim=-1)
    least = p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -torch.inf)
