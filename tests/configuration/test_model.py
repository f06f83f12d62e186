"""The architecture's fields: defaults that follow from others, ranges, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from gpt.configuration import ModelConfig, PretrainConfig, validate
from gpt.errors import UserError


def refusal(**model: Any) -> str:
    with pytest.raises(UserError) as caught:
        validate(PretrainConfig, {"data": {"dataset": "x"}, "model": model}, {})
    return str(caught.value)


@pytest.mark.parametrize(("field", "accepted", "refused"), [
    ("head_dim", [2, 64, 2**14], [0, -8, 2**14 + 2, 8.5]),
    ("window", [1, 2**24, None], [0, -1, 2**24 + 1, 1.5, "all"]),
    ("norm_eps", [1e-12, 0.999], [0, 1, -1e-6]),
    ("residual_scale", [1e-3, 0.22, 2], [0, -1]),
    ("logit_softcap", [1e-3, 30, None], [0, -30]),
    ("attention_softcap", [1e-3, 50, None], [0, -50]), ("attention_scale", [1e-3, 1, 8], [0, -1]),
    ("embedding_scale", [1e-3, 48], [0, -1]), ("logit_scale", [1e-3, 0.125], [0, -1]),
    ("rope_dim", [1, 64, 2**14], [0, -8, 2**14 + 1]), ("local_rope_base", [None], [1, 0, -5]),
    ("bias", [True, False, [], ["qkv_proj"], ["norm", "lm_head"]], ["qkv_proj", ["x"], [True], 3]),
    ("qk_norm", [True, False, "across_heads"], ["heads", 3]),
    ("model_type", [None, "qwen2"], ["", "Qwen 2", 5]),
    ("rope_scaling", [None], [8, "llama3", [8.0]]),
    ("n_head", [1, 3, 768], [0, 1025]), ("n_kv_head", [1, 12], [0, 1025]),
    ("n_embd", [12, 2**17 - 2**17 % 12], [0, 2**17 + 1])])
def test_ranges_hold_at_their_edges(field, accepted, refused):
    for value in accepted:
        assert getattr(ModelConfig(**{field: value, "position": "none"}), field) == value
    for value in refused:
        assert refusal(**{field: value}).startswith(f"defaults: model.{field}: ")


@pytest.mark.parametrize(("field", "accepted", "refused"), [
    ("factor", [1, 32.0], [0.99, 0, -8]), ("low_freq_factor", [0.1, 3.9], [0, -1]),
    ("high_freq_factor", [1.1, 20], [0, -4]), ("original_block_size", [1, 2**24], [0, 2**24 + 1])])
def test_ranges_of_rope_scaling_hold_at_their_edges(field, accepted, refused):
    for value in accepted:
        assert getattr(ModelConfig(rope_scaling={field: value}).rope_scaling, field) == value
    for value in refused:
        assert refusal(rope_scaling={field: value}).startswith(
            f"defaults: model.rope_scaling.{field}: ")


@pytest.mark.parametrize("pattern", ["S", "F", "SSSF", "FS" * 512])
def test_a_window_pattern_is_letters_of_s_and_f(pattern):
    assert ModelConfig(window=5, window_pattern=pattern).window_pattern == pattern


@pytest.mark.parametrize("pattern", ["", "s", "SFX", "S F", "SF\n", "FS" * 512 + "S", 5, None])
def test_another_window_pattern_is_refused(pattern):
    assert refusal(window=5, window_pattern=pattern).startswith("defaults: model.window_pattern: ")


@pytest.mark.parametrize(("fields", "message"), [
    ({"n_head": 7}, "n_embd (768) must be a multiple of n_head (7), or head_dim be given"),
    ({"n_head": 1000}, "n_embd (768) must be a multiple of n_head (1000), or head_dim be given"),
    ({"n_kv_head": 5}, "n_head (12) must be a multiple of n_kv_head (5)"),
    ({"head_dim": 5}, "RoPE turns pairs: head_dim (5) must be even"),
    ({"n_embd": 36}, "RoPE turns pairs: n_embd / n_head (3) must be even"),
    ({"n_embd": 3, "n_head": 1, "position": "sinusoidal"},
     "sinusoidal positions need an even n_embd, not 3"),
    ({"position": "learned", "rope_scaling": {}}, "rope_scaling is for position=rope, not learned"),
    ({"preset": "llama-1b", "position": "none"}, "rope_scaling is for position=rope, not none"),
    ({"window_pattern": "SF"}, "window_pattern says which layers slide: set window, too"),
    ({"local_rope_base": 5.0}, "local_rope_base is for layers that slide: set window, too"),
    ({"position": "none", "local_rope_base": 5.0, "window": 3},
     "local_rope_base is for position=rope, not none"),
    ({"position": "none", "rope_pattern": "RN"}, "rope_pattern is for position=rope, not none"),
    ({"rope_dim": 66}, "rope_dim (66) is more than a head has (head_dim: 64)"),
    ({"rope_dim": 9}, "RoPE turns pairs: rope_dim (9) must be even"),
    ({"residual": "parallel", "norm_placement": "both"},
     "residual=parallel has its norms before, not both: set norm_placement=before"),
    ({"norm": "rmsnorm_1p", "qk_norm": "across_heads"},
     "qk_norm=across_heads is for norm=rmsnorm or layernorm, not rmsnorm_1p"),
    ({"bias": ["lm_head"], "tie_embeddings": True},
     "the bias lm_head is of an output layer of its own: set tie_embeddings=false"),
    ({"norm": "layernorm", "logit_scale": 0.5}, "logit_scale is for norm=rmsnorm, not layernorm"),
    ({"rope_scaling": {"kind": "longrope", "short_factor": [1.0], "long_factor": [2.0] * 32}},
     "rope_scaling.short_factor has 1 numbers for 32 pairs (rope_dim / 2)")])
def test_fields_that_do_not_fit_are_explained_with_their_numbers(fields, message):
    assert refusal(**fields) == f"defaults: model: {message}"


@pytest.mark.parametrize("low", [4.0, 5.0])
def test_the_two_bounds_of_rope_scaling_are_in_order(low):
    assert refusal(rope_scaling={"low_freq_factor": low}) == (
        f"defaults: model.rope_scaling: low_freq_factor ({low}) must be less than "
        "high_freq_factor (4.0)")


@pytest.mark.parametrize(("scaling", "message"), [
    ({"kind": "linear", "low_freq_factor": 2.0}, "low_freq_factor is for kind=llama3, not linear"),
    ({"attention_factor": 2.0}, "attention_factor is for kind=yarn or longrope, not llama3"),
    ({"kind": "yarn", "beta_fast": 1.0},
     "beta_slow (1.0) must be less than beta_fast (1.0)"),
    ({"kind": "longrope"}, "kind=longrope needs short_factor and long_factor"),
    ({"kind": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0] * 32,
      "original_block_size": 1}, "kind=longrope needs an original_block_size of 2 or more")])
def test_fields_of_rope_scaling_belong_to_its_kind(scaling, message):
    assert refusal(rope_scaling=scaling) == f"defaults: model.rope_scaling: {message}"


def test_what_refuses_one_shape_does_not_refuse_its_neighbours():
    assert ModelConfig(n_head=7, head_dim=64, n_kv_head=7).head_dim == 64
    assert ModelConfig(head_dim=5, position="sinusoidal").head_dim == 5
    assert ModelConfig(n_embd=3, n_head=1, position="learned").n_embd == 3
    assert ModelConfig(position="none", rope_scaling=None).rope_scaling is None
    assert ModelConfig(window=4, window_pattern="F").windows == [None] * 12
    assert ModelConfig(window_pattern="S").windows == [None] * 12


@pytest.mark.parametrize(("n_embd", "n_head", "head_dim"),
                         [(768, 12, 64), (96, 4, 24), (64, 1, 64)])
def test_the_heads_width_defaults_to_their_share_of_the_models(n_embd, n_head, head_dim):
    assert ModelConfig(n_embd=n_embd, n_head=n_head).head_dim == head_dim
    assert ModelConfig(n_embd=n_embd, n_head=n_head, head_dim=10).head_dim == 10


@pytest.mark.parametrize(("norm", "eps"), [("rmsnorm", 1e-6), ("layernorm", 1e-5)])
def test_the_norms_epsilon_defaults_to_its_familys(norm, eps):
    assert ModelConfig(norm=norm).norm_eps == eps
    assert ModelConfig(norm=norm, norm_eps=0.5).norm_eps == 0.5


@pytest.mark.parametrize(("pattern", "n_layer", "expected"), [
    ("S", 3, [7, 7, 7]), ("SF", 3, [7, None, 7]), ("SSF", 5, [7, 7, None, 7, 7]),
    ("FS", 1, [None]), ("FFFS", 2, [None, None])])
def test_a_pattern_repeats_over_the_layers(pattern, n_layer, expected):
    assert ModelConfig(window=7, window_pattern=pattern, n_layer=n_layer).windows == expected


def test_the_defaults_are_qwen3s_layout():
    assert ModelConfig().model_dump() == {
        "vocab_size": None, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_kv_head": 6,
        "n_embd": 768, "head_dim": 64, "position": "rope", "rope_base": 10_000.0,
        "rope_scaling": None, "window": None, "window_pattern": "S", "norm": "rmsnorm",
        "norm_eps": 1e-6, "mlp": "swiglu", "n_inner": 2048, "qk_norm": True, "bias": False,
        "tie_embeddings": False, "residual_scale": 1.0, "logit_softcap": None, "dropout": 0.0,
        "rope_dim": 64, "rope_pattern": "R", "local_rope_base": None, "norm_placement": "before",
        "residual": "sequential", "embedding_scale": 1.0, "attention_scale": 0.125,
        "attention_softcap": None, "logit_scale": 1.0, "model_type": None}
    assert ModelConfig(rope_scaling={}).rope_scaling.model_dump() == {
        "kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_block_size": 8192,  # Llama 3.1's
        "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None, "short_factor": None,
        "long_factor": None}
