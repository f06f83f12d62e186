"""The architectures of llama.cpp: what a GGUF file says of a model, what its tensors are called.

Tables as in gpt/interop/architectures, of the same kinds of lines and those of rows.py.
Source: llama.cpp's converter (conversion/) and its loaders (src/models/).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpt.interop.architectures.rows import (
    Always,
    Choice,
    Fields,
    Given,
    Row,
    Scaled,
    Unused,
    cap,
    real,
    sizes,
)
from gpt.interop.architectures.table import Architecture
from gpt.interop.equivalent import Target
from gpt.interop.gguf.rows import Heads, PlainHeads, Rope, Sliding, StoredBiases, StoredNorms, Tied
from gpt.interop.tensors import Names, Parts

RMS_EPS, LAYER_EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
MATRICES, QKV, NORM = ("qkv_proj", "out_proj", "up_proj", "down_proj"), "qkv_proj", "norm"
FREQUENCIES, LONG, SHORT = ("rope_freqs.weight", "rope_factors_long.weight",
                            "rope_factors_short.weight")  # what rotations are divided by


def _rows(*more: Row, heads: Row = Heads(),  # noqa: B008 (constants)
          rope: Row = Rope(), biases: Row = StoredBiases(possible=MATRICES),  # noqa: B008
          tied: tuple[bool, ...] = (False, True), eps: str = RMS_EPS, **given: Any
          ) -> tuple[Row, ...]:
    """What all have; tied: whether the table of tokens can, or must, be the output layer."""
    fixed = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": False, **given}
    return (*sizes(("vocab_size", "vocab_size"), ("context_length", "block_size"),
                   ("block_count", "n_layer"), ("embedding_length", "n_embd"),
                   ("feed_forward_length", "n_inner")),
            heads, Given(fixed), real(eps, "norm_eps"), biases,
            Tied(tied), *more, rope)


OUTSIDE = {"embedding.token_embedding": "token_embd", "final_norm": "output_norm",
           "embedding.position_embedding": "position_embd", "lm_head": "output"}
_SEPARATE: dict[str, str | Parts] = {
    "attention_norm": "attn_norm", "attention.qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "attention.out_proj": "attn_output", "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm", "attention_post_norm": "post_attention_norm",
    "feedforward_norm": "ffn_norm", "feedforward.up_proj": ("ffn_gate", "ffn_up"),
    "feedforward.down_proj": "ffn_down", "feedforward_post_norm": "post_ffw_norm"}
_UNGATED = {"feedforward.up_proj": "ffn_up"}
_FUSED = {"attention.qkv_proj": "attn_qkv", "feedforward.up_proj": "ffn_up"}


def _names(inside: Mapping[str, str | Parts] | None = None, **layout: Any) -> Names:
    return Names(OUTSIDE, "blk.{}.", {**_SEPARATE, **(inside or {})}, **layout)


# ----- RMSNorm. Of those that came of Llama's converter, neighbours turn together.

LLAMA = Architecture("llama", "", _rows(rope=Rope(("llama3", "longrope"))),
                     _names(interleaved=True))
QWEN2 = Architecture("qwen2", "", _rows(biases=StoredBiases((QKV,)),
                                        heads=PlainHeads(grouped=True)), _names())
QWEN3 = Architecture("qwen3", "", _rows(biases=StoredBiases(), qk_norm=True), _names())
SMOLLM3 = Architecture("smollm3", "", _rows(rope_pattern="RRRN", biases=StoredBiases()),
                       _names(interleaved=True))
GRANITE = Architecture("granite", "", _rows(
    real("embedding_scale", "embedding_scale", 1.0), real("residual_scale", "residual_scale", 1.0),
    Scaled("attention.scale", "attention_scale", 0.0,
           lambda scale, fields: scale or fields["head_dim"] ** -0.5,
           lambda config: config.attention_scale),
    Scaled("logit_scale", "logit_scale", None, lambda divisor, _: 1 / divisor,
           lambda config: 1 / config.logit_scale), rope=Rope(("llama3",))),
    _names(interleaved=True))
PHI3 = Architecture("phi3", "", _rows(
    Sliding("S", computed=False), heads=PlainHeads(grouped=True), biases=StoredBiases(),
    rope=Rope(("longrope",), partial=True)), _names(_FUSED))
GLM4 = Architecture("glm4", "", _rows(norm_placement="both", rope=Rope(partial=True),
                                      biases=StoredBiases(possible=(QKV,))),
                    _names({"feedforward.up_proj": "ffn_up"}, interleaved=True))
_OLMO: dict[str, Any] = {"norm_placement": "after", "qk_norm": "across_heads"}
OLMO2 = Architecture("olmo2", "", _rows(Always("attention.sliding_window", 0),
                                        heads=PlainHeads(grouped=True), biases=StoredBiases(),
                                        tied=(False,), **_OLMO), _names())
OLMO3 = Architecture("olmo2", "", _rows(Sliding("SSSF"), rope=Rope(local="same"),
                                        heads=PlainHeads(grouped=True), biases=StoredBiases(),
                                        tied=(False,), **_OLMO), _names())


def _of_gemma(large: int) -> Row:
    """The scale of scores: of the model with so many layers by its width, else by its heads'."""
    def scale(_: float, fields: Fields) -> float:
        if fields["n_layer"] == large:
            return float((fields["n_embd"] // fields["n_head"]) ** -0.5)
        return float(fields["head_dim"] ** -0.5)

    return Scaled("embedding_length", "attention_scale", None, scale, lambda config: config.n_embd)


_GEMMA_ROWS = (Scaled("embedding_length", "embedding_scale", None,
                      lambda width, _: math.sqrt(width), lambda config: config.n_embd),)
_GEMMA: dict[str, Any] = {"norm": "rmsnorm_1p", "norm_placement": "both", "mlp": "geglu",
                          "biases": StoredBiases()}
GEMMA2 = Architecture("gemma2", "", _rows(
    *_GEMMA_ROWS, _of_gemma(46), Sliding("SF", 4096),
    cap("final_logit_softcapping", "logit_softcap", 30.0),
    cap("attn_logit_softcapping", "attention_softcap", 50.0), tied=(True,), **_GEMMA),
    _names(shifted_norms=True))
GEMMA3 = Architecture("gemma3", "", _rows(
    *_GEMMA_ROWS, _of_gemma(62), Sliding("SSSSSF"), cap("final_logit_softcapping",
                                                        "logit_softcap", None),
    rope=Rope(local="own"), qk_norm=True, **_GEMMA), _names(shifted_norms=True))

# ----- LayerNorm


def _layernorm(*more: Row, **given: Any) -> tuple[Row, ...]:
    return _rows(*more, **{"eps": LAYER_EPS, "norm": "layernorm", "heads": PlainHeads(),
                           "biases": StoredBiases((*MATRICES, NORM)), **given})


_UNTURNED: Row = Given({})
GPT2 = Architecture("gpt2", "", _layernorm(position="learned", mlp="gelu_tanh", rope=_UNTURNED),
                    _names(_FUSED))
GPT_NEOX = Architecture("gptneox", "", _layernorm(
    Choice("use_parallel_residual", "residual", {True: "parallel", False: "sequential"}, True),
    mlp="gelu", tied=(False,), rope=Rope(partial=True)), _names(_FUSED))
FALCON = Architecture("falcon", "", _layernorm(
    StoredNorms(("parallel", "parallel_one_norm")), mlp="gelu", heads=PlainHeads(grouped=True),
    biases=StoredBiases((NORM,))),
    lambda config: _names(_FUSED if config.residual != "parallel" else _FUSED | {
        "attention_norm": "attn_norm_2", "feedforward_norm": "attn_norm"}))
PHI2 = Architecture("phi2", "", _layernorm(
    mlp="gelu_tanh", residual="parallel_one_norm", heads=PlainHeads(grouped=True), tied=(False,),
    rope=Rope(partial=True), biases=StoredBiases((*MATRICES, NORM, "lm_head"))), _names(_UNGATED))
STARCODER2 = Architecture("starcoder2", "", _layernorm(
    mlp="gelu_tanh", heads=PlainHeads(grouped=True)), _names(_UNGATED))
STABLELM = Architecture("stablelm", "", _layernorm(
    Unused(("use_parallel_residual",)),  # norms tell
    StoredNorms(("sequential", "parallel_one_norm")), heads=PlainHeads(grouped=True), mlp="swiglu",
    tied=(False,), rope=Rope(partial=True),
    biases=StoredBiases((NORM,), (QKV,))), _names())

LLAMA_CPP = Target("llama.cpp", {
    "gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3, "qwen2": QWEN2, "smollm3": SMOLLM3,
    "olmo2": OLMO2, "olmo3": OLMO3, "gemma2": GEMMA2, "gemma3_text": GEMMA3, "phi3": PHI3,
    "granite": GRANITE, "glm4": GLM4, "gpt_neox": GPT_NEOX, "falcon": FALCON,
    "starcoder2": STARCODER2, "stablelm": STABLELM, "phi": PHI2})
