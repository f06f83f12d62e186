"""Whole models: logits, and the gradient of every parameter, are those of transformers' models."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.model.published import assert_same_function, largest_difference, llama_fields
from tests.tiny import ARCHITECTURES, random_tokens, tiny_gpt

transformers = pytest.importorskip("transformers")
LLAMA = {"qk_norm": False, "norm_eps": 1e-5}
LONG = {"factor": 4.0, "original_block_size": 16}


@pytest.mark.parametrize("tie", [True, False])
def test_our_gpt2_is_transformers_gpt2(tie):
    ours = tiny_gpt(**{**ARCHITECTURES["gpt2"], "tie_embeddings": tie})
    c = ours.config
    assert_same_function(ours, transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, tie_word_embeddings=tie, attn_implementation="eager")))


@pytest.mark.parametrize("changes", [
    {"tie_embeddings": True}, {"n_kv_head": 4, "rope_scaling": LONG},
    {"n_kv_head": 1, "bias": True},
    {"head_dim": 12, "rope_base": 500.0, "bias": True, "rope_scaling": LONG, "n_layer": 3}],
    ids=str)
def test_our_llama_is_transformers_llama_with_any_heads_biases_and_rope_scaling(changes):
    ours = tiny_gpt(**{**LLAMA, **changes})
    bias = ours.config.bias
    assert_same_function(ours, transformers.LlamaForCausalLM(transformers.LlamaConfig(
        attention_bias=bias, mlp_bias=bias, **llama_fields(ours.config))))


def qwen3(ours, **more):
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        attention_bias=False, **llama_fields(ours.config), **more))


@pytest.mark.parametrize("changes", [{"n_embd": 64}, {"head_dim": 16, "tie_embeddings": True}],
                         ids=str)
def test_our_default_layout_is_transformers_qwen3(changes):
    ours = tiny_gpt(**changes)
    assert_same_function(ours, qwen3(ours))


@pytest.mark.parametrize("pattern", ["SF", "FFS", "S"])
def test_a_window_pattern_is_transformers_qwen3_with_layers_that_slide(pattern):
    ours = tiny_gpt(window=5, window_pattern=pattern, n_layer=4)
    letters = (pattern * 4)[:4]
    kinds = {"S": "sliding_attention", "F": "full_attention"}
    theirs = qwen3(ours, use_sliding_window=True, sliding_window=5,
                   layer_types=[kinds[letter] for letter in letters])
    assert_same_function(ours, theirs)
    unlike = tiny_gpt(window=5, window_pattern=letters[::-1], n_layer=4)
    assert (largest_difference(unlike, theirs, random_tokens(1, 20)) > 1e-2) == (pattern != "S")


@pytest.mark.parametrize("window", [2, 5, 23, 24, None])
def test_a_window_is_transformers_mistrals(window):
    ours = tiny_gpt(**LLAMA, window=window)
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(
        sliding_window=window, **llama_fields(ours.config)))
    assert_same_function(ours, theirs)
    everything = tiny_gpt(**LLAMA)
    seen = largest_difference(everything, theirs, random_tokens(3, 24)) > 1e-4
    assert seen == (window is not None and window < 24)


def test_the_residual_scale_is_transformers_granites_residual_multiplier():
    ours = tiny_gpt(**LLAMA, residual_scale=0.22)
    c = ours.config
    assert_same_function(ours, transformers.GraniteForCausalLM(transformers.GraniteConfig(
        residual_multiplier=0.22, embedding_multiplier=1.0, logits_scaling=1.0,
        attention_multiplier=c.head_dim ** -0.5, **llama_fields(c))))


@pytest.mark.parametrize("limit", [0.5, 3.0, None])
def test_the_soft_cap_is_transformers_gemma2s_final_one(limit):
    ours = tiny_gpt(n_embd=32, logit_softcap=limit, tie_embeddings=True)
    torch.manual_seed(0)
    theirs = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
        final_logit_softcapping=limit, **llama_fields(ours.config))).eval()
    with torch.no_grad():
        ours.output_weight.copy_(theirs.lm_head.weight.mul_(10))
        x = theirs.model(random_tokens(2, 8)).last_hidden_state
        assert_close(ours.logits(x), theirs(random_tokens(2, 8)).logits)
        assert ours.logits(x).abs().max() > 0.4
