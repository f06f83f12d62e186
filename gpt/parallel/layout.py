"""How a model lies on the devices of a run: built first, then laid out, axis by axis.

What needs torch.distributed's larger parts is imported where there are several processes: to import
it takes a second, and longer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from gpt.machine.device import Machine
from gpt.machine.signals import signal_name, signal_number
from gpt.model import GPT
from gpt.optim import Optimizer, weights_by_kind
from gpt.parallel.mesh import device_mesh, ranks_along
from gpt.parallel.passes import Laid, Objective, Passes
from gpt.parallel.plan import row_order
from gpt.parallel.sizes import AXES, Sizes

if TYPE_CHECKING:
    from gpt.parallel.pipeline import Pipeline


class Layout:
    """Which process holds what of a model, and which processes add up their gradients.

    Alone it is all here, and nothing is done. machine: is told who works together. lines: what is
    said of it when a run begins. gathered: in which sharded weights of blocks are brought together.
    """

    def __init__(self, machine: Machine, sizes: Sizes | None = None, offload: bool = False,
                 lines: Sequence[str] = (), gathered: torch.dtype = torch.float32):
        self.machine, self.sizes, self._offload = machine, sizes or Sizes(), offload
        self._gathered = gathered
        self.lines, self.mesh = list(lines), cast(Any, None)
        self._pipeline: Pipeline | None = None
        if self.sizes.world_size > 1:
            self._meet()

    def _meet(self) -> None:
        machine, sizes = self.machine, self.sizes

        def along(*axes: str) -> Any:
            return ranks_along(axes, sizes, machine.ranks)

        self.mesh = device_mesh(sizes, machine.device.type)
        machine.data, machine.summed = (along("replicate", "shard"),
                                        along("replicate", "shard", "context"))
        machine.replicas = along("replicate")
        self._in_step = along(*(axis for axis in AXES if axis != "replicate"))
        machine.stop.heard = lambda name: signal_name(self._in_step.most(signal_number(name))[0])
        if sizes.context > 1:
            from gpt.parallel.context import share_of_context
            machine.part_of = lambda batch: share_of_context(batch, self.mesh["context"])

    @property
    def keeps_weights_whole(self) -> bool:
        """Whether every process holds the whole model, as one alone would."""
        sizes = self.sizes
        return sizes.shard == sizes.tensor == sizes.pipeline == 1 and not self._offload

    def most_passes(self, passes: int) -> int:
        """Forward and backward passes of a step, where processes need each other for them."""
        if self.sizes.world_size == self.sizes.replicate:
            return passes
        return int(self._in_step.most(passes)[0])

    # ----- The model

    def building(self) -> contextlib.AbstractContextManager[Any]:
        """Around the making of a model: one that is spread gets its weights when it is laid out."""
        is_spread = not self.keeps_weights_whole and self.sizes.pipeline == 1
        return torch.device("meta") if is_spread else contextlib.nullcontext()

    def place(self, model: GPT) -> None:
        """Lay a model out on this process's device, and compile it where that is on."""
        self._config = model.config
        if self.sizes.context > 1:
            from gpt.parallel.context import lay_out_context
            lay_out_context(model, self.mesh["context"])
        if self.keeps_weights_whole:
            self.machine.place(model)
            return
        is_empty = model.output_weight.is_meta
        if self.sizes.tensor > 1:
            from gpt.parallel.tensor import lay_out_tensor
            lay_out_tensor(model, self.mesh["tensor"])
        if self.sizes.pipeline > 1:
            from gpt.parallel.pipeline import lay_out_pipeline
            self._pipeline = lay_out_pipeline(model, self.mesh["pipeline"])
        self._shard(model, is_empty)
        if is_empty:
            self._draw(model)
        self._unshard_once(model)

    def _shard(self, model: GPT, is_empty: bool) -> None:
        from gpt.parallel.sharded import lay_out_shards
        if self.machine.compile:
            model.compile_blocks()
        axes = [axis for axis in ("replicate", "shard", "context")
                if getattr(self.sizes, axis) > 1 or axis == "shard"]
        mesh = self.mesh[tuple(axes)]
        if "context" in axes:
            inner = self.mesh["shard", "context"]._flatten("shard_context")
            mesh = self.mesh["replicate", "shard_context"] if "replicate" in axes else inner
        lay_out_shards(model, mesh, self._gathered, self._offload, is_empty)

    def _unshard_once(self, model: GPT) -> None:
        from gpt.parallel.sharded import bring_together_once
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

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        """Around evaluation and generation, which all processes do at the same time."""
        return contextlib.nullcontext() if self._pipeline is None else self._pipeline.whole_head()

    # ----- Steps

    def passes(self, model: GPT, objective: Objective) -> Passes:
        """What finds the gradients of a step, averaged over machine.summed."""
        if self._pipeline is not None:
            from gpt.parallel.pipeline_schedule import PipelinePasses
            return PipelinePasses(self._pipeline, self.machine, objective)
        if not self.keeps_weights_whole:
            from gpt.parallel.sharded import reduce_over_copies
            return Laid(model, objective, self.machine, reduce_over_copies)
        if self.sizes.world_size > 1:
            from gpt.parallel.replicated import Replicated
            return Replicated(model, objective, self.machine)
        return Laid(model, objective, self.machine)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The same, with what it needs to see whole brought together where it needs it."""
        if self.sizes.world_size > 1:
            from gpt.parallel.muon import spread_muon
            spread_muon(optimizer, self.machine.summed.group if self.keeps_weights_whole else None)
        return optimizer

    def before_unscaling(self, model: GPT, scaler: torch.amp.GradScaler) -> None:
        """In float16: an overflow of one process's gradients becomes one of all."""
        if scaler.is_enabled() and not self.keeps_weights_whole:
            from gpt.parallel.gradients import spread_overflow
            spread_overflow(model.parameters(), self._stages)

    def clip(self, model: GPT, limit: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Scale gradients to a norm of at most `limit` (0: leave them).

        Returns the norm before, (), and that of each kind of weights, (): see `weights_by_kind`.
        """
        kinds = weights_by_kind(model)
        if self.keeps_weights_whole:
            return _clip_whole(kinds, limit)
        from gpt.parallel.gradients import clip_kinds
        elsewhere = {weight for name, weight in model.named_parameters()
                     if self._pipeline is not None and not self._pipeline.owns(name)}
        return clip_kinds(kinds, limit, self.machine.device, self._stages, elsewhere)

    @property
    def _stages(self) -> Any:
        return None if self._pipeline is None else self._pipeline.group

    # ----- Between what a process holds and what is saved

    def everywhere(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by name, also of weights that other processes hold: those without memory."""
        return dict(tensors) if self._pipeline is None else self._pipeline.everywhere(tensors)

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """A weight, or something in its shape, as one process would hold it; on all processes."""
        if self.keeps_weights_whole:
            return tensor
        from gpt.parallel.parts import whole
        if self._pipeline is not None:
            return self._pipeline.told(name, tensor, lambda: self._in_order(name, whole(tensor)))
        return self._in_order(name, whole(tensor))

    def _in_order(self, name: str, whole: Tensor) -> Tensor:
        order = self._row_order(name, whole)
        return whole if order is None else whole[order.argsort().to(whole.device)]

    def fill(self, name: str, tensor: Tensor, whole: Tensor) -> None:
        """Put this process's part of a whole weight where it belongs."""
        if tensor.is_meta:  # another process's
            return
        if self.keeps_weights_whole:
            tensor.copy_(whole)
            return
        from gpt.parallel.parts import fill
        order = self._row_order(name, whole)
        fill(tensor, whole if order is None else whole[order])

    def _row_order(self, name: str, whole: Tensor) -> Tensor | None:
        if self.sizes.tensor == 1 or not whole.dim():
            return None
        return row_order(name.partition("/")[0], self._config, self.sizes.tensor)

    def fill_state(self, name: str, weight: Tensor, kept: dict[str, Tensor], key: str,
                   whole: Tensor) -> None:
        """Put what an optimizer remembers of a weight where it belongs, spread as the weight is."""
        if weight.is_meta:  # another process's
            return
        if whole.shape != weight.shape:  # a number
            kept[key] = whole.to(weight.device)
            return
        kept[key] = torch.zeros_like(weight, dtype=whole.dtype, requires_grad=False)
        self.fill(name, kept[key], whole)


def alone() -> Layout:
    """Of a model that lies on one device, whichever."""
    return Layout(Machine(torch.device("cpu"), torch.float32))


def _clip_whole(kinds: Mapping[str, Sequence[nn.Parameter]], limit: float
                ) -> tuple[Tensor, dict[str, Tensor]]:
    """`Layout.clip` for weights that are all here: torch's clip_grad_norm_, in its two halves."""
    weights = [weight for each in kinds.values() for weight in each if weight.grad is not None]
    gradients = {name: [w.grad for w in each if w.grad is not None]
                 for name, each in kinds.items()}
    norms = {name: nn.utils.get_total_norm(each) for name, each in gradients.items() if each}
    norm = torch.linalg.vector_norm(torch.stack([*norms.values()]))
    nn.utils.clip_grads_with_norm_(weights, limit or math.inf, norm)
    return norm, norms
