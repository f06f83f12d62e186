"""Matrices as a processor reads them fastest: oneDNN's blocks instead of rows.

A new token multiplies every matrix by a single vector, or by one for each text, so its time is what
reading them takes. Plain rows are read at about half of what the memory gives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpt.model import GPT

_ROWS = 16  # of inputs that the layout is chosen for; it serves one, and hundreds, as well


class PackedLinear(nn.Module):
    """A linear layer, for inference, whose matrix is packed."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        # No buffer: it can be neither saved nor moved.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O)"""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.to(self._packed.dtype), self._packed, self._bias, "none", [], "")
        return y

    def unpacked(self) -> nn.Linear:
        """The layer as it was, to the last bit."""
        weight = self._packed.to_dense()
        layer = nn.Linear(weight.size(1), weight.size(0), bias=self._bias is not None,
                          device="meta")
        layer.weight = nn.Parameter(weight)
        if self._bias is not None:
            layer.bias = nn.Parameter(self._bias)
        return layer


def pack(model: GPT) -> None:
    """Pack the matrices of a model's layers, and of its output layer, where that is possible: on a
    processor whose oneDNN knows their numbers. They take their old place in memory; a table of
    tokens that is the output layer as well stays, beside what is packed.

    The model generates and scores; it can be neither trained, moved nor saved until `unpack`.
    """
    table = model.embedding.token_embedding.weight
    done = isinstance(getattr(model, "lm_head", None), PackedLinear)
    if table.is_cpu and packs(table.dtype) and not done:
        replace_linear_layers(model, PackedLinear)


def unpack(model: GPT) -> None:
    """Undo `pack`."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, PackedLinear):
            model.set_submodule(name, layer.unpacked())
    if model.config.tie_embeddings and hasattr(model, "lm_head"):
        del model.lm_head


def replace_linear_layers(model: GPT, make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    """Put something of the same shape, made of its weight and bias, in each linear layer's place,
    the output layer's too."""
    model.lm_head = make(model.output_weight, None)  # type: ignore[assignment]
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            model.set_submodule(name, make(layer.weight, layer.bias))


@functools.cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this processor, and torch's build for it, multiply packed matrices of a dtype."""
    try:
        ones, eye = torch.ones(1, 16, dtype=dtype), torch.eye(16, dtype=dtype)
        layer = PackedLinear(eye, ones[0])
        return bool((layer(ones) == 2).all()) and torch.equal(layer.unpacked().weight, eye)
    except (AttributeError, RuntimeError):  # no such operator, or none for these numbers
        return False
