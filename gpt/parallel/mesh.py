"""The mesh: every process has a place along each axis."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from gpt.machine.ranks import Ranks
from gpt.parallel.sizes import AXES, Sizes


def device_mesh(sizes: Sizes, device: str) -> Any:
    """torch's DeviceMesh over the axes that have more than one process; `shard` is always there,
    since FSDP wants an axis also where only a tensor is shared."""
    from torch.distributed.device_mesh import init_device_mesh
    chosen = {axis: size for axis in AXES if (size := getattr(sizes, axis)) > 1 or axis == "shard"}
    return init_device_mesh(device, tuple(chosen.values()), mesh_dim_names=tuple(chosen))


def ranks_along(axes: Collection[str], sizes: Sizes, world: Ranks) -> Ranks:
    """The processes that differ from this one along these axes alone, in the mesh's order.

    All processes have to ask, in the same order.
    """
    shape = [getattr(sizes, axis) for axis in AXES]
    kept = [i for i, axis in enumerate(AXES) if axis in axes]
    together = math.prod(shape[i] for i in kept)
    if together == 1:
        return world.among(None)
    if together == world.size:
        return world
    import torch.distributed as dist
    ranks = np.arange(world.size).reshape(shape)
    others = [i for i in range(len(AXES)) if i not in kept]
    rows = ranks.transpose(*others, *kept).reshape(-1, together).tolist()
    group, _ = dist.new_subgroups_by_enumeration(rows)
    return world.among(group)
