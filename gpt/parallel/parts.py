"""Between whole tensors and the parts of them that processes hold."""

from __future__ import annotations

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """A spread tensor brought together on every process; another one as it is."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


@torch.no_grad()
def fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy this process's part of a whole tensor into the part that it holds."""
    from torch.distributed.tensor import DTensor
    if not isinstance(tensor, DTensor):
        tensor.copy_(whole)
        return
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    shape, offset = compute_local_shape_and_global_offset(whole.shape, tensor.device_mesh,
                                                          tensor.placements)
    part = whole[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))]
    tensor.to_local().copy_(part)
