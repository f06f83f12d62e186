"""Tensor parallelism: every layer is cut over ranks, which compute it together.

Of each block a rank has some heads and some of the feed-forward's inner width; the residual stream
is whole on every rank. A block sums (B, T, C) floats over ranks twice in the forward pass and twice
in the backward pass; the embedding once forward, the loss once backward, and beside them two floats
a token, forward. What is whole and yet used for other heads (the weights of QK-norm, and a factor
of each low-rank update) has its gradient summed, in one message a block.
Source: Shoeybi et al. 2019 (Megatron-LM, arXiv:1909.08053), section 3; the vocabulary's parts:
vocabulary.py.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.func import functional_call

from gpt.model import GPT
from gpt.model.adapted_linear import AdaptedLinear
from gpt.model.attention import Attention
from gpt.parallel.collectives import enter, leave, together
from gpt.parallel.plan import cut, layout, refuse_what_cannot_be_cut, row_order
from gpt.parallel.vocabulary import Part, part_of


def lay_out_tensor(model: GPT, mesh: DeviceMesh) -> None:
    """Cut a model over the ranks of a mesh with the one dimension "tensor", in place.

    Weights and buffers become DTensors of the mesh; each rank keeps its part of what it held, so
    ranks must hold the same, or be on the meta device and filled later: rows of what is put into
    them are in `row_order`. Modules compute with plain tensors. All ranks draw random numbers from
    the same seed: residual dropout is then alike on all of them.
    Raises UserError for sizes that the ranks do not divide, and for DoRA.
    """
    refuse_what_cannot_be_cut(model.config, model.adapter, mesh.size())
    for name, module in list(model.named_modules()):
        for tensors in (module._parameters, module._buffers):
            for last, whole in tensors.items():
                if whole is not None:
                    tensors[last] = _laid_out(f"{name}.{last}", whole, model, mesh)
    group = mesh.get_group()
    _compute_on_parts(model, group)
    for name, module in model.blocks.named_modules():
        _exchange(name, module, group.group_name, mesh.size())
    vocabulary = part_of(cast(DTensor, model.output_weight))
    table = model.embedding.token_embedding
    table.forward = functools.partial(  # type: ignore[method-assign]
        lambda tokens: vocabulary.look_up(tokens, table.weight))
    model.project = functools.partial(_project, model, vocabulary)  # type: ignore[method-assign]


def _laid_out(name: str, whole: Tensor, model: GPT, mesh: DeviceMesh) -> Tensor:
    """This rank's part of a tensor that it holds."""
    dim, part, placement = cut(name).dim, whole.detach(), cast(Placement, Replicate())
    if dim is not None:
        order = row_order(name, model.config, mesh.size())
        part = part if order is None else part[order.to(part.device)]
        part = part.chunk(mesh.size(), dim)[mesh.get_local_rank()].clone()
        placement = Shard(dim)
    laid_out = DTensor.from_local(part, mesh, [placement], run_check=False, shape=whole.shape,
                                  stride=whole.stride())
    if not isinstance(whole, nn.Parameter):
        return laid_out
    return nn.Parameter(laid_out, requires_grad=whole.requires_grad)


# ----- Modules that compute on their rank's parts


class _Own(nn.Module):
    """What a module computes, apart from its hooks: `functional_call` hands it other weights."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Any:
        """As the module's class does."""
        return type(self.module).forward(self.module, *arguments)


def _compute_on_parts(model: GPT, group: dist.ProcessGroup) -> None:
    for module in (model.embedding, *model.blocks, model.final_norm):
        module.forward = functools.partial(_forward, _Own(module), group.group_name,
                                           dist.get_rank(group) == 0)


def _forward(own: _Own, group: str, first: bool, *arguments: Any) -> Any:
    """A module's forward pass with plain tensors: those of its weights that this rank has."""
    return functional_call(own, _parts(own, group, first), arguments)


def _parts(own: _Own, group: str, first: bool) -> dict[str, Tensor]:
    """By name in `own`. first: whether this is the first of the ranks."""
    tensors = {**dict(own.named_parameters()), **dict(own.named_buffers())}
    parts = {name: cast(DTensor, tensor).to_local() for name, tensor in tensors.items()}
    if summed := [name for name in parts if cut(name).summed and parts[name].requires_grad]:
        sizes = [parts[name].numel() for name in summed]  # in one message
        flat = together(torch.cat([parts[name].flatten() for name in summed]), group)
        parts |= {name: piece.view_as(parts[name])
                  for name, piece in zip(summed, flat.split(sizes), strict=True)}
    if not first:  # the sum over ranks counts it once, and yet each finds its gradient
        parts |= {name: parts[name] - parts[name].detach() for name in parts if cut(name).once}
    return parts


def _project(model: GPT, vocabulary: Part, x: Tensor) -> Tensor:
    """As GPT.project: the scores of all tokens, on every rank.  (B, T, C) -> (B, T, V)"""
    bias = model.output_bias
    return vocabulary.project(x, vocabulary.rows(model.output_weight),
                              None if bias is None else vocabulary.rows(bias))


# ----- What they tell each other


def _exchange(name: str, module: nn.Module, group: str, ranks: int) -> None:
    """Let a module read what all ranks hold, or sum what they find; its widths become the part's.
    """
    if isinstance(module, Attention):
        q_width, k_width, v_width = module.qkv_widths
        module.qkv_widths = q_width // ranks, k_width // ranks, v_width // ranks
    if not isinstance(module, nn.Linear):
        return
    if layout(name) == "columns":
        module.register_forward_pre_hook(lambda _, inputs: (enter(inputs[0], group),))
        if isinstance(module, AdaptedLinear):
            module.parts = {part: rows // ranks for part, rows in module.parts.items()}
    else:
        module.register_forward_hook(lambda *seen: leave(seen[-1], group))
