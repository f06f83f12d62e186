"""One forward pass, watched: what each layer reads, compares and adds to the residual stream.

The model's own modules compute it; hooks keep what passes by, and are gone afterwards. Shape
letters as in gpt/model: B batch, T tokens, C n_embd, H heads, D head width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpt.model import GPT
from gpt.model.attention import Attention
from gpt.model.visibility import Visible


@dataclass(frozen=True)
class Layer:
    """What a layer read, and what it made of it.

    x: the residual stream before it, (B, T, C). rotation, visible: as in Attention.forward.
    q: (B, H, T, D); k: (B, n_kv_head, T, D): as they were compared.
    read: what its heads have read, side by side, (B, T, H · D).
    attended, fed: what attention and feed-forward added to the stream, (B, T, C).
    neurons: what the last matrix of the feed-forward was given, (B, T, n_inner).
    """

    x: Tensor
    rotation: tuple[Tensor, Tensor] | None
    visible: Tensor | None
    q: Tensor
    k: Tensor
    read: Tensor
    attended: Tensor
    fed: Tensor
    neurons: Tensor

    def weights(self) -> Tensor:
        """softmax(q · kᵀ / √D) over the keys that each query may read.  (B, H, T, T) float32"""
        T, D = self.q.shape[-2:]
        visible = self.visible
        if visible is None:
            visible = torch.ones(T, T, dtype=torch.bool, device=self.q.device).tril()
        k = self.k.repeat_interleave(self.q.size(1) // self.k.size(1), dim=1)
        with torch.autocast(k.device.type, enabled=False):  # which would round the products
            scores = self.q.float() @ k.float().mT / D ** 0.5
        return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)


@dataclass(frozen=True)
class Recording:
    """All layers, and the residual stream after the last one, before the last norm: (B, T, C)."""

    layers: list[Layer]
    last: Tensor

    @property
    def streams(self) -> list[Tensor]:
        """The residual stream before each layer and after the last."""
        return [*(layer.x for layer in self.layers), self.last]


@torch.inference_mode()
def record(model: GPT, tokens: Tensor, both_ways: bool = False) -> Recording:
    """Watch a model read tokens, (B, T) int64, without dropout.

    both_ways: all tokens read each other, as prompts are read in PrefixLM.
    """
    kept: list[dict[str, Any]] = [{} for _ in model.blocks]
    last: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for block, of_layer in zip(model.blocks, kept, strict=True):
            stack.enter_context(_watched(block, of_layer))
        stack.enter_context(_before(model.final_norm, last, x=0))
        model.hidden(tokens, prompts=torch.ones_like(tokens, dtype=torch.bool)
                     if both_ways else None)
    return Recording([Layer(**of_layer) for of_layer in kept], last["x"])


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


@contextlib.contextmanager
def attending(attention: Attention, attend: Callable[..., Tensor]) -> Iterator[None]:
    """Meanwhile `attend` stands in the place of Attention._attend."""
    assert "_attend" not in vars(attention), "somebody else stands there already"
    replaced: Any = attention
    replaced._attend = attend
    try:
        yield
    finally:
        del replaced._attend


@contextlib.contextmanager
def _watched(block: Any, kept: dict[str, Any]) -> Iterator[None]:
    """Keep what a layer computes, under the names of Layer."""
    attention, feedforward = block.attention, block.feedforward
    with (_before(block, kept, x=0, rotation=1, visible=3),
          attending(attention, partial(_attend, attention._attend, kept)),
          _before(attention.out_proj, kept, read=0),
          _after(attention, kept, "attended", block.residual_scale),
          _before(feedforward.down_proj, kept, neurons=0),
          _after(feedforward, kept, "fed", block.residual_scale)):
        yield


def _attend(ordinary: Callable[..., Tensor], kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor,
            visible: Visible) -> Tensor:
    """Attention._attend, whose queries and keys are kept."""
    kept.update(q=q, k=k)
    return ordinary(q, k, v, visible)


def _before(module: nn.Module, kept: dict[str, Any],
            **places: int) -> contextlib.AbstractContextManager[Any]:
    """Keep some of what a module is given: names, and where among its arguments they stand."""
    return module.register_forward_pre_hook(
        lambda _, given: kept.update({name: given[i] for name, i in places.items()}))


def _after(module: nn.Module, kept: dict[str, Any], name: str,
           scale: float) -> contextlib.AbstractContextManager[Any]:
    """Keep what a module returns, times `scale`."""
    return module.register_forward_hook(
        lambda _, given, made: kept.update({name: scale * made}))
