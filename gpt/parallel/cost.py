"""What a layout costs before it is paid for: memory, traffic and time of a step, calculated.

Memory is an upper estimate, as in gpt/training/plan.py; time is that of the arithmetic at an
assumed share of the device's peak, and of the traffic that nothing hides. Neither the input, the
optimizer's own arithmetic nor waiting for slower devices is in it: a bound to compare layouts by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt.machine.hardware import GPU_PEAKS
from gpt.model import GPT, activation_bytes, flops_per_token
from gpt.parallel.share import Share
from gpt.parallel.sizes import Sizes
from gpt.parallel.traffic import FLOAT32, Transfer, Work, bytes_by_axis, traffic

# Of the peak, in what a device computes between transfers; Megatron-LM reports 44 to 52 % on A100s
# with all traffic (arXiv:2104.04473, table 1), Llama 3 38 to 43 % on H100s (arXiv:2407.21783,
# table 4). No figure of our own stands behind it.
PRODUCT_SHARE = 0.5
# Scores that the loss computes at a time on a GPU: gpt/training/cross_entropy.py, as
# test_the_loss_is_taken_to_be_cut_as_it_is compares.
SCORES_AT_A_TIME = 1 << 27
# Seconds from a device to the next in a ring, within a host and between hosts.
# Source: NCCL, src/graph/tuning.cc, ring and Simple.
HOP_WITHIN, HOP_BETWEEN = 3.4e-6, 14e-6


@dataclass(frozen=True)
class Device:
    """One of many alike: bytes of memory, bytes/s that it sends within a host and to others."""

    name: str
    memory: int
    within: float
    between: float
    per_host: int = 8

    @property
    def peak_flops(self) -> float:
        """Of matrix products in bfloat16."""
        return GPU_PEAKS[self.name]

    def bandwidth(self, devices: int, together: int) -> float:
        """Bytes/s of a device that works with others, so many of whom share a host.

        Devices of a host each have a network card, which they share in what they do together.
        """
        return self.within if devices <= together else min(self.within, together * self.between)


# Memory as torch reports it of 80, 141, 80 and 180 GB. Within: NVLinks times what NCCL counts for
# one (src/graph/topo.h: 20.6, 20.0 and 40.1 GB/s). Between: a card for each device in NVIDIA's DGX
# systems (ConnectX-7 at 400 Gb/s; DGX A100: 200 Gb/s), by their data sheets.
DEVICES = {device.name: device for device in (
    Device("H100", 79 << 30, 18 * 20.6e9, 50e9),
    Device("H200", 139 << 30, 18 * 20.6e9, 50e9),
    Device("A100", 79 << 30, 12 * 20.0e9, 25e9),
    Device("B200", 178 << 30, 18 * 40.1e9, 50e9))}


@dataclass(frozen=True)
class Cost:
    """Of a step, for the fullest device: bytes by what for, what it sends, seconds.

    utilisation: the model's FLOPs over what all devices could do in that time; PaLM's MFU
    (arXiv:2204.02311, appendix B), in which recomputing does not count.
    """

    memory: dict[str, int]
    transfers: list[Transfer]
    seconds: float
    utilisation: float

    @property
    def bytes_sent(self) -> float:
        """By a device in a step, on all axes."""
        return sum(bytes_by_axis(self.transfers).values())


def cost(model: GPT, sizes: Sizes, work: Work, device: Device) -> Cost:
    """Of a step on such devices. model: its shapes alone count (share.py's `without_memory`)."""
    transfers = traffic(model, sizes, work)
    seconds = step_seconds(model, sizes, work, device, transfers)
    tokens = work.sequences * model.config.block_size
    possible = seconds * sizes.world_size * device.peak_flops
    return Cost(memory_by_kind(model, sizes, work), transfers, seconds,
                flops_per_token(model) * tokens / possible)


def memory_by_kind(model: GPT, sizes: Sizes, work: Work) -> dict[str, int]:
    """Bytes on the fullest device: exact for the first three, estimated for the rest.

    Weights, gradients and what the optimizer keeps are float32 and lie in `shard` parts (ZeRO 3,
    arXiv:1910.02054, section 5): gradients are reduced after every micro-batch. Those of copies are
    views of what DDP sends (gradient_as_bucket_view).
    """
    share = Share.of(model, sizes)
    learned = share.elements(learns=True)
    states = 2 * learned + work.averaged * learned
    if work.optimizer == "muon":  # one average where AdamW has two
        states -= share.elements(learns=True, matrices=True)
    return {"weights": FLOAT32 * share.elements(), "gradients": FLOAT32 * learned,
            "optimizer": FLOAT32 * states, **working_memory(model, share, work)}


def working_memory(model: GPT, share: Share, work: Work) -> dict[str, int]:
    """Bytes that come and go in a step, estimated.

    Tensor divides what lies inside a layer, but not the vectors of n_embd before its two norms
    (arXiv:2205.05198, section 4.1). The first of a pipeline's stages keeps as many micro-batches as
    there are stages (arXiv:2104.04473, section 2.2).
    """
    config, sizes, layers = model.config, share.sizes, share.layers
    assert config.vocab_size is not None
    tokens = work.micro_batch * config.block_size // sizes.context
    kept = activation_bytes(config.model_copy(update={"n_layer": layers}), work.recompute)
    whole = FLOAT32 * config.n_embd * (layers + 2 if work.recompute else 2 * layers)
    alive = min(sizes.pipeline, work.micro_steps(sizes))
    scores = min(tokens * config.vocab_size, SCORES_AT_A_TIME) // sizes.tensor
    table = config.vocab_size * config.n_embd // sizes.tensor
    return {"activations": (whole + (kept - whole) // sizes.tensor) * tokens * alive,
            "logits": FLOAT32 * (2 * scores + table), "gathered": _gathered_bytes(share, work)}


def _gathered_bytes(share: Share, work: Work) -> int:
    """Whole weights for the time that they are needed.

    Sharded: what stands around the layers for a whole pass, of the layers one in use and one on its
    way, and the gradients of one, summed in float32. Else copies in fewer bits of the matrices.
    """
    if share.sizes.shard == 1:
        return work.number_bytes * share.elements(matrices=True) if work.number_bytes == 2 else 0
    block, around = share.gathered(share.block), share.gathered(share.around)
    return work.number_bytes * (around + 2 * block) + FLOAT32 * max(block, around)


def step_seconds(model: GPT, sizes: Sizes, work: Work, device: Device, transfers: list[Transfer]
                 ) -> float:
    """Arithmetic, idle stages, and the traffic that nothing hides.

    Recomputed layers cost a forward pass more. What hides does so but for a layer's worth at an
    end of the step. A pipeline is idle for (p-1)/(m+p-1) of the time: arXiv:2104.04473, section 2.2
    """
    tokens, m = work.sequences * model.config.block_size, work.micro_steps(sizes)
    once = flops_per_token(model) * tokens / sizes.world_size / (PRODUCT_SHARE * device.peak_flops)
    computing = once * (4 / 3 if work.recompute else 1)
    room = {"step": computing, "last backward": (computing - once / 3) / m, "": 0.0}
    layers = math.ceil(model.config.n_layer / sizes.pipeline)
    exposed = 0.0
    for hides, seconds in room.items():
        needed = sum(_seconds(t, sizes, device) for t in transfers if t.hides == hides)
        exposed += max(needed - seconds, needed / layers if hides else 0.0)
    return computing * (1 + (sizes.pipeline - 1) / m) + exposed


def _seconds(transfer: Transfer, sizes: Sizes, device: Device) -> float:
    """That a transfer takes, all its times together."""
    together = max(1, min(transfer.devices, device.per_host // sizes.inside(transfer.axis)))
    rate = device.bandwidth(transfer.devices, together)
    return transfer.times * (transfer.bytes_each / rate + latency(transfer, together))


def latency(transfer: Transfer, together: int) -> float:
    """Of one collective operation: once around a ring, for an all-reduce twice; or, if that is
    sooner, up and down a tree of hosts.

    Source: NCCL, src/graph/tuning.cc; trees: Sanders et al. 2009, "Two-tree algorithms".
    """
    n, hosts = transfer.devices, math.ceil(transfer.devices / together)
    if transfer.kind in ("send", "all_to_all"):
        return HOP_WITHIN if hosts == 1 else HOP_BETWEEN
    between = hosts if hosts > 1 else 0
    ring = between * HOP_BETWEEN + (n - 1 - (hosts - 1)) * HOP_WITHIN
    if transfer.kind != "all_reduce":
        return ring
    tree = math.ceil(math.log2(hosts)) * HOP_BETWEEN + (together - 1) * HOP_WITHIN
    return 2 * min(ring, tree)
