"""The one training loop, for pretraining and fine-tuning.

Step after step (step.py) until the budget is spent; between steps: save, evaluate, sample,
stop, as configured. On an accelerator the loop runs a step ahead of what it reports, so that the
device never waits for Python.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gpt.batches import MicroBatch, SizedBatches
from gpt.configuration import EvalConfig, RunSections
from gpt.errors import Stopped, TrainingFailed
from gpt.machine.device import Machine, discard_unfinished_code
from gpt.machine.progress import progress_bar
from gpt.machine.signals import Interrupted, resume_command
from gpt.model import GPT, flops_per_token
from gpt.optim import Optimizer, WeightAverage, lr_factor
from gpt.parallel import Layout
from gpt.runs import checkpoint
from gpt.tokenizer import Tokenizer
from gpt.training.budget import Budget
from gpt.training.divergence import way_on
from gpt.training.evaluate import Measured, Score, evaluate, in_format
from gpt.training.objective import Objective
from gpt.training.saves import Saves
from gpt.training.step import Step
from gpt.training.telemetry import Log


@dataclass(frozen=True)
class Taken:
    """A step that was taken, before the device was asked what came of it.

    told: the loss, the gradient's norm, and the objective's figures.
    """

    state: checkpoint.TrainState
    told: Callable[[], list[float]]
    figures: list[str]
    rates: dict[str, float]
    tokens: int
    sequence_tokens: int
    seconds: float
    data_seconds: float


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
    state: checkpoint.TrainState
    sample: Callable[[str], str]
    average: WeightAverage | None = None
    evaluate_first: bool = False  # also score the model before it learns
    measure: Callable[[], Measured] = lambda: Measured({}, [])  # what else an evaluation finds
    objective: Objective | None = None
    best_by: str | None = None  # the figure that says which checkpoint is best; None: the loss
    layout: Layout | None = None
    _clock: float = field(default=0.0, init=False)  # when the run would have begun, uninterrupted
    _mark: float = field(default=0.0, init=False)  # when the last step, or what followed it, ended
    _unreported: Taken | None = field(default=None, init=False)
    _scored: tuple[int, Score] | None = field(default=None, init=False)  # (step, its score)

    def run(self) -> Score | None:
        """Train until the budget is spent; returns the final score, if there is what to score.

        Raises Stopped after a signal, when everything is saved, and TrainingFailed for a loss that
        is not finite: on a CPU before it reaches the weights, elsewhere before they are saved.
        """
        self._clock = time.monotonic() - self.state.elapsed_seconds
        self._layout = self.layout or Layout(self.machine)
        self._saves = Saves(self.folder / "checkpoints", self.config, self.budget, self.state,
                            self._layout, self.log)
        self._byte_lengths = torch.from_numpy(self.tokenizer.byte_lengths())
        self._flops_per_token = functools.cache(functools.partial(flops_per_token, self.model))
        self._update = Step(self.model, self.optimizer, self.machine, self.config.train.grad_clip,
                            self.state.loss_scale, self.log.say, self.average, self.objective,
                            self._layout)
        self.model.train()
        self.machine.agreed(0.0)
        with self._progress_bar() as bar, no_garbage_collection():
            self._mark = time.monotonic()
            while not self.budget.is_spent(self.state):
                self._between_steps(bar)
                if gave_up(self.config.eval, self.state.step, self._saves.best):
                    break
                self._step(bar)
            self._report_last(bar)
        with self._averaged():
            return self._finish()

    def _step(self, bar: tqdm[Any]) -> None:
        """One optimizer update."""
        asked, step = time.monotonic(), self.state.step
        self.state.elapsed_seconds = self.machine.agreed(asked - self._clock)
        rates = self.optimizer.set_lr(
            lr_factor(self.config.optim, step, self.budget.progress(self.state)))
        batch = self.read(step)
        waited = time.monotonic() - asked
        try:
            loss, norm = self._update.gradients(batch, lambda: self.machine.seed_step(step))
        except Exception:
            if self.machine.stop.signal_name is None or self.machine.ranks.size > 1:
                raise
            discard_unfinished_code()  # a terminal's Ctrl-C goes to a compiler at work as well
            return  # and the run leaves between steps
        if not self.machine.runs_ahead:
            self._refuse_non_finite(step, float(loss), float(norm))
        figures = self._update.figures
        told = self.machine.fetch(loss, norm, *figures.values())
        self._update.apply()

        now, tokens = time.monotonic(), self._update.tokens
        self.state = checkpoint.TrainState(step + 1, self.state.tokens + tokens,
                                           self.machine.agreed(now - self._clock))
        taken = Taken(self.state, told, list(figures), _by_name(rates), tokens,
                      batch[0].inputs.size(1), now - self._mark, waited)
        self._mark = now
        self._report_last(bar)  # on an accelerator: the step before, while this one is computed
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
        step, config = self.state.step, self.config
        stop = self.machine.stop.everywhere
        save = step and (stop or self._saves.cooldown_begins(self.state)
                         or is_due(step, config.checkpoint.every_steps))
        score = is_due(step, config.eval.every_steps) if step else self.evaluate_first
        sample = step and is_due(step, config.log.samples_every_steps)
        if not (save or score or sample or stop):
            return
        self._report_last(bar)
        with self._averaged():
            if save:
                self._save()
            if stop:
                self._leave(stop)
            with self._interruptible():
                if score:
                    self._evaluate()
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
                self._save()
            self.machine.agreed(0.0)
            assert self.machine.stop.everywhere is not None
            self._leave(self.machine.stop.everywhere)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights stand in the model meanwhile, where there are any, and it is ready
        to be measured."""
        average = contextlib.nullcontext() if self.average is None else self.average.in_model()
        with average, self._layout.measuring():
            yield

    def _finish(self) -> Score | None:
        self._save()
        with self._interruptible():
            score = self._evaluate()
        best = self._saves.best
        if not self.budget.is_spent(self.state) and best is not None:
            self._saves.note_best(replace(best, ended_at=self.state.step))
            self.log.say(f"no evaluation since step {best.step} found a lower loss; the best "
                         f"is kept in {checkpoint.steps_in(self._saves.folder)[best.step]}, "
                         f"and is what {self.folder} stands for")
        if self.config.log.samples_every_steps is not None:
            self._sample()
        self.log.event("end", self.state.step, tokens=self.state.tokens,
                       elapsed_seconds=time.monotonic() - self._clock)
        return score

    def _save(self) -> None:
        self._saves.save(self.model, self.optimizer, self.tokenizer, self.state,
                         self._update.loss_scale)

    def _evaluate(self) -> Score | None:
        """Score the validation split, unless it is empty or this step has been; a new best is kept
        as a checkpoint."""
        if self._scored is not None and self._scored[0] == self.state.step:
            return self._scored[1]
        batches = self.validation()
        if not len(batches):
            return None
        with progress_bar("evaluating", len(batches), "batch") as bar:
            score = evaluate(self.model, batches, self._byte_lengths,
                             self.machine.measuring(self.config.eval.dtype), bar.update)
        state = self.state
        self.model.eval()
        figures, texts = self.measure()
        self.model.train()
        self.log.event("eval", state.step, tokens=state.tokens,
                       elapsed_seconds=state.elapsed_seconds, val_loss=score.loss,
                       val_bits_per_byte=score.bits_per_byte, dtype=self.config.eval.dtype,
                       **{f"val_{name}": value for name, value in figures.items()})
        self.log.say(", ".join([
            f"step {state.step}: validation loss {score.loss:.4f} nats per token",
            f"{score.bits_per_byte:.4f} bits per byte{in_format(self.config.eval.dtype)}",
            *(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())]))
        for prompt, text in texts:
            self.log.sample(state.step, prompt, text)
        self._scored = state.step, score
        decides = score.loss if self.best_by is None else figures[self.best_by]
        if self._saves.is_best(state.step, decides):
            self._save()
            self._saves.note_best(checkpoint.Best(state.step, decides))
        return score

    def _sample(self) -> None:
        for prompt in self.config.log.sample_prompts:
            self.log.sample(self.state.step, prompt, self.sample(prompt))

    def _leave(self, signal_name: str) -> None:
        saved = f"saved in {self.folder}" if self.state.step else "nothing was learned yet"
        self.log.event("end", self.state.step, tokens=self.state.tokens,
                       elapsed_seconds=self.state.elapsed_seconds, stopped_by=signal_name)
        raise self.machine.ranks.alike(Stopped(
            f"stopped by {signal_name} at step {self.state.step}; {saved}; to continue: "
            f"{resume_command()}"))

    def _report(self, bar: tqdm[Any], taken: Taken) -> None:
        """A line of metrics.jsonl, and the progress bar. Raises TrainingFailed."""
        state, (loss, norm, *figures) = taken.state, taken.told()
        self._refuse_non_finite(state.step - 1, loss, norm)
        rate = taken.tokens / taken.seconds
        flops = self._flops_per_token(taken.sequence_tokens)
        mfu = flops * rate / (self.machine.ranks.size * self.machine.peak_flops)
        if state.step % self.config.log.every_steps == 0:
            self.log.event("train", state.step, tokens=state.tokens,
                           elapsed_seconds=state.elapsed_seconds, loss=loss, **taken.rates,
                           grad_norm=norm, data_seconds=taken.data_seconds,
                           tokens_per_second=rate, flops_per_token=flops, mfu=mfu,
                           peak_memory_bytes=self.machine.peak_memory_bytes(),
                           **dict(zip(taken.figures, figures, strict=True)))
        bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tok/s, {mfu:.0%} of peak",
                            refresh=False)
        done = state.elapsed_seconds if self.budget.seconds else state.step
        bar.update(min(done, self.budget.seconds or done) - bar.n)

    def _refuse_non_finite(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss + norm) or self._update.skips_overflows:
            return
        kept = "were not saved" if self.machine.runs_ahead else "were not changed"
        raise self.machine.ranks.alike(TrainingFailed(
            f"step {step}: the loss is {loss} and the gradient norm {norm}; the weights {kept}; "
            f"{way_on(self.optimizer, self._saves.folder)}"))

    def _progress_bar(self) -> tqdm[Any]:
        if self.budget.seconds is not None:
            layout = ("{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s, "
                      "{remaining} left{postfix}")
            return progress_bar("training", self.budget.seconds, "s",
                                initial=self.state.elapsed_seconds, bar_format=layout)
        assert self.budget.steps is not None
        return progress_bar("training", self.budget.steps, "step", initial=self.state.step)


def gave_up(config: EvalConfig, step: int, best: checkpoint.Best | None) -> bool:
    """Whether eval.patience is at its end."""
    if config.patience is None or config.every_steps is None or best is None:
        return False
    return step - best.step >= config.patience * config.every_steps


def is_due(step: int, every_steps: int | None) -> bool:
    """Whether something that happens every so many steps happens now."""
    return every_steps is not None and step % every_steps == 0


def _by_name(rates: dict[str, float]) -> dict[str, float]:
    """Learning rates as metrics.jsonl has them: `lr` is AdamW's, the others carry their group."""
    adamw = next((name for name in rates if name != "matrices"), "matrices")
    return {"lr": rates[adamw]} | {f"lr_{group}": rate for group, rate in rates.items()}


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector of reference cycles pauses a long run for half a second now and then."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
