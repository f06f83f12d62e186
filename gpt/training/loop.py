"""The one training loop, for pretraining and fine-tuning.

Step after step (step.py) until the budget is spent; between steps: save, evaluate, sample,
stop, as configured. On an accelerator the loop runs a step ahead of what it reports, so that the
device never waits for Python.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gpt.batches import MicroBatch, Origin, SizedBatches
from gpt.configuration import EvalConfig, RunSections
from gpt.errors import Stopped, TrainingFailed
from gpt.evaluation import Core
from gpt.machine.device import Machine, discard_unfinished_code
from gpt.machine.signals import Interrupted, resume_command
from gpt.model import GPT, flops_per_token
from gpt.optim import Optimizer, WeightAverage, lr_factor
from gpt.parallel import Layout
from gpt.runs import checkpoint
from gpt.runs.checkpoint import TrainState
from gpt.tokenizer import Tokenizer
from gpt.training.budget import Budget
from gpt.training.core import tell_core
from gpt.training.divergence import RECENT, Divergence, way_on
from gpt.training.evaluate import Measured, Score, validate
from gpt.training.guard import Guard, Way
from gpt.training.objective import Objective
from gpt.training.saves import Saves
from gpt.training.step import Step
from gpt.training.taken import Taken, by_name, training_bar
from gpt.training.telemetry import Log


@dataclass
class Trainer:
    """A model, what it learns from, and the run it belongs to.

    read: this process's micro-batches of a step. average: what is evaluated, sampled from and
    saved instead of the newest weights, where there is one. layout: how the model lies on devices;
    None: on one.

    Of several processes each has a Trainer of its own, and all do the same at the same time: rank
    0's clock is everyone's, and a signal that one has heard stops all.
    """

    model: GPT
    optimizer: Optimizer
    read: Callable[[int], list[MicroBatch]]
    validation: Callable[[], SizedBatches]
    tokenizer: Tokenizer
    config: RunSections
    budget: Budget
    machine: Machine
    folder: Path
    log: Log
    state: TrainState
    sample: Callable[[str], str]
    average: WeightAverage | None = None
    evaluate_first: bool = False  # also score the model before it learns
    measure: Callable[[], Measured] = lambda: Measured({}, [])  # what else an evaluation finds
    core: Callable[[], Core] | None = None  # the CORE metric, if it is measured
    objective: Objective | None = None
    best_by: str | None = None  # the figure that says which checkpoint is best; None: the loss
    layout: Layout | None = None
    origins: Callable[[int], list[list[list[Origin]]]] = lambda batch: []  # of a batch's sequences
    _clock: float = field(default=0.0, init=False)  # when the run would have begun, uninterrupted
    _mark: float = field(default=0.0, init=False)  # when the last step, or what followed it, ended
    _unreported: Taken | None = field(default=None, init=False)
    _scored: tuple[int, Score] | None = field(default=None, init=False)  # (step, its score)
    _cored: int | None = field(default=None, init=False)  # the step of the last CORE

    def run(self) -> Score | None:
        """Train until the budget is spent; returns the final score, if there is what to score.

        Raises Stopped after a signal, when everything is saved, and TrainingFailed for a loss that
        is not finite, unless train.on_nonfinite has another way: see guard.py.
        """
        self._clock = time.monotonic() - self.state.elapsed_seconds
        self._layout = self.layout or Layout(self.machine)
        self._saves = Saves(self.folder / "checkpoints", self.config, self.budget, self.state,
                            self._layout, self.log, self._contents)
        self._byte_lengths = torch.from_numpy(self.tokenizer.byte_lengths())
        self._flops_per_token = functools.cache(functools.partial(flops_per_token, self.model))
        self._update = Step(self.model, self.optimizer, self.machine, self.config.train.grad_clip,
                            self.state.loss_scale, self.log.say, self.average, self.objective,
                            self._layout)
        self._divergence = Divergence(self.config.train, self.state.losses)
        self._guard = Guard(self.folder, self.config, self.machine, self.log, self._divergence,
                            self._contents, self.origins, self._way_on)
        self.model.train()
        self.machine.agreed(0.0)
        with (closing(self._saves), training_bar(self.budget, self.state) as bar,
              no_garbage_collection()):
            self._mark = time.monotonic()
            while not self.budget.is_spent(self.state):
                self._between_steps(bar)
                if gave_up(self.config.eval, self.state.step, self._saves.best):
                    break
                self._step(bar)
                if self.budget.is_spent(self.state):
                    self._report_last(bar)
            self._report_last(bar)
            with self._averaged():
                return self._finish()

    def _step(self, bar: tqdm[Any]) -> None:
        """One optimizer update."""
        asked, step = time.monotonic(), self.state.step
        self.state.elapsed_seconds = self.machine.agreed(asked - self._clock)
        rates = self.optimizer.set_lr(
            lr_factor(self.config.optim, step, self.budget.progress(self.state)))
        batch = self.read(self.state.next_batch)
        waited = time.monotonic() - asked
        try:
            loss, norm = self._update.gradients(batch, lambda: self.machine.seed_step(step))
        except Exception:
            if self.machine.stop.signal_name is None or self.machine.ranks.size > 1:
                raise
            discard_unfinished_code()  # a terminal's Ctrl-C goes to a compiler at work as well
            return  # and the run leaves between steps
        if self._guard.judges_first and not self._update.skips_overflows:
            way = self._guard.way(self.state, float(loss), float(norm), batch)
            if way != "take":
                self._leave_out(way)
                return
        figures = self._update.figures
        told = self.machine.fetch(loss, norm, *figures.values())
        self._saves.before_change()
        self._update.apply()

        now, tokens = time.monotonic(), self._update.tokens
        self.state = replace(self.state, step=step + 1, tokens=self.state.tokens + tokens,
                             elapsed_seconds=self.machine.agreed(now - self._clock))
        taken = Taken(self.state, batch, told, list(figures), by_name(rates), tokens,
                      batch[0].inputs.size(1), now - self._mark, waited)
        self._mark = now
        self._report_last(bar)  # on an accelerator: the step before, while this one is computed
        if self.state is not taken.state:
            return  # back before both
        self._unreported = taken
        if not self.machine.runs_ahead:
            self._report_last(bar)

    def _report_last(self, bar: tqdm[Any]) -> None:
        """Report the last step, where that was not done yet."""
        taken, self._unreported = self._unreported, None
        if taken is not None:
            self._report(bar, taken)

    def _between_steps(self, bar: tqdm[Any]) -> None:
        """What is due before the next step: save first, since evaluating can fail."""
        self._saves.between_steps(self.state)
        step, config = self.state.step, self.config
        stop = self.machine.stop.everywhere
        save = step and (stop or self._saves.cooldown_begins(self.state)
                         or is_due(step, config.checkpoint.every_steps))
        score = is_due(step, config.eval.every_steps) if step else self.evaluate_first
        sample = step and is_due(step, config.log.samples_every_steps)
        core = step and is_due(step, config.eval.core_every_steps)
        if not (save or score or core or sample or stop):
            return
        self._report_last(bar)
        if self.state.step != step:
            return  # back to a checkpoint
        with self._averaged():
            if save:
                self._saves.save(self.state)
            if stop:
                self._leave(stop)
            with self._interruptible():
                if score:
                    self._evaluate()
                if core:
                    self._score_core()
                if sample:
                    self._sample()
        gc.collect()
        self._mark = time.monotonic()

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """A signal ends what is done here, and then the run."""
        try:
            yield
        except Interrupted:
            if self.state.step:
                self._saves.save(self.state)
            self.machine.agreed(0.0)
            assert self.machine.stop.everywhere is not None
            self._leave(self.machine.stop.everywhere)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights stand in the model meanwhile, where there are any, and it is ready
        to be measured."""
        average = contextlib.nullcontext() if self.average is None else self.average.in_model()
        with average, self._layout.measuring():
            try:
                yield
            finally:
                if self.average is not None:
                    self._saves.before_change()

    def _finish(self) -> Score | None:
        self._saves.save(self.state)
        with self._interruptible():
            score = self._evaluate()
            self._score_core()
        self._saves.wait()
        best = self._saves.best
        if not self.budget.is_spent(self.state) and best is not None:
            self._saves.note_best(replace(best, ended_at=self.state.step))
            self.log.say(f"no evaluation since step {best.step} found a lower loss; the best "
                         f"is kept in {checkpoint.steps_in(self._saves.folder)[best.step]}, "
                         f"and is what {self.folder} stands for")
        if self.config.log.samples_every_steps is not None:
            self._sample()
        self._saves.wait()
        self.log.event("end", self.state.step, tokens=self.state.tokens,
                       elapsed_seconds=time.monotonic() - self._clock)
        return score

    def _contents(self, state: TrainState) -> checkpoint.Contents:
        """What is saved of a state."""
        whole = replace(state, loss_scale=self._update.loss_scale,
                        losses=list(self._divergence.losses))
        return checkpoint.Contents.of(self.folder, self.model, self.optimizer, self.tokenizer,
                                      whole, self._layout)

    def _evaluate(self) -> Score | None:
        """Score the validation split, unless it is empty or this step has been; a new best is kept
        as a checkpoint."""
        if self._scored is not None and self._scored[0] == self.state.step:
            return self._scored[1]
        batches = self.validation()
        if not len(batches):
            return None
        state = self.state
        score, figures = validate(self.model, batches, self._byte_lengths, self.machine,
                                  self.config.eval.dtype, self.measure, self.log, state)
        self._scored = state.step, score
        decides = score.loss if self.best_by is None else figures[self.best_by]
        if self._saves.is_best(state.step, decides):
            self._saves.save(self.state)
            self._saves.note_best(checkpoint.Best(state.step, decides))
        return score

    def _score_core(self) -> None:
        """The CORE metric, unless this step has been scored."""
        if self.core is not None and self._cored != self.state.step:
            tell_core(self.model, self.core, self.config.eval.dtype, self.log, self.state)
            self._cored = self.state.step

    def _sample(self) -> None:
        for prompt in self.config.log.sample_prompts:
            self.log.sample(self.state.step, prompt, self.sample(prompt))

    def _leave(self, signal_name: str) -> None:
        self._saves.wait()
        saved = f"saved in {self.folder}" if self.state.step else "nothing was learned yet"
        self.log.event("end", self.state.step, tokens=self.state.tokens,
                       elapsed_seconds=self.state.elapsed_seconds, stopped_by=signal_name)
        raise self.machine.ranks.alike(Stopped(
            f"stopped by {signal_name} at step {self.state.step}; {saved}; to continue: "
            f"{resume_command()}"))

    def _report(self, bar: tqdm[Any], taken: Taken) -> None:
        """A line of metrics.jsonl, and the progress bar. Raises TrainingFailed."""
        state, told = taken.state, taken.told()
        if not self._guard.judges_first and not self._update.skips_overflows:
            before = replace(state, step=state.step - 1)
            if self._guard.way(before, told[0], told[1], taken.batch) == "rollback":
                self._go_back(before)
                return
        logged = self.log if state.step % self.config.log.every_steps == 0 else None
        taken.report(told, self._flops_per_token(taken.sequence_tokens), self.machine, logged, bar)
        done = state.elapsed_seconds if self.budget.seconds else state.step
        bar.update(min(done, self.budget.seconds or done) - bar.n)

    def _leave_out(self, way: Way) -> None:
        """A step's gradient changes nothing."""
        self._update.leave_out()
        before, self._mark = self.state, time.monotonic()
        if way == "rollback":
            self._go_back(before)
            return
        self.state = replace(before, step=before.step + 1,
                             tokens=before.tokens + self._update.tokens,
                             elapsed_seconds=self.machine.agreed(self._mark - self._clock))

    def _way_on(self) -> str:
        self._saves.wait()
        return way_on(self.optimizer, self._saves.folder)

    def _go_back(self, before: TrainState) -> None:
        """To the newest checkpoint; from there on with the data behind that of the step after
        `before`."""
        self._saves.wait()
        newest = self.machine.ranks.first(lambda: checkpoint.newest_sound(self._saves.folder))
        if newest is None:
            raise self.machine.ranks.alike(TrainingFailed(
                f"step {before.step}: there is no checkpoint yet to go back to; {self._way_on()}"))
        state = checkpoint.load_training(newest, self.model, self.optimizer, self._layout)
        if self.average is not None:
            self.average.reloaded()
        self.state = replace(state, passed_over=before.next_batch + 1 - state.step)
        self._divergence.losses = deque(state.losses, RECENT)
        self._saves.went_back(state)
        self._scored = self._cored = None
        self.log.rewind(state.step)
        self.log.warn(state.step, f"back at {newest.name}, with the data behind that of step "
                                  f"{before.step}")

def gave_up(config: EvalConfig, step: int, best: checkpoint.Best | None) -> bool:
    """Whether eval.patience is at its end."""
    if config.patience is None or config.every_steps is None or best is None:
        return False
    return step - best.step >= config.patience * config.every_steps


def is_due(step: int, every_steps: int | None) -> bool:
    """Whether something that happens every so many steps happens now."""
    return every_steps is not None and step % every_steps == 0


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector of reference cycles pauses a long run for half a second now and then."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
