"""One optimizer step: the gradient of the global batch, clipped and applied.

For each micro-batch the gradient of its summed loss, divided by the global number of supervised
tokens, is added up; so the result depends on the global batch alone, not on how it was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt.batches import MicroBatch
from gpt.errors import TrainingFailed
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.optim import Optimizer, WeightAverage
from gpt.parallel import Layout
from gpt.training.objective import NextToken, Objective

SMALLEST_SCALE = 1e-3  # of float16's losses; one that is sound is scaled by thousands


class Step:
    """Gradients and updates of a model, in smaller portions once memory has run out.

    say: told when micro-batches become smaller. In float16 losses are scaled so that gradients do
    not vanish, and an update whose gradients overflow is left out. loss_scale: how far that had
    come. But for float16's overflows, nothing here waits for the device. objective: what is made
    small; None: the next token's loss. layout: how the model lies on devices; None: on one.
    """

    def __init__(self, model: GPT, optimizer: Optimizer, machine: Machine, grad_clip: float,
                 loss_scale: dict[str, Any] | None = None, say: Callable[[str], None] = print,
                 average: WeightAverage | None = None, objective: Objective | None = None,
                 layout: Layout | None = None):
        self._objective, self._layout = objective or NextToken(), layout or Layout(machine)
        self._passes = self._layout.passes(model, self._objective)
        self._model, self._optimizer, self._machine = model, optimizer, machine
        self._grad_clip, self._say, self._average = grad_clip, say, average
        self._halvings = 0
        # Of the last batch: the objective's means, and the gradient's norm by kind of weights.
        self.figures: dict[str, Tensor] = {}
        self.tokens = 0  # of the last batch, over all processes
        self._scaler = torch.amp.GradScaler(machine.device.type,
                                            enabled=machine.dtype == torch.float16)
        if loss_scale is not None:
            self._scaler.load_state_dict(loss_scale)

    @property
    def loss_scale(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of float16's scaling; None in other formats."""
        return self._scaler.state_dict() if self.skips_overflows else None

    @property
    def skips_overflows(self) -> bool:
        """Whether a gradient that is not finite is expected now and then."""
        return self._scaler.is_enabled()

    def gradients(self, batch: list[MicroBatch], seed: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Those of a global batch; (mean loss in nats, norm of the gradient before clipping).

        batch: this process's share of it. seed: makes this step's random draws what they are;
        called again if it is tried again.
        """
        summed = self._machine.summed
        self.tokens, counted = map(int, self._machine.data.sums(
            sum(part.tokens for part in batch), sum(map(self._objective.count, batch))))
        with self._machine.repeatable():
            loss, figures = self._accumulate(batch, max(1, counted), seed)
        loss = summed.add_up(loss)
        self.figures = {name: summed.add_up(total) / counted for name, total in figures.items()}
        self._layout.before_unscaling(self._model, self._scaler)
        self._scaler.unscale_(self._optimizer)  # type: ignore[arg-type]
        norm, norms = self._layout.clip(self._model, self._grad_clip)
        if len(norms) > 1:
            self.figures |= {f"grad_norm_{kind}": of_kind for kind, of_kind in norms.items()}
        return loss, norm

    def apply(self) -> None:
        """Update the weights, and their average where there is one."""
        self._scaler.step(self._optimizer)  # type: ignore[arg-type]
        self._scaler.update()
        self._optimizer.zero_grad()
        if self._average is not None:
            self._average.update()
        if self.skips_overflows and self._scaler.get_scale() < SMALLEST_SCALE:
            raise TrainingFailed("float16 overflows however small the loss is made; use "
                                 "run.dtype=bfloat16 or float32, or lower optim.lr")

    def leave_out(self) -> None:
        """Drop the gradients of this step: nothing changes."""
        self._optimizer.zero_grad()

    def _accumulate(self, batch: list[MicroBatch], counted: int, seed: Callable[[], None]
                    ) -> tuple[Tensor, dict[str, Tensor]]:
        while True:
            seed()
            parts = [piece for part in batch for piece in part.cut(2**self._halvings)]
            try:
                return self._passes.gradients(parts, counted, self._scaler.scale,
                                              self._layout.most_passes(len(parts)))
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if self._machine.ranks.size > 1:  # the others are in the middle of theirs
                    raise TrainingFailed(
                        "out of memory; set a smaller train.micro_batch_size, "
                        "train.recompute_activations=true, or a larger parallel.shard") from error
            self._objective.take_figures()  # those of the attempt
            # Not before here: the error held on to all that the attempt had computed.
            largest = max(parts, key=lambda part: len(part.inputs))
            self._halve(len(largest.inputs) // largest.together)

    def _halve(self, size: int) -> None:
        """Make micro-batches of `size` sequences smaller; the global batch and its order stay."""
        self._optimizer.zero_grad()
        if size == 1:
            raise TrainingFailed(
                "out of memory with one sequence in a micro-batch; set "
                "train.recompute_activations=true, or lower model.block_size or the model's size")
        self._halvings += 1
        if self._machine.device.type == "cuda":
            torch.cuda.empty_cache()
        self._say(f"out of memory: micro-batches of {size} sequences are halved; steps stay the "
                  "same")


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an error of its own for it; its libraries and Apple's mps have sentences."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        sentence in str(error) for sentence in ("MPS backend out of memory", "CUDA out of memory",
                                                "CUDA error: out of memory", "_ALLOC_FAILED"))
