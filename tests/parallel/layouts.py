"""Linear layers laid out over ranks in every way that training does, for tests."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from gpt.parallel.parts import fill

# By number of ranks: sizes of the mesh's dimensions, and what tensor parallelism cuts.
LAYOUTS: dict[int, dict[str, tuple[dict[str, int], type[ParallelStyle]]]] = {
    2: {"replicas": ({"replicate": 2}, ColwiseParallel),
        "shard": ({"shard": 2}, ColwiseParallel),
        "tensor, rows": ({"tensor": 2}, ColwiseParallel),
        "tensor, columns": ({"tensor": 2}, RowwiseParallel)},
    4: {"replicas": ({"replicate": 4}, ColwiseParallel),
        "shard": ({"shard": 4}, ColwiseParallel),
        "replicate × shard": ({"replicate": 2, "shard": 2}, ColwiseParallel),
        "replicate × tensor": ({"replicate": 2, "tensor": 2}, ColwiseParallel),
        "shard × tensor, rows": ({"shard": 2, "tensor": 2}, ColwiseParallel),
        "shard × tensor, columns": ({"shard": 2, "tensor": 2}, RowwiseParallel)},
}
CASES = [(ranks, layout) for ranks, layouts in LAYOUTS.items() for layout in layouts]
MIXED = (4, "mixed")  # layers that both cut, one that FSDP2 alone cuts, and plain ones


def mesh_of(layout: str) -> DeviceMesh:
    """The mesh of a layout for as many ranks as there are."""
    sizes = ({"shard": 2, "tensor": 2} if layout == "mixed"
             else LAYOUTS[dist.get_world_size()][layout][0])
    return init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def laid_out(layers: nn.Sequential, layout: str, mesh: DeviceMesh) -> nn.Sequential:
    """The layers, cut as a layout says: by tensor parallelism first, then by FSDP2."""
    if layout == "mixed":
        styles = {"0": ColwiseParallel(), "1": RowwiseParallel()}
        parallelize_module(layers, mesh["tensor"], styles)
        for layer in layers[:3]:
            fully_shard(layer, mesh=mesh["shard"])
        return layers
    names = mesh.mesh_dim_names or ()
    if "tensor" in names:
        _, style = LAYOUTS[dist.get_world_size()][layout]
        parallelize_module(layers, mesh["tensor"], {str(i): style() for i in range(len(layers))})
    if "shard" in names:
        data = tuple(name for name in names if name != "tensor")
        fully_shard(layers, mesh=mesh[data])
    return layers


def linear_layers(*shapes: tuple[int, int], bias: bool = False, seed: int = 0) -> nn.Sequential:
    """Layers with weights of these shapes."""
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(columns, rows, bias=bias) for rows, columns in shapes))


def set_gradients(parameters: list[nn.Parameter], seed: int) -> list[Tensor]:
    """Draw a whole gradient for each, of which ranks keep their parts; returns the whole ones."""
    generator = torch.Generator().manual_seed(seed)
    wholes = [torch.randn(p.shape, generator=generator) for p in parameters]
    for parameter, gradient in zip(parameters, wholes, strict=True):
        parameter.grad = torch.empty_like(parameter, requires_grad=False)
        fill(parameter.grad, gradient)
    return wholes
