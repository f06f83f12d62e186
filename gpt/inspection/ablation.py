"""What would be said next if a head were silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.inspection.look import LIKELIEST
from gpt.inspection.recording import Layer, attending, evaluating, record
from gpt.model import GPT

AT_ONCE = 1536  # tokens: more need more memory, and bring a processor nothing
SCORED = 64  # heads at a time: their scores of the whole vocabulary stand in memory


@dataclass(frozen=True)
class Ablations:
    """What follows a text without one head, for each of H heads in L layers."""

    tokens: np.ndarray  # (L, H, 10), the likeliest first; fewer where the vocabulary is smaller
    probabilities: np.ndarray  # (L, H, 10)
    divergences: np.ndarray  # (L, H), KL(whole model ‖ without the head) in nats


@torch.inference_mode()
def ablations(model: GPT, tokens: Sequence[int], both_ways: bool = False) -> Ablations:
    """Silence each head in turn: what it has read becomes zero, at every token of the text.

    The layers below a head are not computed again; of the last one only what the last token needs.
    both_ways: as in look_at. Raises ValueError for more tokens than block_size.
    """
    layers, _ = record(model, [tokens], both_ways)
    blocks: Any = model.blocks
    last, few = blocks[-1].attention, max(1, AT_ONCE // len(tokens))
    without = 1 - torch.eye(model.config.n_head, device=layers[0].x.device)
    with evaluating(model), attending(last, partial(_attend_last, last._attend)):
        whole = _last(blocks[-1:], layers[-1:], torch.ones_like(without[:1]))
        ends = torch.cat([_last(blocks[i:], layers[i:], heads)
                          for i in range(len(blocks)) for heads in without.split(few)])
    expected, told = _logprobs(model, whole), []
    for x in ends.split(SCORED):
        logprobs = _logprobs(model, x)
        best = logprobs.topk(min(LIKELIEST, logprobs.size(-1)))
        moved = F.kl_div(logprobs, expected.expand_as(logprobs), reduction="none", log_target=True)
        told.append((best.indices, best.values.exp(), moved.sum(dim=-1)))
    return Ablations(*(torch.cat(part).unflatten(0, (len(blocks), -1)).cpu().numpy()
                       for part in zip(*told, strict=True)))


def _logprobs(model: GPT, x: Tensor) -> Tensor:
    """(n, C) -> (n, V)"""
    return model.logits(model.final_norm(x)).float().log_softmax(dim=-1)


def _last(blocks: Any, layers: Sequence[Layer], heads: Tensor) -> Tensor:
    """The residual stream of the last token, from a layer on of which some heads are silent.

    heads: (n, H), 0 where silent, else 1. blocks, layers: that layer, and those above it, which are
    computed for each row.  -> (n, C)
    """
    x, read = layers[0].x, layers[0].read
    if len(layers) == 1:
        x, read = x[:, -1:], read[:, -1:]
    read = read.unflatten(-1, (heads.size(1), -1)) * heads.to(read.dtype)[:, None, :, None]
    heard = blocks[0].attention.out_proj(read.flatten(2))                     # (n, T, C)
    x = blocks[0].behind(x, blocks[0].attention_norm(x), heard)
    for block, layer in zip(blocks[1:], layers[1:], strict=True):
        normed = block.attention_norm(x)
        heard = block.attention(normed, layer.rotation, None, layer.visible)
        x = block.behind(*(each[:, -heard.size(1):] for each in (x, normed)), heard)
    return x[:, -1]


def _attend_last(ordinary: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor,
                 visible: Tensor | None) -> Tensor:
    """Attention._attend, of the last token alone.  -> (B, H, 1, D)"""
    return ordinary(q[:, :, -1:], k, v, None if visible is None else visible[..., -1:, :])
