"""Llama and what came of it: RMSNorm, rotations, gated feed-forwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpt.configuration import ModelConfig
from gpt.interop.architectures.layers import SwitchedWindows, Unrotated, Windows
from gpt.interop.architectures.rope import LongContext, Rope
from gpt.interop.architectures.rows import (
    Always,
    Biases,
    Choice,
    Given,
    Heads,
    Row,
    Scaled,
    Unused,
    cap,
    flag,
    real,
    sizes,
)
from gpt.interop.architectures.table import Architecture
from gpt.interop.tensors import Names, Parts

QKV, OUT, UP, DOWN = "qkv_proj", "out_proj", "up_proj", "down_proj"
ATTENTION_BIAS = ("attention_bias", (QKV, OUT), False)
MLP_BIAS = ("mlp_bias", (UP, DOWN), False)
TRAINED_WITH = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop")  # their dropout
SILU = Choice("hidden_act", "mlp", {"silu": "swiglu", "swish": "swiglu"}, "silu")
GEGLU = Choice("hidden_activation", "mlp", {"gelu_pytorch_tanh": "geglu"}, "gelu_pytorch_tanh")

OUTSIDE = {"embedding.token_embedding": "model.embed_tokens", "final_norm": "model.norm",
           "lm_head": "lm_head"}
NORMS = {"attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm"}
POST_NORMS = {"attention_post_norm": "post_attention_layernorm",
              "feedforward_post_norm": "post_feedforward_layernorm"}
QKV_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION: dict[str, str | Parts] = {
    "attention.qkv_proj": QKV_PARTS, "attention.out_proj": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}
MLP: dict[str, str | Parts] = {
    "feedforward.up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "feedforward.down_proj": "mlp.down_proj"}
FUSED_MLP = MLP | {"feedforward.up_proj": "mlp.gate_up_proj"}


def names(inside: Mapping[str, str | Parts] | None = None, interleaved: bool = False) -> Names:
    """Those of Llama, but for some inside of layers."""
    return Names(OUTSIDE, "model.layers.{}.", {**NORMS, **ATTENTION, **MLP, **(inside or {})},
                 interleaved=interleaved)


def _rows(*more: Row, tied: bool = False, eps: float = 1e-6, norm: str = "rmsnorm",
          heads: Heads = Heads(), rope: Rope = Rope(), mlp: Row = SILU,  # noqa: B008 (constants)
          **given: Any) -> tuple[Row, ...]:
    """What all have, and what one has besides; given: fields that it always has."""
    fixed = {"position": "rope", "norm": norm, "qk_norm": False, **given}
    return (*sizes(("vocab_size", "vocab_size"), ("max_position_embeddings", "block_size"),
                   ("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"),
                   ("intermediate_size", "n_inner")),
            heads, Given(fixed), real("rms_norm_eps", "norm_eps", eps), mlp,
            flag("tie_word_embeddings", "tie_embeddings", tied),
            Unused(TRAINED_WITH), *more, rope)


LLAMA = Architecture("llama", "LlamaForCausalLM", _rows(
    Unused(("pretraining_tp",)),  # a way to split products; the same function
    Always("rope_interleaved", False), Biases(options=(ATTENTION_BIAS, MLP_BIAS))),
    names())
MISTRAL = Architecture("mistral", "MistralForCausalLM", _rows(
    Windows(absent=4096), heads=Heads(n_kv_head=8)), names())
QWEN2 = Architecture("qwen2", "Qwen2ForCausalLM", _rows(
    SwitchedWindows(), Biases((QKV,)), heads=Heads(n_kv_head=32)), names())
QWEN3 = Architecture("qwen3", "Qwen3ForCausalLM", _rows(
    SwitchedWindows(), Biases(options=(ATTENTION_BIAS,)),
    heads=Heads(n_kv_head=32, head_dim=128), qk_norm=True), names())
SMOLLM3 = Architecture("smollm3", "SmolLM3ForCausalLM", _rows(
    Unrotated(), Biases(options=(ATTENTION_BIAS, MLP_BIAS)), tied=True,
    heads=Heads(n_kv_head=4), rope=Rope(2_000_000.0)), names())
PHI3 = Architecture("phi3", "Phi3ForCausalLM", _rows(
    Windows(), Always("attention_bias", False), LongContext(), eps=1e-5,
    rope=Rope(partial=1.0)),
    names(inside={**FUSED_MLP, "attention.qkv_proj": "self_attn.qkv_proj"}))

# ----- Multipliers


GRANITE = Architecture("granite", "GraniteForCausalLM", _rows(
    real("embedding_multiplier", "embedding_scale", 1.0),
    real("residual_multiplier", "residual_scale", 1.0),
    real("attention_multiplier", "attention_scale", 1.0),
    Scaled("logits_scaling", "logit_scale", 1.0, lambda divisor, _: 1 / divisor,
           lambda config: 1 / config.logit_scale),
    Biases(options=(ATTENTION_BIAS, MLP_BIAS))), names())

# ----- Norms behind the two parts of a layer

_OLMO: dict[str, Any] = {"norm_placement": "after", "qk_norm": "across_heads", "eps": 1e-5}
OLMO2 = Architecture("olmo2", "Olmo2ForCausalLM", _rows(
    Biases(options=(ATTENTION_BIAS,)), **_OLMO), names(inside=POST_NORMS))
OLMO3 = Architecture("olmo3", "Olmo3ForCausalLM", _rows(
    Windows(absent=4096, pattern="SSSF"), Biases(options=(ATTENTION_BIAS,)),
    rope=Rope(500_000.0, local="same"), **_OLMO), names(inside=POST_NORMS))

# ----- Norms on both sides

_GLM_NORMS = {"attention_post_norm": "post_self_attn_layernorm",
              "feedforward_post_norm": "post_mlp_layernorm"}
GLM4 = Architecture("glm4", "Glm4ForCausalLM", _rows(
    Biases(options=(("attention_bias", (QKV,), True),)), norm_placement="both", eps=1.5625e-07,
    heads=Heads(n_kv_head=2, head_dim=128), rope=Rope(partial=0.5)),
    names(inside=FUSED_MLP | _GLM_NORMS, interleaved=True))


def _scalar(config: ModelConfig) -> float:
    """Of what 1 / √ is attention_scale: a whole number, where it was one."""
    scalar = round(config.attention_scale ** -2, 6)
    return int(scalar) if scalar.is_integer() else scalar


_GEMMA_NORMS = POST_NORMS | {"feedforward_norm": "pre_feedforward_layernorm"}
_GEMMA_ROWS: tuple[Row, ...] = (
    Scaled("query_pre_attn_scalar", "attention_scale", 256,
           lambda scalar, _: scalar ** -0.5, _scalar),
    Scaled("hidden_size", "embedding_scale", None, lambda width, _: math.sqrt(width),
           lambda config: config.n_embd),
    Biases(options=(ATTENTION_BIAS,)), Always("use_bidirectional_attention", False),
    Unused(("hidden_act",)))  # an old name, which transformers does not read
_GEMMA: dict[str, Any] = {"norm_placement": "both", "norm": "rmsnorm_1p", "tied": True,
                          "heads": Heads(n_kv_head=4, head_dim=256), "mlp": GEGLU}
GEMMA2 = Architecture("gemma2", "Gemma2ForCausalLM", _rows(
    *_GEMMA_ROWS, Windows(absent=4096, pattern="SF"),
    cap("final_logit_softcapping", "logit_softcap", 30.0),
    cap("attn_logit_softcapping", "attention_softcap", 50.0), **_GEMMA),
    names(inside=_GEMMA_NORMS))
GEMMA3 = Architecture("gemma3_text", "Gemma3ForCausalLM", _rows(
    *_GEMMA_ROWS, Windows(absent=4096, pattern="SSSSSF", period="sliding_window_pattern"),
    Unused(("_sliding_window_pattern",)),
    cap("final_logit_softcapping", "logit_softcap", None),
    cap("attn_logit_softcapping", "attention_softcap", None), qk_norm=True,
    rope=Rope(1_000_000.0, local="own"), **_GEMMA), names(inside=_GEMMA_NORMS))
