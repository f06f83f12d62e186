"""The mesh: every process has a place along each axis."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

import numpy as np

from gpt.machine.ranks import Ranks
from gpt.parallel.sizes import Sizes

AXES = tuple(asdict(Sizes()))


def device_mesh(sizes: Sizes, device: str) -> Any:
    """torch's DeviceMesh over the axes that have more than one process; `shard` is always there,
    since FSDP wants an axis also where only a tensor is shared."""
    from torch.distributed.device_mesh import init_device_mesh
    chosen = {name: size for name, size in asdict(sizes).items() if size > 1 or name == "shard"}
    return init_device_mesh(device, tuple(chosen.values()), mesh_dim_names=tuple(chosen))


def ranks_along(axes: Collection[str], sizes: Sizes, world: Ranks) -> Ranks:
    """The processes that differ from this one along these axes alone, in the mesh's order.

    All processes have to ask, in the same order.
    """
    kept = [i for i, name in enumerate(AXES) if name in axes]
    together = int(np.prod([asdict(sizes)[AXES[i]] for i in kept], dtype=int))
    if together == 1:
        return world.among(None)
    if together == world.size:
        return world
    import torch.distributed as dist
    ranks = np.arange(world.size).reshape(tuple(asdict(sizes).values()))
    others = [i for i in range(len(AXES)) if i not in kept]
    rows = ranks.transpose(*others, *kept).reshape(-1, together).tolist()
    group, _ = dist.new_subgroups_by_enumeration(rows)
    return world.among(group)
