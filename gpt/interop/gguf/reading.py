"""The weights of a GGUF file as a model of ours has them, by what llama.cpp does with each.

Written apart from gguf_writing, whose names and layouts it checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.errors import WorkFailed

_OUTSIDE = {"embedding.token_embedding": "token_embd", "lm_head": "output",
            "embedding.position_embedding": "position_embd", "final_norm": "output_norm"}
_INSIDE = {"attention_norm": "attn_norm", "feedforward_norm": "ffn_norm",
           "attention.out_proj": "attn_output", "feedforward.down_proj": "ffn_down",
           "attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm"}
FREQUENCIES = "rope_freqs.weight"  # by what each pair's rotation is divided


def stored_tensors(reader: Any) -> dict[str, Tensor]:
    """All tensors by name, float32, with the shape that torch gives them."""
    from gguf import quants

    return {one.name: torch.from_numpy(np.array(quants.dequantize(one.data, one.tensor_type)))
            .reshape(*reversed(one.shape.tolist())) for one in reader.tensors}


def our_weights(stored: dict[str, Tensor], config: ModelConfig, architecture: str,
                names: list[str]) -> dict[str, Tensor]:
    """{name in our state_dict: tensor}. Raises WorkFailed for what is missing or too many."""
    asked = {FREQUENCIES} if config.rope_scaling is not None else set()

    def take(name: str) -> Tensor:
        asked.add(name)
        if name not in stored:
            raise WorkFailed(f"the export is wrong and was deleted: the GGUF file has no {name}; "
                             "please report this with the model's configuration")
        return stored[name]

    found = {name: _weight(name, take, config, architecture) for name in names}
    if more := sorted(stored.keys() - asked):
        raise WorkFailed(f"the export is wrong and was deleted: the GGUF file has {more[0]}, which "
                         "is none of the model's; please report this with its configuration")
    return found


def _weight(name: str, take: Callable[[str], Tensor], config: ModelConfig,
            architecture: str) -> Tensor:
    part, _, kind = name.rpartition(".")
    if part in _OUTSIDE:
        return take(f"{_OUTSIDE[part]}.{kind}")
    _, number, part = part.split(".", 2)
    layer = f"blk.{number}"
    if part == "feedforward.up_proj":
        halves = ("ffn_gate", "ffn_up") if config.mlp == "swiglu" else ("ffn_up",)
        return torch.cat([take(f"{layer}.{half}.{kind}") for half in halves])
    if part != "attention.qkv_proj":
        return take(f"{layer}.{_INSIDE[part]}.{kind}")
    if architecture == "gpt2":
        return take(f"{layer}.attn_qkv.{kind}")
    q, k, v = (take(f"{layer}.attn_{one}.{kind}") for one in "qkv")
    if architecture == "llama":  # it turns neighbours, we turn (i, i + D/2): see embedding.rotate
        q, k = (_evens_then_odds(one, config.head_dim) for one in (q, k))
    return torch.cat((q, k, v))


def _evens_then_odds(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows 0, 2, 4, … of each head, then 1, 3, 5, …"""
    heads = tensor.unflatten(0, (-1, head_dim))
    return torch.cat((heads[:, 0::2], heads[:, 1::2]), dim=1).flatten(0, 1)
