"""A vocabulary that is spread over ranks: looking tokens up, scoring them, and the loss of scores.

Each rank holds neighbouring rows of the (V, C) matrix, ⌈V / ranks⌉ of them but for the last, and
so the scores of its own part. What softmax needs of the others is two numbers a token: of each
part, the logarithm of its sum of exponentials, and the target's score where the target is its own.
Source: Shoeybi et al. 2019 (arXiv:1909.08053), section 3.

Shape letters: N tokens, V vocabulary, W rows of this rank's part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gpt.batches import IGNORE
from gpt.parallel.collectives import enter, gathered, leave

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Part:
    """Where a rank's part of the vocabulary lies.

    group: the ranks that it is spread over.
    """

    vocab_size: int
    group: dist.ProcessGroup

    @property
    def widest(self) -> int:
        """Rows of the first part, which none exceeds."""
        return -(-self.vocab_size // dist.get_world_size(self.group))

    @property
    def start(self) -> int:
        """The first token id of this rank's part."""
        return dist.get_rank(self.group) * self.widest

    @property
    def width(self) -> int:
        """Rows of this rank's part."""
        return min(self.widest, self.vocab_size - self.start)

    def look_up(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Tokens' vectors, of a table of which this rank has (W, C).  (…) int64 -> (…, C)

        A vector comes from the rank that has it, as a sum with zeros: (…, C) floats are summed.
        """
        ids = tokens - self.start
        others = (ids < 0) | (ids >= self.width)
        vectors = F.embedding(ids.masked_fill(others, 0), table)
        return leave(vectors.masked_fill(others.unsqueeze(-1), 0.0), self.group.group_name)

    def enter(self, x: Tensor) -> Tensor:
        """What scores are computed from; its gradient is summed over ranks."""
        return enter(x, self.group.group_name)

    def rows(self, weight: Tensor) -> Tensor:
        """This rank's rows of the matrix or its bias: (V, C) -> (W, C), (V,) -> (W,)"""
        rows: Tensor = weight.to_local()  # type: ignore[attr-defined]
        return rows

    def project(self, x: Tensor, table: Tensor, bias: Tensor | None = None) -> Tensor:
        """Scores of all tokens, on every rank: (…, C) -> (…, V)"""
        scores = F.linear(self.enter(x), table, bias)              # (…, W)
        scores = F.pad(scores, (0, self.widest - self.width))
        every = gathered(scores, self.group)                  # (ranks, …, widest)
        return every.movedim(0, -2).flatten(-2)[..., :self.vocab_size]

    def judge(self, scores: Tensor, targets: Tensor, softcap: float | None, learns: bool,
              fused: bool = False) -> tuple[Tensor, Tensor]:
        """As `loss_and_slope` in gpt/training, of this rank's scores: (N, W) -> (), (N, W).

        The loss is that of the whole vocabulary, alike on all ranks.
        """
        sums_of, slope_of = _compiled() if fused else (_sums, _slope)
        ids = targets - self.start
        total, target = self._everywhere(sums_of(scores, ids, softcap))
        supervised = targets != IGNORE
        loss = torch.where(supervised, total - target, 0.0).sum()
        if not learns:
            return loss, scores
        return loss, slope_of(scores, ids, softcap, total, supervised)

    def token_losses(self, scores: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        """The loss of each target, 0 where it is IGNORE, with gradients: (N, W) -> (N,) float32."""
        total, target = self._everywhere(_sums(scores, targets - self.start, softcap))
        return torch.where(targets != IGNORE, total - target, 0.0)

    def _everywhere(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """From each part's sums (2, N) to those of the vocabulary: (N,) and (N,)."""
        parts = gathered(sums, self.group)                    # (ranks, 2, N)
        return parts[:, 0].logsumexp(0), parts[:, 1].sum(0)


def is_spread(weight: Tensor) -> bool:
    """Whether this rank has a part of it alone: a DTensor, whose class takes seconds to import."""
    return hasattr(weight, "device_mesh")


def part_of(weight: Tensor) -> Part:
    """Where the rank's part lies, of a (V, C) matrix whose rows are spread over "tensor" alone."""
    mesh: DeviceMesh = weight.device_mesh  # type: ignore[attr-defined]
    assert mesh.mesh_dim_names == ("tensor",), "shards of a weight are gathered before it is used"
    return Part(weight.size(0), mesh.get_group())


def _sums(scores: Tensor, ids: Tensor, softcap: float | None) -> Tensor:
    """log Σ exp of a part's scores, and the target's score or 0: (N, W) -> (2, N) float32."""
    capped = _bent(scores, softcap)
    inside = (ids >= 0) & (ids < scores.size(1))
    target = capped.gather(1, ids.clamp(0, scores.size(1) - 1).unsqueeze(1)).squeeze(1)
    return torch.stack((capped.logsumexp(1), torch.where(inside, target, 0.0)))


def _slope(scores: Tensor, ids: Tensor, softcap: float | None, total: Tensor, supervised: Tensor
           ) -> Tensor:
    """The loss's gradient by a part's raw scores: (N, W) -> (N, W)."""
    capped = _bent(scores, softcap)
    is_target = torch.arange(scores.size(1), device=scores.device) == ids.unsqueeze(1)
    gradient = (capped - total.unsqueeze(1)).exp() - is_target.float()
    if softcap is not None:
        gradient = gradient * (1 - (capped / softcap).square())
    return torch.where(supervised.unsqueeze(1), gradient, 0.0).to(scores.dtype)


def _bent(scores: Tensor, softcap: float | None) -> Tensor:
    scores = scores.float()
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


@functools.cache
def _compiled() -> tuple[Callable[..., Any], ...]:
    return torch.compile(_sums), torch.compile(_slope)
