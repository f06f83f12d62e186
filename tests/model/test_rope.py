"""Rotary positions, against transformers and their definition."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from gpt.model.rope import RotationTable, attention_factor, rope_frequencies, rotate, rotations
from tests.tiny import tiny_config


def llama_config(**changes: object):
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": 10_000.0, **changes.pop("rope", {})}
    return transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        rope_parameters=rope, **changes)


@pytest.mark.parametrize(("head_dim", "base"), [(8, 10_000.0), (64, 500_000.0), (128, 1e6)])
def test_rope_is_that_of_transformers_llama(head_dim, base):
    config = llama_config(head_dim=head_dim, rope={"rope_theta": base})
    from transformers.models.llama import modeling_llama as llama
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 4, head_dim), torch.randn(2, 5, 2, head_dim)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 100, 101, 999, 1000]])
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, positions)
    expected = llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)

    frequencies = rope_frequencies(tiny_config(head_dim=head_dim, rope_base=base))
    rotation = rotations(positions, frequencies)

    for x, turned in zip((q, k), expected, strict=True):
        # Equal frequencies: else place 1000 would multiply a rounding of 2^-24 to 6e-5 radians.
        assert_close(rotate(x, rotation), turned, rtol=0, atol=1e-6)
        assert not torch.allclose(rotate(x, rotation)[1], x[1], atol=0.1)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
PAIRS = [1 + i / 4 for i in range(8)]
# name: (RopeScaling, what transformers calls it)
SCALINGS = {
    "llama3": ({}, {"rope_type": "llama3", **LLAMA3}),
    "llama3 short": ({"factor": 4.0, "original_block_size": 16}, {
        "rope_type": "llama3", **LLAMA3, "factor": 4.0, "original_max_position_embeddings": 16}),
    "llama3 other turns": (
        {"factor": 32.0, "low_freq_factor": 0.5, "high_freq_factor": 20.0,
         "original_block_size": 700},
        {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 0.5, "high_freq_factor": 20.0,
         "original_max_position_embeddings": 700}),
    "linear": ({"kind": "linear", "factor": 3.0}, {"rope_type": "linear", "factor": 3.0}),
    "yarn": ({"kind": "yarn", "factor": 4.0, "original_block_size": 700}, {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 700}),
    "yarn other turns": (
        {"kind": "yarn", "factor": 40.0, "original_block_size": 700, "beta_fast": 8.0,
         "beta_slow": 0.5, "attention_factor": 1.25},
        {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 700,
         "beta_fast": 8.0, "beta_slow": 0.5, "attention_factor": 1.25}),
    "yarn, a step": (
        {"kind": "yarn", "factor": 4.0, "original_block_size": 2},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2}),
    "longrope": (
        {"kind": "longrope", "factor": 2.0, "original_block_size": 4096,
         "short_factor": PAIRS, "long_factor": [2 * each for each in PAIRS]},
        {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 4096,
         "short_factor": PAIRS, "long_factor": [2 * each for each in PAIRS]})}


@pytest.mark.parametrize("name", SCALINGS)
def test_rope_scaling_is_that_of_transformers(name):
    pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    scaling, rope = SCALINGS[name]
    ours = tiny_config(head_dim=16, rope_base=500_000.0, rope_scaling=scaling)
    theirs = llama_config(head_dim=16, rope={"rope_theta": 500_000.0, **rope})
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, torch.device("cpu"))
    assert_close(rope_frequencies(ours), frequencies, rtol=1e-5, atol=0)
    assert attention_factor(ours) == pytest.approx(factor)
    plain = rope_frequencies(tiny_config(head_dim=16, rope_base=500_000.0))
    assert not torch.allclose(rope_frequencies(ours), plain, rtol=1e-3, atol=0)
    assert (attention_factor(ours) != 1) == (rope["rope_type"] in ("yarn", "longrope"))


def test_longrope_goes_by_the_longest_text_that_the_model_reads():
    scaling, _ = SCALINGS["longrope"]
    frequencies = [rope_frequencies(tiny_config(head_dim=16, rope_scaling=scaling,
                                                block_size=block_size))
                   for block_size in (4096, 4097)]
    assert_close(frequencies[0], 2 * frequencies[1])


def test_rope_scaling_by_one_changes_nothing():
    scaled = tiny_config(rope_scaling={"factor": 1.0, "original_block_size": 16})
    assert_close(rope_frequencies(scaled), rope_frequencies(tiny_config()))


def test_with_rope_scores_depend_on_distance_and_not_on_place():
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    frequencies = rope_frequencies(tiny_config(n_head=2, n_embd=32))

    def score(query_at: int, key_at: int) -> float:
        turn = [rotations(torch.tensor([p]), frequencies) for p in (query_at, key_at)]
        return float((rotate(q, turn[0]) * rotate(k, turn[1])).sum())

    assert score(5, 3) == pytest.approx(score(905, 903), abs=1e-3)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-2)


def test_numbers_behind_rope_dim_do_not_turn():
    torch.manual_seed(0)
    x, positions = torch.randn(2, 5, 4, 16), torch.arange(100, 105)
    config = tiny_config(head_dim=16, rope_dim=6)
    rotation = rotations(positions, rope_frequencies(config))
    turned = rotate(x, rotation)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    whole = rotations(positions, rope_frequencies(tiny_config(head_dim=6)))
    assert torch.equal(turned[..., :6], rotate(x[..., :6], whole))
    assert not torch.allclose(turned[..., :6], x[..., :6], atol=0.1)


def test_rotated_numbers_are_multiplied_by_the_attention_factor():
    x, positions = torch.randn(1, 3, 1, 16), torch.arange(3)
    frequencies = rope_frequencies(tiny_config(head_dim=16))
    assert_close(rotate(x, rotations(positions, frequencies, 1.5)),
                 1.5 * rotate(x, rotations(positions, frequencies)))


def test_layers_that_slide_have_frequencies_of_their_own():
    config = tiny_config(head_dim=16, n_layer=4, window=4, window_pattern="SF", rope_pattern="RRRN",
                         rope_base=1e6, local_rope_base=1e3,
                         rope_scaling={"kind": "linear", "factor": 8.0})
    assert config.rotations == ["local", "global", "local", None]
    assert_close(rope_frequencies(config, "local"),
                 rope_frequencies(tiny_config(head_dim=16, rope_base=1e3)))
    assert_close(rope_frequencies(config),
                 rope_frequencies(tiny_config(head_dim=16, rope_base=1e6)) / 8)
    table = RotationTable(config)
    table.cover(8, torch.device("cpu"))
    at = table.at(torch.arange(8))
    assert at[None] is None and at.keys() == {None, "global", "local"}
    for kind in ("global", "local"):
        expected = rotations(torch.arange(8), rope_frequencies(config, kind))
        assert all(map(torch.equal, at[kind], expected))


def test_a_table_has_the_rotations_of_any_position_to_the_bit():
    config = tiny_config(block_size=6000)
    table, cpu = RotationTable(config), torch.device("cpu")
    with torch.inference_mode():
        table.cover(8, cpu)
    cos, _ = table.tables
    assert len(cos) == 4096 and not cos.is_inference()  # all of a usual context; to train with, too
    table.cover(300, cpu)
    assert table.tables[0] is cos
    table.cover(5000, cpu)
    for positions in (torch.tensor([0, 4999, 7]), torch.tensor([[3, 4], [4000, 1]])):
        expected = rotations(positions, rope_frequencies(config))
        assert all(map(torch.equal, table.at(positions)["global"], expected))
    table.cover(1, torch.device("meta"))
    zeros = torch.zeros(2, dtype=torch.int64, device="meta")
    assert table.at(zeros)["global"][0].device.type == "meta"
