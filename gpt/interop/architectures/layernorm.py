"""GPT-2 and other models with LayerNorm: their feed-forwards are not gated, but for StableLM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt.configuration import ModelConfig
from gpt.errors import UserError
from gpt.interop.architectures import llama
from gpt.interop.architectures.layers import Windows
from gpt.interop.architectures.llama import DOWN, OUT, QKV, UP
from gpt.interop.architectures.rope import Rope
from gpt.interop.architectures.rows import (
    Always,
    Biases,
    Choice,
    Fields,
    Given,
    Heads,
    Row,
    Unused,
    flag,
    real,
    sizes,
)
from gpt.interop.architectures.table import Architecture
from gpt.interop.options import MISSING, Options
from gpt.interop.tensors import Names

MATRICES = (QKV, OUT, UP, DOWN)
LAYERNORM: Fields = {"norm": "layernorm", "qk_norm": False}
GELUS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
         "gelu": "gelu", "relu": "relu", "relu2": "relu2"}


def _tied(default: bool) -> Row:
    return flag("tie_word_embeddings", "tie_embeddings", default)


def _four_times(fields: Fields) -> int:
    return 4 * int(fields["n_embd"])


@dataclass(frozen=True)
class EqualHeads:
    """As many heads are read as read, each of its share of n_embd."""

    theirs: str
    default: Any = MISSING

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        n_head = options.count(self.theirs, self.default)
        width, rest = divmod(fields["n_embd"], n_head)
        if rest or not width:
            raise UserError(f"{options.where}: a width of {fields['n_embd']} is no multiple of "
                            f"{n_head} heads ({self.theirs})")
        return {"n_head": n_head, "n_kv_head": n_head, "head_dim": width}

    def write(self, config: ModelConfig) -> Fields:
        """The option."""
        return {self.theirs: config.n_head}


# ----- GPT-2: learned positions; three rates of dropout, which are one here


@dataclass(frozen=True)
class OneDropout:
    """embd_pdrop, attn_pdrop and resid_pdrop."""

    def read(self, options: Options, fields: Fields) -> Fields:
        """The field. Raises UserError where they differ."""
        rates = {options.number(f"{part}_pdrop", 0.1) for part in ("embd", "attn", "resid")}
        if len(rates) > 1:
            raise UserError(f"{options.where}: embd_pdrop, attn_pdrop and resid_pdrop must be "
                            "equal; this toolkit has one dropout. Set them to one value")
        return {"dropout": rates.pop()}

    def write(self, config: ModelConfig) -> Fields:
        """The options, and the context's second name."""
        return {**{f"{part}_pdrop": config.dropout for part in ("embd", "attn", "resid")},
                "n_ctx": config.block_size}


_GPT2_SIZES = (("vocab_size", "vocab_size", 50_257), ("n_positions", "block_size", 1024),
               ("n_layer", "n_layer", 12), ("n_embd", "n_embd", 768))
GPT2 = Architecture("gpt2", "GPT2LMHeadModel", (
    Always("add_cross_attention", False), Always("scale_attn_weights", True),
    Always("scale_attn_by_inverse_layer_idx", False),
    Unused(("reorder_and_upcast_attn",)),  # an order of float16 operations
    *sizes(*_GPT2_SIZES, ("n_inner", "n_inner", _four_times)), EqualHeads("n_head", 12),
    Given(LAYERNORM | {"position": "learned"}), Biases((*MATRICES, "norm")),
    Choice("activation_function", "mlp", GELUS, "gelu_new"),
    real("layer_norm_epsilon", "norm_eps", 1e-5), _tied(True), OneDropout()),
    Names({"embedding.token_embedding": "transformer.wte",
           "embedding.position_embedding": "transformer.wpe",
           "final_norm": "transformer.ln_f", "lm_head": "lm_head"}, "transformer.h.{}.",
          {"attention_norm": "ln_1", "attention.qkv_proj": "attn.c_attn",
           "attention.out_proj": "attn.c_proj", "feedforward_norm": "ln_2",
           "feedforward.up_proj": "mlp.c_fc", "feedforward.down_proj": "mlp.c_proj"},
          transposed=True))

@dataclass(frozen=True)
class EqualWidth:
    """OPT's width of embeddings, which has to be that of layers."""

    def read(self, options: Options, fields: Fields) -> Fields:
        """Nothing. Raises UserError for another width."""
        options.require("word_embed_proj_dim", fields["n_embd"], default=fields["n_embd"])
        return {}

    def write(self, config: ModelConfig) -> Fields:
        """The option."""
        return {"word_embed_proj_dim": config.n_embd}


