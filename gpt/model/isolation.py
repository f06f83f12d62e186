"""Documents that share a row without seeing each other: which tokens may be read, and from where
positions are counted.

Segments number the documents of a row, (B, T) int64, and never fall along it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible_within(segments: Tensor) -> Tensor:
    """Which keys each query may read: itself and what came before it in its own segment.

    (B, T) -> (B, 1, T, T) bool, to broadcast over heads. A mask of this kind is exact on every
    backend of scaled dot-product attention: hidden keys get a weight of zero.
    """
    same = segments.unsqueeze(2) == segments.unsqueeze(1)     # (B, T queries, T keys)
    return same.tril().unsqueeze(1)


def positions_within(segments: Tensor) -> Tensor:
    """Positions counted from each segment's first token.  (B, T) -> (B, T) int64"""
    places = torch.arange(segments.size(1), device=segments.device)
    firsts = torch.searchsorted(segments, segments)           # of each token's segment
    return places - firsts
