"""Which of their tensors is which of ours.

Ours are fused (queries, keys and values in one matrix; gate and value in another), theirs mostly
not: a rule names one tensor of ours and its parts among theirs, along the first dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.configuration import ModelConfig


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and its parts, with the length of each.

    transposed: theirs is (in, out), as in GPT-2's Conv1D.
    """

    ours: str
    theirs: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    transposed: bool = False

    def join(self, read: Callable[[str], Tensor]) -> Tensor:
        """Our tensor from theirs."""
        parts = [read(name) for name in self.theirs]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.T.contiguous() if self.transposed else whole

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Their tensors from ours."""
        whole = tensor.T if self.transposed else tensor
        parts = whole.split(self.lengths) if len(self.theirs) > 1 else (whole,)
        return {name: part.contiguous() for name, part in zip(self.theirs, parts, strict=True)}


def rules(config: ModelConfig, model_type: str) -> list[Rule]:
    """All tensors of a model, in the order in which data meets them."""
    found = list(_gpt2_rules(config) if model_type == "gpt2" else _llama_rules(config))
    if not config.tie_embeddings:
        found.append(Rule("lm_head.weight", ("lm_head.weight",)))
    return found


def _gpt2_rules(config: ModelConfig) -> Iterator[Rule]:
    yield Rule("embedding.token_embedding.weight", ("transformer.wte.weight",))
    yield Rule("embedding.position_embedding.weight", ("transformer.wpe.weight",))
    for i in range(config.n_layer):
        for ours, theirs in (("attention_norm", "ln_1"), ("attention.qkv_proj", "attn.c_attn"),
                             ("attention.out_proj", "attn.c_proj"), ("feedforward_norm", "ln_2"),
                             ("feedforward.up_proj", "mlp.c_fc"),
                             ("feedforward.down_proj", "mlp.c_proj")):
            for kind in ("weight", "bias"):
                yield Rule(f"blocks.{i}.{ours}.{kind}", (f"transformer.h.{i}.{theirs}.{kind}",),
                           transposed=ours.endswith("_proj") and kind == "weight")
    for kind in ("weight", "bias"):
        yield Rule(f"final_norm.{kind}", (f"transformer.ln_f.{kind}",))


def _llama_rules(config: ModelConfig) -> Iterator[Rule]:
    yield Rule("embedding.token_embedding.weight", ("model.embed_tokens.weight",))
    q_width, kv_width = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    for i in range(config.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield Rule(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",))
        for kind in ("weight", "bias") if config.bias else ("weight",):
            yield Rule(f"{ours}.attention.qkv_proj.{kind}",
                       tuple(f"{theirs}.self_attn.{one}_proj.{kind}" for one in "qkv"),
                       (q_width, kv_width, kv_width))
            yield Rule(f"{ours}.attention.out_proj.{kind}", (f"{theirs}.self_attn.o_proj.{kind}",))
            yield Rule(f"{ours}.feedforward.up_proj.{kind}",
                       (f"{theirs}.mlp.gate_proj.{kind}", f"{theirs}.mlp.up_proj.{kind}"),
                       (config.n_inner, config.n_inner))
            yield Rule(f"{ours}.feedforward.down_proj.{kind}", (f"{theirs}.mlp.down_proj.{kind}",))
        for one in ("q_norm", "k_norm") if config.qk_norm else ():
            yield Rule(f"{ours}.attention.{one}.weight", (f"{theirs}.self_attn.{one}.weight",))
        yield Rule(f"{ours}.feedforward_norm.weight",
                   (f"{theirs}.post_attention_layernorm.weight",))
    yield Rule("final_norm.weight", ("model.norm.weight",))
