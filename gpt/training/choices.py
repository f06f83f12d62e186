"""What "auto" becomes for a run on a machine: batch sizes, and whether steps are compiled.

Batch size and compiling decide the result, so they follow from the configuration and the kind of
device; micro-batches do not, and follow from the memory that is there.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass

import torch

from gpt.configuration import ModelConfig, RunConfig, TrainConfig
from gpt.machine.device import Machine
from gpt.machine.hardware import memory_bytes
from gpt.model import activation_bytes
from gpt.training.budget import Budget

TOKENS_PER_STEP = 2.0  # times the root of all tokens
EVALUATION_TOKENS = 8192
COMPILE_FROM_SECONDS = {"cuda": 3 * 60, "cpu": 10 * 60}


def choose_batch_size(train: TrainConfig, model: ModelConfig, flops_per_token: float,
                      epoch_tokens: float, machine: Machine) -> int:
    """Sequences per step: as configured, or what suits the length of the run.

    A run that sees few tokens learns most in many small steps; a longer one can average over more
    in each. Measured at 250,000 and 300,000 tokens: benchmarks/recipe.md.
    """
    if train.batch_size != "auto":
        return train.batch_size
    if train.max_minutes is not None:
        speed = machine.ranks.size * usual_speed(machine)
        tokens = 60 * train.max_minutes * speed / flops_per_token
    elif train.steps is not None:
        tokens = (TOKENS_PER_STEP * train.steps) ** 2
    else:
        tokens = train.tokens or (train.epochs or 1.0) * epoch_tokens
    sequences = TOKENS_PER_STEP * math.sqrt(tokens) / model.block_size
    return 2 ** max(0, round(math.log2(max(1.0, sequences))))


def usual_speed(machine: Machine) -> float:
    """FLOP/s to expect of training, for decisions that must come out alike every time."""
    return 0.4 * machine.peak_flops if machine.device.type == "cuda" else 1e11


@dataclass(frozen=True)
class Portion:
    """What one backward pass reads at most, and which share of every step is read.

    tokens: with padding, where sequences differ in length; None: whatever they have. rank: of
    `ranks` processes that read a step's sequences between them.
    """

    sequences: int
    tokens: int | None = None
    rank: int = 0
    ranks: int = 1

    def __str__(self) -> str:
        return (f"{self.sequences} sequences" if self.tokens is None
                else f"at most {self.tokens:,} tokens")


def choose_portion(train: TrainConfig, model: ModelConfig, machine: Machine,
                   longest: int | None = None) -> Portion:
    """What suits the memory. longest: tokens of the longest sequence, where they differ; None: all
    have block_size."""
    share = machine.data.rank, machine.data.size
    if longest is None or train.micro_batch_size != "auto":
        return Portion(choose_micro_batch_size(train, model, machine), None, *share)
    return Portion(train.sequences_per_step,
                   max(longest, _fitting_tokens(train, model, machine)), *share)


def choose_micro_batch_size(train: TrainConfig, model: ModelConfig, machine: Machine) -> int:
    """Sequences per backward pass: as configured, or as many as memory is set aside for."""
    sequences = -(-train.sequences_per_step // machine.data.size)
    if train.micro_batch_size != "auto":
        return min(train.micro_batch_size, sequences)
    largest = max(1, min(sequences, _fitting_tokens(train, model, machine)
                         // model.block_size))
    # Portions alike, where that takes few more of them: compiled steps are made for one size.
    return next((size for size in range(largest, largest // 2, -1) if not sequences % size),
                largest)


def evaluation_tokens(train: TrainConfig, model: ModelConfig, machine: Machine,
                      longest: int | None = None) -> int:
    """Tokens that are scored together, padding included, however few a training step has; those of
    one sequence at least."""
    length, wanted = longest or model.block_size, EVALUATION_TOKENS
    if train.micro_batch_size != "auto":
        wanted = min(wanted, train.micro_batch_size * length)
    return max(length, min(wanted, _fitting_tokens(train, model, machine)))


def _fitting_tokens(train: TrainConfig, model: ModelConfig, machine: Machine) -> int:
    """Tokens whose activations fit into what is set aside for them."""
    return activation_budget(machine) // activation_bytes(model, train.recompute_activations)


def activation_budget(machine: Machine) -> int:
    """Bytes that one micro-batch may keep for its backward pass.

    On a GPU most of what is free. On a CPU little, since larger ones only leave the caches.
    """
    if machine.device.type == "cuda":
        return int(0.6 * torch.cuda.mem_get_info(machine.device)[0])
    return min(2 << 30, memory_bytes(machine.device) // 8)


def compile_pays(run: RunConfig, flops: float, budget: Budget, machine: Machine) -> bool:
    """Whether a run is long enough to win back what torch.compile takes.

    On a CPU that is half a minute, for steps a tenth to a fifth shorter; on a GPU it is a guess.
    Decided from the configuration and the kind of device alone, never from a measurement: compiled
    and eager steps differ in their last bits, and a run that is continued with the same budget must
    go on as it began.
    flops: of the whole run, where its budget is not the clock.
    """
    if run.compile != "auto":
        return run.compile
    can_compile = {"cuda": True, "cpu": any(map(shutil.which, ("c++", "g++", "clang++")))}
    if not can_compile.get(machine.device.type, False):
        return False
    seconds = flops / usual_speed(machine) if budget.seconds is None else budget.seconds
    return seconds >= COMPILE_FROM_SECONDS[machine.device.type]
