"""A training step of a pipeline: one forward, one backward, so that few are under way.

A stage begins with as many forward passes as there are stages from it to the last one; from then on
each is preceded by a backward pass. So stage i keeps the activations of at most `stages − i`
micro-batches, however many a step has, and waits for (stages − 1) / (micro-batches + stages − 1)
of it. Source: Narayanan et al. 2019 (PipeDream, SOSP), section 3.2; with the update at the end of a
step: Narayanan et al. 2021 (arXiv:2104.04473), section 2.2.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from gpt.batches import MicroBatch
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.parallel.passes import Figures, Objective
from gpt.parallel.pipeline import Pipeline

SummedLoss = Callable[[GPT, MicroBatch], Tensor]


class PipelinePasses:
    """Passes of a step, as Passes says it, of a model whose gradients are averaged over data ranks.
    """

    def __init__(self, pipeline: Pipeline, machine: Machine, objective: Objective):
        self._pipeline, self._machine, self._objective = pipeline, machine, objective
        self._schedule = PipelineSchedule(pipeline, machine)

    def gradients(self, batch: list[MicroBatch], counted: int,
                  scale: Callable[[Tensor], Tensor], passes: int) -> tuple[Tensor, Figures]:
        """As Passes."""
        loss = self._schedule.gradients(
            batch, self._objective.summed_loss, counted,
            lambda loss: scale(loss * self._machine.summed.size), passes)
        self._pipeline.sum_tied_gradients()
        return loss, self._pipeline.from_last(self._objective.take_figures())


class PipelineSchedule:
    """Gradients of a model that is laid out over a pipeline, by torch's Schedule1F1B."""

    def __init__(self, pipeline: Pipeline, machine: Machine):
        self._pipeline, self._machine = pipeline, machine
        self._schedules: dict[tuple[int, bool, bool], tuple[_Stage, Schedule1F1B]] = {}

    def gradients(self, batch: list[MicroBatch], summed_loss: SummedLoss, counted: int,
                  scale: Callable[[Tensor], Tensor] = lambda loss: loss, passes: int = 0) -> Tensor:
        """Add the gradients of a step to those of this rank's weights; its loss on all ranks, ().

        batch: the same micro-batches on all ranks of the pipeline, in whatever shapes. summed_loss:
        of a model and a batch; the last rank is asked. counted: what the sum over all micro-batches
        of all data ranks is divided by. passes: at least so many, of which some change nothing.
        Tied embeddings: see Pipeline.sum_tied_gradients.
        """
        pipeline, losses = self._pipeline, list[Tensor]()
        # Schedule1F1B needs as many as there are stages. Those without content come first: the last
        # one is that after which data ranks sum their gradients.
        idle = max(0, passes - len(batch)) * batch[:1]
        parts = [None] * max(0, pipeline.stages - len(idle + batch)) + idle + batch
        stage, schedule = self._scheduled(len(parts))
        stage.begin([self._shape(part) for part in parts],
                    self._passes(parts, len(batch), losses, summed_loss, counted, scale))
        schedule.step(target=torch.zeros(len(parts)) if pipeline.is_last else None,
                      return_outputs=False)
        if not pipeline.is_last:
            scale(torch.zeros((), device=pipeline.device))  # float16's scaler begins with a loss
        total = torch.stack(losses).sum() if losses else torch.zeros((), device=pipeline.device)
        dist.broadcast(total, group=pipeline.group, group_src=pipeline.stages - 1)
        return total

    def _scheduled(self, micro_batches: int) -> tuple[_Stage, Schedule1F1B]:
        """Kept, since ranks agree on a new one in a round of messages."""
        stage = self._pipeline.stage
        key = (micro_batches, self._pipeline.learns_before(stage),
               self._pipeline.learns_before(stage + 1))
        if key not in self._schedules:
            made = _Stage(self._pipeline, *key[1:])
            self._schedules[key] = made, Schedule1F1B(
                made, micro_batches, loss_fn=lambda loss, _: loss, scale_grads=False)
        return self._schedules[key]

    def _shape(self, part: MicroBatch | None) -> tuple[int, ...]:
        """Of what is handed on for a micro-batch, (B, T, C)."""
        return *(part.inputs.shape if part else (1, 1)), self._pipeline.model.config.n_embd

    def _passes(self, parts: list[MicroBatch | None], count: int, losses: list[Tensor],
                summed_loss: SummedLoss, counted: int, scale: Callable[[Tensor], Tensor]
                ) -> Iterator[Callable[[Tensor | None], Tensor]]:
        """The forward pass of each micro-batch, of which the last `count` count: from what is
        received to what is handed on, or to the loss on the last stage, which is also noted."""
        def run(part: MicroBatch, counts: bool, x: Tensor | None) -> Tensor:
            model, part = self._pipeline.model, part.on(self._machine)
            with self._machine.autocast(), self._pipeline.in_step(x):
                if not (self._pipeline.is_last and counts):
                    x = model.hidden(part.inputs, None, part.segments, part.prompts).contiguous()
                    return (0 * x).sum() if self._pipeline.is_last else x
                loss = summed_loss(model, part) / counted
            losses.append(loss.detach())
            return scale(loss)

        for number, part in enumerate(parts, start=count - len(parts)):
            yield self._fill if part is None else functools.partial(run, part, number >= 0)

    def _fill(self, x: Tensor | None) -> Tensor:
        """Hand on what no weight has touched, or lose nothing by it."""
        if x is None:
            x = torch.zeros(self._shape(None), dtype=self._pipeline.dtype,
                            device=self._pipeline.device)
        return (0 * x).sum() if self._pipeline.is_last else x


