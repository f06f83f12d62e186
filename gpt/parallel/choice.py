"""Which layout a run has: as configured, or chosen."""

from __future__ import annotations

from gpt.configuration import ModelConfig, RunSections
from gpt.errors import UserError
from gpt.machine.device import Machine
from gpt.parallel.layout import Layout
from gpt.parallel.sizes import Sizes


def choose_layout(config: RunSections, model: ModelConfig, machine: Machine) -> Layout:
    """The layout of a run. Raises UserError for one that does not fit the processes."""
    asked, world = config.parallel, machine.ranks.size
    sizes = {name: value if value != "auto" else 1 for name, value in (
        ("pipeline", asked.pipeline), ("replicate", asked.replicate), ("shard", asked.shard),
        ("context", asked.context), ("tensor", asked.tensor))}
    left = world // Sizes(**sizes).world_size
    if asked.replicate == "auto":
        sizes["replicate"] *= left
    elif asked.shard == "auto":
        sizes["shard"] *= left
    if Sizes(**sizes).world_size != world:
        raise UserError("parallel")
    return Layout(machine, Sizes(**sizes), asked.offload)
