"""Which layout a run has: as configured, and where that leaves it open, what suits it."""

from __future__ import annotations

import torch

from gpt.configuration import ModelConfig, RunSections
from gpt.errors import UserError
from gpt.machine.device import DTYPES, Machine
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
    if asked.offload and machine.device.type == "cpu":
        raise UserError("parallel.offload keeps what GPUs share in the host's memory, and "
                        "run.device=cpu computes there anyway; leave it out")
    fixed = {axis: None if (size := getattr(asked, axis)) == "auto" else size for axis in AXES}
    # Weights that are brought together in 16 bits cannot be measured in 32.
    is_rounded = DTYPES[config.eval.dtype] == machine.dtype == torch.bfloat16
    work = Work(config.train.sequences_per_step, 1, config.train.recompute_activations,
                2 if is_rounded else 4,
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
    lines = _lines(sizes.data, config, machine)
    if ranks.size > 1:
        lines.append(f"layout: {sizes}; {reason(sizes, memory, needs)}")
    return Layout(machine, sizes, asked.offload, lines,
                  torch.bfloat16 if is_rounded else torch.float32)


def _lines(data_ranks: int, config: RunSections, machine: Machine) -> list[str]:
    """What users may not have meant."""
    per_step, lines = config.train.sequences_per_step, warnings(machine)
    if per_step % data_ranks:
        lines.append(f"warning: train.batch_size={per_step} is no multiple of the {data_ranks} "
                     "processes that read it: some wait for others in every step")
    return lines