OPT = Architecture("opt", "OPTForCausalLM", (
    Always("do_layer_norm_before", True), Always("layer_norm_elementwise_affine", True),
    Always("_remove_final_layer_norm", False),
    Unused(("attention_dropout", "activation_dropout", "layerdrop", "init_std"), {"dropout": 0.0}),
    *sizes(("vocab_size", "vocab_size"), ("max_position_embeddings", "block_size"),
           ("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"), ("ffn_dim", "n_inner")),
    EqualWidth(),
    EqualHeads("num_attention_heads"), Given(LAYERNORM | {"position": "learned",
                                                          "norm_eps": 1e-5}),
    Biases(("norm",), (("enable_bias", MATRICES, True),)),
    Choice("activation_function", "mlp", GELUS, "relu"), _tied(True)),
    Names({"embedding.token_embedding": "model.decoder.embed_tokens",
           "embedding.position_embedding": "model.decoder.embed_positions",
           "final_norm": "model.decoder.final_layer_norm", "lm_head": "lm_head"},
          "model.decoder.layers.{}.",
          {"attention_norm": "self_attn_layer_norm",
           "attention.qkv_proj": llama.QKV_PARTS,
           "attention.out_proj": "self_attn.out_proj", "feedforward_norm": "final_layer_norm",
           "feedforward.up_proj": "fc1", "feedforward.down_proj": "fc2"}, before_positions=2))

# ----- Rotations


def _rows(*more: Row, sizes_of: tuple[Any, ...] = (), **given: Any) -> tuple[Row, ...]:
    return (*sizes(("vocab_size", "vocab_size"), ("max_position_embeddings", "block_size"),
                   ("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"), *sizes_of),
            Given(LAYERNORM | {"position": "rope", **given}), Unused(llama.TRAINED_WITH), *more)


_INNER = (("intermediate_size", "n_inner"),)
_FUSED = {"attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm",
          "feedforward.up_proj": "mlp.dense_h_to_4h", "feedforward.down_proj": "mlp.dense_4h_to_h"}
_SIDE_BY_SIDE = {True: "parallel", False: "sequential"}
GPT_NEOX = Architecture("gpt_neox", "GPTNeoXForCausalLM", _rows(
    EqualHeads("num_attention_heads"), Choice("hidden_act", "mlp", GELUS, "gelu"),
    real("layer_norm_eps", "norm_eps", 1e-5), _tied(False),
    Unused(("classifier_dropout",)),
    Choice("use_parallel_residual", "residual", _SIDE_BY_SIDE, True),
    Biases((UP, DOWN, "norm"), (("attention_bias", (QKV, OUT), True),)),
    Rope(base_name="rotary_emb_base", partial=0.25, partial_name="rotary_pct"), sizes_of=_INNER),
    Names({"embedding.token_embedding": "gpt_neox.embed_in",
           "final_norm": "gpt_neox.final_layer_norm", "lm_head": "embed_out"},
          "gpt_neox.layers.{}.",
          {**_FUSED, "attention.qkv_proj": "attention.query_key_value",
           "attention.out_proj": "attention.dense"}, grouped=True))
STARCODER2 = Architecture("starcoder2", "Starcoder2ForCausalLM", _rows(
    Heads(n_kv_head=2), Choice("hidden_act", "mlp", GELUS, "gelu_pytorch_tanh"),
    real("norm_epsilon", "norm_eps", 1e-5), _tied(True), Windows(),
    Unused(("residual_dropout", "embedding_dropout")),
    Biases(("norm",), (("use_bias", MATRICES, True),)), Rope(), sizes_of=_INNER),
    llama.names(inside={"feedforward.up_proj": "mlp.c_fc", "feedforward.down_proj": "mlp.c_proj"}))
STABLELM = Architecture("stablelm", "StableLmForCausalLM", _rows(
    Heads(n_kv_head=32), llama.SILU, real("layer_norm_eps", "norm_eps", 1e-5), _tied(False),
    Always("qk_layernorm", False),
    Choice("use_parallel_residual", "residual",
           {True: "parallel_one_norm", False: "sequential"}, False),
    Biases(("norm",), (("use_qkv_bias", (QKV,), False),)), Rope(partial=0.25), sizes_of=_INNER),
    llama.names())

PHI = Architecture("phi", "PhiForCausalLM", _rows(
    Heads(explicit=False), Choice("hidden_act", "mlp", GELUS, "gelu_new"),
    real("layer_norm_eps", "norm_eps", 1e-5), _tied(False), Always("qk_layernorm", False),
    Biases((*MATRICES, "norm", "lm_head")), Rope(partial=0.5), sizes_of=_INNER,
    residual="parallel_one_norm"),
    Names(llama.OUTSIDE | {"final_norm": "model.final_layernorm"}, "model.layers.{}.",
          {"attention_norm": "input_layernorm", "attention.qkv_proj": llama.QKV_PARTS,
           "attention.out_proj": "self_attn.dense", "feedforward.up_proj": "mlp.fc1",
           "feedforward.down_proj": "mlp.fc2"}))

