"""config.json: published ones are understood, and nothing in one is overlooked or believed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, Qwen3Config

from gpt.configuration import ModelConfig
from gpt.configuration.rope import RopeScaling
from gpt.errors import UserError
from gpt.interop import read_config
from gpt.interop.options import Options

# As they lie on the Hugging Face Hub.
GPT2 = {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
        "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257}
LLAMA2 = {"_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"],
          "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
          "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
          "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
          "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
          "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
          "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000}
LLAMA32 = {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
           "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
           "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
           "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
           "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
           "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
           "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
           "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
           "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256}
SMOLLM2 = {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
           "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576,
           "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
           "is_llama_config": True, "max_position_embeddings": 8192, "model_type": "llama",
           "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
           "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
           "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
           "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True,
           "vocab_size": 49152}
MISTRAL1 = {"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
            "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000}
MISTRAL3 = {**MISTRAL1, "attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None,
            "transformers_version": "4.42.0.dev0", "vocab_size": 32768}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
         "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
         "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
         "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
         "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
         "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
         "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
         "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
         "vocab_size": 151936}
QWEN25 = {"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
          "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
          "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
          "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
          "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
          "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
          "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True,
          "use_sliding_window": False, "vocab_size": 151936}
GEMMA2 = {"architectures": ["Gemma2ForCausalLM"], "attention_bias": False,
          "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
          "cache_implementation": "hybrid", "eos_token_id": [1, 107],
          "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
          "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
          "initializer_range": 0.02, "intermediate_size": 9216, "max_position_embeddings": 8192,
          "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
          "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
          "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
          "torch_dtype": "bfloat16", "transformers_version": "4.42.4", "use_cache": True,
          "vocab_size": 256000}
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
          "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2,
          "cache_implementation": "hybrid", "eos_token_id": [1, 106],
          "final_logit_softcapping": None, "head_dim": 256,
          "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
          "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
          "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
          "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
          "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
          "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
          "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": True,
          "vocab_size": 262144}
PYTHIA = {"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
          "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02,
          "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
          "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
          "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
          "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": True,
          "use_parallel_residual": True, "vocab_size": 50304}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu",
        "hidden_size": 3072, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "model_type": "phi3", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05, "rope_scaling": {
            "long_factor": [1.0 + i for i in range(48)], "short_factor": [1.0] * 48,
            "type": "longrope"},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": True,
        "vocab_size": 32064}
GRANITE = {"architectures": ["GraniteForCausalLM"], "attention_bias": False,
           "attention_dropout": 0.1, "attention_multiplier": 0.015625, "bos_token_id": 0,
           "embedding_multiplier": 12.0, "eos_token_id": 0, "hidden_act": "silu",
           "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
           "logits_scaling": 8.0, "max_position_embeddings": 131072, "mlp_bias": False,
           "model_type": "granite", "num_attention_heads": 32, "num_hidden_layers": 40,
           "num_key_value_heads": 8, "pad_token_id": 0, "residual_multiplier": 0.22,
           "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 5000000.0,
           "tie_word_embeddings": True, "torch_dtype": "bfloat16",
           "transformers_version": "4.46.0.dev0", "use_cache": True, "vocab_size": 49155}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": (GPT2, {"n_embd": 768, "n_kv_head": 12, "n_inner": 3072, "dropout": 0.1, "bias": True,
                    "mlp": "gelu_tanh", "norm_eps": 1e-5, "tie_embeddings": True,
                    "position": "learned", "norm": "layernorm", "qk_norm": False}),
    "llama2": (LLAMA2, {"head_dim": 128, "n_kv_head": 32, "rope_base": 1e4, "norm_eps": 1e-5,
                        "bias": False, "qk_norm": False, "tie_embeddings": False}),
    "llama3.2": (LLAMA32, {"head_dim": 64, "n_kv_head": 8, "tie_embeddings": True}),
    "smollm2": (SMOLLM2, {"n_head": 9, "head_dim": 64, "n_kv_head": 3, "rope_base": 1e5}),
    "mistral1": (MISTRAL1, {"window": 4096, "window_pattern": "S", "n_kv_head": 8}),
    "mistral3": (MISTRAL3, {"window": None, "vocab_size": 32768, "rope_base": 1e6}),
    "qwen3": (QWEN3, {"head_dim": 128, "n_head": 16, "qk_norm": True, "window": None,
                      "norm_eps": 1e-6, "rope_base": 1e6, "n_layer": 28, "block_size": 40960}),
    "qwen2.5": (QWEN25, {"bias": ["qkv_proj"], "window": None, "qk_norm": False, "n_kv_head": 2}),
    "gemma2": (GEMMA2, {"norm": "rmsnorm_1p", "norm_placement": "both", "mlp": "geglu",
                        "embedding_scale": 48.0, "attention_scale": 1 / 16, "logit_softcap": 30.0,
                        "attention_softcap": 50.0, "tie_embeddings": True, "window": 4096,
                        "window_pattern": "SF" * 13, "local_rope_base": None}),
    "gemma3": (GEMMA3, {"local_rope_base": 1e4, "rope_base": 1e6, "qk_norm": True, "window": 512,
                        "window_pattern": "SSSSSF" * 4 + "SS", "attention_softcap": None}),
    "pythia": (PYTHIA, {"residual": "parallel", "rope_dim": 16, "mlp": "gelu", "bias": True}),
    "phi3": (PHI3, {"block_size": 4096, "window": 262144, "rope_dim": 96}),
    "granite": (GRANITE, {"embedding_scale": 12.0, "attention_scale": 1 / 64, "logit_scale": 0.125,
                          "residual_scale": 0.22}),
}


def config_of(folder: Path, values: Any, without: tuple[str, ...] = ()) -> ModelConfig:
    if isinstance(values, dict):
        values = {k: v for k, v in values.items() if k not in without}
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_understood_to_the_last_option(name, tmp_path):
    values, expected = PUBLISHED[name]
    config = config_of(tmp_path, values)
    assert {field: getattr(config, field) for field in expected} == expected
    from gpt.interop.reading import _read
    assert _read(tmp_path)[2] == []  # nothing left over
    if name == "llama3.2":
        assert config.rope_scaling == RopeScaling(
            kind="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_block_size=8192)


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_writes_them_again_in_its_own_way_and_they_mean_the_same(name, tmp_path):
    config = config_of(tmp_path, PUBLISHED[name][0])
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    again = read_config(tmp_path)
    assert again.windows == config.windows
    assert again == config


def test_what_is_absent_has_the_default_of_transformers(tmp_path):
    """null and absent are not the same for the window of Mistral and Qwen3."""
    assert config_of(tmp_path, MISTRAL1, without=("sliding_window",)).window == 4096
    assert config_of(tmp_path, MISTRAL3).window is None
    assert config_of(tmp_path, MISTRAL1, without=("num_key_value_heads",)).n_kv_head == 8
    assert config_of(tmp_path, MISTRAL1 | {"num_key_value_heads": None}).n_kv_head == 32
    assert config_of(tmp_path, LLAMA2, without=("num_key_value_heads",)).n_kv_head == 32
    assert config_of(tmp_path, LLAMA2 | {"num_key_value_heads": None}).n_kv_head == 32
    assert config_of(tmp_path, LLAMA32 | {"head_dim": None}).head_dim == 64
    bare = QWEN3 | {"num_attention_heads": 64}
    config = config_of(tmp_path, bare, without=("num_key_value_heads", "head_dim", "rms_norm_eps",
                                                "rope_theta", "tie_word_embeddings"))
    default = Qwen3Config()
    assert (config.n_kv_head, config.head_dim, config.norm_eps) == (
        default.num_key_value_heads, default.head_dim, default.rms_norm_eps)
    assert config.rope_base == default.rope_parameters["rope_theta"] == 10_000
    assert not config.tie_embeddings
    new = {"rope_scaling": {}, "rope_theta": None, "rope_parameters": {"rope_theta": 7.0}}
    assert config_of(tmp_path, LLAMA2 | new).rope_base == 7.0  # an empty object says nothing
    assert config_of(tmp_path, {"model_type": "gpt2"}) == config_of(
        tmp_path, AutoConfig.for_model("gpt2").to_dict())


SMALL = {"vocab_size": 99, "max_position_embeddings": 64, "num_hidden_layers": 4,
         "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
SLIDES = {**QWEN3, "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 9}
KINDS = {"F": "full_attention", "S": "sliding_attention"}


@pytest.mark.parametrize("changes", [
    {"max_window_layers": 2}, {"max_window_layers": 0}, {"max_window_layers": 4},
    {"max_window_layers": 1, "layer_types": [KINDS[c] for c in "SFFS"]},
    {"layer_types": [KINDS["F"]] * 4}, {"use_sliding_window": False, "max_window_layers": 0},
    {"sliding_window": None, "max_window_layers": 0}], ids=str)
def test_which_layers_slide_is_what_transformers_says(changes, tmp_path):
    config = config_of(tmp_path, SLIDES | changes)
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert config.windows == [theirs.sliding_window if kind == "sliding_attention" else None
                              for kind in theirs.layer_types]


def test_the_window_of_qwen3_is_4096_where_none_is_given(tmp_path):
    config = config_of(tmp_path, SLIDES | {"max_window_layers": 0}, without=("sliding_window",))
    assert config.windows == [4096] * 4


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": (LLAMA2 | {"model_type": "gemma3"}, "model_type='gemma3' is not "
                             "supported; choose a model of gpt2, llama, mistral, qwen3, qwen2"),
    "no architecture": ({"architectures": ["X"]}, "model_type=None is not supported"),
    "a list": ([], "is damaged: it is no object"),
    "an architecture that is a list": ({"model_type": [1]}, r"model_type=\[1\] is not"),
    "quantised": (LLAMA2 | {"quantization_config": {"bits": 4}}, "quantization_config"),
    "another scaling": (LLAMA2 | {"rope_scaling": {"type": "proportional", "factor": 2.0}},
                        "rope_scaling: rope_type='proportional' is not supported; this toolkit "
                        "computes with 'default', 'dynamic', 'linear', 'llama3', 'yarn'"),
    "yarn without edges": (QWEN3 | {"rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "truncate": False}}, "truncate=False is not supported"),
    "factors that are no list": (PHI3 | {"rope_scaling": PHI3["rope_scaling"] | {
        "short_factor": 3}}, r"rope_scaling.short_factor \(as this toolkit calls it\)"),
    "too few factors": (PHI3 | {"rope_scaling": PHI3["rope_scaling"] | {"long_factor": [1.0]}},
                        "rope_scaling.long_factor has 1 numbers for 48 pairs"),
    "no factors": (PHI3 | {"rope_scaling": {"type": "longrope"}}, "has no short_factor"),
    "two scalings": (LLAMA32 | {"rope_parameters": {"rope_theta": 1e4}}, "are both given"),
    "scaling by layer": (QWEN3 | {"rope_parameters": {
        kind: {"rope_theta": 1e4, "rope_type": "default"} for kind in KINDS.values()}},
        "rope_parameters: sliding_attention is not supported for this model_type"),
    "local layers that are stretched": (GEMMA3 | {"rope_parameters": {
        kind: {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
        for kind in KINDS.values()}, "rope_scaling": None}, "only layers that read everything can"),
    "more scaling": (LLAMA32 | {"rope_scaling": LLAMA32["rope_scaling"] | {"mscale": 2}},
                     "rope_scaling: mscale is not supported with rope_type='llama3'"),
    "a part of the head": (LLAMA2 | {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    "a part, nested": (LLAMA2 | {"rope_parameters": {"partial_rotary_factor": 0.5}},
                       "rope_parameters: partial_rotary_factor=0.5"),
    "turned neighbours": (SMOLLM2 | {"rope_interleaved": True}, "rope_interleaved=True"),
    "another activation": (LLAMA2 | {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; "
                           "this toolkit computes with 'silu' or 'swish'"),
    "no bias": (LLAMA2 | {"attention_bias": "no"}, "attention_bias='no' is not supported"),
    "gpt2 activation": (GPT2 | {"activation_function": "silu"}, "activation_function='silu'"),
    "no rotations of some": ({"model_type": "smollm3", **SMALL, "no_rope_layers": [1, 2, 1, 0]},
                             r"no_rope_layers=\[1, 2, 1, 0\] must have a 0 or 1 for each of 4"),
    "a norm behind in opt": ({"model_type": "opt", **SMALL, "ffn_dim": 64,
                              "do_layer_norm_before": False}, "do_layer_norm_before=False"),
    "a narrow embedding": ({"model_type": "opt", **SMALL, "ffn_dim": 64,
                            "word_embed_proj_dim": 16}, "word_embed_proj_dim=16 is not supported"),
    "slopes": ({"model_type": "falcon", **SMALL, "alibi": True}, "alibi=True is not supported"),
    "two norms in an old falcon": ({"model_type": "falcon", **SMALL, "num_ln_in_parallel_attn": 2},
                                   "num_ln_in_parallel_attn=2 is for new_decoder_architecture"),
    "norms of stablelm's heads": ({"model_type": "stablelm", **SMALL, "qk_layernorm": True},
                                  "qk_layernorm=True is not supported"),
    "both directions": (GEMMA3 | {"use_bidirectional_attention": True},
                        "use_bidirectional_attention=True is not supported"),
    "cross attention": (GPT2 | {"add_cross_attention": True}, "add_cross_attention=True"),
    "unscaled attention": (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights=False"),
    "scaled by layer": (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "_inverse_layer_idx"),
    "two dropouts": (GPT2 | {"attn_pdrop": 0.0}, "embd_pdrop, attn_pdrop and resid_pdrop must be"),
    "odd layers": (SLIDES | {"layer_types": ["full_attention", "chunked_attention"] * 2},
                   "layer_types=.* is not supported; this toolkit computes full_attention and"),
    "few layer types": (SLIDES | {"layer_types": ["full_attention"]}, "1 entries for 4 layers"),
    "layers that do not slide": (SLIDES | {"use_sliding_window": False, "layer_types": [
        "sliding_attention"] * 4}, "use_sliding_window is off; set one of them right"),
    "layer types of no kind": (SLIDES | {"layer_types": 3}, "layer_types=3 is not supported"),
    "no size": ({k: v for k, v in LLAMA2.items() if k != "hidden_size"},
                "has no hidden_size, without which the model cannot be rebuilt"),
    "text": (LLAMA2 | {"hidden_size": "4096"}, "hidden_size must be a number, not '4096'"),
    "a switch": (LLAMA2 | {"num_hidden_layers": True}, "num_hidden_layers must be a number, not T"),
    "a fraction": (LLAMA2 | {"num_hidden_layers": 2.5}, "whole number from 1 to .*, not 2.5"),
    "not a number": (LLAMA2 | {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number"),
    "infinite": (LLAMA2 | {"rope_theta": float("inf")}, "rope_theta must be a number, not inf"),
    "negative": (LLAMA2 | {"num_attention_heads": -4}, "num_attention_heads must be a whole"),
    "none": (GPT2 | {"n_head": 0}, "n_head must be a whole number from 1"),
    "no base": (LLAMA2 | {"rope_theta": 0}, "rope_base .*greater than 1"),
    "far too many layers": (SLIDES | {"num_hidden_layers": 10**9}, "num_hidden_layers must be"),
    "too many layers": (SLIDES | {"num_hidden_layers": 10**7}, "n_layer .*less than or equal to"),
    "digits without end": (GPT2 | {"n_embd": 10**4000}, "n_embd must be a whole number"),
    "nested": (LLAMA2 | {"vocab_size": {"a": [1] * 1000}}, r"vocab_size must be a number, not \{"),
    "heads that do not fit": (LLAMA2 | {"num_key_value_heads": 5}, "multiple of n_kv_head"),
    "scaling that is text": (LLAMA2 | {"rope_scaling": "llama3"}, "rope_scaling must be an object"),
    "half a scaling": (LLAMA2 | {"rope_scaling": {"type": "llama3", "factor": 8.0}},
                       "rope_scaling has no low_freq_factor"),
    "scaling upside down": (LLAMA32 | {"rope_scaling": LLAMA32["rope_scaling"] | {
        "low_freq_factor": 9.0}}, r"low_freq_factor \(9.0\) must be less than"),
    "a tie of text": (LLAMA2 | {"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_computed_is_refused_by_name_at_once(name, tmp_path):
    values, expected = UNSUPPORTED[name]
    started = time.process_time()
    with pytest.raises(UserError, match=expected) as refusal:
        config_of(tmp_path, values)
    assert str(tmp_path / "config.json") in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert time.process_time() - started < 1  # row 7 of the list of faults


ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
                st.lists(st.integers(), max_size=3), st.sampled_from(
                    [10**9, -1, 0, 2**63, 1e308, "0", {}, {"rope_type": "llama3"}, {"a": {}}]))


@settings(max_examples=300, derandomize=True, database=None, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([GPT2, LLAMA32, MISTRAL1, QWEN3, SLIDES]), st.data())
def test_no_value_of_any_option_gives_anything_but_a_model_or_one_line(tmp_path, values, data):
    changes = data.draw(st.dictionaries(st.sampled_from(
        [*values, "layer_types", "rope_parameters", "rope_scaling", "head_dim", "n_inner"]), ODD,
        min_size=1, max_size=3))
    try:
        assert isinstance(config_of(tmp_path, values | changes), ModelConfig)
    except UserError as error:
        assert str(tmp_path) in str(error)


def test_what_is_left_over_is_told_with_where_it_is():
    options = Options({"a": 1, "b": None, "c": 3, "torch_dtype": "x", "s": {"x": 1, "y": 2}}, "f")
    assert options.take("a") == 1
    section = options.section("s")
    assert section.take("x") == 1
    assert options.left_over() == ["c", "s.y"]
    assert "b" in options and "z" not in options
    assert options.section("b") is None
