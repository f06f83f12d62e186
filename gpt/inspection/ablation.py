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
from gpt.inspection.recording import Recording, attending, evaluating, record
from gpt.model import GPT
from gpt.model.attention import Attention

AT_ONCE = 1024  # tokens: more need more memory, and bring a processor nothing


@dataclass(frozen=True)
class Ablations:
    """What follows a text without one head, for each of H heads in L layers.

    tokens, probabilities: (L, H, 10), the likeliest first; fewer where the vocabulary is smaller.
    divergences: (L, H), KL(whole model ‖ without the head) of the next token, in nats.
    """

    tokens: np.ndarray
    probabilities: np.ndarray
    divergences: np.ndarray


@torch.inference_mode()
def ablations(model: GPT, tokens: Sequence[int], both_ways: bool = False) -> Ablations:
    """Silence each head in turn: what it has read becomes zero, at every token of the text.

    The layers below a head are not computed again; of the last one only what the last token needs.
    both_ways: as in look_at. Raises ValueError for more tokens than block_size.
    """
    read = torch.tensor([tokens], device=model.embedding.token_embedding.weight.device)
    recording, layers, last = record(model, read, both_ways), len(model.blocks), _last(model)
    without = 1 - torch.eye(model.config.n_head, device=read.device)
    few = max(1, AT_ONCE // len(tokens))
    with evaluating(model), attending(last, partial(_attend_last, last._attend)):
        whole = _logprobs(model, recording, layers - 1, torch.ones_like(without[:1]))
        logprobs = torch.stack([
            torch.cat([_logprobs(model, recording, layer, heads) for heads in without.split(few)])
            for layer in range(layers)])                                 # (L, H, V)
    best = logprobs.topk(min(LIKELIEST, logprobs.size(-1)))
    divergences = F.kl_div(logprobs, whole.expand_as(logprobs), reduction="none", log_target=True)
    return Ablations(best.indices.cpu().numpy(), best.values.exp().cpu().numpy(),
                     divergences.sum(dim=-1).cpu().numpy())


def _logprobs(model: GPT, recording: Recording, layer: int, heads: Tensor) -> Tensor:
    """Of what follows the last token, when some heads of a layer are heard and others are not.

    heads: (n, H), 1 or 0. Layers above it are computed for each row.  -> (n, V)
    """
    blocks: Any = model.blocks
    block, seen = blocks[layer], recording.layers[layer]
    x, read = seen.x, seen.read
    if block is blocks[-1]:
        x, read = x[:, -1:], read[:, -1:]
    read = read.unflatten(-1, (heads.size(1), -1)) * heads.to(read.dtype)[:, None, :, None]
    x = _behind(block, x, block.attention.out_proj(read.flatten(2)))     # (n, T, C)
    for block, seen in zip(blocks[layer + 1:-1], recording.layers[layer + 1:-1], strict=True):
        x = block(x, seen.rotation, None, seen.visible)
    if layer < len(blocks) - 1:
        block, seen = blocks[-1], recording.layers[-1]
        heard = block.attention(block.attention_norm(x), seen.rotation, None, seen.visible)
        x = _behind(block, x[:, -1:], heard)                             # (n, 1, C)
    return model.logits(model.final_norm(x[:, -1])).float().log_softmax(dim=-1)


def _behind(block: Any, x: Tensor, heard: Tensor) -> Tensor:
    """The rest of Block.forward, once its heads were heard."""
    x = x.add(heard, alpha=block.residual_scale)
    return x.add(block.feedforward(block.feedforward_norm(x)), alpha=block.residual_scale)


def _last(model: GPT) -> Attention:
    attention = model.get_submodule(f"blocks.{len(model.blocks) - 1}.attention")
    assert isinstance(attention, Attention)
    return attention


def _attend_last(ordinary: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor,
                 visible: Tensor | None) -> Tensor:
    """Attention._attend, of the last token alone.  -> (B, H, 1, D)"""
    return ordinary(q[:, :, -1:], k, v, None if visible is None else visible[..., -1:, :])
