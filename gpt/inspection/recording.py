"""One forward pass, watched: what each layer reads, compares and adds to the residual stream.

The model's own modules compute it; hooks keep what passes by, and are gone afterwards. Shape
letters as in gpt/model: B batch, T tokens, C n_embd, H heads, D head width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt.model import GPT
from gpt.model.attention import Attention
from gpt.model.rope import Angles


@dataclass(frozen=True)
class Layer:
    """What a layer read, and what it made of it."""

    x: Tensor  # the residual stream before it, (B, T, C)
    rotation: Angles | None  # as in Attention.forward
    visible: Tensor | None  # likewise
    q: Tensor  # as they were compared, (B, H, T, D)
    k: Tensor  # (B, n_kv_head, T, D)
    read: Tensor  # what its heads have read, side by side, (B, T, H · D)
    attended: Tensor  # what attention added to the stream, (B, T, C)
    neurons: Tensor  # what the last matrix of the feed-forward was given, (B, T, n_inner)
    fed: Tensor  # what the feed-forward added to the stream, (B, T, C)
    scale: float  # of scores
    softcap: float | None  # likewise

    def weights(self) -> Tensor:
        """softmax(scale · q · kᵀ) over the keys that each query may read.  (B, H, T, T) float32"""
        T = self.q.size(-2)
        visible = self.visible
        if visible is None:
            visible = torch.ones(T, T, dtype=torch.bool, device=self.q.device).tril()
        k = self.k.repeat_interleave(self.q.size(1) // self.k.size(1), dim=1)
        with torch.autocast(k.device.type, enabled=False):  # it would round the products
            scores = self.q.float() @ k.float().mT * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)


@torch.inference_mode()
def record(model: GPT, tokens: Sequence[Sequence[int]], both_ways: bool = False
           ) -> tuple[list[Layer], Tensor]:
    """Watch a model read B rows of T tokens, without dropout.

    both_ways: all tokens read each other, as prompts are read in PrefixLM.
    Returns its layers, and the residual stream after the last one, before the last norm: (B, T, C).
    """
    read = torch.tensor(tokens, device=model.embedding.token_embedding.weight.device)
    prompts = torch.ones_like(read, dtype=torch.bool) if both_ways else None
    kept: list[dict[str, Any]] = [{} for _ in model.blocks]
    last: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for block, of_layer in zip(model.blocks, kept, strict=True):
            stack.enter_context(_watched(block, of_layer))
        stack.enter_context(model.final_norm.register_forward_pre_hook(
            lambda _, given: last.append(given[0])))
        model.hidden(read, prompts=prompts)
    return [Layer(**of_layer) for of_layer in kept], last[0]


@contextlib.contextmanager
def _watched(block: Any, kept: dict[str, Any]) -> Iterator[None]:
    """Keep what a layer computes, under the names of Layer."""
    attention, feedforward, scale = block.attention, block.feedforward, block.residual_scale
    attend = attention._attend
    with (attending(attention, lambda q, k, v, visible:
                    kept.update(q=q, k=k) or attend(q, k, v, visible)),
          block.register_forward_pre_hook(lambda _, given: kept.update(
              x=given[0], rotation=given[1], visible=given[3], scale=attention.scale,
              softcap=attention.softcap)),
          attention.out_proj.register_forward_pre_hook(lambda _, given: kept.update(read=given[0])),
          block.attention_post_norm.register_forward_hook(
              lambda _, __, y: kept.update(attended=scale * y)),
          feedforward.down_proj.register_forward_pre_hook(
              lambda _, given: kept.update(neurons=given[0])),
          block.feedforward_post_norm.register_forward_hook(
              lambda _, __, y: kept.update(fed=scale * y))):
        yield


@contextlib.contextmanager
def attending(attention: Attention, attend: Callable[..., Tensor]) -> Iterator[None]:
    """Meanwhile `attend` stands in the place of Attention._attend."""
    replaced: Any = attention
    replaced._attend = attend
    try:
        yield
    finally:
        del replaced._attend


@contextlib.contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Without dropout; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
