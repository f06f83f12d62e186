"""What a run will cost, before it costs anything: micro-batch size, memory, time."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from dataclasses import dataclass

import torch

from gpt.batches import Batches
from gpt.config import ModelConfig, TrainConfig
from gpt.cross_entropy import CHUNK_FLOATS
from gpt.loop import Budget, accumulate_gradients, clip_gradients
from gpt.model import GPT, flops_per_token, parameter_count
from gpt.runtime import Machine

TIMED_STEPS = 3


def choose_micro_batch_size(train: TrainConfig, model: ModelConfig, machine: Machine) -> int:
    """Sequences per backward pass: as configured, or as many as memory is set aside for."""
    if train.micro_batch_size != "auto":
        return min(train.micro_batch_size, train.batch_size)
    per_token = activation_bytes(model, train.recompute_activations)
    fitting = activation_budget(machine) // (per_token * model.block_size)
    return max(1, min(train.batch_size, fitting))


def activation_budget(machine: Machine) -> int:
    """Bytes that one micro-batch may keep for its backward pass.

    On a GPU most of what is free. On a CPU little, since larger ones only leave the caches.
    """
    if machine.device.type == "cuda":
        return int(0.6 * torch.cuda.mem_get_info(machine.device)[0])
    total = 8 << 30
    with contextlib.suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(2 << 30, total // 8)


def activation_bytes(model: ModelConfig, recompute: bool) -> int:
    """Bytes kept per token for the backward pass, in float32: an estimate on the safe side.

    Per layer about fourteen vectors of n_embd and four of n_inner, and two around the layers. With
    activations recomputed, a vector per layer, and all of that for one.
    """
    around, per_layer = 2 * model.n_embd, 14 * model.n_embd + 4 * model.n_inner
    if recompute:
        return 4 * (around + model.n_layer * model.n_embd + per_layer)
    return 4 * (around + model.n_layer * per_layer)


def memory_by_kind(model: GPT, micro_batch_size: int, recompute: bool = False) -> dict[str, int]:
    """Bytes that training holds, by what for: exact for the first three, estimated for the rest."""
    weights, config = sum(p.nbytes for p in model.parameters()), model.config
    assert config.vocab_size is not None
    tokens = micro_batch_size * config.block_size
    logits = 2 * 4 * min(CHUNK_FLOATS, config.vocab_size * tokens)  # a chunk, and its gradient
    return {"weights": weights, "gradients": weights, "optimizer": 2 * weights,
            "activations": activation_bytes(config, recompute) * tokens,
            "logits": logits + model.output_weight.nbytes}


def memory_line(model: GPT, micro_batch_size: int, recompute: bool = False) -> str:
    """`memory_by_kind` for people."""
    kinds = memory_by_kind(model, micro_batch_size, recompute)
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
    peak_memory_bytes: int

    def __str__(self) -> str:
        tokens = self.tokens_per_step * self.steps
        minutes = self.steps * self.seconds_per_step / 60
        rate = self.tokens_per_step / self.seconds_per_step
        return "\n".join([
            f"parameters        {self.parameters:,}",
            f"FLOPs per token   {self.flops_per_token:,}",
            f"tokens            {tokens:,} in {self.steps:,} steps of {self.tokens_per_step:,}",
            f"peak memory       {self.peak_memory_bytes / 2**20:,.0f} MiB (measured)",
            f"training time     {minutes:,.1f} minutes at {rate:,.0f} tokens/s (measured over "
            f"{TIMED_STEPS} steps; evaluation and saving come on top)"])


def measure_plan(model: GPT, optimizer: torch.optim.Optimizer, batches: Batches, budget: Budget,
                 train: TrainConfig, machine: Machine) -> Plan:
    """Take a few real steps with a model that nothing else needs, and multiply."""
    durations = []
    for step in range(1 + TIMED_STEPS):  # the first one allocates
        start = time.monotonic()
        batch = batches.step(step)
        accumulate_gradients(model, batch, machine)
        clip_gradients(model, train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        durations.append(time.monotonic() - start)
    seconds = statistics.median(durations[1:])
    steps = budget.steps or int((budget.seconds or 0) / seconds)
    tokens = sum(part.tokens for part in batch)
    return Plan(parameter_count(model), flops_per_token(model), tokens, steps, seconds,
                machine.peak_memory_bytes())
