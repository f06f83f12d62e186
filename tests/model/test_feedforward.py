"""The feed-forward against torch, transformers and the papers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from gpt.model.feedforward import FeedForward
from tests.tiny import tiny_config


def feedforward(**changes: object) -> FeedForward:
    torch.manual_seed(0)
    return FeedForward(tiny_config(**changes)).double().eval()  # rounding: 1e-16, not 1e-7


def numbers(*shape: int) -> Tensor:
    """Some inside and some outside the bend of the non-linearities."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double() * 2


def swiglu(h: Tensor) -> Tensor:
    """Shazeer 2020, equation 6, with β = 1: Swish(gate) ⊗ value."""
    gate, value = h[..., :h.size(-1) // 2], h[..., h.size(-1) // 2:]
    return gate / (1 + (-gate).exp()) * value


FORMULAS = {
    "swiglu": swiglu,
    "gelu": lambda h: h * (1 + torch.erf(h / math.sqrt(2))) / 2,
    "gelu_tanh": lambda h: h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi)
                                                    * (h + 0.044715 * h**3))),
    "relu2": lambda h: torch.where(h > 0, h * h, 0)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mlp", FORMULAS)
def test_up_then_the_papers_formula_then_down(mlp, bias):
    layer, x = feedforward(mlp=mlp, bias=bias, n_inner=20), numbers(3, 5, 32)
    up, down = layer.up_proj, layer.down_proj
    assert (up.bias is not None) == (down.bias is not None) == bias
    assert down.weight.shape == (32, 20)
    expected = F.linear(FORMULAS[mlp](F.linear(x, up.weight, up.bias)), down.weight, down.bias)
    assert_close(layer(x), expected)
    others = [f for name, f in FORMULAS.items() if name != mlp and "swiglu" not in (name, mlp)]
    for other in others:
        wrong = F.linear(other(F.linear(x, up.weight, up.bias)), down.weight, down.bias)
        assert (layer(x) - wrong).abs().max() > 1e-5  # the two GELUs are close to each other


@pytest.mark.parametrize(("mlp", "theirs"), [
    ("gelu", "gelu"), ("gelu_tanh", "gelu_new"), ("relu2", "relu2")])
def test_the_non_linearity_is_the_one_transformers_calls_so(mlp, theirs):
    activations = pytest.importorskip("transformers.activations")
    layer, x = feedforward(mlp=mlp, n_embd=32, n_inner=32), numbers(4, 32)
    with torch.no_grad():
        for projection in (layer.up_proj, layer.down_proj):
            projection.weight.copy_(torch.eye(32))
    assert_close(layer(x), activations.ACT2FN[theirs](x))
    assert not torch.allclose(layer(x), activations.ACT2FN["silu"](x))


@pytest.mark.parametrize("bias", [False, True])
def test_swiglu_is_transformers_llama_mlp(bias):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaMLP
    ours, x = feedforward(mlp="swiglu", n_inner=40, bias=bias), numbers(2, 5, 32)
    theirs = LlamaMLP(transformers.LlamaConfig(hidden_size=32, intermediate_size=40,
                                               hidden_act="silu", mlp_bias=bias)).double()
    state = ours.state_dict()
    for kind in ("weight", *(["bias"] if bias else [])):
        gate, up = state.pop(f"up_proj.{kind}").chunk(2)
        state |= {f"gate_proj.{kind}": gate, f"up_proj.{kind}": up}
    theirs.load_state_dict(state)
    assert_close(ours(x), theirs(x))


def test_dropout_clears_its_share_of_the_output_and_scales_up_the_rest():
    layer, x = feedforward(dropout=0.25), numbers(40, 32, 32)
    whole = layer(x)
    assert torch.equal(layer(x), whole)

    dropped = layer.train()(x)

    kept = dropped != 0
    assert_close(dropped[kept], whole[kept] / 0.75)
    # 40,960 draws: the share's standard deviation is √(0.25 · 0.75 / 40,960) = 0.0021.
    assert 1 - kept.double().mean().item() == pytest.approx(0.25, abs=4 * 0.0021)
