"""What ranks that compute parts of one product tell each other, as operations that autograd knows.

Between `enter` and `leave` each rank computes something else; before and after it all hold the same
numbers, and so do all gradients. The two are each other's mirror: Shoeybi et al. 2019
(arXiv:1909.08053), section 3, calls them f and g.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor


def enter(x: Tensor, group: str) -> Tensor:
    """What all ranks hold, for computing parts with: x itself; its gradient is summed over ranks.

    Under autocast x is made the format of products first, so that the sum is of numbers in it.
    group: the name of a process group, which compiled code can keep.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return together(x, group)


def together(x: Tensor, group: str) -> Tensor:
    """As `enter`, whatever the format: of weights of which each rank makes other use."""
    shared: Tensor = _Enter.apply(x, group)
    return shared


def leave(part: Tensor, group: str) -> Tensor:
    """The sum over ranks, which each rank holds then."""
    total: Tensor = _Leave.apply(part, group)
    return total


def gathered(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All ranks' parts, which are alike in shape: (…) -> (ranks, …). A rank has the gradient of its
    own part alone: what is made of all parts is alike on all ranks."""
    parts: Tensor = _Gather.apply(part, group)
    return parts


def _summed(x: Tensor, group: str) -> Tensor:
    return collectives.wait_tensor(
        collectives.all_reduce(x.contiguous(), "sum", group))  # type: ignore[arg-type]


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _summed(gradients[0], ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: str) -> Tensor:
        return _summed(part, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.rank = dist.get_rank(group)
        parts = part.new_empty(dist.get_world_size(group), *part.shape)
        dist.all_gather(list(parts.unbind()), part.contiguous(), group)
        return parts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.rank], None
