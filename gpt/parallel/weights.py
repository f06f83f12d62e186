"""Which layout suits a model that is only asked, of which there are weights and nothing else."""

from __future__ import annotations

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.machine.device import Machine
from gpt.machine.hardware import memory_bytes
from gpt.model import parameter_count
from gpt.parallel.auto import REPLICATED
from gpt.parallel.layout import Layout
from gpt.parallel.share import without_memory
from gpt.parallel.sizes import Sizes


def layout_of_weights(way: str, config: ModelConfig, machine: Machine, copies: bool) -> Layout:
    """Where the weights lie. Raises UserError for a way that the model does not go.

    way: one of gpt.configuration.WAYS; auto: copies, if these are of use and fit; else tensor, if
    heads can be shared out; else shard. copies: whether each process has texts of its own to read.
    """
    count, heads = machine.ranks.size, config.n_kv_head
    if count == 1:
        return Layout(machine)
    if way == "tensor" and heads % count:
        raise UserError(f"--parallel tensor: {heads} key/value heads cannot be shared out to "
                        f"{count} processes; start as many as divide them, or give shard")
    if way == "auto":
        way = ("replicate" if copies and _fits(config, machine) else
               "shard" if heads % count else "tensor")
    return Layout(machine, Sizes(**{way: count}))


def _fits(config: ModelConfig, machine: Machine) -> bool:
    """Whether a device, on all ranks, has room for a copy and for work."""
    here = machine.ranks.here.local_size if machine.device.type == "cpu" else 1
    memory = min(machine.ranks.all(memory_bytes(machine.device) // here))
    needed = parameter_count(without_memory(config)) * machine.dtype.itemsize
    return bool(needed <= REPLICATED * memory)
