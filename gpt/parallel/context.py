"""Sequences longer than one device holds: each rank reads a part of every row.

Queries stay where they are; keys and values, few where heads are grouped, are gathered over the
ranks before attention, and their gradients are summed and scattered back. All else in the model
treats each token by itself. A row is cut into 2N stretches for N ranks and rank r takes the r-th
from the start and the r-th from the end, so that causal attention is the same work for all.

Activations per rank: 1/N of a row's, and in each layer the row's keys and values whole.
Traffic per layer and rank: keys and values of a row are 2·|K| together, of which (N−1)/N arrive in
the forward pass, as much leaves in the backward pass, and as much arrives once more where
activations are recomputed.
Source: Llama 3, arXiv:2407.21783, section 3.3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn.attention.bias import CausalBias, causal_lower_right

from gpt.batches import IGNORE, MicroBatch
from gpt.errors import UserError
from gpt.model import GPT, KVCache
from gpt.model.attention import Attention
from gpt.model.visibility import Visible, positions_within, visible_keys, visible_within

M = TypeVar("M", bound=MicroBatch)


class Readable(NamedTuple):
    """What a stretch of queries reads: keys from `start` to before `stop`, of them the visible."""

    start: int
    stop: int
    visible: Visible


def lay_out_context(model: GPT, mesh: DeviceMesh) -> None:
    """Let a model read this rank's part of rows, in place; mesh: the ranks of `context`, 1-D.

    `hidden(tokens, None, segments, prompts)` then takes (B, T / N) tokens, as `share_of_context`
    cuts them, with segments and prompts of whole rows, (B, T), and returns (B, T / N, C). What
    reads with a cache, as generation does, still reads whole texts: every rank the same ones.
    Raises UserError if a row of block_size tokens could not be cut.
    """
    pieces, length = 2 * mesh.size(), model.config.block_size
    if length % pieces:
        raise UserError(f"parallel.context={mesh.size()} cuts every row into {pieces} stretches, "
                        f"which model.block_size={length} is not a multiple of; choose another "
                        "model.block_size, or a smaller parallel.context")
    replaced: Any = model  # and so are methods of these
    replaced._length = partial(_length, model._length, mesh)
    replaced._places = partial(_places, model, model._places, mesh)
    for module in model.modules():
        if isinstance(module, Attention):
            replaced = module
            replaced._attend = partial(_attend, module, module._attend, mesh)


def share_of_context(batch: M, mesh: DeviceMesh) -> M:
    """This rank's part of a micro-batch: of all rows, some of the tokens.

    Inputs and targets are cut, (B, T) -> (B, T / N); segments and prompts stay whole. Rows that
    cannot be cut are padded, which nobody reads and no loss counts. Supervised tokens and `tokens`
    add up to the batch's over the ranks; the first rank accounts for the latter.
    """
    pieces = 2 * mesh.size()
    missing = -batch.inputs.size(1) % pieces
    stretches = stretches_of(mesh, batch.inputs.size(1) + missing)
    inputs, targets = (F.pad(tensor, (0, missing), value=value)
                       for tensor, value in ((batch.inputs, 0), (batch.targets, IGNORE)))
    segments, prompts = batch.segments, batch.prompts
    if segments is not None:  # padding stands behind the last document: there nobody reads it
        segments = torch.cat((segments, segments[:, -1:].expand(-1, missing)), dim=1)
    if prompts is not None:
        prompts = F.pad(prompts, (0, missing), value=False)
    return replace(batch, inputs=_taken(inputs, stretches), targets=_taken(targets, stretches),
                   tokens=batch.tokens if mesh.get_local_rank() == 0 else 0,
                   segments=segments, prompts=prompts)


def sum_over_context(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum of what the ranks have, on each of them; each gets its gradient as it is.

    For losses that are no sum over tokens: what all ranks make of the sum is the same number, to be
    counted once, and their gradients are parts that add up.
    """
    parts = DTensor.from_local(x, mesh, [Partial()])
    return parts.redistribute(placements=[Replicate()]).to_local()


def stretches_of(mesh: DeviceMesh, length: int) -> tuple[slice, slice]:
    """Where this rank's tokens stand in rows of this length: two stretches."""
    rank, pieces = mesh.get_local_rank(), 2 * mesh.size()
    width = length // pieces
    assert width * pieces == length, "share_of_context cuts rows, and pads what cannot be cut"
    first, last = rank * width, (pieces - 1 - rank) * width
    return slice(first, first + width), slice(last, last + width)


