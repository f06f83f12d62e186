"""Token vectors and the four ways of seeing order, against transformers and the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from gpt.model.embedding import Embedding, sinusoids
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_vectors_are_multiplied_by_a_number_rounded_to_their_format(dtype):
    embedding = embedding_of(position="none", embedding_scale=59.8665).to(dtype)
    tokens = random_tokens(2, 6)
    scale = {torch.float32: 59.8665, torch.bfloat16: 59.75}[dtype]  # 8 binary digits
    assert_close(embedding(tokens, torch.arange(6)), embedding.token_embedding(tokens) * scale)
    table = embedding_of(position="learned", embedding_scale=3.0)
    difference = table(tokens, torch.arange(6)) - 3 * table.token_embedding(tokens)
    assert_close(difference, table.position_embedding.weight[:6].expand(2, 6, 32),
                 atol=1e-5, rtol=0)
