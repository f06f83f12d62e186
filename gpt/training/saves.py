"""What of a run is saved: which checkpoints are kept, and which of them is the best."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from gpt.configuration import RunSections
from gpt.machine.hardware import available_bytes
from gpt.parallel import Layout
from gpt.runs import checkpoint
from gpt.runs.checkpoint import Best, Contents, InOrder, Room, TrainState
from gpt.training.budget import Budget
from gpt.training.cooldown import BeforeCooldown
from gpt.training.telemetry import Log

SHARE = 0.8  # of the memory that is left, at most, for a copy of what is saved


class Saves:
    """The checkpoints of a run: the newest, the best, and the one before the cooldown.

    All processes of a run have one, and do the same; rank 0 writes, but for large weights. What is
    saved is copied, and written by a thread while training goes on; one after the other, so that
    there is one copy. It is not to change until it is copied: `before_change` waits for that.
    `between_steps` raises what made a write fail; after that nothing more is done.
    """

    def __init__(self, folder: Path, config: RunSections, budget: Budget, state: TrainState,
                 layout: Layout, log: Log, contents_of: Callable[[TrainState], Contents]):
        """contents_of: what there is to save of a state."""
        self.folder, self._config, self._layout, self._log = folder, config, layout, log
        self._contents_of, self._begun_at = contents_of, state.step
        self._ranks = layout.machine.ranks
        self._cooldown = BeforeCooldown(config, budget, folder, state)
        self._thread = InOrder() if config.checkpoint.background else None
        self._room: Room = {}
        self._copying: Future[None] | None = None
        self._is_decided = False  # whether there is memory for copies
        self.went_back(state)

    def went_back(self, state: TrainState) -> None:
        """Training goes on from this state."""
        self._saved_step, self.best = self._ranks.first(lambda: self._there(state.step))

    def _there(self, step: int) -> tuple[int | None, Best | None]:
        """(the step that training goes on from, if it is saved here; the best checkpoint)"""
        here = checkpoint.steps_in(self.folder).get(step)
        return (step if here and not checkpoint.damage(here) else None,
                checkpoint.read_best(self.folder, step))

    def cooldown_begins(self, state: TrainState) -> bool:
        """Whether this state is to be kept as the last one before the learning rate falls."""
        return state.step > 0 and self._cooldown.begins(state)

    def save(self, state: TrainState) -> None:
        """Save this step, unless it is saved already."""
        if state.step != self._saved_step:
            self.wait()  # for the last one: there is one copy
            contents = self._contents_of(state)
            copies = self._copies(contents)
            self._do(self._log.to_disk)
            if copies:
                self._write_copy(contents)
            else:
                checkpoint.write(self.folder, contents, self._config.checkpoint.shard_size)
            self._saved_step = state.step
            self._prune()
            # Told now, so that lines are in the order of steps. If it is not written, the run
            # fails, and when it is continued this line goes.
            self._log.event("save", state.step, tokens=state.tokens,
                            elapsed_seconds=state.elapsed_seconds, path=f"step-{state.step:08d}")
        if self.cooldown_begins(state):
            self._do(self._cooldown.keep(state))

    def _write_copy(self, contents: Contents) -> None:
        """Copy, and write the copy; on a processor the thread copies, too."""
        copies: list[Contents] = []

        def copy() -> None:
            copies.append(contents.copied(self._room))

        if self._layout.keeps_weights_whole and self._layout.machine.device.type == "cpu":
            self._copying = self._do(copy)
        else:
            copy()
        size = self._config.checkpoint.shard_size
        self._do(lambda: checkpoint.write(self.folder, copies[0], size))

    def before_change(self) -> None:
        """Until what is being saved may change, since it is copied."""
        if self._copying is not None:
            self._copying.result()
            self._copying = None

    def _copies(self, contents: Contents) -> bool:
        """Whether what is saved is copied first; what forbids it is said once."""
        if self._thread is not None and not self._is_decided:  # by all processes together
            self._is_decided = True
            reason = self._ranks.first(lambda: self._no_copy(contents))
            if reason is not None:
                self.close()
                self._thread = None
                self._log.say(f"training waits while checkpoints are written: {reason}")
        return self._thread is not None

    def _no_copy(self, contents: Contents) -> str | None:
        wanted, left = contents.tensor_bytes, available_bytes()
        if self._ranks.size > 1 and wanted > self._config.checkpoint.shard_size:
            return ("each process writes its part of weights and optimizer state that are larger "
                    "than checkpoint.shard_size")
        if left is not None and wanted > SHARE * left:
            return f"a copy would take {wanted:,} bytes of memory, and {left:,} are left"
        return None

    def is_best(self, step: int, figure: float) -> bool:
        """Whether an evaluation found less than all before."""
        return step > 0 and (self.best is None or figure < self.best.val_loss)

    def note_best(self, best: Best) -> None:
        """A checkpoint that has just been saved is the best, or the run ended without a better."""
        self.best = best
        self._do(functools.partial(checkpoint.write_best, self.folder, best))
        self._prune()

    def between_steps(self, state: TrainState) -> None:
        """Raise what made a save fail, if it is known by now. After the first step, which made the
        optimizer's state, take the memory for copies, if there will be several."""
        if self._thread is None:
            return
        self._thread.check()
        if state.step == self._begun_at + 1 and self._config.checkpoint.every_steps is not None:
            contents = self._contents_of(state)
            if self._copies(contents):
                self._do(lambda: contents.make_room(self._room))

    def wait(self) -> None:
        """Until all is written, everywhere. Raises what made it fail."""
        if self._thread is not None:
            self._ranks.first(self._thread.wait, patiently=True)

    def close(self) -> None:
        """Let what is being written come to its end."""
        if self._thread is not None:
            self._thread.close()

    def _prune(self) -> None:
        if self._saved_step is not None:
            self._do(functools.partial(
                checkpoint.prune, self.folder, self._config.checkpoint.keep, self._saved_step,
                {self.best.step if self.best else None, self._cooldown.step},
                self._config.checkpoint.keep_every_steps))

    def _do(self, work: Callable[[], object]) -> Future[None] | None:
        """On rank 0, once everything before it is done."""
        if not self._ranks.is_first:
            return None
        if self._thread is not None:
            return self._thread.do(work)
        work()
        return None
