"""Transformers' models with our weights: the same function, written by others.

The name maps are written here and not taken from gpt/interop, so that neither checks itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from gpt.configuration import ModelConfig
from gpt.model import GPT, parameter_count
from tests.tiny import random_tokens

Tensors = dict[str, Tensor]


def assert_same_function(ours: GPT, theirs: nn.Module) -> None:
    """With our weights in theirs: equal logits, and equal gradients of every parameter."""
    rename = gpt2_names if hasattr(theirs, "transformer") else llama_names
    theirs.load_state_dict(rename(ours.config, ours.state_dict()))
    tokens = random_tokens(3, 24)
    our_logits, their_logits = ours(tokens), theirs.eval()(tokens).logits
    assert_nearly_equal(our_logits, their_logits)
    assert our_logits.std() > 0.1  # not a comparison of zeros

    for logits in (our_logits, their_logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = rename(ours.config, {name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        assert parameter.grad.any(), name
        assert_nearly_equal(gradients[name], parameter.grad)
    assert parameter_count(theirs) == parameter_count(ours)  # none of ours was left out


def assert_nearly_equal(ours: Tensor, theirs: Tensor) -> None:
    """Some hundred products in another order: a hundred float32 roundings of the largest."""
    assert_close(ours, theirs, rtol=0, atol=100 * 2**-24 * float(theirs.detach().abs().max()))


def gpt2_names(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Our tensors under GPT-2's names; its matrices lie transposed."""
    words = tensors["embedding.token_embedding.weight"]
    names = {"transformer.wte.weight": words,
             "transformer.wpe.weight": tensors["embedding.position_embedding.weight"],
             "lm_head.weight": tensors.get("lm_head.weight", words)}
    for kind in ("weight", "bias"):
        names[f"transformer.ln_f.{kind}"] = tensors[f"final_norm.{kind}"]
        for i in range(config.n_layer):
            for a, b in (("attention_norm", "ln_1"), ("feedforward_norm", "ln_2"),
                         ("attention.qkv_proj", "attn.c_attn"),
                         ("attention.out_proj", "attn.c_proj"),
                         ("feedforward.up_proj", "mlp.c_fc"),
                         ("feedforward.down_proj", "mlp.c_proj")):
                tensor = tensors[f"blocks.{i}.{a}.{kind}"]
                names[f"transformer.h.{i}.{b}.{kind}"] = tensor.T if tensor.dim() == 2 else tensor
    return names


def llama_names(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Our tensors under Llama's, Mistral's, Qwen3's and Granite's names: fused ones are cut."""
    words = tensors["embedding.token_embedding.weight"]
    names = {"model.embed_tokens.weight": words, "model.norm.weight": tensors["final_norm.weight"],
             "lm_head.weight": tensors.get("lm_head.weight", words)}
    widths = [heads * config.head_dim for heads in (config.n_head, *[config.n_kv_head] * 2)]
    for i in range(config.n_layer):
        theirs = f"model.layers.{i}."
        for name, tensor in tensors.items():
            if not name.startswith(f"blocks.{i}."):
                continue
            part, kind = name.removeprefix(f"blocks.{i}.").rsplit(".", 1)
            if part == "attention.qkv_proj":
                cut = zip(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                          tensor.split(widths), strict=True)
            elif part == "feedforward.up_proj":
                cut = zip(("mlp.gate_proj", "mlp.up_proj"), tensor.chunk(2), strict=True)
            else:
                cut = [(LLAMA_PARTS[part], tensor)]
            names |= {f"{theirs}{other}.{kind}": piece for other, piece in cut}
    return names


LLAMA_PARTS = {"attention.out_proj": "self_attn.o_proj", "attention.q_norm": "self_attn.q_norm",
               "attention.k_norm": "self_attn.k_norm", "feedforward.down_proj": "mlp.down_proj",
               "attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm"}


def llama_fields(c: ModelConfig) -> dict[str, Any]:
    """What Llama's descendants are told about a model of ours."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_base}
    if c.rope_scaling is not None:
        rope |= {"rope_type": "llama3", "factor": c.rope_scaling.factor,
                 "low_freq_factor": c.rope_scaling.low_freq_factor,
                 "high_freq_factor": c.rope_scaling.high_freq_factor,
                 "original_max_position_embeddings": c.rope_scaling.original_block_size}
    return {"vocab_size": c.vocab_size, "hidden_size": c.n_embd, "intermediate_size": c.n_inner,
            "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head,
            "num_key_value_heads": c.n_kv_head, "head_dim": c.head_dim,
            "max_position_embeddings": c.block_size, "rms_norm_eps": c.norm_eps,
            "rope_parameters": rope, "tie_word_embeddings": c.tie_embeddings,
            "attn_implementation": "eager"}


def largest_difference(ours: GPT, theirs: nn.Module, tokens: Tensor) -> float:
    with torch.no_grad():
        return float((ours(tokens) - theirs(tokens).logits).abs().max())
