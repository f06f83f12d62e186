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
from torch.utils.checkpoint import checkpoint as recomputed

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


def token_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor,
                        softcap: float | None = None) -> Tensor:
    """Negative log-likelihood of each target in nats, 0 where it is IGNORE; (N,) float32.

    As above, but each can be weighted as the caller likes; so scores are computed once more in the
    backward pass.
    """
    def chunk(part: Tensor, ids: Tensor) -> Tensor:
        scores = F.linear(part, weight).float()                         # (rows, V)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        return F.cross_entropy(scores, ids, ignore_index=IGNORE, reduction="none")

    rows = max(1, CHUNK_FLOATS // weight.size(0))
    return torch.cat([recomputed(chunk, part, ids, use_reentrant=False)
                      for part, ids in zip(x.split(rows), targets.split(rows), strict=True)])


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float | None,
                dtype: torch.dtype) -> Tensor:
        learns_x, learns_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x) if learns_x else None
        grad_weight = torch.zeros_like(weight) if learns_weight else None
        loss, table = torch.zeros((), device=x.device), weight.to(dtype)
        rows = max(1, CHUNK_FLOATS // weight.size(0))
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, x.size(0), rows):
                part, ids = x[start:start + rows].to(dtype), targets[start:start + rows]
                scores = F.linear(part, table).float()                  # (rows, V)
                loss += _loss_of(scores, ids, softcap)
                if learns_x or learns_weight:
                    slope = _gradient_of(scores, ids, softcap).to(dtype)
                if grad_x is not None:
                    grad_x[start:start + rows] = slope @ table
                if grad_weight is not None:
                    grad_weight += slope.T @ part
        ctx.gradients = grad_x, grad_weight
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if each is None else each.mul_(grad) for each in ctx.gradients]
        ctx.gradients = None
        return *scaled, None, None, None


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
