"""Which keys each query may read: causality, sliding windows, documents that share a row.

Masks are bool, true where a key may be read; None stands for what attention does by itself: with
one query it reads all keys it is given, with as many queries as keys it is causal. A mask is exact
on every backend of scaled dot-product attention: hidden keys get a weight of zero. They are the
definition; compiled training on CUDA reads the same as blocks (blockwise.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Visible: TypeAlias = "Tensor | BlockMask | None"


def within_reach(length: int, T: int, window: int | None) -> int:
    """Of `length` tokens, how many the last T of them can read between them."""
    return length if window is None else min(length, window + T - 1)


def visible_keys(T: int, length: int, window: int | None, device: torch.device) -> Tensor | None:
    """What the last T of `length` tokens may read of the S keys within reach: (T, S), or None.

    Source of sliding windows: Beltagy et al. 2020 (arXiv:2004.05150); as in Mistral 7B, a token
    reads itself and the window - 1 tokens before it.
    """
    S = within_reach(length, T, window)
    if T == 1 or (T == S and (window is None or window >= T)):
        return None
    # is_causal would align the first query with the first key; ours is token S - T.
    causal = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
    return causal if window is None else causal.triu(S - T - window + 1)


def visible_in_rows(positions: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """The same for rows of different lengths.

    positions: of each row's queries, (B, T) int64. keys: positions of the keys, (S,) int64; what a
    row's keys hold behind its last query is not read.
    (B, T) and (S,) -> (B, 1, T, S), to broadcast over heads.
    """
    distance = positions.unsqueeze(-1) - keys                       # (B, T, S)
    visible = distance >= 0
    if window is not None:
        visible = visible & (distance < window)
    return visible.unsqueeze(1)


ALL = slice(0, None)  # of a row's tokens


def visible_within(segments: Tensor, window: int | None, prompts: Tensor | None = None,
                   queries: slice = ALL, keys: slice = ALL) -> Tensor:
    """What each token of documents side by side may read: in its own, and within the window.

    segments: the number of each token's document, (B, T) int64, never falling along a row.
    prompts: (B, T) bool, tokens that also read those of the same kind that follow them.
    queries, keys: the stretches of a row that read and that are read.
    (B, T) -> (B, 1, T queries, S keys), to broadcast over heads.
    """
    same = segments[:, queries].unsqueeze(2) == segments[:, keys].unsqueeze(1)
    own = queries.start - keys.start  # the diagonal on which tokens read themselves
    visible = same.tril(own)
    if prompts is not None:
        visible = visible | (same & prompts[:, queries].unsqueeze(2)
                             & prompts[:, keys].unsqueeze(1))
    if window is not None:
        visible = visible.triu(own + 1 - window).tril(own + window - 1)
    return visible.unsqueeze(1)


def positions_within(segments: Tensor) -> Tensor:
    """Positions counted from each segment's first token.  (B, T) -> (B, T) int64"""
    places = torch.arange(segments.size(1), device=segments.device)
    firsts = torch.searchsorted(segments, segments)           # of each token's segment
    return places - firsts
