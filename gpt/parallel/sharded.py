"""Sharded data parallelism: each process keeps a part of every weight, and reads its own sequences.

A block's weights are brought together just before they are used, forward and backward, and its
gradients are added up and cut again as soon as they are there: torch's FSDP2. Per step and process
about 3 (n − 1)/n of the weights' bytes are sent for one micro-batch: two gathers and one reduction;
with several copies of the model (hybrid), each part of the gradient is also added up over these.
Source: Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054), stage 3; Zhao et al. 2023
(arXiv:2304.11277).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from gpt.model import GPT


def lay_out_shards(model: GPT, mesh: Any, dtype: torch.dtype, offload: bool,
                   is_empty: bool = False) -> None:
    """Spread every weight over the last dimension of a mesh; a first one holds copies of that.

    dtype: in which blocks' weights are brought together: what autocast would round them to, where
    nothing is computed in more; gradients are added up in float32. is_empty: weights without
    memory will have some later; else they are other processes', and left alone.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )
    policy: Any = CPUOffloadPolicy() if offload else OffloadPolicy()
    rounded = MixedPrecisionPolicy(param_dtype=None if dtype == torch.float32 else dtype,
                                   reduce_dtype=torch.float32, cast_forward_inputs=False)
    elsewhere = {weight for weight in model.parameters() if weight.is_meta and not is_empty}
    for block in owned_blocks(model, elsewhere):
        fully_shard(block, mesh=mesh, mp_policy=rounded, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy, ignored_params=elsewhere)
    register_fsdp_forward_method(model, "hidden")

    def train(mode: bool = True) -> GPT:
        """Between learning and measuring, what was brought together for one forward pass goes:
        weights may change, and what is saved are the parts."""
        cast(FSDPModule, model).reshard()
        return GPT.train(model, mode)

    model.train = train  # type: ignore[method-assign]


def owned_blocks(model: GPT, elsewhere: set[nn.Parameter]) -> list[nn.Module]:
    """The blocks whose weights are this process's."""
    return [block for block in model.blocks
            if not elsewhere.intersection(block.parameters())]


def bring_together_once(model: GPT) -> None:
    """Each block's weights, one after the other: torch keeps the tensors in which it does so, and
    those that are first made under inference_mode could not be trained with later."""
    from torch.distributed.fsdp import FSDPModule
    for module in (*model.blocks, model):
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def reduce_over_copies(model: GPT, now: bool) -> None:
    """Whether the next backward pass adds up gradients over copies, too, or keeps them for later:
    parts of gradients, since whole ones would take the memory that sharding saves."""
    from torch.distributed.fsdp import FSDPModule
    cast(FSDPModule, model).set_requires_all_reduce(now)
