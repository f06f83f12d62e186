"""Between whole tensors and the parts of them that ranks hold, for checkpoints.

A tensor is cut once for each dimension of its mesh that shares it, as torch.chunk cuts: the first
parts are of one size, the last may be smaller or empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gpt.optim import local_part


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank that holds a part of it; these call it together.

    A plain tensor, and one of which every rank holds all, is returned as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    mesh, coordinate = tensor.device_mesh, _here(tensor)
    lengths, undo = list(tensor.shape), []
    for mesh_dim, dim in cuts(tensor):
        undo.append((mesh_dim, dim, lengths[dim]))
        lengths[dim] = len(_chunk(range(lengths[dim]), mesh.size(mesh_dim), coordinate[mesh_dim]))
    part = local_part(tensor.detach())
    for mesh_dim, dim, length in reversed(undo):
        part = _joined(part, dim, length, mesh.get_group(mesh_dim))
    return part


@torch.no_grad()
def fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy this rank's part of a whole tensor into its own; of a mapped file only that is read."""
    assert tensor.shape == whole.shape, f"{tuple(whole.shape)} is no {tuple(tensor.shape)}"
    if isinstance(tensor, DTensor):
        tensor.to_local().copy_(whole[extent(tensor)])
    else:
        tensor.copy_(whole)


def cuts(tensor: DTensor) -> list[tuple[int, int]]:
    """Which dimension of the mesh cuts which of the tensor, in the order of cutting.

    FSDP2 cuts what tensor parallelism has cut already, though its dimension of the mesh stands
    first; where both cut the same rows, its placement says so by a split_factor.
    """
    assert not any(p.is_partial() for p in tensor.placements), "sums that are yet to be added up"
    found = [(hasattr(placement, "split_factor"), mesh_dim, placement.dim)
             for mesh_dim, placement in enumerate(tensor.placements) if hasattr(placement, "dim")]
    return [(mesh_dim, dim) for _, mesh_dim, dim in sorted(found)]


def extent(tensor: DTensor, coordinate: Sequence[int] | None = None) -> tuple[slice, ...]:
    """What of the whole lies at a coordinate of its mesh, or here: a slice of each dimension."""
    coordinate = _here(tensor) if coordinate is None else coordinate
    ranges = [range(length) for length in tensor.shape]
    for mesh_dim, dim in cuts(tensor):
        ranges[dim] = _chunk(ranges[dim], tensor.device_mesh.size(mesh_dim), coordinate[mesh_dim])
    return tuple(slice(r.start, r.stop) for r in ranges)


def _here(tensor: DTensor) -> Sequence[int]:
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None, "this rank holds no part of the tensor"
    return coordinate


def _chunk(indices: range, parts: int, number: int) -> range:
    """Part `number` of so many; those before the last have one size, unless there is no more."""
    size = -(-len(indices) // parts)
    return indices[number * size:(number + 1) * size]


def _joined(part: Tensor, dim: int, length: int, group: dist.ProcessGroup) -> Tensor:
    """The parts of a group's ranks side by side, `length` in all; sent padded to the first's."""
    ranks, shape = group.size(), list(part.shape)
    shapes = []
    for number in range(ranks):
        shape[dim] = len(_chunk(range(length), ranks, number))
        shapes.append(torch.Size(shape))
    sent = part.new_zeros(shapes[0].numel())
    sent[:part.numel()] = part.reshape(-1)
    arrived = part.new_empty(ranks, sent.numel())
    dist.all_gather_into_tensor(arrived.view(-1), sent, group=group)
    return torch.cat([row[:s.numel()].view(s) for row, s in zip(arrived, shapes, strict=True)], dim)
