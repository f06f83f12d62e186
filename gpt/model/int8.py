"""Matrices in 8 bits, with a scale for each row: a quarter of the memory, and of what is read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.model import GPT

_WIDTH = 32  # torch's kernel reads inputs in such steps, and past the end of others
_SMALLEST = torch.finfo(torch.float32).tiny
FEW = 16  # rows of inputs, up to which a product takes as long as reading its weights does


def quantized(weight: Tensor, scales: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(int8 numbers, the scale of each row): (O, I) -> (O, I), (O, 1) of dtype `scales`.

    127 stands for the largest weight of a row, so each is off by at most half of 1/127 of it (of
    1/126.7, if scales are bfloat16).
    """
    weight = weight.float()
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp_min(_SMALLEST).to(scales)
    return (weight / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer, for inference, whose matrix is int8.

    For few inputs on a processor torch has one fast kernel, with scales in bfloat16, to which it
    rounds inputs and outputs as well.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        numbers, scale = quantized(weight.detach(), torch.bfloat16)
        self.register_buffer("weight", numbers)
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O)"""
        if x.is_cpu and x.size(-1) % _WIDTH == 0 and x.numel() <= FEW * x.size(-1):
            y = torch._weight_int8pack_mm(x.flatten(0, -2).bfloat16(), self.weight, self.scale)
            y = y.to(x.dtype).unflatten(0, x.shape[:-1])
            return y if self.bias is None else y + self.bias
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype).unsqueeze(1), self.bias)


def quantize(model: GPT) -> None:
    """Make the matrices of a model's layers, and its output layer, int8. Tables stay as they are.

    It generates and scores; it can be neither trained nor saved any more.
    """
    model.lm_head = Int8Linear(model.output_weight, model.output_bias)  # type: ignore[assignment]
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            model.set_submodule(name, Int8Linear(layer.weight, layer.bias))
