"""The architectures in use, as transformers makes them at tiny size: their settings, and a kind of
tokenizer that each has."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 912  # more than any of the tokenizers has
CONTEXT = 128
SIZES = {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
         "intermediate_size": 64, "initializer_range": 0.2,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
BASE = {"rope_theta": 500.0}
YARN = BASE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = BASE | {"rope_type": "linear", "factor": 3.0}
DYNAMIC = BASE | {"rope_type": "dynamic", "factor": 3.0}
PAIRS = [1 + i / 5 for i in range(6)]
LONG = BASE | {"rope_type": "longrope", "partial_rotary_factor": 0.75, "short_factor": PAIRS,
               "long_factor": [2 * each for each in PAIRS]}
GEMMA = {"initializer_range": 0.08, "head_dim": 16, "query_pre_attn_scalar": 16,
         "sliding_window": 7}
FALCON = {"num_key_value_heads": None, "intermediate_size": None}
GPTJ = {**FALCON, "num_attention_heads": None, "num_hidden_layers": None, "hidden_size": None,
        "max_position_embeddings": None, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2,
        "n_head": 4}
EQUAL = {"num_key_value_heads": None}

# name: (model_type, its settings, the kind of its tokenizer)
VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama attention biases": ("llama", {"attention_bias": True}, "llama3"),
    "llama linear": ("llama", {"rope_parameters": LINEAR}, "llama2"),
    "llama dynamic": ("llama", {"rope_parameters": DYNAMIC}, "llama2"),
    "llama yarn": ("llama", {"rope_parameters": YARN | {
        "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 16, "beta_slow": 2}}, "deepseek"),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, "qwen"),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}, "qwen"),
    "qwen2 sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 7,
                                "max_window_layers": 1}, "qwen"),
    "qwen3 biases": ("qwen3", {"head_dim": 16, "attention_bias": True}, "qwen"),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}, "llama3"),
    "smollm3 sliding": ("smollm3", {"num_hidden_layers": 3, "no_rope_layers": [0, 1, 0],
                                    "use_sliding_window": True, "sliding_window": 7}, "llama3"),
    "olmo2": ("olmo2", {}, "gpt2"),
    "olmo3": ("olmo3", {"num_hidden_layers": 4, "sliding_window": 7}, "gpt2"),
    "olmo3 yarn": ("olmo3", {"num_hidden_layers": 4, "sliding_window": 7, "rope_parameters": {
        "full_attention": YARN, "sliding_attention": BASE | {"rope_type": "default"}}}, "gpt2"),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0,
                          "final_logit_softcapping": 5.0}, "gemma"),
    "gemma2 without caps": ("gemma2", {**GEMMA, "query_pre_attn_scalar": 24,
                                       "tie_word_embeddings": False, "attn_logit_softcapping": None,
                                       "final_logit_softcapping": None}, "gemma"),
    "gemma3": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7}, "gemma"),
    "gemma3 linear": ("gemma3_text", {**GEMMA, "num_hidden_layers": 6, "query_pre_attn_scalar": 24,
                                      "tie_word_embeddings": False, "rope_parameters": {
        "full_attention": LINEAR, "sliding_attention": {
            "rope_type": "default", "rope_theta": 100.0}}}, "gemma"),
    "phi3": ("phi3", {"sliding_window": 7}, "llama2"),
    "phi4 mini": ("phi3", {"hidden_size": 64, "tie_word_embeddings": True, "rope_parameters": LONG,
                           "max_position_embeddings": 2 * CONTEXT,
                           "original_max_position_embeddings": CONTEXT}, "llama3"),
    "granite": ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 0.6,
                            "residual_multiplier": 0.22, "attention_multiplier": 0.1}, "starcoder"),
    "granite biases": ("granite", {"attention_multiplier": 0.5, "logits_scaling": 2.0,
                                   "attention_bias": True, "mlp_bias": True}, "starcoder"),
    "glm4": ("glm4", {"head_dim": 16, "eos_token_id": 0}, "llama3"),
    "pythia": ("gpt_neox", EQUAL, "gpt2"),
    "neox in sequence": ("gpt_neox", {**EQUAL, "use_parallel_residual": False,
                                      "attention_bias": False, "tie_word_embeddings": True,
                                      "hidden_act": "gelu_new"}, "gpt2"),
    "falcon 7b": ("falcon", FALCON, "gpt2"),
    "falcon 40b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
                   "gpt2"),
    "falcon 11b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2,
                              "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 48}, "gpt2"),
    "falcon in sequence": ("falcon", {**FALCON, "multi_query": False, "parallel_attn": False,
                                      "bias": True}, "gpt2"),
    "starcoder2": ("starcoder2", {}, "starcoder"),
    "starcoder2 sliding": ("starcoder2", {"use_bias": False, "hidden_act": "gelu",
                                          "sliding_window": 7}, "starcoder"),
    "stablelm": ("stablelm", {"use_qkv_bias": True}, "gpt2"),
    "stablelm in parallel": ("stablelm", {"use_parallel_residual": True}, "gpt2"),
    "gptj": ("gptj", GPTJ | {"rotary_dim": 4}, "gpt2"),
    "gptj turned whole": ("gptj", {**GPTJ, "rotary_dim": 8, "n_inner": 48,
                                   "activation_function": "gelu"}, "gpt2"),
    "phi": ("phi", {"num_key_value_heads": 4, "intermediate_size": 128}, "gpt2"),
    "phi grouped": ("phi", {"partial_rotary_factor": 0.25, "rope_parameters": LINEAR | {
        "partial_rotary_factor": 0.25}}, "gpt2"),
    "opt": ("opt", {**FALCON, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.4,
                    "initializer_range": None, "dropout": 0.0}, "gpt2"),
}


def variant(name: str) -> PreTrainedModel:
    """One of them, with random weights."""
    model_type, changes, _ = VARIANTS[name]
    settings = {key: value for key, value in (SIZES | changes).items()
                if key not in SIZES or value is not None or key.endswith("token_id")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    if model_type.startswith("gemma") and settings.get("tie_word_embeddings", True):
        # Else a token's own vector, which is large there, would speak for the same token again.
        with torch.no_grad():
            for layer in model.model.layers:
                layer.post_feedforward_layernorm.weight += 4.0
    return model
