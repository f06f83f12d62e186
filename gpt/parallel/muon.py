"""Muon where many ranks hold the matrices: each orthogonalises a share of them.

Momentum and weights stay where they are. A matrix is brought together on one rank, orthogonalised
there, and sent back as parts. Where ranks hold the same parts, each does a share of the work and
tells the others.
Traffic of a rank, for matrices of P numbers that are cut among n ranks, in the format that is
computed in: (n - 1) / n of P / n numbers to others and as many back. Among m ranks that hold the
same, it hears (m - 1) / m of what it holds. While that travels, others are orthogonalised.
Source: Liu et al. 2025, arXiv:2502.16982, section 2.3; there every rank orthogonalises each matrix
that it holds a part of.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from gpt.optim import Muon, Optimizer, State, local_part, number_format, orthogonalised
from gpt.parallel.parts import cuts, extent

Travelling = Generator[None, None, Tensor]  # yields while others may compute, returns what arrived


def spread_muon(optimizer: Optimizer, replicas: dist.ProcessGroup | None = None) -> None:
    """Let ranks share the work of an optimizer's Muon.

    replicas: ranks whose weights are equal without being DTensors that say so, as DDP's are.
    """
    for group in optimizer.groups:
        if isinstance(group.rule, Muon):
            group.rule = SpreadMuon(group.rule.momentum, replicas)


@dataclass(frozen=True)
class SpreadMuon(Muon):
    """The same rule for matrices that are cut among ranks, equal on ranks, or both.

    Matrices of one shape and layout are a round, in which each rank orthogonalises a stack.
    """

    replicas: dist.ProcessGroup | None = None
    _layouts: dict[Hashable, Layout] = field(default_factory=dict, init=False, repr=False)
    _groups: dict[Hashable, dist.ProcessGroup] = field(default_factory=dict, init=False, repr=False)

    def update(self, matrices: list[Tensor], state: State, lr: float, weight_decay: float) -> None:
        """One step for matrices that have gradients; all ranks that hold any take it together."""
        alike: dict[Layout, list[Tensor]] = {}
        for matrix in matrices:
            alike.setdefault(self._layout(matrix), []).append(matrix)
        shares = _deal({layout: len(found) for layout, found in alike.items()})
        _take_turns(self._round(layout, found, shares[layout], state, lr, weight_decay)
                    for layout, found in alike.items())

    def _round(self, layout: Layout, matrices: list[Tensor], shares: list[int], state: State,
               lr: float, weight_decay: float) -> Iterator[None]:
        """Update matrices of one layout; shares: how many each rank orthogonalises, in order."""
        ahead = self.look_ahead(matrices, state)[layout.ours(shares)]
        held = local_part(matrices[0])
        parts = held.new_empty(len(ahead), *held.shape, dtype=number_format(held))
        for part, source in zip(parts, ahead, strict=True):
            part.copy_(source)
        del ahead
        wholes = yield from layout.gather(parts, shares)
        parts = yield from layout.scatter(orthogonalised(wholes), shares)
        parts = yield from layout.tell(parts, shares)
        self.move(matrices, parts, lr, weight_decay)

    def _layout(self, matrix: Tensor) -> Layout:
        key: Hashable = matrix.shape
        if isinstance(matrix, DTensor):
            key = matrix.shape, matrix.device_mesh, matrix.placements
        if key not in self._layouts:
            self._layouts[key] = self._new_layout(matrix)
        return self._layouts[key]

    def _new_layout(self, matrix: Tensor) -> Layout:
        if not isinstance(matrix, DTensor):
            return Layout(matrix.shape, [(slice(None), slice(None))], None, self.replicas)
        mesh = matrix.device_mesh
        cutting = sorted({mesh_dim for mesh_dim, _ in cuts(matrix)})
        shards = self._group(mesh, cutting)
        replicas = self._group(mesh, [i for i in range(mesh.ndim) if i not in cutting])
        places = [None] if shards is None else [
            (mesh.mesh == rank).nonzero()[0].tolist()
            for rank in dist.get_process_group_ranks(shards)]
        return Layout(matrix.shape, [extent(matrix, place) for place in places], shards,
                      replicas if self.replicas is None else self.replicas)

    def _group(self, mesh: DeviceMesh, mesh_dims: Sequence[int]) -> dist.ProcessGroup | None:
        """The ranks that differ from this one in these dimensions alone; None: itself."""
        if len(mesh_dims) < 2:
            return mesh.get_group(mesh_dims[0]) if mesh_dims else None
        place = mesh.get_coordinate()
        assert place is not None, "this rank holds no part of the tensor"
        chosen = tuple(slice(None) if i in mesh_dims else at for i, at in enumerate(place))
        ranks = tuple(mesh.mesh[chosen].flatten().tolist())
        if ranks not in self._groups:
            self._groups[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)
        return self._groups[ranks]


@dataclass(frozen=True, eq=False)
class Layout:
    """Which ranks hold which parts of matrices of one shape, and how these travel.

    extents: which rows and columns lie on each of the `shards`. replicas: ranks with the same
    parts. Shares are counted by replica, then by shard.
    """

    shape: torch.Size
    extents: list[tuple[slice, ...]]
    shards: dist.ProcessGroup | None
    replicas: dist.ProcessGroup | None

    @property
    def ranks(self) -> int:
        """Among how many the work is shared."""
        return len(self.extents) * (1 if self.replicas is None else self.replicas.size())

    @property
    def work(self) -> int:
        """The arithmetic that a matrix costs, but for a factor."""
        return min(self.shape) ** 2 * max(self.shape)

    def ours(self, shares: list[int]) -> slice:
        """The matrices that this rank orthogonalises together with the other shards."""
        replica = 0 if self.replicas is None else self.replicas.rank()
        before = sum(shares[:replica * len(self.extents)])
        return slice(before, before + sum(self._among_shards(shares)))

    def gather(self, parts: Tensor, shares: list[int]) -> Travelling:
        """From parts of ours to all of mine.  (ours, rows, columns) -> (mine, out, in)"""
        if self.shards is None:
            return parts
        sent = self._among_shards(shares)
        mine = sent[self.shards.rank()]
        wholes = parts.new_empty(mine, *self.shape)
        sizes = [wholes[:, rows, columns].numel() for rows, columns in self.extents]
        arrived = parts.new_empty(sum(sizes))
        work = dist.all_to_all_single(arrived, parts.view(-1), sizes,
                                      [n * parts[0].numel() if n else 0 for n in sent],
                                      group=self.shards, async_op=True)
        yield
        work.wait()
        for (rows, columns), piece in zip(self.extents, arrived.split(sizes), strict=True):
            place = wholes[:, rows, columns]
            place.copy_(piece.view(place.shape))
        return wholes

    def scatter(self, wholes: Tensor, shares: list[int]) -> Travelling:
        """Back again.  (mine, out, in) -> (ours, rows, columns)"""
        if self.shards is None:
            return wholes
        sent = [wholes[:, rows, columns].reshape(-1) for rows, columns in self.extents]
        counts = self._among_shards(shares)
        rows, columns = self.extents[self.shards.rank()]
        shape = torch.Size((rows.stop - rows.start, columns.stop - columns.start))
        parts = wholes.new_empty(sum(counts), *shape)
        work = dist.all_to_all_single(parts.view(-1), torch.cat(sent),
                                      [n * shape.numel() for n in counts],
                                      [piece.numel() for piece in sent],
                                      group=self.shards, async_op=True)
        yield
        work.wait()
        return parts

    def tell(self, parts: Tensor, shares: list[int]) -> Travelling:
        """Replicas tell each other theirs.  (ours, rows, columns) -> (all, rows, columns)"""
        if self.replicas is None:
            return parts
        shards = len(self.extents)
        told = parts.new_empty(sum(shares), *parts.shape[1:])
        pieces = told.split([sum(shares[i:i + shards]) for i in range(0, len(shares), shards)])
        pieces[self.replicas.rank()].copy_(parts)
        works = [dist.broadcast(piece, group=self.replicas, group_src=replica, async_op=True)
                 for replica, piece in enumerate(pieces) if piece.numel()]
        yield
        for work in works:
            work.wait()
        return told

    def _among_shards(self, shares: list[int]) -> list[int]:
        shards = len(self.extents)
        first = 0 if self.replicas is None else self.replicas.rank() * shards
        return shares[first:first + shards]


def _deal(numbers: dict[Layout, int]) -> dict[Layout, list[int]]:
    """How many matrices of each layout each rank orthogonalises.

    The largest are dealt out first, each to whoever has the least to do.
    """
    loads: dict[Hashable, list[tuple[int, int]]] = {}  # heaps of (work, rank)
    shares = {layout: [0] * layout.ranks for layout in numbers}
    for layout in sorted(numbers, key=lambda layout: layout.work, reverse=True):
        heap = loads.setdefault((layout.shards, layout.replicas),
                                [(0, rank) for rank in range(layout.ranks)])
        for _ in range(numbers[layout]):
            work, rank = heap[0]
            heapq.heapreplace(heap, (work + layout.work, rank))
            shares[layout][rank] += 1
    return shares


def _take_turns(rounds: Iterable[Iterator[None]]) -> None:
    """Start one after the other; when one has started, those before it go on by a piece."""
    waiting, under_way, done = iter(rounds), list[Iterator[None]](), object()
    while True:
        started = list(itertools.islice(waiting, 1))
        under_way = [r for r in started + under_way if next(r, done) is not done]
        if not started and not under_way:
            return
