"""From scores to tokens: temperature, top-k, top-p, min-p, and a draw that a seed decides.

Every filter maps logits (n, V) to logits (n, V), with −inf for what can no longer be chosen. A row
never depends on the others. The order is that of transformers: temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gpt.configuration import SamplingConfig
from gpt.errors import UserError

NOT_NUMBERS = ("the model's scores are not numbers (NaN), or too large: its weights are damaged, "
               "or do not fit this number format; try dtype=float32")
_LIKELIEST = 256  # of the vocabulary; they usually reach top_p, and sorting the rest costs more

def choose(logits: Tensor, config: SamplingConfig, uniforms: Tensor) -> Tensor:
    """Draw a token for each row.  (n, V) float32, (n,) float64 -> (n,) int64

    uniforms: numbers in [0, 1) that decide the draws: the token at which the cumulative
    probability, added up from token 0, passes the number. What is drawn is thus a function of the
    row's scores and its number alone. At temperature 0 none is needed.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = probabilities(logits, config).cumsum(dim=-1, dtype=torch.float64)
    drawn = uniforms.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, drawn, right=True).squeeze(1)


def probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """What tokens are drawn with.  (n, V) -> (n, V)"""
    if config.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return filtered_logits(logits, config).softmax(dim=-1)


def log_probabilities(logits: Tensor) -> Tensor:
    """(n, V) -> (n, V). Raises UserError for NaN and for scores that are too large."""
    logprobs = logits.log_softmax(dim=-1)
    refuse_nan(logprobs[:, 0].tolist())
    return logprobs


def refuse_nan(logprobs: Iterable[float]) -> None:
    """Raise UserError if one of them, of any token of each row, is NaN: one score that is no number
    or too large makes all of its row NaN."""
    if any(map(math.isnan, logprobs)):
        raise UserError(NOT_NUMBERS)


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
    dropped[0] = False  # by a p that is nothing in float32
    kept = logits[tokens].masked_fill(dropped, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(0, tokens, kept)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest.  Source: arXiv:2407.01082."""
    probabilities = logits.softmax(dim=-1)
    least = p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -torch.inf)
