"""What heads do, measured on random sequences that are repeated."""

from __future__ import annotations

import random
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
    draw, ids = random.Random(0), sorted(text_ids)
    layers, _ = record(model, [2 * draw.sample(ids, n) for _ in range(SEQUENCES)])
    attention = torch.stack([layer.weights() for layer in layers])       # (L, B, H, 2n, 2n)
    return {kind: attention[..., queries, keys].mean(dim=(1, 3)).cpu().numpy()
            for kind, (queries, keys) in _places(n).items()}


def _places(n: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Queries, and the key that each is to read. None where two kinds would mean the same key:
    token 1's first is its previous one, token n's first is its same one."""
    later, again = torch.arange(2, 2 * n), torch.arange(n + 1, 2 * n)
    others = later[later != n]
    return {"previous": (later, later - 1), "first": (others, torch.zeros_like(others)),
            "same": (again, again - n), "induction": (again, again - n + 1)}
