"""The loss of the output layer without its logits ever standing in memory as a whole.

For a vocabulary of 50,000 the logits of a batch are by far its largest tensor, and plain autograd
keeps them two or three times. Here a chunk of rows at a time is turned into its loss and, at once,
into its share of the gradient.
Source of the idea: Wijmans et al. 2024 (arXiv:2411.09009); Hsu et al. 2024 (arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.batches import IGNORE

CHUNK_FLOATS = 1 << 23  # logits that exist at a time: 32 MB in float32


def summed_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor,
                         softcap: float | None = None) -> Tensor:
    """Negative log-likelihood summed over targets, in nats; ().

    x: (N, C), the residual stream; weight: (V, C); targets: (N,) int64. softcap: of the scores.
    Under autocast products are in its format; the loss is summed in float32. Backward works once.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    loss: Tensor = _ChunkedLoss.apply(x, weight, targets, softcap, dtype)
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float | None,
                dtype: torch.dtype) -> Tensor:
        learns = any(ctx.needs_input_grad[:2])
        ctx.gradients = (torch.empty_like(x), torch.zeros_like(weight)) if learns else None
        loss, table = torch.zeros((), device=x.device), weight.to(dtype)
        rows = max(1, CHUNK_FLOATS // weight.size(0))
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, x.size(0), rows):
                part, ids = x[start:start + rows].to(dtype), targets[start:start + rows]
                scores = F.linear(part, table).float()                  # (rows, V)
                loss += _loss_of(scores, ids, softcap)
                if learns:
                    grad_x, grad_weight = ctx.gradients
                    slope = _gradient_of(scores, ids, softcap).to(dtype)
                    grad_x[start:start + rows] = slope @ table
                    grad_weight += slope.T @ part
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (grad_x, grad_weight), ctx.gradients = ctx.gradients, None
        return grad_x.mul_(grad), grad_weight.mul_(grad), None, None, None


def _loss_of(scores: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """Of one chunk; where there is a soft cap, scores are capped in place."""
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    return F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="sum")


def _gradient_of(scores: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """Of the chunk's loss by its raw scores, (rows, V), in their place: softmax minus one-hot."""
    slope = None if softcap is None else 1 - (scores / softcap).square()
    supervised = (targets != IGNORE).to(scores.dtype).unsqueeze(1)  # (rows, 1)
    gradient = torch.softmax(scores, dim=-1, out=scores)
    # An index that is not a target's takes nothing away: looking for targets would make a GPU wait.
    gradient.scatter_add_(1, targets.clamp(min=0).unsqueeze(1), -supervised)
    gradient *= supervised
    return gradient if slope is None else gradient * slope
