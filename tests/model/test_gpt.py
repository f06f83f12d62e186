"""The whole model: causality, initialisation, output layer, and that no field is dead."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from gpt.configuration import ModelConfig
from gpt.model import GPT
from tests.tiny import ARCHITECTURES, random_tokens, tiny_config, tiny_gpt

architectures = pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)


@architectures
def test_editing_a_token_never_changes_earlier_logits(changes):
    model = tiny_gpt(**changes)
    tokens = random_tokens(2, 8)
    edited = tokens.clone()
    edited[:, 5] = (edited[:, 5] + 1) % model.config.vocab_size

    with torch.no_grad():
        before, after = model(tokens), model(edited)  # (2, 8, V)

    assert_close(after[:, :5], before[:, :5], rtol=0, atol=0)
    assert (after[:, 5:] != before[:, 5:]).any(dim=-1).all()  # every later position saw the edit


@torch.no_grad()
def test_with_windows_an_edit_is_seen_as_far_as_the_layers_reach_together():
    tokens = random_tokens(1, 20)
    edited = tokens.clone()
    edited[:, 3] = (edited[:, 3] + 1) % 61
    for n_layer in (1, 2, 3):
        model = tiny_gpt(window=4, n_layer=n_layer)
        changed = (model(edited) != model(tokens)).any(dim=-1)[0].nonzero().flatten().tolist()
        assert changed == list(range(3, 3 + 3 * n_layer + 1))  # window - 1 further a layer


def test_a_sequence_longer_than_block_size_is_refused_and_one_that_fills_it_is_not():
    assert tiny_gpt()(random_tokens(1, 32)).shape == (1, 32, 61)
    with pytest.raises(ValueError, match=r"33 tokens is longer than block_size \(32\)"):
        tiny_gpt()(random_tokens(1, 33))


def test_a_model_is_not_built_before_the_vocabulary_is_known():
    with pytest.raises(AssertionError, match="size comes from the tokenizer"):
        GPT(ModelConfig(n_layer=1))


def test_blocks_begin_as_the_identity_and_predictions_near_uniform():
    model = tiny_gpt(zero_outputs=True, vocab_size=500, n_embd=64, tie_embeddings=True)
    tokens = random_tokens(2, 8, vocab_size=500)
    with torch.no_grad():
        x = model.embedding(tokens, torch.arange(8))
        assert_close(model.hidden(tokens), model.final_norm(x), rtol=0, atol=0)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), random_tokens(16, vocab_size=500,
                                                                          seed=1))
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)


def test_weights_are_drawn_with_the_documented_spread():
    model = tiny_gpt(zero_outputs=True, n_embd=256, vocab_size=2000, bias=True, norm="layernorm",
                     position="learned", block_size=200)
    spreads = {"token_embedding.weight": 0.02, "position_embedding.weight": 0.02,
               "qkv_proj.weight": 1 / 16, "up_proj.weight": 1 / 16, "lm_head.weight": 1 / 16,
               "out_proj.weight": 0.0, "down_proj.weight": 0.0}  # 1/√256
    seen = set()
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            kind = ".".join(name.split(".")[-2:])
            seen.add(kind)
            # 51,200 draws or more: the spread's standard deviation is 1/√102,400 = 0.3 % of it.
            assert parameter.std().item() == pytest.approx(spreads[kind], rel=0.012), name
            assert abs(parameter.mean().item()) <= 0.02 * spreads[kind], name
            # Normal: one of 370 numbers lies beyond three spreads; even draws end at √3.
            assert (parameter.abs() > 3 * spreads[kind]).any() == (spreads[kind] > 0), name
    assert seen == spreads.keys()


def test_the_same_seed_draws_the_same_weights_and_another_others():
    state, again, other = (tiny_gpt(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["lm_head.weight"], other["lm_head.weight"])


def test_a_tied_output_layer_is_the_token_table_and_an_untied_one_is_not():
    tied, untied = tiny_gpt(tie_embeddings=True), tiny_gpt()
    assert tied.output_weight is tied.embedding.token_embedding.weight
    assert untied.output_weight is untied.lm_head.weight
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    for model in (tied, untied):
        assert_close(model.logits(x), x @ model.output_weight.T)
    biased = tiny_gpt(bias=["lm_head"])
    assert_close(biased.logits(x), x @ biased.output_weight.T + biased.lm_head.bias)
    assert biased.lm_head.bias.any() and not tiny_gpt(bias=True).output_bias
    assert not any("lm_head" in name for name, _ in tied.named_parameters())


def test_scores_are_those_of_the_residual_stream_after_the_last_norm():
    model, tokens, streams = tiny_gpt(norm="layernorm"), random_tokens(2, 6), []
    model.blocks[-1].register_forward_hook(lambda *call: streams.append(call[-1]))
    with torch.no_grad():
        logits = model(tokens)
        assert torch.equal(model.hidden(tokens), model.final_norm(streams[0]))
        assert torch.equal(logits, model.logits(model.hidden(tokens)))


@pytest.mark.parametrize("limit", [0.5, 30.0])
@torch.no_grad()
def test_a_soft_cap_bends_scores_towards_its_limit_and_keeps_their_order(limit):
    plain, capped = tiny_gpt(), tiny_gpt(logit_softcap=limit)
    scores, bent = plain(random_tokens(2, 9)), capped(random_tokens(2, 9))
    assert_close(bent, limit * torch.tanh(scores / limit))
    assert bent.abs().max() < limit
    assert torch.equal(bent.argmax(-1), scores.argmax(-1))
    assert not torch.equal(bent, scores)
    assert torch.equal(capped.train()(random_tokens(2, 9)), bent)


def test_dropout_acts_in_training_and_not_in_evaluation():
    model, tokens = tiny_gpt(dropout=0.3), random_tokens(1, 8)
    with torch.no_grad():
        whole = tiny_gpt()(tokens)
        assert torch.equal(model(tokens), whole)
        model.train()
        assert not torch.equal(model(tokens), model(tokens))
        assert torch.equal(tiny_gpt().train()(tokens), whole)  # no dropout: nothing is random


@architectures
def test_a_model_of_bfloat16_weights_computes_in_bfloat16(changes):
    model, tokens = tiny_gpt(**changes), random_tokens(2, 8)
    with torch.no_grad():
        exact, rounded = model(tokens), model.to(torch.bfloat16)(tokens)
    assert rounded.dtype == torch.bfloat16
    # 8 significant bits through two layers: some roundings of 2^-8 of the largest score.
    assert_close(rounded.float(), exact, rtol=0, atol=10 * 2**-8 * float(exact.abs().max()))


FIELDS = [
    {"n_layer": 3}, {"n_head": 2}, {"n_kv_head": 1}, {"n_embd": 64}, {"n_inner": 40},
    {"position": "learned"}, {"position": "sinusoidal"}, {"position": "none"},
    {"rope_base": 50.0}, {"norm": "layernorm"}, {"mlp": "gelu"}, {"mlp": "gelu_tanh"},
    {"mlp": "relu2"}, {"qk_norm": False}, {"bias": True}, {"tie_embeddings": True},
    {"head_dim": 16}, {"norm_eps": 0.1}, {"residual_scale": 0.5}, {"logit_softcap": 2.0},
    {"window": 3}, {"window": 3, "window_pattern": "SF"}, {"window": 3, "window_pattern": "FS"},
    *({"rope_scaling": {"original_block_size": 16, **more}} for more in (
        {}, {"original_block_size": 15}, {"factor": 2.0}, {"low_freq_factor": 2.0},
        {"high_freq_factor": 16.0})),
    {"rope_scaling": {"kind": "linear"}}, {"rope_scaling": {"kind": "linear", "factor": 2.0}},
    *({"rope_scaling": {"kind": "yarn", "original_block_size": 4096, **more}} for more in (
        {}, {"factor": 2.0}, {"beta_fast": 2.0}, {"beta_slow": 0.1}, {"attention_factor": 2.0})),
    *({"rope_scaling": {"kind": "longrope", "original_block_size": 64, "short_factor": [1, 1, 2, 3],
                        "long_factor": [1, 2, 3, 4], **more}} for more in (
        {}, {"original_block_size": 16}, {"short_factor": [1, 2, 3, 5]}, {"factor": 2.0},
        {"attention_factor": 2.0})),
    {"rope_dim": 4}, {"rope_pattern": "RN"}, {"rope_pattern": "NR"},
    {"window": 3, "local_rope_base": 50.0}, {"norm_placement": "after"},
    {"norm_placement": "both"}, {"residual": "parallel"}, {"residual": "parallel_one_norm"},
    {"mlp": "geglu"}, {"mlp": "relu"}, {"qk_norm": "across_heads"}, {"bias": ["qkv_proj"]},
    {"bias": ["down_proj"]}, {"embedding_scale": 2.0}, {"attention_scale": 2.0},
    {"attention_softcap": 0.5}, {"logit_scale": 0.5}]


def test_every_field_of_the_architecture_changes_the_function():
    found = []
    for change in ({}, *FIELDS):
        with torch.no_grad():
            found.append(tiny_gpt(**change)(random_tokens(1, 12)))
    for i, outputs in enumerate(found):
        same = [j for j in range(len(found)) if torch.equal(found[j], outputs)]
        assert same == [i], f"{[({}, *FIELDS)[j] for j in same]} are one function"
    assert torch.equal(found[0], tiny_gpt()(random_tokens(1, 12)))


def test_no_field_of_the_architecture_is_missing_above():
    elsewhere = {"preset", "depth", "vocab_size", "block_size", "dropout", "model_type"}
    assert {name for change in FIELDS for name in change} == (
        tiny_config().model_fields_set | ModelConfig.model_fields.keys()) - elsewhere
