"""What heads do, measured on random sequences that are repeated."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from gpt.errors import UserError
from gpt.inspection.recording import record
from gpt.model import GPT

SEQUENCES, LONGEST, SHORTEST = 4, 48, 3  # tokens before they repeat


@torch.inference_mode()
def head_scores(model: GPT, text_ids: Collection[int]) -> dict[str, np.ndarray]:
    """How much of its attention each head gives to a certain token: (L, H) each, from 0 to 1.

    The model reads 4 sequences of 48 (or half of block_size) different random tokens, each twice
    in a row; the same ones every time. Means over the queries to which it applies:
    previous, first: all but the first two. To the token before, and to the first of all.
    same: those of the repetition. To the same token, where it stood before.
    induction: likewise. To the token behind that, which is the one that comes next.

    A head that spreads evenly over n tokens twice has about ln(n) / 2n in previous and first, and
    ln(2) / n in same and induction: 0.04 and 0.014 with 48.
    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al.
    2022, arXiv:2209.11895.
    """
    n = min(LONGEST, model.config.block_size // 2, len(text_ids))
    if n < SHORTEST:
        raise UserError(f"heads are measured on {SHORTEST} different tokens, read twice: this "
                        f"model reads {model.config.block_size} at once (model.block_size), and "
                        f"its tokenizer has {len(text_ids)}")
    tokens = _repeated(sorted(text_ids), n).to(model.embedding.token_embedding.weight.device)
    found: dict[str, list[Tensor]] = {kind: [] for kind in _places(n)}
    for layer in record(model, tokens).layers:
        weights = layer.weights()                                        # (B, H, 2n, 2n)
        for kind, (queries, keys) in _places(n).items():
            found[kind].append(weights[:, :, queries, keys].mean(dim=(0, 2)))
    return {kind: torch.stack(scores).cpu().numpy() for kind, scores in found.items()}


def _repeated(text_ids: list[int], n: int) -> Tensor:
    """n different tokens, twice, in each row.  (4, 2n) int64"""
    draw = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randperm(len(text_ids), generator=draw)[:n]
                        for _ in range(SEQUENCES)])
    return torch.tensor(text_ids)[rows].repeat(1, 2)


def _places(n: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Queries, and the key that each is to read. None where two kinds would mean the same key:
    token 1's first is its previous one, token n's first is its same one."""
    later, again = torch.arange(2, 2 * n), torch.arange(n + 1, 2 * n)
    others = later[later != n]
    return {"previous": (later, later - 1), "first": (others, torch.zeros_like(others)),
            "same": (again, again - n), "induction": (again, again - n + 1)}
