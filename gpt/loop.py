"""The one training loop, for pretraining and fine-tuning.

A step: for each micro-batch of the global batch, add up the gradient of its summed loss divided by
the global number of supervised tokens; clip; update. So the result depends on the global batch
alone, not on how it was cut. Between steps: save, evaluate, sample, stop, as configured.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpt import checkpoint
from gpt.batches import MicroBatch, SizedBatches
from gpt.config import RunSections, TrainConfig
from gpt.errors import Stopped, TrainingFailed, UserError
from gpt.evaluate import Score, evaluate, summed_loss
from gpt.model import GPT, flops_per_token
from gpt.optim import lr_factor
from gpt.runtime import Machine
from gpt.signals import resume_command
from gpt.telemetry import RunLog, progress_bar
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or a number of seconds."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, train: TrainConfig, sequences_per_epoch: int, tokens_per_sequence: float) -> Budget:
        """The budget that the configuration names; one epoch if it names none."""
        if train.max_minutes is not None:
            return cls(seconds=60 * train.max_minutes)
        if train.steps is not None:
            return cls(steps=train.steps)
        if train.tokens is not None:
            tokens_per_step = train.batch_size * tokens_per_sequence
            if train.tokens < tokens_per_step:
                raise UserError(f"train.tokens={train.tokens} is less than one step of "
                                f"{tokens_per_step:.0f} tokens; raise it, or lower "
                                "train.batch_size")
            return cls(steps=int(train.tokens / tokens_per_step))
        sequences = (train.epochs or 1.0) * sequences_per_epoch
        return cls(steps=math.ceil(sequences / train.batch_size))

    def progress(self, state: checkpoint.TrainState) -> float:
        """The share of the run that lies behind, 0 to 1."""
        if self.seconds is not None:
            return min(1.0, state.elapsed_seconds / self.seconds)
        assert self.steps is not None
        return min(1.0, state.step / self.steps)

    def is_spent(self, state: checkpoint.TrainState) -> bool:
        """Whether the run is over."""
        return self.progress(state) >= 1.0


@dataclass
class Trainer:
    """A model, what it learns from, and the run it belongs to.

    read: the micro-batches of a step.
    """

    model: GPT
    optimizer: torch.optim.Optimizer
    peak_lr: float
    read: Callable[[int], list[MicroBatch]]
    validation: Callable[[], SizedBatches]
    tokenizer: Tokenizer
    config: RunSections
    budget: Budget
    machine: Machine
    folder: Path
    log: RunLog
    state: checkpoint.TrainState
    sample: Callable[[str], str]
    evaluate_first: bool = False  # also score the model before it learns
    _clock: float = field(default=0.0, init=False)

    def run(self) -> Score:
        """Train until the budget is spent; returns the final score.

        Raises Stopped after a signal, when everything is saved, and TrainingFailed for a loss that
        is not finite, before it reaches the weights.
        """
        self._clock = time.monotonic() - self.state.elapsed_seconds
        here = checkpoint.steps_in(self._checkpoints).get(self.state.step)
        self._saved_step = self.state.step if here and not checkpoint.damage(here) else None
        self._best = checkpoint.read_best(self._checkpoints, self.state.step)
        self._byte_lengths = torch.from_numpy(self.tokenizer.byte_lengths())
        self.model.train()
        gc.collect()
        gc.freeze()  # what lives through the whole run need not be looked at again
        with self._progress_bar() as bar:
            while not self.budget.is_spent(self.state):
                self._between_steps()
                self._step(bar)
        return self._finish()

    def _step(self, bar: tqdm[Any]) -> None:
        """One optimizer update, logged."""
        started = time.monotonic()
        lr = self._set_learning_rate()
        self.machine.seed_step(self.state.step)
        asked = time.monotonic()
        batch = self.read(self.state.step)
        waited = time.monotonic() - asked
        loss = accumulate_gradients(self.model, batch, self.machine)
        norm = clip_gradients(self.model, self.config.train.grad_clip)
        if not math.isfinite(loss + norm):
            raise TrainingFailed(self._not_finite(loss, norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        now, tokens = time.monotonic(), sum(part.tokens for part in batch)
        self.state.step += 1
        self.state.tokens += tokens
        self.state.elapsed_seconds = now - self._clock
        self._report(bar, batch[0].inputs.size(1), tokens, now - started, loss=loss, lr=lr,
                     grad_norm=norm, data_seconds=waited)

    def _set_learning_rate(self) -> float:
        factor = lr_factor(self.config.optim, self.state.step, self.budget.progress(self.state))
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * factor
        return self.peak_lr * factor

    def _between_steps(self) -> None:
        """What is due before the next step: save first, since evaluating can fail."""
        step, config = self.state.step, self.config
        stop = self.machine.stop.signal_name
        if step and (stop or is_due(step, config.checkpoint.every_steps)):
            self._save()
        if stop:
            self._leave(stop)
        if is_due(step, config.eval.every_steps) if step else self.evaluate_first:
            self._evaluate()
        if step and is_due(step, config.log.samples_every_steps):
            self._sample()

    def _finish(self) -> Score:
        self._save()
        score = self._evaluate()
        if self.config.log.samples_every_steps is not None:
            self._sample()
        self.log.event("end", self.state.step, tokens=self.state.tokens,
                       elapsed_seconds=self.state.elapsed_seconds)
        return score

    def _save(self) -> None:
        """Save this step, unless it is saved already."""
        if self.state.step == self._saved_step:
            return
        path = checkpoint.save(self._checkpoints, self.model, self.optimizer, self.tokenizer,
                               self.state)
        self._saved_step = self.state.step
        self._prune()
        self.log.event("save", self.state.step, tokens=self.state.tokens,
                       elapsed_seconds=self.state.elapsed_seconds, path=path.name)

    def _evaluate(self) -> Score:
        """Score the validation split; a new best is kept as a checkpoint."""
        batches = self.validation()
        with progress_bar("evaluating", len(batches), "batch") as bar:
            score = evaluate(self.model, batches, self._byte_lengths, self.machine, bar.update)
        state = self.state
        self.log.event("eval", state.step, tokens=state.tokens,
                       elapsed_seconds=state.elapsed_seconds, val_loss=score.loss,
                       val_bits_per_byte=score.bits_per_byte)
        self.log.say(f"step {state.step}: validation loss {score.loss:.4f} nats per token, "
                     f"{score.bits_per_byte:.4f} bits per byte")
        if state.step and (self._best is None or score.loss < self._best.val_loss):
            self._save()
            self._best = checkpoint.Best(state.step, score.loss)
            checkpoint.write_best(self._checkpoints, self._best)
            self._prune()
        return score

    def _prune(self) -> None:
        checkpoint.prune(self._checkpoints, self.config.checkpoint.keep, self.state.step,
                         self._best)

    def _sample(self) -> None:
        for prompt in self.config.log.sample_prompts:
            self.log.sample(self.state.step, prompt, self.sample(prompt))

    def _leave(self, signal_name: str) -> None:
        saved = f"saved in {self.folder}" if self.state.step else "nothing was learned yet"
        self.log.event("end", self.state.step, tokens=self.state.tokens,
                       elapsed_seconds=self.state.elapsed_seconds, stopped_by=signal_name)
        raise Stopped(f"stopped by {signal_name} at step {self.state.step}; {saved}; to continue: "
                      f"{resume_command()}")

    def _report(self, bar: tqdm[Any], sequence_tokens: int, tokens: int, seconds: float,
                **measured: float) -> None:
        """A line of metrics.jsonl, and the progress bar."""
        state, rate = self.state, tokens / seconds
        mfu = flops_per_token(self.model, sequence_tokens) * rate / self.machine.peak_flops
        if state.step % self.config.log.every_steps == 0:
            self.log.event("train", state.step, tokens=state.tokens,
                           elapsed_seconds=state.elapsed_seconds, **measured,
                           tokens_per_second=rate, mfu=mfu,
                           peak_memory_bytes=self.machine.peak_memory_bytes())
        bar.set_postfix_str(f"loss {measured['loss']:.3f}, {rate:,.0f} tok/s, {mfu:.0%} of peak",
                            refresh=False)
        done = state.elapsed_seconds if self.budget.seconds else state.step
        bar.update(min(done, self.budget.seconds or done) - bar.n)

    def _progress_bar(self) -> tqdm[Any]:
        if self.budget.seconds is not None:
            layout = ("{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s, "
                      "{remaining} left{postfix}")
            return progress_bar("training", self.budget.seconds, "s",
                                initial=self.state.elapsed_seconds, bar_format=layout)
        assert self.budget.steps is not None
        return progress_bar("training", self.budget.steps, "step", initial=self.state.step)

    def _not_finite(self, loss: float, norm: float) -> str:
        return (f"step {self.state.step}: the loss is {loss} and the gradient norm {norm}; the "
                "weights were not changed. Lower optim.lr or raise optim.warmup_steps, then "
                f"continue from the newest checkpoint: {resume_command()}")

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def accumulate_gradients(model: GPT, batch: list[MicroBatch], machine: Machine) -> float:
    """Gradients of the mean loss over the whole batch's supervised tokens; returns that loss.

    Each micro-batch adds its summed loss over the global count, never a mean of its own: however
    the batch is cut, and however unevenly supervised tokens are spread, the sum is the same.
    """
    supervised = sum(part.supervised_tokens for part in batch)
    total: Tensor | float = 0.0
    for part in batch:
        with machine.autocast():
            loss = summed_loss(model, part.on(machine)) / max(1, supervised)
        loss.backward()
        total = total + loss.detach()
    return float(total)


def clip_gradients(model: nn.Module, limit: float) -> float:
    """Scale gradients to a norm of at most `limit` (0: leave them); returns the norm before."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit or math.inf)
    return float(norm)


def is_due(step: int, every_steps: int | None) -> bool:
    """Whether something that happens every so many steps happens now."""
    return every_steps is not None and step % every_steps == 0
