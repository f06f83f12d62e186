"""Which layout a run has: as configured, and where that leaves it open, what suits it."""

from __future__ import annotations

import torch

from gpt.configuration import ModelConfig, RunSections
from gpt.errors import UserError
from gpt.machine.device import Machine
from gpt.machine.hardware import memory_bytes
from gpt.machine.unused import warnings
from gpt.parallel.auto import Needs, choose, reason
from gpt.parallel.layout import Layout
from gpt.parallel.share import without_memory
from gpt.parallel.sizes import AXES
from gpt.parallel.traffic import Work


def choose_layout(config: RunSections, model: ModelConfig, machine: Machine) -> Layout:
    """The layout of a run. Raises UserError for one that does not fit the processes."""
    ranks, asked = machine.ranks, config.parallel
    fixed = {axis: None if (size := getattr(asked, axis)) == "auto" else size for axis in AXES}
    work = Work(config.train.sequences_per_step, 1, config.train.recompute_activations,
                4 if machine.dtype == torch.float32 else 2,
                "muon" if config.optim.name == "muon" else "adamw",
                averaged=config.optim.ema_half_life is not None)
    needs = Needs.of(without_memory(model), work)
    memory = memory_bytes(machine.device) // (
        ranks.here.local_size if machine.device.type == "cpu" else 1)
    memory = int(min(ranks.all(memory)))
    sizes = choose(fixed, ranks.size, ranks.here.local_size, memory, needs)
    sizes.check(ranks.size)
    if sizes.data > config.train.sequences_per_step:
        raise UserError(f"train.batch_size={config.train.sequences_per_step} is less than the "
                        f"{sizes.data} processes that read sequences of their own: raise it, start "
                        "fewer processes, or let several share a sequence (parallel.tensor, "
                        "parallel.context)")
    return Layout(machine, sizes, asked.offload, _lines(sizes.data, config, machine)
                  + [f"layout: {sizes}; {reason(sizes, memory, needs)}"] * (ranks.size > 1))


def _lines(data_ranks: int, config: RunSections, machine: Machine) -> list[str]:
    """What users may not have meant."""
    per_step, lines = config.train.sequences_per_step, warnings(machine)
    if per_step % data_ranks:
        lines.append(f"warning: train.batch_size={per_step} is no multiple of the {data_ranks} "
                     "processes that read it: some wait for others in every step")
    return lines
