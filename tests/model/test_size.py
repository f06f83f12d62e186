"""Parameters and arithmetic, counted on paper and by torch's own counter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt.model import GPT, activation_bytes, flops_per_token, parameter_count
from tests.tiny import ARCHITECTURES, random_tokens, tiny_config, tiny_gpt


def on_paper(c) -> int:
    """Every matrix and vector of the architecture, one by one."""
    norm = c.n_embd * (2 if c.norm == "layernorm" and "norm" in c.biases else 1)
    q, kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    attention = c.n_embd * q + 2 * c.n_embd * kv + q * c.n_embd
    attention += (q + 2 * kv) * ("qkv_proj" in c.biases) + c.n_embd * ("out_proj" in c.biases)
    attention += {False: 0, True: 2 * c.head_dim, "across_heads": q + kv}[c.qk_norm]
    up = c.n_inner * (2 if c.mlp in ("swiglu", "geglu") else 1)
    feedforward = c.n_embd * up + c.n_inner * c.n_embd
    feedforward += up * ("up_proj" in c.biases) + c.n_embd * ("down_proj" in c.biases)
    norms = {"before": 2, "after": 2, "both": 4}[c.norm_placement] - (
        c.residual == "parallel_one_norm")
    tables = c.vocab_size * (1 if c.tie_embeddings else 2)
    places = c.block_size if c.position == "learned" else 0
    layer = attention + feedforward + norms * norm
    added = c.vocab_size * ("lm_head" in c.biases)
    return (tables + places) * c.n_embd + added + c.n_layer * layer + norm


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_parameters_are_counted_as_on_paper(changes):
    model = tiny_gpt(**changes)
    assert parameter_count(model) == on_paper(model.config)


def test_a_tied_output_layer_counts_once():
    assert parameter_count(tiny_gpt()) - parameter_count(tiny_gpt(tie_embeddings=True)) == 61 * 32


def test_flops_follow_the_formula_and_leave_out_tables_that_are_only_looked_up():
    tied = tiny_gpt(tie_embeddings=True)
    attention = 12 * 2 * 32 * 32
    assert flops_per_token(tied) == 6 * parameter_count(tied) + attention
    assert flops_per_token(tied, 16) == 6 * parameter_count(tied) + attention // 2
    untied = tiny_gpt(tie_embeddings=False)
    assert flops_per_token(untied) == 6 * (parameter_count(untied) - 61 * 32) + attention
    learned = tiny_gpt(position="learned", tie_embeddings=True)
    assert flops_per_token(learned) == 6 * (parameter_count(learned) - 32 * 32) + attention


@pytest.mark.parametrize(("changes", "widths_times_reach"), [
    ({}, 2 * 32 * 32), ({"head_dim": 12}, 2 * 48 * 32), ({"n_kv_head": 1}, 2 * 32 * 32),
    ({"window": 5}, 2 * 32 * 5), ({"window": 5, "window_pattern": "SF"}, 32 * (5 + 32)),
    ({"window": 5, "window_pattern": "SSF", "n_layer": 5}, 32 * (4 * 5 + 32)),
    ({"window": 100}, 2 * 32 * 32)], ids=str)
def test_attention_costs_its_heads_width_times_its_reach_in_every_layer(
        changes, widths_times_reach):
    model = tiny_gpt(tie_embeddings=True, **changes)
    attention = flops_per_token(model) - 6 * parameter_count(model)
    assert attention == 12 * widths_times_reach


def test_a_short_sequence_costs_no_more_than_its_length():
    model = tiny_gpt(tie_embeddings=True, window=5)
    assert flops_per_token(model, 3) == 6 * parameter_count(model) + 12 * 2 * 32 * 3


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("changes", [
    {}, {"position": "learned", "mlp": "gelu"}, {"head_dim": 12, "n_kv_head": 1},
    {"n_layer": 3, "block_size": 50}], ids=str)
def test_torch_counts_the_same_products(changes, tie):
    """All but the norms and biases, which are in N, too, but are no products of matrices."""
    model = tiny_gpt(tie_embeddings=tie, **{"n_kv_head": 4, **changes})
    T = model.config.block_size
    tokens = random_tokens(2, T)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert counter.get_total_flops() == 2 * T * (flops_per_token(model) - 6 * vectors)


def test_a_model_without_memory_is_counted_too():
    with torch.device("meta"):
        model = GPT(tiny_config())
    assert parameter_count(model) == parameter_count(tiny_gpt())
    assert flops_per_token(model) == flops_per_token(tiny_gpt())


def test_what_is_kept_grows_by_a_layer_or_when_recomputed_by_a_vector():
    """That it is an upper bound, and how far off, is tests/training/test_plan.py's."""
    two, three = (tiny_config(n_layer=layers) for layers in (2, 3))
    assert activation_bytes(three, False) - activation_bytes(two, False) == 4 * (
        14 * 32 + 4 * two.n_inner)
    assert activation_bytes(three, True) - activation_bytes(two, True) == 4 * 32
    one = tiny_config(n_layer=1)
    assert activation_bytes(one, True) == activation_bytes(one, False) + 4 * 32