class _Forward(nn.Module):
    """What PipelineStage calls: the next micro-batch's forward pass, as they come in order."""

    passes: Iterator[Callable[[Tensor | None], Tensor]]

    def forward(self, x: Tensor | None = None) -> Tensor:
        return next(self.passes)(x)


class _Stage(PipelineStage):
    """torch's stage, for micro-batches of different shapes.

    torch sets buffers aside for all micro-batches, of one shape. Here each is made in its shape
    when it is to be received, and freed after its backward pass.
    """

    def __init__(self, pipeline: Pipeline, learns_before: bool, learns: bool):
        self._work, self._model = _Forward(), pipeline.model
        self._shapes: list[tuple[int, ...]] = []
        super().__init__(self._work, pipeline.stage, pipeline.stages, pipeline.device,
                         input_args=_sample(pipeline, learns_before),
                         output_args=_sample(pipeline, learns), group=pipeline.group)
        self._runtime_validate = False  # of shapes: those of the samples say nothing

    def begin(self, shapes: list[tuple[int, ...]],
              passes: Iterator[Callable[[Tensor | None], Tensor]]) -> None:
        """Prepare for a step's micro-batches."""
        self._shapes, self._work.passes = shapes, passes

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """What receives a micro-batch."""
        self._make_buffers(self.args_recv_info[fwd_chunk_id], fwd_chunk_id)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """What receives a micro-batch's gradient."""
        self._make_buffers(self.grad_recv_info[bwd_chunk_id], bwd_chunk_id)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def backward_one_chunk(self, bwd_chunk_id: int, loss: Tensor | None = None,
                           full_backward: bool = True, last_backward: bool = False) -> None:
        """Go back through a micro-batch; data ranks sum gradients after the last one."""
        if isinstance(self._model, FSDPModule):
            self._model.set_is_last_backward(last_backward)
            self._model.set_requires_gradient_sync(last_backward)
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        for info in (*self.args_recv_info[bwd_chunk_id], *self.grad_recv_info[bwd_chunk_id]):
            info.buffer = None

    def _make_buffers(self, infos: tuple[Any, ...], number: int) -> None:
        for info in infos:
            if not info.is_root_arg and info.tensor_meta is not None:
                info.buffer = torch.empty(self._shapes[number], dtype=info.tensor_meta.dtype,
                                          device=self.device)


def _sample(pipeline: Pipeline, learns: bool) -> Tensor:
    """Says what is handed on but for its shape."""
    return torch.empty(0, dtype=pipeline.dtype, device=pipeline.device, requires_grad=learns)
