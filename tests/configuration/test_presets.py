"""Presets are the published models; depth is one dial for a shape and its training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt.configuration import ModelConfig, PretrainConfig, validate
from gpt.configuration.presets import PRESETS, PresetName
from gpt.configuration.rope import RopeScaling
from gpt.errors import UserError
from gpt.model import GPT, parameter_count
from tests.tiny import random_tokens

# Fields of the published config.json files, as far as they say something about the architecture.
GPT2 = {"model_type": "gpt2", "vocab_size": 50_257, "n_positions": 1024}
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "gpt2": (124_439_808, GPT2),  # transformers' own defaults
    "gpt2-medium": (354_823_168, {**GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024}),
    "gpt2-large": (774_030_080, {**GPT2, "n_layer": 36, "n_head": 20, "n_embd": 1280}),
    "gpt2-xl": (1_557_611_200, {**GPT2, "n_layer": 48, "n_head": 25, "n_embd": 1600}),
    # stories15M of llama2.c
    "llama-15m": (15_191_712, {
        **LLAMA, "vocab_size": 32_000, "hidden_size": 288, "intermediate_size": 768,
        "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6}),
    # SmolLM-135M
    "llama-135m": (134_515_008, {
        **LLAMA, "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}),
    # Llama 3.2 1B
    "llama-1b": (1_235_814_400, {
        **LLAMA, "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
    # Qwen3-0.6B
    "qwen3-0.6b": (596_049_920, {
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default",
                                                         "rope_theta": 1e6}}),
}
OURS = {"qwen3-15m": 15e6, "qwen3-150m": 150e6}  # published by nobody: with 32,000 tokens
DATA = {"data": {"dataset": "x"}}


def on_meta(**fields: Any) -> GPT:
    """A model without memory."""
    with torch.device("meta"):
        return GPT(ModelConfig(**fields))


def as_our_fields(config: Any) -> dict[str, Any]:
    """What transformers' configuration says, in our words, written down independently."""
    if config.model_type == "gpt2":
        assert config.n_inner is None and config.activation_function == "gelu_new"
        return {"n_layer": config.n_layer, "n_head": config.n_head, "n_kv_head": config.n_head,
                "n_embd": config.n_embd, "head_dim": config.n_embd // config.n_head,
                "n_inner": 4 * config.n_embd, "norm": "layernorm", "mlp": "gelu_tanh",
                "norm_eps": config.layer_norm_epsilon, "position": "learned", "bias": True,
                "qk_norm": False, "tie_embeddings": config.tie_word_embeddings,
                "block_size": config.n_positions, "window": None}
    assert config.hidden_act == "silu" and not config.attention_bias
    rope = config.rope_parameters
    scaling = None if rope["rope_type"] == "default" else RopeScaling(**{
        "factor": rope["factor"], "low_freq_factor": rope["low_freq_factor"],
        "high_freq_factor": rope["high_freq_factor"],
        "original_block_size": rope["original_max_position_embeddings"]}).model_dump()
    return {"n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads,
            "n_kv_head": config.num_key_value_heads, "n_embd": config.hidden_size,
            "head_dim": config.head_dim, "n_inner": config.intermediate_size, "norm": "rmsnorm",
            "mlp": "swiglu", "norm_eps": config.rms_norm_eps, "position": "rope", "bias": False,
            "rope_base": rope["rope_theta"], "rope_scaling": scaling, "window": None,
            "qk_norm": config.model_type == "qwen3", "tie_embeddings": config.tie_word_embeddings}


def test_every_preset_is_compared_below():
    assert PRESETS.keys() == PUBLISHED.keys() | OURS.keys() == set(PresetName.__args__)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_model_to_the_last_parameter(name):
    transformers = pytest.importorskip("transformers")
    count, fields = PUBLISHED[name]
    config = transformers.AutoConfig.for_model(**fields)
    ours = ModelConfig(preset=name, vocab_size=config.vocab_size)
    expected = as_our_fields(config)
    assert ours.model_dump(include=expected.keys()) == expected

    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    assert parameter_count(on_meta(**ours.model_dump())) == parameter_count(theirs) == count


@pytest.mark.parametrize(("name", "nominal"), OURS.items())
def test_a_shape_of_our_own_is_as_large_as_its_name_says(name, nominal):
    assert parameter_count(on_meta(preset=name, vocab_size=32_000)) == pytest.approx(
        nominal, rel=0.02)
    published = ModelConfig(preset="qwen3-0.6b")
    shape = {"n_layer", "n_head", "n_kv_head", "n_embd", "n_inner"}
    assert ModelConfig(preset=name).model_dump(exclude=shape) == published.model_dump(exclude=shape)


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_a_preset_shrunk_by_fields_of_its_own_reads_text(name):
    small = ModelConfig(preset=name, vocab_size=61, n_layer=2, n_head=4, n_kv_head=2, n_embd=32,
                        head_dim=8, n_inner=48, block_size=16)
    kept = {"norm", "mlp", "position", "rope_base", "rope_scaling", "qk_norm", "bias", "norm_eps"}
    assert small.model_dump(include=kept) == ModelConfig(preset=name).model_dump(include=kept)
    torch.manual_seed(0)
    logits = GPT(small)(random_tokens(2, 16))
    assert logits.shape == (2, 16, 61) and logits.isfinite().all() and logits.std() > 0