# ----- GPT-J: of each head the first rotary_dim numbers turn, by neighbours


@dataclass(frozen=True)
class Turned:
    """How many of a head's numbers turn, said as such."""

    theirs: str
    default: int

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        return {"rope_base": 10_000.0, "rope_dim": options.count(self.theirs, self.default)}

    def write(self, config: ModelConfig) -> Fields:
        """The option."""
        return {self.theirs: config.rope_dim}


GPTJ = Architecture("gptj", "GPTJForCausalLM", (
    Unused(("n_ctx", "attn_pdrop", "embd_pdrop", "resid_pdrop")), Always("rotary", True),
    Always("scale_attn_weights", True),
    *sizes(*_GPT2_SIZES, ("n_inner", "n_inner", _four_times)), EqualHeads("n_head", 16),
    Given(LAYERNORM | {"position": "rope", "residual": "parallel_one_norm"}),
    Biases((UP, DOWN, "norm", "lm_head")),
    Choice("activation_function", "mlp", GELUS, "gelu_new"),
    real("layer_norm_epsilon", "norm_eps", 1e-5), _tied(False), Turned("rotary_dim", 64)),
    Names({"embedding.token_embedding": "transformer.wte", "final_norm": "transformer.ln_f",
           "lm_head": "lm_head"}, "transformer.h.{}.",
          {"attention_norm": "ln_1", "attention.qkv_proj": ("attn.q_proj", "attn.k_proj",
                                                            "attn.v_proj"),
           "attention.out_proj": "attn.out_proj", "feedforward.up_proj": "mlp.fc_in",
           "feedforward.down_proj": "mlp.fc_out"}, interleaved=True))

# ----- Falcon: two kinds of layers, and three of heads


@dataclass(frozen=True)
class FalconLayers:
    """What new_decoder_architecture, multi_query and parallel_attn say together."""

    def read(self, options: Options, fields: Fields) -> Fields:
        """The fields."""
        new, one_key, parallel = (
            options.require(name, True, False, default=default) for name, default in (
                ("new_decoder_architecture", False), ("multi_query", True),
                ("parallel_attn", True)))
        n_head = options.count("num_attention_heads")
        n_kv_head = options.count("num_kv_heads", n_head)
        norms = options.require("num_ln_in_parallel_attn", 1, 2, default=2 if new else 1)
        if not new and norms == 2:
            raise UserError(f"{options.where}: num_ln_in_parallel_attn=2 is for "
                            "new_decoder_architecture")
        residual = "parallel" if norms == 2 else "parallel_one_norm"
        return {"n_head": n_head, "n_kv_head": n_kv_head if new or not one_key else 1,
                "head_dim": max(1, fields["n_embd"] // n_head),
                "residual": residual if new or parallel else "sequential"}

    def write(self, config: ModelConfig) -> Fields:
        """The options."""
        new = config.residual == "parallel" or config.n_kv_head not in (1, config.n_head)
        return {"new_decoder_architecture": new, "multi_query": config.n_kv_head == 1 and not new,
                "parallel_attn": config.residual != "sequential",
                "num_attention_heads": config.n_head, "num_kv_heads": config.n_kv_head,
                "num_ln_in_parallel_attn": 2 if config.residual == "parallel" else 1}


def _falcon_names(two_norms: bool) -> Names:
    norms = {"attention_norm": "ln_attn", "feedforward_norm": "ln_mlp"} if two_norms else {}
    return Names({"embedding.token_embedding": "transformer.word_embeddings",
                  "final_norm": "transformer.ln_f", "lm_head": "lm_head"}, "transformer.h.{}.",
                 {**_FUSED, "attention.qkv_proj": "self_attention.query_key_value",
                  "attention.out_proj": "self_attention.dense", **norms}, grouped=True)


FALCON = Architecture("falcon", "FalconForCausalLM", _rows(
    FalconLayers(), Choice("activation", "mlp", GELUS, "gelu"),
    real("layer_norm_epsilon", "norm_eps", 1e-5), _tied(True), Always("alibi", False),
    Biases(("norm",), (("bias", MATRICES, False),)), Rope(),
    sizes_of=(("ffn_hidden_size", "n_inner", _four_times),)),
    lambda config: _falcon_names(config.residual == "parallel"))
