"""Which tensors of a model are cut over tensor-parallel ranks, along which dimension.

Source: Shoeybi et al. 2019 (Megatron-LM, arXiv:1909.08053), section 3.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpt.configuration import AdapterConfig, ModelConfig
from gpt.errors import UserError
from gpt.model import lora

Layout = Literal["columns", "rows", "vocabulary", "heads", "whole"]

# How a module lies, by its name; all others are whole on every rank.
PLAN: dict[str, Layout] = {
    "qkv_proj": "columns",              # outputs are spread, whole heads of them
    "out_proj": "rows",                 # inputs are spread, outputs are summed
    "up_proj": "columns",
    "down_proj": "rows",
    "q_norm": "heads",                  # whole, but each rank uses it on other heads
    "k_norm": "heads",
    "token_embedding": "vocabulary",    # tokens are spread
    "lm_head": "vocabulary",
}


class Cut(NamedTuple):
    """How one tensor lies.

    dim: along which it is cut; None: every rank has all of it. summed: its gradient is the sum of
    what ranks find. once: it is added to a sum over ranks, and must be counted once.
    """

    dim: int | None = None
    summed: bool = False
    once: bool = False


# By a module's layout and the tensor's last name; all others are whole, with the same gradient
# everywhere. A and B are those of low-rank adapters, weight_scale is an int8 base's.
_CUTS: dict[tuple[Layout, str], Cut] = {
    ("columns", "weight"): Cut(0),
    ("columns", "bias"): Cut(0),
    ("columns", "weight_scale"): Cut(0),
    ("columns", "A"): Cut(summed=True),
    ("columns", "B"): Cut(0),
    ("rows", "weight"): Cut(1),
    ("rows", "bias"): Cut(once=True),
    ("rows", "A"): Cut(1),
    ("rows", "B"): Cut(summed=True),
    ("heads", "weight"): Cut(summed=True),
    ("vocabulary", "weight"): Cut(0),
    ("vocabulary", "bias"): Cut(0),
}


def layout(name: str) -> Layout:
    """How a module lies, by its own full name or one of its tensors'."""
    return next((PLAN[part] for part in name.split(".") if part in PLAN), "whole")


def cut(name: str) -> Cut:
    """How a tensor lies, by its full name."""
    return _CUTS.get((layout(name), name.rpartition(".")[2]), Cut())


def row_order(name: str, config: ModelConfig, ranks: int) -> Tensor | None:
    """The order in which a tensor's rows are cut into equal parts: (rows,) int64; None: their own.

    A matrix of queries, keys and values holds all queries first; each rank is to have its own
    heads' rows of all three, and so of SwiGLU's two halves. With order: `whole[order]` is what is
    cut, and `cut[order.argsort()]` is whole again.
    """
    matrix, last = ".".join(name.split(".")[-3:-1]), name.rpartition(".")[2]
    parts = lora.adaptable_matrices(config).get(matrix, {})
    if layout(name) != "columns" or cut(name).dim != 0 or last == "B" or len(parts) == 1:
        return None
    rows = torch.arange(sum(parts.values())).split(list(parts.values()))
    pieces = zip(*(part.chunk(ranks) for part in rows), strict=True)  # of each rank, its parts'
    return torch.cat([torch.cat(piece) for piece in pieces])


def refuse_what_cannot_be_cut(config: ModelConfig, adapter: AdapterConfig | None,
                              ranks: int) -> None:
    """Raise UserError for sizes that the ranks do not divide, for norms across heads and DoRA."""
    for field in ("n_head", "n_kv_head", "n_inner"):
        if getattr(config, field) % ranks:
            raise UserError(f"parallel.tensor={ranks} does not divide model.{field} "
                            f"({getattr(config, field)}); choose a parallel.tensor that divides "
                            "model.n_head, model.n_kv_head and model.n_inner")
    V = config.vocab_size
    assert V is not None
    if -(-V // ranks) * (ranks - 1) >= V:
        raise UserError(f"parallel.tensor={ranks} leaves a rank without a part of the vocabulary "
                        f"(model.vocab_size={V}); choose a smaller parallel.tensor")
    if config.qk_norm == "across_heads":
        raise UserError("model.qk_norm=across_heads normalises all heads together, which "
                        f"parallel.tensor={ranks} spreads over ranks; use parallel.shard, or "
                        "parallel.tensor=1")
    if adapter is not None and adapter.method == "dora":
        raise UserError("finetune.method=dora needs the lengths of whole rows, which "
                        f"parallel.tensor={ranks} spreads over ranks; use finetune.method=lora, or "
                        "parallel.tensor=1")
