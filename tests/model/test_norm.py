"""Norms against torch, transformers and their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from gpt.model.norm import make_head_norm, make_last_norm, make_norm
from tests.model.test_block import drawn, numbers
from tests.tiny import tiny_config, tiny_gpt


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rmsnorm_1p_is_that_of_transformers_gemma_in_half_precision_too(dtype):
    gemma = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
    norm = drawn(make_norm(tiny_config(norm="rmsnorm_1p"))).to(dtype)
    theirs = gemma.Gemma2RMSNorm(32, eps=1e-6).to(dtype)
    theirs.load_state_dict(norm.state_dict())
    x = numbers(3, 5, 32).to(dtype)
    assert norm(x).dtype == dtype
    assert_close(norm(x), theirs(x), rtol=1e-6, atol=1e-6)
    rounded = F.rms_norm(x, (32,), 1 + norm.weight, 1e-6)
    assert torch.equal(rounded, norm(x)) == (dtype == torch.float32)


def test_a_model_begins_with_norms_that_multiply_by_one():
    for norm, first in (("rmsnorm", 1), ("rmsnorm_1p", 0), ("layernorm", 1)):
        model = tiny_gpt(norm=norm, zero_outputs=True, norm_placement="both")
        for name, weight in model.named_parameters():
            if weight.dim() == 1 and "norm" in name and name.endswith("weight") and (
                    norm != "layernorm" or ("q_norm" not in name and "k_norm" not in name)):
                assert torch.equal(weight, torch.full_like(weight, first)), name


def test_norms_of_queries_can_be_of_each_head_or_across_all_as_in_olmo_2():
    olmo = pytest.importorskip("transformers.models.olmo2.modeling_olmo2")
    config = tiny_config(qk_norm="across_heads")
    norm, x = drawn(make_head_norm(config, 4)), numbers(2, 6, 4, 8)
    theirs = olmo.Olmo2RMSNorm(32, eps=1e-6).double()
    theirs.load_state_dict(norm.state_dict())
    assert_close(norm(x), theirs(x.flatten(2)).view(2, 6, 4, 8), rtol=1e-6, atol=1e-6)
    each = make_head_norm(tiny_config(), 4)
    assert each.weight.shape == (8,) and norm.weight.shape == (32,)
    assert isinstance(make_head_norm(tiny_config(qk_norm=False), 4), torch.nn.Identity)


def test_the_last_norm_multiplies_the_scores():
    x = numbers(2, 6, 32)
    plain, scaled = (drawn(make_last_norm(tiny_config(logit_scale=scale))) for scale in (1.0, 0.25))
    assert_close(scaled(x), plain(x) / 4)
