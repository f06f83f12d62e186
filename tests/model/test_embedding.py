"""Token vectors and the four ways of seeing order, against transformers and the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from gpt.model.embedding import (
    Embedding,
    RotationTable,
    rope_frequencies,
    rotate,
    rotations,
    sinusoids,
)
from tests.tiny import random_tokens, tiny_config, tiny_gpt


def embedding_of(**changes: object) -> Embedding:
    torch.manual_seed(0)
    embedding = Embedding(tiny_config(**changes))
    for table in embedding.parameters():  # which are not filled, and might hold NaN
        torch.nn.init.normal_(table)
    return embedding


@pytest.mark.parametrize("position", ["rope", "none"])
def test_a_tokens_vector_is_its_row_of_the_table(position):
    embedding, tokens = embedding_of(position=position), random_tokens(2, 6)
    expected = embedding.token_embedding.weight[tokens.flatten()].view(2, 6, 32)
    assert torch.equal(embedding(tokens, torch.arange(6)), expected)
    assert sum(p.numel() for p in embedding.parameters()) == 61 * 32


def test_learned_positions_add_the_row_of_the_place():
    embedding, tokens = embedding_of(position="learned"), random_tokens(2, 6)
    places = torch.tensor([[0, 1, 2, 0, 1, 2], [3, 4, 5, 6, 7, 31]])
    words, table = embedding.token_embedding.weight, embedding.position_embedding.weight
    assert table.shape == (32, 32)  # a row for each place of block_size
    for b in range(2):
        for t in range(6):
            expected = words[tokens[b, t]] + table[places[b, t]]
            assert torch.equal(embedding(tokens, places)[b, t], expected)


def test_sinusoidal_positions_are_added_to_vectors_scaled_by_the_root_of_the_width():
    embedding, tokens = embedding_of(position="sinusoidal"), random_tokens(1, 6)
    places = torch.arange(3, 9)
    expected = embedding.token_embedding.weight[tokens[0]] * 32 ** 0.5 + sinusoids(places, 32)
    assert_close(embedding(tokens, places)[0], expected)
    assert sum(p.numel() for p in embedding.parameters()) == 61 * 32


@pytest.mark.parametrize("width", [2, 16, 130])
def test_sinusoids_are_the_papers_formula(width):
    table = sinusoids(torch.arange(50), width)
    assert table.shape == (50, width)
    for position in range(50):
        for i in range(width // 2):
            angle = position / 10_000 ** (2 * i / width)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


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


SCALINGS = [{"factor": 32.0, "original_block_size": 8192}, {},
            {"factor": 4.0, "original_block_size": 16},
            {"factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 20.0,
             "original_block_size": 700}]


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_rope_scaling_is_that_of_transformers_llama3(scaling, head_dim):
    pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    ours = tiny_config(head_dim=head_dim, rope_base=500_000.0, rope_scaling=scaling)
    s = ours.rope_scaling
    theirs = llama_config(head_dim=head_dim, rope={
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": s.factor,
        "low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor,
        "original_max_position_embeddings": s.original_block_size})
    expected, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    assert attention_factor == 1
    frequencies = rope_frequencies(ours)
    assert_close(frequencies, expected, rtol=1e-5, atol=0)
    plain = rope_frequencies(tiny_config(head_dim=head_dim, rope_base=500_000.0))
    assert_close(frequencies[-1], plain[-1] / s.factor, rtol=1e-5, atol=0)
    assert not torch.allclose(frequencies, plain, rtol=1e-3, atol=0)


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


def test_without_positions_the_order_of_earlier_tokens_is_invisible():
    tokens = random_tokens(1, 6)
    shuffled = tokens[:, [2, 0, 1, 3, 4, 5]]
    for position, sees_order in (("none", False), ("rope", True), ("learned", True),
                                 ("sinusoidal", True)):
        model = tiny_gpt(position=position, n_layer=1)
        with torch.no_grad():
            difference = (model(tokens) - model(shuffled))[:, -1].abs().max().item()
        assert (difference > 1e-3) == sees_order, position


def test_dropout_clears_its_share_of_embedded_numbers_and_scales_up_the_rest():
    embedding = embedding_of(position="learned", dropout=0.25)
    tokens, places = random_tokens(40, 32), torch.arange(32)
    whole = embedding.eval()(tokens, places)
    assert torch.equal(embedding(tokens, places), whole)

    dropped = embedding.train()(tokens, places)

    kept = dropped != 0
    assert_close(dropped[kept], whole[kept] / 0.75)
    # 40,960 draws: the share's standard deviation is √(0.25 · 0.75 / 40,960) = 0.0021.
    assert 1 - kept.float().mean().item() == pytest.approx(0.25, abs=4 * 0.0021)


def test_a_table_has_the_rotations_of_any_position_to_the_bit():
    config = tiny_config(block_size=6000)
    table, cpu = RotationTable(config), torch.device("cpu")
    with torch.inference_mode():
        table.cover(8, cpu)
    cos = table._cos
    assert len(cos) == 4096 and not cos.is_inference()  # all of a usual context; to train with, too
    table.cover(300, cpu)
    assert table._cos is cos
    table.cover(5000, cpu)
    for positions in (torch.tensor([0, 4999, 7]), torch.tensor([[3, 4], [4000, 1]])):
        expected = rotations(positions, rope_frequencies(config))
        assert all(map(torch.equal, table.at(positions), expected))
    table.cover(1, torch.device("meta"))
    assert table.at(torch.zeros(2, dtype=torch.int64, device="meta"))[0].device.type == "meta"
