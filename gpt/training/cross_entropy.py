"""The loss of the output layer without its logits ever standing in memory as a whole.

For a vocabulary of 50,000 the logits of a batch are by far its largest tensor, and plain autograd
keeps them two or three times. Here a chunk of rows at a time is turned into its loss and, at once,
into its share of the gradient.
Source of the idea: Wijmans et al. 2024 (arXiv:2411.09009); Hsu et al. 2024 (arXiv:2410.10989).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from gpt.batches import IGNORE
from gpt.parallel import vocabulary

# Logits that exist at a time: 32 MB in float32, and 512 on a GPU, whose products want many rows.
CHUNK_FLOATS, CUDA_CHUNK_FLOATS = 1 << 23, 1 << 27


def rows_at_a_time(vocab_size: int, device: torch.device) -> int:
    """Of a chunk. On CUDA a power of two, so that as a rule all are alike, and compiled once."""
    if device.type == "cuda":
        return 1 << max(1, CUDA_CHUNK_FLOATS // vocab_size).bit_length() - 1
    return max(1, CHUNK_FLOATS // vocab_size)


def summed_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor,
                         softcap: float | None = None, bias: Tensor | None = None,
                         fused: bool = False) -> Tensor:
    """Negative log-likelihood summed over targets, in nats; ().

    x: (N, C), the residual stream; targets: (N,) int64. softcap: of the scores.
    weight: (V, C), and bias: (V,); or spread over ranks, each of which finds the whole loss then.
    fused: what is done with a chunk's scores is compiled into a pass or two over them.
    Under autocast products are in its format; the loss is summed in float32. Backward works once.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    judge: Judge
    if vocabulary.is_spread(weight):
        part = vocabulary.part_of(weight)
        x, weight, width = part.enter(x), part.rows(weight), part.widest
        bias = None if bias is None else part.rows(bias)
        judge = functools.partial(part.judge, fused=fused)
    else:
        judge, width = _compiled() if fused else loss_and_slope, weight.size(0)
    loss: Tensor = _ChunkedLoss.apply(x, weight, bias, targets, softcap, dtype,
                                      rows_at_a_time(width, x.device), judge)
    return loss


def token_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor,
                        softcap: float | None = None, bias: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of each target in nats, 0 where it is IGNORE; (N,) float32.

    As above, but each can be weighted as the caller likes; so scores are computed once more in the
    backward pass.
    """
    judge, width = _token_losses, weight.size(0)
    if vocabulary.is_spread(weight):
        part = vocabulary.part_of(weight)
        x, weight, width = part.enter(x), part.rows(weight), part.widest
        bias = None if bias is None else part.rows(bias)
        judge = part.token_losses

    def chunk(x: Tensor, ids: Tensor) -> Tensor:
        return judge(F.linear(x, weight, bias), ids, softcap)           # (rows, V) -> (rows,)

    rows = rows_at_a_time(width, x.device)
    return torch.cat([recomputed(chunk, some, ids, use_reentrant=False)
                      for some, ids in zip(x.split(rows), targets.split(rows), strict=True)])


def _token_losses(scores: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    scores = scores.float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="none")


Judge = Callable[[Tensor, Tensor, float | None, bool], tuple[Tensor, Tensor]]


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
                softcap: float | None, dtype: torch.dtype, rows: int, judge: Judge) -> Tensor:
        learns_x, learns_weight, learns_bias = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(x) if learns_x else None
        grad_weight = torch.zeros_like(weight) if learns_weight else None
        grad_bias = torch.zeros_like(bias) if learns_bias and bias is not None else None
        loss, table = torch.zeros((), device=x.device), weight.to(dtype)
        added = None if bias is None else bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, x.size(0), rows):
                part, ids = x[start:start + rows].to(dtype), targets[start:start + rows]
                part_loss, slope = judge(F.linear(part, table, added), ids, softcap,
                                         any(ctx.needs_input_grad[:3]))  # (), (rows, V)
                loss += part_loss
                if grad_x is not None:
                    grad_x[start:start + rows] = slope @ table
                if grad_weight is not None:
                    grad_weight += slope.T @ part
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
        ctx.gradients = grad_x, grad_weight, grad_bias
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if each is None else each.mul_(grad) for each in ctx.gradients]
        ctx.gradients = None
        return *scaled, None, None, None, None, None


def loss_and_slope(scores: Tensor, targets: Tensor, softcap: float | None, learns: bool
                   ) -> tuple[Tensor, Tensor]:
    """Loss of a chunk, and its gradient by the raw scores: (rows, V) -> (), (rows, V).

    In place where it can be; without `learns` the gradient is left out.
    """
    floats = scores.float()
    if softcap is not None:
        floats.div_(softcap).tanh_().mul_(softcap)
    loss = F.cross_entropy(floats, targets, ignore_index=IGNORE, reduction="sum")
    if not learns:
        return loss, scores
    slope = None if softcap is None else 1 - (floats / softcap).square()
    supervised = (targets != IGNORE).float().unsqueeze(1)               # (rows, 1)
    gradient = torch.softmax(floats, dim=-1, out=floats)
    # An index that is not a target's takes nothing away: looking for targets would make a GPU wait.
    gradient.scatter_add_(1, targets.clamp(min=0).unsqueeze(1), -supervised)
    gradient *= supervised
    return loss, (gradient if slope is None else gradient * slope).to(scores.dtype)


def fusible_loss_and_slope(scores: Tensor, targets: Tensor, softcap: float | None, learns: bool
                           ) -> tuple[Tensor, Tensor]:
    """The same as a compiler fuses it: nothing in place, and a comparison where the other adds to
    the targets, so that no (rows, V) tensor is float32."""
    floats = scores.float()
    capped = floats if softcap is None else softcap * torch.tanh(floats / softcap)
    supervised = (targets != IGNORE).unsqueeze(1)                       # (rows, 1)
    ids = targets.clamp(min=0).unsqueeze(1)
    logprobs = F.log_softmax(capped, dim=-1)  # which a compiler computes in one pass
    loss = -torch.where(supervised, logprobs.gather(1, ids), 0.0).sum()
    if not learns:
        return loss, scores
    is_target = torch.arange(scores.size(1), device=scores.device) == ids
    gradient = logprobs.exp() - is_target.float()
    if softcap is not None:
        gradient = gradient * (1 - (capped / softcap).square())
    return loss, torch.where(supervised, gradient, 0.0).to(scores.dtype)


@functools.cache
def _compiled() -> Judge:
    return torch.compile(fusible_loss_and_slope)
