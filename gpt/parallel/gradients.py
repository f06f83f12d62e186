"""The gradient of a model whose weights lie on many ranks, as one: its norm, and overflows.

Traffic: a few numbers over each dimension of a mesh that cuts weights. Nothing here waits for the
device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gpt.optim import local_part
from gpt.parallel.parts import cuts

Groups = tuple[dist.ProcessGroup, ...]  # among whose ranks a tensor is cut


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float,
                   stages: dist.ProcessGroup | None = None,
                   counted_elsewhere: AbstractSet[Tensor] = frozenset()) -> Tensor:
    """Scale gradients to a norm of at most `limit` (0: leave them); returns the norm before, ().

    It is that of the whole gradient, of which each number counts once. One that is not finite, on
    any rank, makes the norm so on every rank. stages: the ranks that hold the other stages of a
    pipeline. counted_elsewhere: weights that another stage holds as well, and counts.
    """
    weights = list(parameters)
    return clip_kinds({"": weights}, limit, _device(weights), stages, counted_elsewhere)[0]


@torch.no_grad()
def clip_kinds(kinds: Mapping[str, Sequence[Tensor]], limit: float, device: torch.device,
               stages: dist.ProcessGroup | None = None,
               counted_elsewhere: AbstractSet[Tensor] = frozenset()
               ) -> tuple[Tensor, dict[str, Tensor]]:
    """The same, of weights by kind: (norm of the whole gradient, (), that of each kind, ()).

    device: of the weights that this rank holds.
    """
    weights = [weight for each in kinds.values() for weight in each]
    counted = [[p.grad for p in each if p not in counted_elsewhere and p.grad is not None]
               for each in kinds.values()]
    zero = torch.zeros(len(kinds), device=device)
    squares = _added_up(_by_groups(counted, _squares), zero, stages)
    norm = squares.sum().sqrt()
    gradients = [local_part(p.grad) for p in weights if p.grad is not None]
    if limit and gradients:
        share = (limit / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        torch._foreach_mul_(gradients, share)
    return norm, dict(zip(kinds, squares.sqrt(), strict=True))


@torch.no_grad()
def spread_overflow(parameters: Iterable[Tensor], stages: dist.ProcessGroup | None = None) -> None:
    """Where any rank's gradients are not finite, make those of every rank so.

    For float16, before its gradients are scaled back: ranks must leave out the same updates.
    """
    weights = list(parameters)
    gradients = [p.grad for p in weights if p.grad is not None]
    zero = torch.zeros(1, device=_device(weights))
    nothing = _added_up(_by_groups([gradients], _nothing_if_finite), zero, stages)
    if gradients:
        torch._foreach_add_([local_part(g) for g in gradients], nothing[0])


def _device(weights: list[Tensor]) -> torch.device:
    """Of those that this rank holds; other stages' are on "meta"."""
    return next(weight.device for weight in weights if not weight.is_meta)


def _squares(parts: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm(parts, 2.0, dtype=torch.float32)
    return torch.stack(norms).square().sum()


def _nothing_if_finite(parts: list[Tensor]) -> Tensor:
    """Zero; NaN if any number is not finite. Large ones do not overflow here, as squares would."""
    largest = [norm.float() for norm in torch._foreach_norm([p for p in parts if p.numel()],
                                                            float("inf"))]
    return (torch.stack([parts[0].new_zeros((), dtype=torch.float32), *largest]) * 0).sum()


def _by_groups(kinds: Sequence[Sequence[Tensor]],
               measure: Callable[[list[Tensor]], Tensor]) -> dict[Groups, Tensor]:
    """What is measured of this rank's parts of each kind, (kinds,), by the groups that share the
    tensors."""
    parts: dict[Groups, list[list[Tensor]]] = {}
    for kind, gradients in enumerate(kinds):
        for gradient in gradients:
            groups = tuple(gradient.device_mesh.get_group(mesh_dim) for mesh_dim, _
                           in cuts(gradient)) if isinstance(gradient, DTensor) else ()
            parts.setdefault(groups, [[] for _ in kinds])[kind].append(local_part(gradient))
    device = next((g.device for each in kinds for g in each), None)
    return {groups: torch.stack([measure(tensors) if tensors else torch.zeros((), device=device)
                                 for tensors in of_kinds]) for groups, of_kinds in parts.items()}


def _added_up(measured: dict[Groups, Tensor], zero: Tensor,
              stages: dist.ProcessGroup | None) -> Tensor:
    """The sums over all ranks that hold different parts, (kinds,): one collective for each group.
    A stage of a pipeline in which nothing learns adds zero."""
    for group in dict.fromkeys(group for groups in measured for group in groups):
        among = [groups for groups in measured if group in groups]
        sums = torch.stack([measured.pop(groups) for groups in among])
        dist.all_reduce(sums, group=group)
        for groups, value in zip(among, sums, strict=True):
            others = tuple(other for other in groups if other is not group)
            measured[others] = measured[others] + value if others in measured else value
    total = measured.get((), zero)
    if stages is not None:
        dist.all_reduce(total, group=stages)
    return total