@pytest.mark.parametrize("name", PRESETS)
def test_fields_that_are_given_win_over_the_preset(name):
    for field, value in {"n_layer": 5, "block_size": 77, "tie_embeddings": False, "bias": True,
                         "qk_norm": True, "norm_eps": 0.01, "rope_scaling": None}.items():
        changed = ModelConfig(preset=name, **{field: value})
        assert getattr(changed, field) == value
        assert changed.model_dump(exclude={field}) == ModelConfig(preset=name).model_dump(
            exclude={field})


@pytest.mark.parametrize("dial", [*({"preset": name} for name in PRESETS), {"depth": 3}], ids=str)
def test_a_resolved_configuration_has_the_fields_and_not_the_dial(dial):
    resolved = ModelConfig(**dial)
    dumped = resolved.model_dump()
    assert not {"preset", "depth"} & dumped.keys()
    assert resolved.preset is None and resolved.depth is None
    assert ModelConfig(**dumped) == resolved
    shape = PRESETS[dial["preset"]] if "preset" in dial else {
        "n_layer": 3, "n_head": 3, "n_embd": 192}
    assert ModelConfig(**shape) == resolved != ModelConfig()


def refusal(**sections: Any) -> str:
    with pytest.raises(UserError) as caught:
        validate(PretrainConfig, DATA | sections, {})
    return str(caught.value)


def test_a_preset_and_a_depth_exclude_each_other():
    assert refusal(model={"preset": "gpt2", "depth": 4}) == (
        "defaults: model: set preset or depth, not both")
    assert ModelConfig(preset="gpt2", depth=None) == ModelConfig(preset="gpt2")
    assert ModelConfig(preset=None, depth=4) == ModelConfig(depth=4)


def test_an_unknown_preset_is_refused_with_the_names_there_are():
    for unknown in ("gpt3", 5, ["gpt2"], {}):
        told = refusal(model={"preset": unknown})
        assert told.startswith("defaults: model.preset: input should be 'gpt2', 'gpt2-medium'")
        assert all(f"'{name}'" in told for name in PRESETS)


@pytest.mark.parametrize("depth", [0, -1, 1025, 10**400, 4.0, "4", True, [4]], ids=repr)
def test_a_depth_that_is_no_number_of_layers_is_refused_and_never_ignored(depth):
    told = refusal(model={"depth": depth})
    assert told.startswith("defaults: model.depth: ")


def trained(model: dict[str, Any], **train: Any) -> PretrainConfig:
    return validate(PretrainConfig, DATA | {"model": model, "train": train}, {})


@pytest.mark.parametrize("depth", [1, 2, 4, 12, 24])
@pytest.mark.parametrize("block_size", [None, 256, 4096])
def test_depth_sets_the_shape_and_the_tokens(depth, block_size):
    given = {} if block_size is None else {"block_size": block_size}
    config = trained({"depth": depth, **given})
    model, context = config.model, block_size or 1024
    assert (model.n_layer, model.n_head, model.n_embd, model.head_dim, model.block_size) == (
        depth, depth, 64 * depth, 64, context)
    matrices = 12 * depth * (64 * depth) ** 2  # as 4 C² of attention and 8 C² of the feed-forward
    assert config.train.tokens == 20 * matrices
    assert config.train.batch_size == "auto"  # follows the tokens


def test_depth_twelve_is_gpt2s_width_heads_and_depth_and_chinchillas_budget():
    config, gpt2 = trained({"depth": 12}), PRESETS["gpt2"]
    fields = ("n_layer", "n_head", "n_embd", "block_size")
    assert config.model.model_dump(include=set(fields)) == {name: gpt2[name] for name in fields}
    assert config.train.tokens == 1_698_693_120  # 20 · 12 · 12 · 768²


@pytest.mark.parametrize("budget", [{"steps": 7}, {"tokens": 7}, {"epochs": 7.0},
                                    {"max_minutes": 7.0}], ids=str)
def test_a_given_budget_wins_over_the_depths(budget):
    train = trained({"depth": 4}, **budget).train
    fields = {"steps", "tokens", "epochs", "max_minutes"}
    assert train.model_dump(include=fields) == dict.fromkeys(fields) | budget


def test_given_training_fields_and_a_given_shape_win_over_the_depths():
    config = trained({"depth": 4, "n_embd": 512, "n_layer": 2}, batch_size=3, grad_clip=2.0)
    assert (config.train.batch_size, config.train.grad_clip) == (3, 2.0)
    assert config.train.tokens == trained({"depth": 4}).train.tokens
    assert (config.model.n_embd, config.model.n_layer, config.model.n_head) == (512, 2, 4)


def test_a_preset_says_nothing_about_training():
    assert trained({"preset": "gpt2"}).train == trained({}).train
    assert trained({"depth": 4}).train != trained({}).train


def test_what_a_dial_sets_is_told_by_its_name():
    implied = PretrainConfig.implied({"model": {"preset": "llama-1b"}})
    assert implied == {f"model.{name}": "llama-1b" for name in PRESETS["llama-1b"]}
    by_depth = ["model.n_layer", "model.n_head", "model.n_embd", "train.tokens"]
    assert PretrainConfig.implied({"model": {"depth": 2}, "train": {"batch_size": 4}}) == (
        dict.fromkeys(by_depth, "model.depth=2"))
    assert PretrainConfig.implied({}) == PretrainConfig.implied({"model": {"n_layer": 2}}) == {}
