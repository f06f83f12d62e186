"""Data parallelism: each process holds the whole model, and reads its own sequences.

Gradients are added up while the backward pass goes on, bucket after bucket: torch's DDP. Per step
and process 2 (n − 1)/n of the weights' bytes are sent.
Source: Li et al. 2020 (arXiv:2006.15704).
"""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt.batches import MicroBatch
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.parallel.passes import Laid, Objective


class Judged(nn.Module):
    """A model and its loss as one module, whose forward pass begins and ends where DDP looks."""

    def __init__(self, model: GPT, objective: Objective):
        super().__init__()
        self.model, self._objective = model, objective

    def forward(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch; ()."""
        return self._objective.summed_loss(self.model, batch)


class Replicated(Laid):
    """Passes whose gradients are averaged over the processes that hold the same weights."""

    def __init__(self, model: GPT, objective: Objective, machine: Machine):
        super().__init__(model, objective, machine)
        self.module = DistributedDataParallel(
            Judged(model, objective), process_group=machine.summed.group,
            gradient_as_bucket_view=True)

    def loss(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch; ()."""
        loss: Tensor = self.module(batch)
        return loss

    def reducing(self, now: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a pass: whether gradients are added up over processes, or kept for later."""
        return contextlib.nullcontext() if now else self.module.no_sync()
