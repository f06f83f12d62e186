"""Which layout suits a model and the devices there are: `parallel: auto`.

Decided from numbers that are the same on every rank, so that all decide alike; never from what is
free on one of them at the moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gpt.model import GPT, parameter_count
from gpt.parallel.cost import memory_by_kind
from gpt.parallel.sizes import Sizes, check_fixed, mismatch
from gpt.parallel.traffic import Work

# Of a device's memory: what may be filled with one sequence a device; the rest is for the
# libraries, and for what an allocator loses between its blocks.
FILLED = 0.9
# … and what weights, gradients and optimizer may take of it whole: with less than half of it left
# for activations, micro-batches become small.
REPLICATED = 0.5


@dataclass(frozen=True)
class Needs:
    """What a model asks of devices, in bytes.

    state: weights, gradients and optimizer of a whole copy. working: activations and logits of one
    sequence. whole: what is held beside a copy that is not sharded. gathered: beside one that is.
    sequences: of a step. heads: key/value heads, which tensor shares out. tokens: of a sequence,
    which context does.
    """

    parameters: int
    state: int
    working: int
    whole: int
    gathered: int
    sequences: int
    heads: int
    tokens: int

    @classmethod
    def of(cls, model: GPT, work: Work) -> Needs:
        """Of a model, by its shapes, and of one sequence at a time, whatever work's micro-batch."""
        one = Work(work.sequences, 1, work.recompute, work.number_bytes, work.optimizer,
                   averaged=work.averaged)
        copy, shards = (memory_by_kind(model, sizes, one) for sizes in (Sizes(), Sizes(shard=2)))
        return cls(parameter_count(model), copy["weights"] + copy["gradients"] + copy["optimizer"],
                   copy["activations"] + copy["logits"], copy["gathered"], shards["gathered"],
                   work.sequences, model.config.n_kv_head, model.config.block_size)

    def bytes_each(self, sizes: Sizes) -> float:
        """On a device, about."""
        layers = sizes.tensor * sizes.pipeline
        beside = self.whole if sizes.shard == 1 else self.gathered
        return (self.state / sizes.shard / layers + self.working / sizes.context / layers
                + beside / sizes.tensor)

    def fit(self, sizes: Sizes, memory_bytes: int) -> bool:
        """Into a device's memory, with room to work."""
        state = self.state / (sizes.tensor * sizes.pipeline)
        return (self.bytes_each(sizes) <= FILLED * memory_bytes
                and (sizes.shard > 1 or state <= REPLICATED * memory_bytes))


def choose(fixed: Mapping[str, int | None], world_size: int, devices_per_host: int,
           memory_bytes: int, needs: Needs) -> Sizes:
    """The simplest layout that fits: replicated; sharded within hosts, and replicated over them;
    sharded over all. Then each of these with tensor within a host, and with context.

    fixed: sizes by axis that stay as they are; None: free. memory_bytes: of a device. Devices that
    read different sequences are no more than a step's sequences. Where nothing fits, the layout
    that needs the least: it is an upper estimate, and may work. Pipeline is 1 unless it is fixed:
    it keeps no less than shards do. Raises UserError if sizes do not make world_size.
    """
    check_fixed(fixed, world_size)
    candidates = list(_candidates(fixed, world_size, devices_per_host, needs))
    if not candidates:
        raise mismatch(fixed, world_size)
    busy = [sizes for sizes in candidates if sizes.data <= needs.sequences] or candidates
    chosen = next((sizes for sizes in busy if needs.fit(sizes, memory_bytes)), None)
    return chosen or min(busy, key=needs.bytes_each)


def reason(sizes: Sizes, memory_bytes: int, needs: Needs) -> str:
    """What was chosen, and why, in a line for people."""
    ways = {"sharded over": sizes.shard, "replicated on": sizes.replicate,
            "sequences in parts:": sizes.context, "matrices in parts:": sizes.tensor,
            "layers in stages:": sizes.pipeline}
    laid = ", ".join(f"{way} {size}" for way, size in ways.items() if size > 1)
    each = needs.bytes_each(sizes)
    line = (f"{_count(needs.parameters)} parameters need {_gib(needs.state)}, about {_gib(each)} a "
            f"device with one sequence each: {laid or 'on one device'}")
    if each > FILLED * memory_bytes:
        line += f"; a device has {_gib(memory_bytes)}: memory may run out"
    return line


def _candidates(fixed: Mapping[str, int | None], world_size: int, per_host: int, needs: Needs
                ) -> Iterator[Sizes]:
    """Layouts that respect what is fixed, the simplest first."""
    pipeline = fixed.get("pipeline") or 1
    for context in _options(fixed.get("context"), math.gcd(needs.tokens, world_size)):
        for tensor in _options(fixed.get("tensor"), math.gcd(needs.heads, per_host)):
            layers = context * tensor * pipeline
            if world_size % layers:
                continue
            data = world_size // layers
            in_host = math.gcd(data, max(1, per_host // (context * tensor)))
            for shard in dict.fromkeys((1, in_host, data)):
                shard = _shard(fixed, data, shard)
                if data % shard == 0 and fixed.get("replicate") in (None, data // shard):
                    yield Sizes(data // shard, shard, context, tensor, pipeline)


def _shard(fixed: Mapping[str, int | None], data: int, proposed: int) -> int:
    """As fixed itself, or by what is left of `data` for it, or as proposed."""
    shard, replicate = fixed.get("shard"), fixed.get("replicate")
    if shard is None and replicate is not None:
        return max(1, data // replicate)
    return proposed if shard is None else shard


def _options(fixed: int | None, most: int) -> list[int]:
    """Sizes that an axis may have: as fixed, or what divides `most`, smallest first."""
    if fixed is not None:
        return [fixed]
    return [size for size in range(1, most + 1) if most % size == 0]


def _count(parameters: int) -> str:
    return (f"{parameters / 1e9:.3g}B" if parameters >= 999.5e6 else f"{parameters / 1e6:.3g}M")


def _gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:,.1f} GiB"
