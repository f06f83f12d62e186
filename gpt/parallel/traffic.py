"""What devices send each other in a step, by axis: calculated from shapes.

Letters: B sequences of a micro-batch, T tokens of a sequence, C = n_embd, L layers of a device,
P elements of its weights, n devices of an axis, m micro-batches of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gpt.configuration import ModelConfig
from gpt.model import GPT
from gpt.parallel.share import Share
from gpt.parallel.sizes import Sizes

FLOAT32 = 4  # bytes of a weight as it is kept, and of a gradient as it is summed


@dataclass(frozen=True)
class Work:
    """What a step of training is.

    sequences: of a step, on all devices. micro_batch: those of one backward pass on a device.
    number_bytes: of an activation and of a gathered weight: 4, or 2 in mixed precision.
    averaged: an average of the weights is kept.
    """

    sequences: int
    micro_batch: int = 1
    recompute: bool = False
    number_bytes: Literal[2, 4] = 2
    optimizer: Literal["adamw", "muon"] = "adamw"
    averaged: bool = False

    def micro_steps(self, sizes: Sizes) -> int:
        """Micro-batches that each device reads in a step."""
        return math.ceil(self.sequences / (sizes.data * self.micro_batch))


@dataclass(frozen=True)
class Transfer:
    """A collective operation of one axis, as often as a step has it.

    nbytes: of the whole tensor, which all devices have after an all-gather and before a
    reduce-scatter; of an all_to_all and a send what a device has to give. hides: behind computing
    of the same step, all of it or the last backward pass.
    """

    axis: str
    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]
    devices: int
    nbytes: int
    times: int
    hides: Literal["", "step", "last backward"] = ""

    @property
    def bytes_each(self) -> float:
        """That a device sends each time.

        All-gather and reduce-scatter (n-1)/n of the tensor, an all-reduce both, by rings: Patarasuk
        and Yuan 2009, "Bandwidth optimal all-reduce algorithms"; ZeRO, arXiv:1910.02054, section 7.
        """
        if self.kind == "send":
            return self.nbytes
        return (2 if self.kind == "all_reduce" else 1) * self.nbytes * (1 - 1 / self.devices)

    @property
    def bytes_sent(self) -> float:
        """By a device in a step."""
        return self.times * self.bytes_each


def traffic(model: GPT, sizes: Sizes, work: Work) -> list[Transfer]:
    """All that a device sends in a step, but for numbers of a few bytes."""
    share = Share.of(model, sizes)
    return [*_gradients_of_copies(share, work), *_gathered_weights(share, work),
            *_tensor(model.config, share, work), *_context(model.config, share, work),
            *_pipeline(model, share, work), *_muon(share, work)]


def bytes_by_axis(transfers: list[Transfer]) -> dict[str, float]:
    """Sent by a device in a step."""
    found: dict[str, float] = {}
    for transfer in transfers:
        found[transfer.axis] = found.get(transfer.axis, 0.0) + transfer.bytes_sent
    return found


def _gradients_of_copies(share: Share, work: Work) -> Iterator[Transfer]:
    """DDP: an all-reduce of all gradients once a step, 2(n-1)/n · 4P; of shards (HSDP) behind the
    last micro-batch's reduce-scatter. Context is an axis of copies, too.

    Source: Li et al. 2020 (arXiv:2006.15704), section 3.2; Zhao et al. 2023 (arXiv:2304.11277),
    section 3.2.2.
    """
    sizes, copies = share.sizes, share.sizes.replicate * share.sizes.context
    axis = "replicate" if sizes.replicate > 1 else "context"
    if copies == 1:
        return
    if sizes.shard == 1:
        yield Transfer(axis, "all_reduce", copies, FLOAT32 * share.elements(learns=True), 1,
                       "last backward")
        return
    for weights, layers in ((share.block, share.layers), (share.around, 1)):
        shard = share.gathered(weights, learns=True) // sizes.shard
        yield Transfer(axis, "all_reduce", copies, FLOAT32 * shard, layers, "step")


def _gathered_weights(share: Share, work: Work) -> Iterator[Transfer]:
    """FSDP2: each layer's weights are gathered for its forward and again for its backward pass,
    what stands around them once; all gradients are reduce-scattered. 3(n-1)/n · P in all.

    A micro-batch at a time: weights that were gathered are let go of in between.
    Source: ZeRO, arXiv:1910.02054, section 7.2.2; torch's fully_shard, reshard_after_forward.
    """
    if share.sizes.shard == 1:
        return
    m = work.micro_steps(share.sizes)
    for weights, layers, passes in ((share.block, share.layers, 2), (share.around, 1, 1)):
        yield Transfer("shard", "all_gather", share.sizes.shard,
                       work.number_bytes * share.gathered(weights), m * layers * passes, "step")
        yield Transfer("shard", "reduce_scatter", share.sizes.shard,
                       FLOAT32 * share.gathered(weights, learns=True),
                       m * layers, "step")


def _stream_bytes(config: ModelConfig, share: Share, work: Work) -> int:
    """Of the residual stream of a micro-batch on a device: (B, T, C), T shared out by context."""
    return (work.micro_batch * config.block_size // share.sizes.context * config.n_embd
            * work.number_bytes)


def _tensor(config: ModelConfig, share: Share, work: Work) -> Iterator[Transfer]:
    """Four all-reduces of (B, T, C) in a layer, two forward and two backward, and once more the two
    where it is recomputed; one behind the embedding and one before the output layer, whose loss
    sums three numbers of each token.

    Source: Megatron-LM, arXiv:1909.08053, section 3; arXiv:2104.04473, section 3.2.
    """
    n, m = share.sizes.tensor, work.micro_steps(share.sizes)
    if n == 1:
        return
    stream = _stream_bytes(config, share, work)
    each = 6 if work.recompute else 4
    yield Transfer("tensor", "all_reduce", n, stream, m * (each * share.layers + 2))
    tokens = stream // (config.n_embd * work.number_bytes)
    yield Transfer("tensor", "all_reduce", n, FLOAT32 * tokens, 3 * m)


def _context(config: ModelConfig, share: Share, work: Work) -> Iterator[Transfer]:
    """Keys and values of the whole sequence, gathered in each layer, again where it is recomputed;
    their gradients are reduce-scattered.

    Source: Llama 3, arXiv:2407.21783, section 3.3.2.
    """
    sizes, m = share.sizes, work.micro_steps(share.sizes)
    if sizes.context == 1:
        return
    width = 2 * config.n_kv_head * config.head_dim // sizes.tensor
    nbytes = work.micro_batch * config.block_size * width * work.number_bytes
    yield Transfer("context", "all_gather", sizes.context, nbytes,
                   m * share.layers * (2 if work.recompute else 1))
    yield Transfer("context", "reduce_scatter", sizes.context, nbytes, m * share.layers)


def _pipeline(model: GPT, share: Share, work: Work) -> Iterator[Transfer]:
    """(B, T, C) to the next stage and its gradient to the one before, for each micro-batch; of two
    stages each has one to do. A tied table's gradient, V · C, goes from end to end once a step.

    Source: Megatron-LM, arXiv:2104.04473, section 3.2.
    """
    sizes, table = share.sizes, model.embedding.token_embedding.weight
    if sizes.pipeline == 1:
        return
    yield Transfer("pipeline", "send", sizes.pipeline, _stream_bytes(model.config, share, work),
                   min(2, sizes.pipeline - 1) * work.micro_steps(sizes))
    if model.config.tie_embeddings and table.requires_grad:
        yield Transfer("pipeline", "send", sizes.pipeline,
                       FLOAT32 * table.numel() // (sizes.tensor * sizes.shard), 1)


def _muon(share: Share, work: Work) -> Iterator[Transfer]:
    """Where matrices are in parts, each part's direction to its matrix's owner, and the update
    back: 2(n-1)/n · 4P/n of the layers' matrices. Of m copies each does its share of that, and
    tells the others: (m-1)/m of what each holds.

    Source: Liu et al. 2025, "Muon is scalable for LLM training" (arXiv:2502.16982), section 2.3.
    """
    if work.optimizer != "muon":
        return
    sizes, held = share.sizes, FLOAT32 * share.elements(matrices=True)
    parts, copies = sizes.shard * sizes.tensor, sizes.replicate * sizes.context
    if parts > 1:
        axis = "shard" if sizes.shard > 1 else "tensor"
        yield Transfer(axis, "all_to_all", parts, held // copies, 2)
    if copies > 1:
        yield Transfer("replicate" if sizes.replicate > 1 else "context", "all_gather", copies,
                       held, 1)
