"""Data parallelism: each process holds the whole model, and reads its own sequences.

Gradients are added up while the backward pass goes on, bucket after bucket: torch's DDP. Per step
and process 2 (n − 1)/n of the weights' bytes are sent.
Source: Li et al. 2020 (arXiv:2006.15704).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gpt.batches import MicroBatch
from gpt.model import GPT

SummedLoss = Callable[[GPT, MicroBatch], Tensor]


class Judged(nn.Module):
    """A model and its loss as one module, whose forward pass begins and ends where DDP looks."""

    def __init__(self, model: GPT, summed_loss: SummedLoss):
        super().__init__()
        self.model, self._summed_loss = model, summed_loss

    def forward(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch; ()."""
        return self._summed_loss(self.model, batch)


class Replicated:
    """A model's loss, whose gradients are averaged over a group's processes."""

    def __init__(self, model: GPT, summed_loss: SummedLoss, group: Any):
        from torch.nn.parallel import DistributedDataParallel
        self.module = DistributedDataParallel(Judged(model, summed_loss), process_group=group,
                                              gradient_as_bucket_view=True)

    def __call__(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch; ()."""
        loss: Tensor = self.module(batch)
        return loss

    def passes(self, reduce: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a forward and a backward pass: whether gradients are averaged, or kept for later.
        """
        return contextlib.nullcontext() if reduce else self.module.no_sync()
