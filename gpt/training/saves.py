"""What of a run is saved: which checkpoints are kept, and which of them is the best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt.configuration import RunSections
from gpt.model import GPT
from gpt.optim import Optimizer
from gpt.parallel import Layout
from gpt.runs import checkpoint
from gpt.runs.checkpoint import Best, TrainState
from gpt.tokenizer import Tokenizer
from gpt.training.budget import Budget
from gpt.training.cooldown import BeforeCooldown
from gpt.training.telemetry import Log


class Saves:
    """The checkpoints of a run: the newest, the best, and the one before the cooldown.

    All processes of a run have one, and do the same; rank 0 writes, but for large weights.
    """

    def __init__(self, folder: Path, config: RunSections, budget: Budget, state: TrainState,
                 layout: Layout, log: Log):
        self.folder, self._config, self._layout, self._log = folder, config, layout, log
        self._ranks = layout.machine.ranks
        self._saved_step, self.best = self._ranks.first(lambda: self._there(state.step))
        self._cooldown = BeforeCooldown(config, budget, folder, state)

    def _there(self, step: int) -> tuple[int | None, Best | None]:
        """(the step that training goes on from, if it is saved here; the best checkpoint)"""
        here = checkpoint.steps_in(self.folder).get(step)
        return (step if here and not checkpoint.damage(here) else None,
                checkpoint.read_best(self.folder, step))

    def cooldown_begins(self, state: TrainState) -> bool:
        """Whether this state is to be kept as the last one before the learning rate falls."""
        return state.step > 0 and self._cooldown.begins(state)

    def save(self, model: GPT, optimizer: Optimizer, tokenizer: Tokenizer, state: TrainState,
             loss_scale: dict[str, Any] | None) -> None:
        """Save this step, unless it is saved already."""
        if state.step != self._saved_step:
            path = checkpoint.save(self.folder, model, optimizer, tokenizer,
                                   replace(state, loss_scale=loss_scale), self._layout,
                                   self._config.checkpoint.shard_size)
            self._saved_step = state.step
            self._prune()
            self._log.event("save", state.step, tokens=state.tokens,
                            elapsed_seconds=state.elapsed_seconds, path=path.name)
        if self.cooldown_begins(state):
            self._cooldown.keep(state, writes=self._ranks.is_first)

    def is_best(self, step: int, figure: float) -> bool:
        """Whether an evaluation found less than all before."""
        return step > 0 and (self.best is None or figure < self.best.val_loss)

    def note_best(self, best: Best) -> None:
        """A checkpoint that has just been saved is the best, or the run ended without a better."""
        self.best = best
        if self._ranks.is_first:
            checkpoint.write_best(self.folder, best)
        self._prune()

    def _prune(self) -> None:
        if self._ranks.is_first and self._saved_step is not None:
            checkpoint.prune(self.folder, self._config.checkpoint.keep, self._saved_step,
                             {self.best.step if self.best else None, self._cooldown.step})
