"""What other tools have no option for, written into the weights: the same function."""

from __future__ import annotations

import pytest
import torch

from gpt.interop.equivalent import standard, standard_form
from tests.tiny import ARCHITECTURES, random_tokens, tiny_config, tiny_gpt

LAYERNORM = {"norm": "layernorm", "mlp": "gelu", "qk_norm": False, "n_kv_head": 4}
REWRITTEN = {
    "residual scale": ({"residual_scale": 0.3}, {"residual_scale": 1.0}),
    "scaled biases": ({**ARCHITECTURES["gpt2"], "residual_scale": 0.5}, {"residual_scale": 1.0}),
    "no biases": ({**LAYERNORM, "position": "learned"}, {"bias": True}),
    "no biases, tied": ({**LAYERNORM, "position": "learned", "tie_embeddings": True},
                        {"bias": True}),
    "waves": ({**LAYERNORM, "position": "sinusoidal", "bias": True}, {"position": "learned"}),
    "waves, tied": ({**LAYERNORM, "position": "sinusoidal", "tie_embeddings": True},
                    {"position": "learned", "bias": True}),
    "waves, tied, biases": ({**LAYERNORM, "position": "sinusoidal", "tie_embeddings": True,
                             "bias": True}, {"position": "learned"}),
    "no positions": ({**LAYERNORM, "position": "none", "residual_scale": 2.0},
                     {"position": "learned"}),
}
TOKENS = random_tokens(2, 32)


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_rewritten_model_computes_the_same(name):
    changes, expected = REWRITTEN[name]
    model = tiny_gpt(**changes)
    written = standard_form(model)
    assert {k: getattr(written.config, k) for k in expected} == expected
    assert {k: getattr(model.config, k) for k in expected} != expected
    with torch.no_grad():
        wanted, found = model(TOKENS), written(TOKENS)
    # sums of some hundred products, scaled before or after them
    assert (wanted - found).abs().max() <= 400 * 2**-24 * wanted.abs().max()
    assert wanted.std() > 0.1
    assert not written.training


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_that_is_standard_already_keeps_every_bit(name):
    if name in ("vaswani", "wide heads", "multi-query", "neox", "falcon", "gemma", "olmo"):
        return
    model = tiny_gpt(**ARCHITECTURES[name])
    written = standard_form(model)
    assert written.config.model_copy(update={"model_type": None}) == model.config
    for key, tensor in model.state_dict().items():
        assert torch.equal(written.state_dict()[key], tensor)


@pytest.mark.parametrize("name", REWRITTEN)
def test_the_model_itself_is_left_as_it_is(name):
    model = tiny_gpt(**REWRITTEN[name][0])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    config = model.config
    written = standard_form(model)
    with torch.no_grad():
        written.blocks[0].attention.out_proj.weight.mul_(1.0)
    assert model.config is config
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())


def test_windows_that_hide_nothing_are_none():
    for window, pattern, expected in ((32, "S", (None, "S")), (40, "SF", (None, "S")),
                                      (31, "S", (31, "S")), (5, "F", (None, "S")),
                                      (5, "SS", (5, "S")), (5, "SF", (5, "SF")),
                                      (5, "SSF", (5, "S"))):  # of two layers
        config = tiny_config(window=window, window_pattern=pattern)
        _, found = standard(config)
        assert (found.window, found.window_pattern) == expected
    model = tiny_gpt(window=32)
    assert torch.equal(standard_form(model)(TOKENS), model(TOKENS))


def test_weights_are_stored_in_the_type_that_is_asked_for():
    written = standard_form(tiny_gpt(**ARCHITECTURES["vaswani"]), torch.bfloat16)
    assert {p.dtype for p in written.parameters()} == {torch.bfloat16}
