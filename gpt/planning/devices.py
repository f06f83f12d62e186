"""How fast a device trains a model, and with how much memory: measured here, or by a data sheet."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from gpt.configuration import PretrainConfig
from gpt.errors import UserError
from gpt.machine.device import Machine
from gpt.machine.hardware import GPU_GIB, GPU_PEAKS, memory_bytes
from gpt.model import GPT, flops_per_token
from gpt.optim import Rates
from gpt.shards import Dataset
from gpt.training.choices import choose_micro_batch_size
from gpt.training.plan import memory_by_kind
from gpt.training.pretraining import pretraining
from gpt.training.task import cost_of

UTILISATION = 0.4  # of a data sheet's FLOP/s: what the best public code reaches at 124 M parameters
SCALING = 0.9  # of a device's speed, where several share the work
GIB = 2**30


@dataclass(frozen=True)
class Speed:
    """How long a run takes for a step, and for what it does besides: evaluations and saves.

    seconds_after: of these, once the last step is taken.
    """

    seconds_per_step: float
    seconds_besides: float = 0.0
    seconds_after: float = 0.0


class Device(Protocol):
    """Where a run is to go."""

    is_measured: bool
    count: int
    memory: float  # bytes of one device
    flops: float  # per second, to begin with: what a run may reach
    kind: torch.device

    def __str__(self) -> str: ...

    def speed(self, config: PretrainConfig) -> Speed:
        """How fast a run goes."""

    def fitted(self, config: PretrainConfig) -> PretrainConfig:
        """The run in smaller micro-batches, where "auto" would take more memory than there is."""

    def memory_taken(self, config: PretrainConfig) -> int:
        """Bytes at most, besides those of Python and torch."""


class ThisMachine:
    """What the planner runs on. Raises UserError, as training does, for what cannot run here."""

    is_measured = True
    count = 1

    def __init__(self, machine: Machine, dataset: Dataset, memory: float | None = None):
        self._machine, self._dataset = machine, dataset
        self.memory = memory or float(memory_bytes(machine.device))
        self.flops, self.kind = 0.3 * machine.peak_flops, machine.device

    def __str__(self) -> str:
        return (f"{self._machine.describe()}: matrix products "
                f"{self._machine.peak_flops / 1e9:,.0f} GFLOP/s")

    def speed(self, config: PretrainConfig) -> Speed:
        """Measured: some steps, a part of an evaluation, and a save."""
        with in_silence():
            cost = cost_of(pretraining(config, self._dataset), config, self._machine)
        return Speed(cost.seconds_per_step, cost.seconds_besides, cost.seconds_after)

    def fitted(self, config: PretrainConfig) -> PretrainConfig:
        """As training chooses them, or halved until they fit."""
        chosen = choose_micro_batch_size(config.train, config.model, self._machine)
        size = halved_to_fit(config, chosen, self)
        return config if size == chosen else config.model_copy(update={
            "train": config.train.model_copy(update={"micro_batch_size": size})})

    def memory_taken(self, config: PretrainConfig) -> int:
        """Bytes at most, besides those of Python and torch."""
        size = choose_micro_batch_size(config.train, config.model, self._machine)
        return memory_of(config, size, self.kind)


class OnDataSheet:
    """Some GPUs of a kind that is not here. Raises UserError for a name that is not known."""

    is_measured = False
    kind = torch.device("cuda")

    def __init__(self, name: str, count: int, memory: float | None):
        known = next((known for known in GPU_PEAKS if known.lower() == name.lower()), None)
        if known is None:
            raise UserError(f"--device {name}: of this one no data sheet is known here; choose "
                            f"from {', '.join(GPU_PEAKS)}")
        self._name, self.count = known, count
        self.memory = memory or float(GPU_GIB[known] * GIB)
        self.flops = UTILISATION * GPU_PEAKS[known] * count * (SCALING if count > 1 else 1.0)

    def __str__(self) -> str:
        return (f"{self.count} x {self._name}, not measured: {UTILISATION:.0%} of the "
                f"{GPU_PEAKS[self._name] / 1e12:,.0f} TFLOP/s of its data sheet"
                + (f", and {SCALING:.0%} of that where {self.count} work together"
                   if self.count > 1 else ""))

    def speed(self, config: PretrainConfig) -> Speed:
        """By FLOPs."""
        with torch.device("meta"):
            flops = flops_per_token(GPT(config.model))
        tokens = config.train.sequences_per_step * config.model.block_size
        return Speed(flops * tokens / self.flops)

    def fitted(self, config: PretrainConfig) -> PretrainConfig:
        """As it is: there, training will choose by the memory that it finds."""
        return config

    def memory_taken(self, config: PretrainConfig) -> int:
        """Bytes of as many sequences at a time as fit; of one at least."""
        all_of_them = -(-config.train.sequences_per_step // self.count)
        return memory_of(config, halved_to_fit(config, all_of_them, self), self.kind)


def halved_to_fit(config: PretrainConfig, sequences: int, device: Device) -> int:
    """Sequences at a time for which there is memory, one at least."""
    while sequences > 1 and memory_of(config, sequences, device.kind) > device.memory:
        sequences = -(-sequences // 2)
    return sequences


def memory_of(config: PretrainConfig, sequences: int, device: torch.device) -> int:
    """Bytes that training takes at most, besides those of Python and torch."""
    with torch.device("meta"):
        model = GPT(config.model)
    block_size = config.model.block_size
    rates = Rates.of(config.optim, config.model, config.train.sequences_per_step * block_size)
    copied = config.checkpoint.background and device.type == "cpu"
    return sum(memory_by_kind(model, rates, sequences * block_size,
                              config.train.recompute_activations, device, copied).values())


@contextlib.contextmanager
def in_silence() -> Iterator[None]:
    """What training tells goes nowhere."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
