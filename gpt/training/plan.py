"""What a run will cost, before it costs anything: memory and time."""

from __future__ import annotations

import bisect
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpt.batches import Batches
from gpt.machine.device import Machine
from gpt.model import GPT, activation_bytes, flops_per_token, parameter_count
from gpt.optim import Rates, weights_by_kind
from gpt.training.budget import Budget
from gpt.training.cross_entropy import rows_at_a_time
from gpt.training.step import Step

TIMED_STEPS, TIMED_SECONDS = 5, 3.0  # at least


def memory_by_kind(model: GPT, rates: Rates, tokens: int, recompute: bool = False,
                   device: torch.device | None = None, copied: bool = False) -> dict[str, int]:
    """Bytes that training holds, by what for: estimated for activations and logits, else exact.

    tokens: of a micro-batch. device: where it is to train; None: where the model is. copied: what
    is saved is copied first, to the same memory.
    """
    by_kind, config = weights_by_kind(model), model.config
    weights = sum(p.nbytes for p in model.parameters())
    learned = sum(p.nbytes for kind in by_kind.values() for p in kind)
    optimizer = 2 * learned
    if rates.name == "muon":  # one average where AdamW has two
        optimizer -= sum(p.nbytes for p in by_kind.get("matrices", ()))
    if rates.ema_decay is not None:
        optimizer += learned
    assert config.vocab_size is not None
    at_once = rows_at_a_time(config.vocab_size, device or model.output_weight.device)
    logits = 2 * 4 * min(tokens, at_once) * config.vocab_size  # a chunk, and its gradient
    found = {"weights": weights, "gradients": learned, "optimizer": optimizer,
             "activations": activation_bytes(config, recompute) * tokens,
             "logits": logits + model.output_weight.nbytes}
    saved = learned + optimizer if model.adapter is not None else weights + optimizer
    return found | ({"a copy to save": saved} if copied else {})


def memory_line(model: GPT, rates: Rates, tokens: int, recompute: bool = False,
                device: torch.device | None = None, copied: bool = False) -> str:
    """`memory_by_kind` for people."""
    kinds = memory_by_kind(model, rates, tokens, recompute, device, copied)
    parts = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in kinds.items())
    return f"memory in MiB, at most about: {parts}; {sum(kinds.values()) / 2**20:,.1f} in all"


@dataclass(frozen=True)
class Plan:
    """Figures of `--dry-run`; seconds and bytes are measured in a few real steps."""

    parameters: int
    flops_per_token: int
    tokens_per_step: int
    steps: int
    seconds_per_step: float
    seconds_besides: float  # evaluating and saving, in the whole run
    seconds_after: float  # of these, once the last step is taken
    peak_memory_bytes: int

    @property
    def seconds(self) -> float:
        """Of the whole run, from the first step on."""
        return self.steps * self.seconds_per_step + self.seconds_besides

    def __str__(self) -> str:
        tokens = self.tokens_per_step * self.steps
        rate = self.tokens_per_step / self.seconds_per_step
        return "\n".join([
            f"parameters        {self.parameters:,}",
            f"FLOPs per token   {self.flops_per_token:,}",
            f"tokens            {tokens:,} in {self.steps:,} steps of {self.tokens_per_step:,}",
            f"peak memory       {self.peak_memory_bytes / 2**20:,.0f} MiB (measured)",
            f"time              {self.seconds / 60:,.2f} minutes at {rate:,.0f} tokens/s; "
            f"{self.seconds_besides / 60:,.2f} of them to evaluate and save (measured)"])


@dataclass(frozen=True)
class Work:
    """Something that a run does now and then, and at the end.

    do: does `share` of it. every_steps: whenever one of these numbers of steps is full (an
    evaluation that finds the best loss so far is saved, as most are). first: also before step one.
    """

    do: Callable[[], object]
    every_steps: tuple[int | None, ...] = ()
    first: bool = False
    share: float = 1.0

    def times(self, steps: int) -> int:
        """How often in a run of so many steps."""
        due = {step for every in self.every_steps if every for step in range(every, steps, every)}
        return self.first + len(due) + 1


def measure_plan(model: GPT, step: Step, batches: Batches, budget: Budget, besides: list[Work],
                 machine: Machine) -> Plan:
    """Do a little of everything with a model that nothing else needs, and multiply."""
    def learn(number: int) -> None:
        step.gradients(batches.step(number), lambda: machine.seed_step(number))
        step.apply()

    first = _seconds_of(machine, lambda: learn(0))  # allocates, and compiles
    durations: list[float] = []
    while len(durations) < TIMED_STEPS or sum(durations) < TIMED_SECONDS:
        durations.append(_seconds_of(machine, lambda: learn(1 + len(durations))))
    per_step = statistics.median(durations)
    costs = [(_seconds_of(machine, work.do) / work.share, work) for work in besides]
    seconds_after = sum(seconds for seconds, _ in costs)

    def seconds_besides(steps: int) -> float:
        return first - per_step + sum(seconds * work.times(steps) for seconds, work in costs)

    def seconds_on_the_clock(steps: int) -> float:
        return steps * per_step + seconds_besides(steps) - seconds_after

    steps = budget.steps
    if steps is None:
        assert budget.seconds is not None
        steps = bisect.bisect(range(1, 2 + int(budget.seconds / per_step)), budget.seconds,
                              key=seconds_on_the_clock) or 1
    return Plan(parameter_count(model), flops_per_token(model),
                sum(part.tokens for part in batches.step(0)), steps, per_step,
                seconds_besides(steps), seconds_after, machine.peak_memory_bytes())


def _seconds_of(machine: Machine, work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    machine.wait()
    return time.monotonic() - start
