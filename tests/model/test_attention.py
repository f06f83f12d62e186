"""Attention against torch's, and against the definition: loops over heads, queries and keys."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from gpt.model.attention import Attention
from gpt.model.visibility import visible_keys
from tests.tiny import tiny_config


def attention(**changes: object) -> Attention:
    """In float64: what is left of rounding is 1e-15, and 1e-7 where rotations are involved."""
    torch.manual_seed(0)
    layer = Attention(tiny_config(**{"n_kv_head": 4, "qk_norm": False, "position": "none",
                                     **changes}))
    for parameter in layer.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return layer.double().eval()


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double() * 2


@pytest.mark.parametrize("bias", [False, True])
def test_several_heads_are_torchs_multi_head_attention(bias):
    ours, x = attention(bias=bias), numbers(2, 7, 32)
    theirs = nn.MultiheadAttention(32, 4, bias=bias, batch_first=True).double()
    names = {"qkv_proj.weight": "in_proj_weight", "qkv_proj.bias": "in_proj_bias"}
    theirs.load_state_dict({names.get(k, k): v for k, v in ours.state_dict().items()})
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    assert_close(ours(x, None), theirs(x, x, x, attn_mask=later, need_weights=False)[0])
    assert not torch.allclose(ours(x, None), theirs(x, x, x, need_weights=False)[0])


def by_hand(layer: Attention, x: Tensor, visible: Tensor | None = None,
            eps: float = 0.0) -> Tensor:
    """Vaswani et al. 2017, equation 1, query by query; heads share keys in groups, in order."""
    D, widths = layer.head_dim, layer.qkv_widths
    q, k, v = (part.unflatten(-1, (-1, D)) for part in
               F.linear(x, layer.qkv_proj.weight, layer.qkv_proj.bias).split(widths, dim=-1))
    if isinstance(layer.q_norm, nn.RMSNorm):
        q, k = (z / (z.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight
                for z, norm in ((q, layer.q_norm), (k, layer.k_norm)))
    visible = torch.ones(x.size(1), x.size(1)).tril() if visible is None else visible
    group, y = q.size(2) // k.size(2), torch.zeros_like(q)
    for head in range(q.size(2)):
        for t in range(x.size(1)):
            for b in range(x.size(0)):
                seen = visible[t].nonzero().flatten()
                scores = k[b, seen, head // group] @ q[b, t, head] / D ** 0.5
                y[b, t, head] = scores.softmax(0) @ v[b, seen, head // group]
    return F.linear(y.flatten(2), layer.out_proj.weight, layer.out_proj.bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head_dim", [8, 5, 24])
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_grouped_and_wide_heads_are_the_definition(n_kv_head, head_dim, bias):
    layer = attention(n_kv_head=n_kv_head, head_dim=head_dim, bias=bias)
    x = numbers(2, 6, 32)
    assert layer.qkv_proj.weight.shape == ((4 + 2 * n_kv_head) * head_dim, 32)
    assert layer.out_proj.weight.shape == (32, 4 * head_dim)
    assert_close(layer(x, None), by_hand(layer, x))
    assert_close(layer(x, None, None, torch.ones(6, 6, dtype=torch.bool).tril()), layer(x, None))


@pytest.mark.parametrize("n_kv_head", [2, 1])
def test_grouped_heads_are_heads_whose_keys_and_values_are_repeated(n_kv_head):
    grouped, full, x = attention(n_kv_head=n_kv_head), attention(), numbers(2, 9, 32)
    state = grouped.state_dict()
    q, *kv = state["qkv_proj.weight"].split(grouped.qkv_widths)
    repeated = [m.view(n_kv_head, 8, 32).repeat_interleave(4 // n_kv_head, 0).flatten(0, 1)
                for m in kv]
    full.load_state_dict(state | {"qkv_proj.weight": torch.cat((q, *repeated))})
    assert_close(full(x, None), grouped(x, None))
    assert not torch.allclose(attention()(x, None), grouped(x, None))


@pytest.mark.parametrize("eps", [1e-6, 0.9])
def test_qk_norm_is_rmsnorm_of_every_head_of_queries_and_keys(eps):
    layer, x = attention(qk_norm=True, n_kv_head=2, norm_eps=eps, bias=True), numbers(2, 6, 32)
    assert layer.q_norm.weight.shape == layer.k_norm.weight.shape == (8,)
    assert_close(layer(x, None), by_hand(layer, x, eps=eps))
    assert not torch.allclose(layer(x, None), by_hand(layer, x, eps=eps / 2 + 0.1))


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("window", [1, 2, 3, 6, 9])
def test_a_sliding_window_is_the_definition(window, n_kv_head):
    layer, x = attention(n_kv_head=n_kv_head), numbers(2, 7, 32)
    pairs = torch.tensor([[0 <= t - s < window for s in range(7)] for t in range(7)])
    slid = layer(x, None, None, visible_keys(7, 7, window, x.device))
    assert_close(slid, by_hand(layer, x, pairs))
    assert torch.allclose(slid, layer(x, None)) == (window >= 7)


def test_queries_and_keys_are_rotated_after_their_norm_and_values_are_not():
    layer, x = attention(qk_norm=True, head_dim=4), numbers(1, 5, 32)
    angles = torch.arange(5.0).view(5, 1, 1) * torch.tensor([1.0, 0.1])
    turned = layer(x, (angles.cos(), angles.sin()))
    q, k, v = (part.unflatten(-1, (-1, 4)) for part in
               layer.qkv_proj(x).split(layer.qkv_widths, dim=-1))
    as_complex = torch.polar(torch.ones_like(angles), angles)
    q, k = (torch.complex(*z.float().chunk(2, -1)) * as_complex
            for z in (layer.q_norm(q), layer.k_norm(k)))
    scores = torch.einsum("bthd,bshd->bhts", q, k.conj()).real / 2  # √4
    weights = scores.masked_fill(torch.ones(5, 5).triu(1) == 1, -torch.inf).softmax(-1).double()
    y = torch.einsum("bhts,bshd->bthd", weights, v).flatten(2)
    assert_close(turned, layer.out_proj(y), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(turned, layer(x, None), atol=1e-2)


def even_attention(p: float) -> Attention:
    """Weighs all it sees evenly and shows which keys it read: value j is the j-th unit vector."""
    layer = attention(n_head=1, n_kv_head=1, head_dim=32, dropout=p)
    with torch.no_grad():
        layer.qkv_proj.weight.zero_()[64:] = torch.eye(32)
        layer.out_proj.weight.copy_(torch.eye(32))
    return layer


def test_dropout_clears_its_share_of_attention_weights_and_scales_up_the_rest():
    layer, x = even_attention(0.25), torch.eye(32).double().expand(80, 32, 32)
    layer.dropout.p = 0.0  # of the output: not the one that is measured
    rows = torch.arange(1, 33).double().view(32, 1)
    even = torch.ones(32, 32).tril() / rows  # (T, S)
    assert_close(layer(x, None)[0], even)

    weights = layer.train()(x, None)

    seen = torch.ones(32, 32).tril().bool().expand(80, 32, 32)
    assert not weights[~seen].any()
    kept = weights != 0
    assert_close(weights[kept], even.expand(80, 32, 32)[kept] / 0.75)
    # 80 · 528 draws: the share's standard deviation is √(0.25 · 0.75 / 42,240) = 0.0021.
    assert 1 - kept[seen].double().mean().item() == pytest.approx(0.25, abs=4 * 0.0021)


def test_dropout_clears_its_share_of_the_output_and_scales_up_the_rest():
    layer, x = attention(dropout=0.25), numbers(40, 32, 32)
    layer.dropout_p = 0.0  # of attention weights: not the one that is measured
    whole = layer(x, None)

    dropped = layer.train()(x, None)

    kept = dropped != 0
    assert_close(dropped[kept], whole[kept] / 0.75)
    # 40,960 draws: the share's standard deviation is √(0.25 · 0.75 / 40,960) = 0.0021.
    assert 1 - kept.double().mean().item() == pytest.approx(0.25, abs=4 * 0.0021)
