"""Norms and residual sums against torch, transformers and their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from gpt.model.block import Block, make_norm
from tests.tiny import tiny_config


def numbers(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double() * scale


def drawn(module: nn.Module) -> nn.Module:
    """The module in float64, with weights that are neither zero nor one."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zhang and Sennrich 2019 (arXiv:1910.07467), equation 4."""
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


# Numbers around 1e-3 have a variance of 1e-6, beside which every eps here is seen.
SMALL = numbers(3, 5, 32, scale=1e-3)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
def test_rmsnorm_is_the_formula_and_transformers_llamas(eps):
    norm = drawn(make_norm(tiny_config(norm="rmsnorm", norm_eps=eps, bias=True)))
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    assert_close(norm(SMALL), rmsnorm(SMALL, norm.weight, eps))
    assert not torch.allclose(norm(SMALL), rmsnorm(SMALL, norm.weight, eps * 2), rtol=1e-3)

    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    theirs = llama.LlamaRMSNorm(32, eps=eps).double()
    theirs.load_state_dict(norm.state_dict())
    assert_close(norm(SMALL), theirs(SMALL), rtol=1e-6, atol=1e-6)  # theirs computes in float32


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("bias", [False, True])
def test_layernorm_is_the_formula_and_torchs(bias, eps):
    norm = drawn(make_norm(tiny_config(norm="layernorm", norm_eps=eps, bias=bias)))
    assert (norm.bias is not None) == bias
    centred = SMALL - SMALL.mean(-1, keepdim=True)
    expected = rmsnorm(centred, norm.weight, eps) + (norm.bias if bias else 0)
    assert_close(norm(SMALL), expected)
    assert_close(norm(SMALL), F.layer_norm(SMALL, (32,), norm.weight, norm.bias, eps))


@pytest.mark.parametrize(("norm", "eps"), [("layernorm", 1e-5), ("rmsnorm", 1e-6)])
def test_the_number_added_to_the_variance_defaults_to_gpt2s_and_qwen3s(norm, eps):
    assert make_norm(tiny_config(norm=norm)).eps == eps
    assert make_norm(tiny_config(norm=norm, norm_eps=0.5)).eps == 0.5


@pytest.mark.parametrize("residual_scale", [1.0, 0.22])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_a_block_adds_attention_then_feed_forward_of_the_normalised_stream(norm, residual_scale):
    block = drawn(Block(tiny_config(norm=norm, position="none", residual_scale=residual_scale)))
    x = numbers(2, 6, 32)
    middle = x + residual_scale * block.attention(block.attention_norm(x), None)
    after = middle + residual_scale * block.feedforward(block.feedforward_norm(middle))
    assert_close(block(x, None), after)
    parallel = middle + residual_scale * block.feedforward(block.feedforward_norm(x))
    assert not torch.allclose(block(x, None), parallel, rtol=1e-3)


def test_a_block_hands_its_attention_the_rotation_and_what_is_visible():
    block, x = drawn(Block(tiny_config())), numbers(2, 6, 32)
    rotation = (numbers(6, 1, 4), numbers(6, 1, 4))
    alone = torch.eye(6, dtype=torch.bool)
    with torch.no_grad():
        for chosen in ((rotation, None, None), (None, None, alone), (rotation, None, alone)):
            middle = x + block.attention(block.attention_norm(x), *chosen)
            after = middle + block.feedforward(block.feedforward_norm(middle))
            assert_close(block(x, *chosen), after)
            assert not torch.allclose(block(x, *chosen), block(x, None), rtol=1e-3)
