"""What a cooldown means for a run that goes on: it is told, and can be gone back behind."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path

from gpt.configuration import OptimConfig, RunSections
from gpt.files import write_json
from gpt.optim import lr_factor
from gpt.runs.checkpoint import TrainState, steps_in
from gpt.training.budget import Budget

KEPT = "before_cooldown.json"


class BeforeCooldown:
    """The checkpoint at which the learning rate begins to fall, if it is to be kept.

    From there a longer run goes on as if it had been longer all along: until then the learning
    rate did not depend on the run's length.
    """

    def __init__(self, config: RunSections, budget: Budget, checkpoints: Path, state: TrainState):
        self._budget, self._file = budget, checkpoints / KEPT
        self._begin = 1 - config.optim.cooldown_fraction
        self._wanted = (config.checkpoint.keep_before_cooldown
                        and budget.progress(state) <= self._begin)  # else it is too late
        self.step = kept_step(checkpoints)

    def begins(self, state: TrainState) -> bool:
        """Whether now is when it is to be saved."""
        return self._wanted and self._budget.progress(state) >= self._begin

    def keep(self, state: TrainState) -> Callable[[], None]:
        """The checkpoint of this state is the one. Returns what writes it down, once it is there.
        """
        self.step, self._wanted = state.step, False
        return functools.partial(write_json, self._file, {"step": state.step})


def kept_step(checkpoints: Path) -> int | None:
    """The step of the checkpoint that was kept, if one was."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        step = json.loads((checkpoints / KEPT).read_text())["step"]
        return step if type(step) is int and step in steps_in(checkpoints) else None
    return None


def warming_up_again(before: tuple[OptimConfig, Budget], now: tuple[OptimConfig, Budget],
                     state: TrainState, checkpoints: Path) -> str | None:
    """What to say if a run that had cooled down is extended; None if it had not."""
    was, will = (lr_factor(optim, state.step, budget.progress(state))
                 for optim, budget in (before, now))
    if was >= 0.999 * will:
        return None
    kept = kept_step(checkpoints)
    way = ("keep one with checkpoint.keep_before_cooldown=true" if kept is None else
           f"run.resume={steps_in(checkpoints)[kept]} run.name=ANOTHER")
    return (f"the learning rate had fallen to {was:.0%} of its peak and rises to {will:.0%} again, "
            f"since optim.schedule={now[0].schedule} is fitted to the new length; with "
            "optim.schedule=constant it stays at its peak from here on. What one long run ends "
            f"in comes only from a checkpoint before the cooldown: {way}")
