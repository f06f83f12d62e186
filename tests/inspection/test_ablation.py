"""Heads that are silenced in a batch, from their layer on, are those silenced one by one."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose

from gpt.inspection import ablation, ablations
from tests.tiny import ARCHITECTURES, random_tokens, tiny_gpt


@torch.no_grad()
def silenced(model, tokens, layer, head, both_ways):
    """Log-probabilities behind the last token, by a whole forward pass."""
    D = model.config.head_dim

    def silence(_, given):
        read = given[0].clone()
        read[..., head * D:(head + 1) * D] = 0
        return (read,)

    read = torch.tensor([tokens])
    hook = model.blocks[layer].attention.out_proj.register_forward_pre_hook(silence)
    with hook:
        prompts = torch.ones_like(read, dtype=torch.bool) if both_ways else None
        return model(read, prompts=prompts)[0, -1].log_softmax(-1)


@pytest.mark.parametrize("at_once", [1, 60, 10**6])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_head_of_each_layer_is_as_in_a_whole_pass_without_it(name, both_ways, at_once,
                                                                  monkeypatch):
    monkeypatch.setattr(ablation, "AT_ONCE", at_once)
    model, tokens = tiny_gpt(**{"n_layer": 3, **ARCHITECTURES[name]}), random_tokens(20).tolist()
    found = ablations(model, tokens, both_ways)
    assert found.tokens.shape == found.probabilities.shape == (3, 4, 10)
    read = torch.tensor([tokens])
    with torch.no_grad():
        whole = model(read, prompts=torch.ones_like(read).bool() if both_ways else None)
    whole = whole[0, -1].log_softmax(-1)
    for layer in range(3):
        for head in range(4):
            alone = silenced(model, tokens, layer, head, both_ways)
            chances = found.probabilities[layer, head]
            assert_allclose(chances, alone.exp().topk(10).values, rtol=0, atol=1e-5)
            assert_allclose(alone.exp()[found.tokens[layer, head]], chances, rtol=0, atol=1e-5)
            assert_allclose(found.divergences[layer, head],
                            (whole.exp() * (whole - alone)).sum(), rtol=0, atol=1e-5)
    assert found.divergences.min() > 4e-5


def test_a_text_of_one_token_and_a_vocabulary_of_three_have_ablations():
    model = tiny_gpt(vocab_size=3)
    found = ablations(model, [1])
    assert found.tokens.shape == (2, 4, 3)
    assert_allclose(found.probabilities.sum(-1), 1, atol=1e-6)
    assert_allclose(found.probabilities[0, 2], silenced(model, [1], 0, 2, False).exp().sort(
        descending=True).values, atol=1e-6)


def test_silencing_leaves_a_model_as_it_was():
    model, tokens = tiny_gpt(dropout=0.5).train(), random_tokens(1, 20)
    first = ablations(model, tokens[0].tolist())
    assert (ablations(model, tokens[0].tolist()).divergences == first.divergences).all()
    assert all(module.training and "_attend" not in vars(module) for module in model.modules())
    model(tokens).sum().backward()


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="33 tokens is longer than block_size"):
        ablations(tiny_gpt(), [0] * 33)
