"""tmp"""
import math

from torch import nn


def clip_gradients(parameters, limit):
    from torch.distributed.tensor import DTensor
    ps = [p for p in parameters if p.grad is not None]
    if not any(isinstance(p, DTensor) for p in ps):
        return nn.utils.clip_grad_norm_(ps, limit or math.inf)
    norm = nn.utils.clip_grad_norm_(ps, limit or math.inf)
    return norm.full_tensor()
def spread_overflow(parameters):
    pass
