"""How a model lies on the devices of a run: built first, then laid out, axis by axis."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gpt.batches import MicroBatch
from gpt.machine.device import Machine
from gpt.machine.signals import signal_name, signal_number
from gpt.model import GPT
from gpt.optim import Optimizer
from gpt.parallel.gradients import clip_gradients, spread_overflow
from gpt.parallel.mesh import device_mesh, ranks_along
from gpt.parallel.muon import spread_muon
from gpt.parallel.parts import fill, whole
from gpt.parallel.replicated import Replicated
from gpt.parallel.sharded import bring_together_once, lay_out_shards, reduce_over_copies
from gpt.parallel.sizes import AXES, Sizes


class Layout:
    """Which process holds what of a model, and which processes add up their gradients.

    Alone it is all here, and nothing is done. machine: is told who works together. lines: what is
    said of it when a run begins.
    """

    def __init__(self, machine: Machine, sizes: Sizes | None = None, offload: bool = False,
                 lines: Sequence[str] = ()):
        self.machine, self.sizes, self._offload = machine, sizes or Sizes(), offload
        self.lines = list(lines)
        self.mesh: Any = None
        if self.sizes.world_size == 1:
            return
        self.mesh = device_mesh(self.sizes, machine.device.type)

        def along(*axes: str) -> Any:
            return ranks_along(axes, self.sizes, machine.ranks)

        machine.data, machine.summed = along("replicate", "shard"), along("replicate", "shard",
                                                                           "context")
        machine.replicas = along("replicate")
        self._in_step = along(*(axis for axis in AXES if axis != "replicate"))
        machine.stop.heard = lambda name: signal_name(self._in_step.most(signal_number(name))[0])

    @property
    def keeps_weights_whole(self) -> bool:
        """Whether every process holds the whole model, as one alone would."""
        sizes = self.sizes
        return sizes.shard == sizes.tensor == sizes.pipeline == 1 and not self._offload

    @property
    def in_step(self) -> bool:
        """Whether forward passes need other processes, which then must do as many."""
        return self.sizes.world_size > self.sizes.replicate

    def most_passes(self, passes: int) -> int:
        """Forward and backward passes of a step, where processes need each other for them."""
        return int(self._in_step.most(passes)[0]) if self.in_step else passes

    def building(self) -> contextlib.AbstractContextManager[Any]:
        """Around the making of a model: one that is spread gets its weights when it is laid out."""
        return contextlib.nullcontext() if self.keeps_weights_whole else torch.device("meta")

    def place(self, model: GPT) -> None:
        """Lay a model out on this process's device, and compile it where that is on."""
        if self.keeps_weights_whole:
            self.machine.place(model)
            return
        is_empty = model.output_weight.is_meta
        if self.machine.compile:
            model.compile_blocks()
        axes = ("replicate", "shard") if self.sizes.replicate > 1 else ("shard",)
        lay_out_shards(model, self.mesh[axes], self.machine.dtype, self._offload)
        if is_empty:
            self._draw(model)
        bring_together_once(model)

    def _draw(self, model: GPT) -> None:
        """Give an empty model the weights that one process would draw, one after the other."""
        model.to_empty(device="cpu" if self._offload else self.machine.device)
        with torch.device("meta"):
            plain = GPT(model.config)
        for module in plain.modules():
            if isinstance(module, nn.Linear):  # draws when it is made, of which nothing is kept
                for weight in module.parameters():
                    torch.empty(weight.shape).uniform_()
        weights = dict(model.named_parameters())
        for name, drawn in plain.drawn_weights():
            self.fill(name, weights[name], drawn)

    def loss_of(self, model: GPT, summed_loss: Callable[[GPT, MicroBatch], Tensor]) -> Loss:
        """The loss of micro-batches, with gradients that are averaged over machine.summed."""
        if self.keeps_weights_whole and self.sizes.world_size > 1:
            return Replicated(model, summed_loss, self.machine.summed.group)
        return Laid(model, summed_loss, None if self.keeps_weights_whole else reduce_over_copies)

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """A weight, or something in its shape, as one process would hold it; on all processes."""
        return whole(tensor)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The same, with what it needs to see whole brought together where it needs it."""
        if self.sizes.world_size > 1:
            spread_muon(optimizer, self.machine.summed.group if self.keeps_weights_whole else None)
        return optimizer

    def fill(self, name: str, tensor: Tensor, whole: Tensor) -> None:
        """Put this process's part of a whole weight where it belongs."""
        fill(tensor, whole)

    def fill_state(self, name: str, weight: Tensor, kept: dict[str, Tensor], key: str,
                   whole: Tensor) -> None:
        """Put what an optimizer remembers of a weight where it belongs, spread as the weight is."""
        if whole.shape != weight.shape:  # a number
            kept[key] = whole.to(weight.device)
            return
        kept[key] = torch.zeros_like(weight, dtype=whole.dtype, requires_grad=False)
        self.fill(name, kept[key], whole)

    def before_unscaling(self, model: nn.Module, scaler: torch.amp.GradScaler) -> None:
        """In float16: an overflow of one process's gradients becomes one of all."""
        if scaler.is_enabled() and not self.keeps_weights_whole:
            spread_overflow(model.parameters())

    def clip(self, model: nn.Module, limit: float) -> Tensor:
        """Scale gradients to a norm of at most `limit`; returns the norm before, ()."""
        return clip_gradients(model.parameters(), limit)


def alone() -> Layout:
    """Of a model that lies on one device, whichever."""
    return Layout(Machine(torch.device("cpu"), torch.float32))


class Laid:
    """The loss of a model that is alone, or whose modules see to their gradients themselves."""

    def __init__(self, model: GPT, summed_loss: Callable[[GPT, MicroBatch], Tensor],
                 reduce: Callable[[GPT, bool], None] | None):
        self._model, self._summed_loss, self._reduce = model, summed_loss, reduce

    def __call__(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch; ()."""
        return self._summed_loss(self._model, batch)

    def passes(self, reduce: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a forward and a backward pass: whether gradients are averaged, or kept for later.
        """
        if self._reduce is not None:
            self._reduce(self._model, reduce)
        return contextlib.nullcontext()


Loss = Laid | Replicated
