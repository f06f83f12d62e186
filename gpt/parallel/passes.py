"""The forward and backward passes of a step, and when gradients are added up over processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt.batches import MicroBatch
from gpt.machine.device import Machine
from gpt.model import GPT

Figures = dict[str, Tensor]


class Objective(Protocol):
    """A loss, summed over what a batch holds."""

    def summed_loss(self, model: GPT, batch: MicroBatch) -> Tensor:
        """Of a batch on the model's device; ()."""
        ...

    def take_figures(self) -> Figures:
        """Other sums, by name, over all batches since the last call; () each."""
        ...


class Passes(Protocol):
    """What finds the gradients of this process's share of a step."""

    def gradients(self, batch: list[MicroBatch], counted: int,
                  scale: Callable[[Tensor], Tensor], passes: int) -> tuple[Tensor, Figures]:
        """(this process's share of the mean loss, (); the objective's sums)

        counted: what the sum over the global batch is divided by. scale: of losses, for float16.
        passes: at least so many, of which those beyond the batch change nothing: others need this
        process for theirs.
        """
        ...


class Laid:
    """Passes of a model that is alone, or whose modules add up their gradients themselves.

    reduce: told before each pass whether it is the last one.
    """

    def __init__(self, model: GPT, objective: Objective, machine: Machine,
                 reduce: Callable[[GPT, bool], None] = lambda model, now: None):
        self._model, self._objective, self._machine = model, objective, machine
        self._reduce = reduce

    def loss(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch; ()."""
        return self._objective.summed_loss(self._model, batch)

    def reducing(self, now: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a pass: whether gradients are added up over processes, or kept for later."""
        self._reduce(self._model, now)
        return contextlib.nullcontext()

    def gradients(self, batch: list[MicroBatch], counted: int,
                  scale: Callable[[Tensor], Tensor], passes: int) -> tuple[Tensor, Figures]:
        """As Passes."""
        loss = accumulate_gradients(self, batch, counted, self._machine, scale,
                                    more_follow=passes > len(batch))
        figures = self._objective.take_figures()
        for number in range(len(batch) + 1, passes + 1):
            with self.reducing(number == passes):
                with self._machine.autocast():
                    idle = self.loss(batch[-1].on(self._machine))
                (0 * idle).backward()
        self._objective.take_figures()
        return loss, figures


def accumulate_gradients(laid: Laid, batch: list[MicroBatch], counted: int, machine: Machine,
                         scale: Callable[[Tensor], Tensor] = lambda loss: loss,
                         more_follow: bool = False) -> Tensor:
    """Gradients of the mean loss over the global batch's supervised tokens; returns this process's
    share of that loss, ().

    Each micro-batch adds its summed loss over the global count, never a mean of its own: however
    the batch is cut, and however unevenly supervised tokens are spread, the sum is the same.
    more_follow: other passes will, so that gradients are not added up over processes yet.
    """
    losses = []
    for number, part in enumerate(batch, start=1):
        with laid.reducing(number == len(batch) and not more_follow):
            with machine.autocast():
                loss = laid.loss(part.on(machine)) / counted
            # Gradients are averaged over processes, where they are to be added up.
            scale(loss * machine.summed.size).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()