def _taken(whole: Tensor, stretches: tuple[slice, slice]) -> Tensor:
    """(…, T) -> (…, T / N)"""
    return torch.cat([whole[..., stretch] for stretch in stretches], dim=-1)


def gathered(part: Tensor, mesh: DeviceMesh) -> Tensor:
    """Whole rows in their order; gradients are summed.  (…, T / N, D) -> (…, T, D)"""
    parts = DTensor.from_local(part.unsqueeze(0).contiguous(), mesh, [Shard(0)])
    whole = parts.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    firsts, lasts = whole.chunk(2, dim=-2)                        # (N, …, T / 2N, D) each
    return torch.cat((*firsts.unbind(), *reversed(lasts.unbind())), dim=-2)


def _length(ordinary: Callable[..., int], mesh: DeviceMesh, tokens: Tensor,
            cache: KVCache | None) -> int:
    """GPT._length, of whole rows."""
    return ordinary(tokens, cache) if cache is not None else mesh.size() * tokens.size(1)


def _places(model: GPT, ordinary: Callable[..., object], mesh: DeviceMesh, tokens: Tensor,
            cache: KVCache | None, segments: Tensor | None, prompts: Tensor | None,
            blockwise: bool) -> object:
    """GPT._places, of this rank's tokens: what they may read is said by stretch."""
    if cache is not None:
        return ordinary(tokens, cache, segments, prompts, blockwise)
    T, device = mesh.size() * tokens.size(1), tokens.device
    model.refuse_too_long(T, None)
    stretches = stretches_of(mesh, T)
    if prompts is not None and segments is None:
        segments = torch.zeros_like(prompts, dtype=torch.int64)
    positions = torch.arange(T, device=device) if segments is None else positions_within(segments)
    masks = model.config.attention_softcap is not None  # whose scores no kernel of torch computes
    visible = {window: [_readable(queries, T, window, device, segments, prompts, blockwise, masks)
                        for queries in stretches] for window in set(model.config.windows)}
    return _taken(positions, stretches), visible


def _readable(queries: slice, T: int, window: int | None, device: torch.device,
              segments: Tensor | None, prompts: Tensor | None, blockwise: bool, masks: bool
              ) -> Readable:
    """What one stretch of rows of T tokens may read. masks: always said by one, where not None."""
    reach = T if window is None else min(window, T)
    start, stop = max(0, queries.start - reach + 1), queries.stop
    if prompts is not None:  # which read what follows, too
        stop = min(T, stop + reach - 1)
    keys, width = slice(start, stop), queries.stop - queries.start
    visible: Visible
    if blockwise:
        from gpt.model.blockwise import visible_blocks  # imports torch's compiler
        visible = visible_blocks(T, window, device, segments, prompts, queries, keys)
    elif segments is not None:
        visible = visible_within(segments, window, prompts, queries, keys)
    elif 1 < width < stop <= reach and not masks and not torch.compiler.is_compiling():
        visible = causal_lower_right(width, stop)  # no mask, on CUDA; compilers do not know it
    else:
        visible = visible_keys(width, stop, window, device)
    return Readable(start, stop, visible)


def _attend(attention: Attention, ordinary: Callable[..., Tensor], mesh: DeviceMesh, q: Tensor,
            k: Tensor, v: Tensor, visible: Visible | list[Readable]) -> Tensor:
    """Attention._attend, of this rank's queries to the ranks' keys and values.

    (B, n_head, T / N, D), twice (B, n_kv_head, T / N, D) -> (B, n_head, T / N, D)
    """
    if not isinstance(visible, list):  # a cache holds whole texts
        return ordinary(q, k, v, visible)
    k, v = gathered(torch.stack((k, v)), mesh).unbind()           # (B, n_kv_head, T, D)
    read = []
    for queries, (start, stop, may_read) in zip(q.chunk(2, dim=2), visible, strict=True):
        keys, values = k[:, :, start:stop], v[:, :, start:stop]
        if isinstance(may_read, CausalBias) and q.dtype != torch.float32:
            # Half precision's kernels know groups of heads; float32's do not, see Attention.
            read.append(F.scaled_dot_product_attention(
                queries, keys, values, may_read, scale=attention.scale,
                enable_gqa=q.size(1) != k.size(1),
                dropout_p=attention.dropout_p if attention.training else 0.0))
        else:
            read.append(ordinary(queries, keys, values, may_read))
    return torch.cat(read, dim=2)
