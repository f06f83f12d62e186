"""Which of their tensors is which of ours.

Ours are fused (queries, keys and values in one matrix; gate and value in another), theirs in many
ways: a rule names one tensor of ours and its parts among theirs, along the first dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt.configuration import GATED, ModelConfig
from gpt.model import GPT

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Names:
    """What an architecture calls its modules, and how their rows lie.

    outside, inside: {ours: theirs}; inside: of a layer, whose names `layer` begins; several where
    theirs has a module for each part. transposed: matrices are (in, out), as in GPT-2's Conv1D.
    grouped: queries, keys and values of one key/value head lie together. interleaved: neighbours
    (2i, 2i + 1) of a head turn together, not (i, i + R/2). before_positions: rows of the position
    table that no position reads. shifted_norms: theirs are greater by 1.
    """

    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, str | Parts]
    transposed: bool = False
    grouped: bool = False
    interleaved: bool = False
    before_positions: int = 0
    shifted_norms: bool = False

    def of(self, module: str) -> Parts:
        """Theirs, for the full name of one of our modules."""
        if module in self.outside:
            return (self.outside[module],)
        _, number, part = module.split(".", 2)
        theirs = self.inside[part]
        parts = (theirs,) if isinstance(theirs, str) else theirs
        return tuple(self.layer.format(number) + name for name in parts)


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and its parts, with the length of each.

    transposed: theirs is (in, out). order: which of their rows our rows are. before: how many rows
    of theirs come before ours. shift: by what theirs is greater.
    """

    ours: str
    theirs: Parts
    lengths: tuple[int, ...] = ()
    transposed: bool = False
    order: Tensor | None = field(default=None, compare=False)
    before: int = 0
    shift: float = 0.0

    def join(self, read: Callable[[str], Tensor]) -> Tensor:
        """Our tensor from theirs."""
        parts = [read(name) for name in self.theirs]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.transposed:
            return whole.T.contiguous()
        if self.order is not None:
            return whole[self.order]
        if self.shift:
            return whole - self.shift
        return whole[self.before:].clone() if self.before else whole

    def their_shapes(self, ours: torch.Size) -> dict[str, tuple[int, ...]]:
        """The shape that each of theirs has to have, by ours."""
        whole = tuple(reversed(ours)) if self.transposed else (self.before + ours[0], *ours[1:])
        lengths = self.lengths or (whole[0],)
        return {name: (length, *whole[1:])
                for name, length in zip(self.theirs, lengths, strict=True)}

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Their tensors from ours."""
        whole = tensor.T if self.transposed else tensor
        if self.shift:
            whole = whole + self.shift
        if self.order is not None:
            whole = whole[self.order.argsort()]
        if self.before:
            whole = torch.cat((whole.new_zeros(self.before, *whole.shape[1:]), whole))
        parts = whole.split(self.lengths) if len(self.theirs) > 1 else (whole,)
        return {name: part.contiguous() for name, part in zip(self.theirs, parts, strict=True)}


def rules(config: ModelConfig, names: Names) -> list[Rule]:
    """All tensors of a model, in the order in which data meets them."""
    with torch.device("meta"):
        ours = GPT(config).state_dict()
    found = []
    for name, tensor in ours.items():
        module, _, kind = name.rpartition(".")
        part = module.split(".", 2)[-1] if module.startswith("blocks.") else module
        theirs = tuple(f"{each}.{kind}" for each in names.of(module))
        found.append(Rule(
            name, theirs, _lengths(part, config) if len(theirs) > 1 else (),
            transposed=names.transposed and part.endswith("_proj") and tensor.dim() == 2,
            order=_order(config, names) if part == "attention.qkv_proj" else None,
            before=names.before_positions if part == "embedding.position_embedding" else 0,
            shift=1.0 if names.shifted_norms and part.endswith("norm") else 0.0))
    return found


def _lengths(part: str, config: ModelConfig) -> tuple[int, ...]:
    if part == "attention.qkv_proj":
        q_width, kv_width = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        return q_width, kv_width, kv_width
    assert part == "feedforward.up_proj" and config.mlp in GATED, part
    return config.n_inner, config.n_inner


def _order(config: ModelConfig, names: Names) -> Tensor | None:
    """Which of their rows those of our queries, keys and values are; None: the same ones."""
    H, K, D, R = config.n_head, config.n_kv_head, config.head_dim, config.rope_dim
    heads = torch.arange((H + 2 * K) * D).view(-1, D)
    if names.grouped:
        groups = heads.view(K, H // K + 2, D)
        heads = torch.cat((groups[:, :-2].flatten(0, 1), groups[:, -2], groups[:, -1]))
    if names.interleaved:
        turned = heads[:H + K]
        heads = torch.cat((torch.cat((turned[:, 0:R:2], turned[:, 1:R:2], turned[:, R:]), dim=1),
                           heads[H + K:]))
    return heads.flatten() if names.grouped or names.interleaved else None
