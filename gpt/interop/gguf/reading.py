"""The weights of a GGUF file as a model of ours has them, by what llama.cpp does with each.

Written apart from gpt/interop/gguf/architectures.py, whose names and layouts it checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt.configuration import GATED, ModelConfig
from gpt.errors import WorkFailed

_OUTSIDE = {"embedding.token_embedding": "token_embd", "lm_head": "output",
            "embedding.position_embedding": "position_embd", "final_norm": "output_norm"}
_INSIDE = {"attention_norm": "attn_norm", "feedforward_norm": "ffn_norm",
           "attention.out_proj": "attn_output", "feedforward.down_proj": "ffn_down",
           "attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm",
           "attention_post_norm": "post_attention_norm", "feedforward_post_norm": "post_ffw_norm"}
_FALCON_40B = {"attention_norm": "attn_norm_2", "feedforward_norm": "attn_norm"}
FREQUENCIES = "rope_freqs.weight"  # by what each pair's rotation is divided
LONG_ROPE = {"rope_factors_long.weight", "rope_factors_short.weight"}


def stored_tensors(reader: Any) -> dict[str, Tensor]:
    """All tensors by name, float32, with the shape that torch gives them."""
    from gguf import quants

    return {one.name: torch.from_numpy(np.array(quants.dequantize(one.data, one.tensor_type)))
            .reshape(*reversed(one.shape.tolist())) for one in reader.tensors}


def our_weights(stored: dict[str, Tensor], config: ModelConfig, architecture: str,
                names: list[str]) -> dict[str, Tensor]:
    """{name in our state_dict: tensor}. Raises WorkFailed for what is missing or too many."""
    scaling = config.rope_scaling
    asked = {"llama3": {FREQUENCIES}, "longrope": LONG_ROPE}.get(
        "" if scaling is None else scaling.kind, set[str]()) | set()

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
    shift = 1.0 if architecture in ("gemma2", "gemma3") and part.endswith("norm") else 0.0
    if part in _OUTSIDE:
        return take(f"{_OUTSIDE[part]}.{kind}") - shift
    _, number, part = part.split(".", 2)
    layer = f"blk.{number}"
    if part == "feedforward.up_proj":
        separate = config.mlp in GATED and architecture not in ("phi3", "glm4")
        halves = ("ffn_gate", "ffn_up") if separate else ("ffn_up",)
        return torch.cat([take(f"{layer}.{half}.{kind}") for half in halves])
    if part != "attention.qkv_proj":
        inside = _INSIDE | (_FALCON_40B if architecture == "falcon"
                            and config.residual == "parallel" else {})
        return take(f"{layer}.{inside[part]}.{kind}") - shift
    if architecture in ("gpt2", "gptneox", "falcon", "phi3"):
        return take(f"{layer}.attn_qkv.{kind}")
    q, k, v = (take(f"{layer}.attn_{one}.{kind}") for one in "qkv")
    if architecture in ("llama", "smollm3", "granite", "glm4"):
        # They turn neighbours, we turn (i, i + R/2): see rope.rotate.
        q, k = (_evens_then_odds(one, config.head_dim, config.rope_dim) for one in (q, k))
    return torch.cat((q, k, v))


def _evens_then_odds(tensor: Tensor, head_dim: int, turned: int) -> Tensor:
    """Rows 0, 2, 4, … of what turns of each head, then 1, 3, 5, …, then the rest."""
    heads = tensor.unflatten(0, (-1, head_dim))
    return torch.cat((heads[:, 0:turned:2], heads[:, 1:turned:2], heads[:, turned:]),
                     dim=1).flatten(0, 1)
