"""Learning rates over a run, and which weights decay."""

from __future__ import annotations

import pytest
import torch

from gpt.config import OptimConfig
from gpt.optim import build_optimizer, lr_factor, peak_lr, split_by_decay
from tests.tiny import tiny_config, tiny_gpt


def test_norms_biases_and_embeddings_never_decay():
    model = tiny_gpt(bias=True, position="learned", norm="layernorm")
    decayed, kept = split_by_decay(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in decayed} == {
        "qkv_proj", "out_proj", "up_proj", "down_proj", "lm_head"}
    assert all(p.dim() == 1 or "embedding" in names[id(p)] for p in kept)
    assert len(decayed) + len(kept) == len(names)


def test_decay_shrinks_matrices_alone_when_there_is_no_gradient():
    model = tiny_gpt(bias=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.5), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if p.dim() == 2 and "embedding" not in name else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_warmup_constant_cooldown():
    optim = OptimConfig(schedule="wsd", warmup_steps=9, cooldown_fraction=0.4, min_lr_fraction=0.1)
    assert lr_factor(optim, 0, 0.0) == pytest.approx(0.1)
    assert lr_factor(optim, 4, 0.04) == pytest.approx(0.5)
    assert lr_factor(optim, 9, 0.09) == 1.0
    assert lr_factor(optim, 60, 0.6) == pytest.approx(1.0)
    assert lr_factor(optim, 80, 0.8) == pytest.approx(0.1 + 0.9 * 0.5)
    assert lr_factor(optim, 100, 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize(("schedule", "half", "end"), [
    ("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0)])
def test_other_schedules_start_at_the_peak_and_end_where_they_should(schedule, half, end):
    optim = OptimConfig(schedule=schedule, warmup_steps=0)
    assert lr_factor(optim, 0, 0.0) == 1.0
    assert lr_factor(optim, 50, 0.5) == pytest.approx(half)
    assert lr_factor(optim, 100, 1.0) == pytest.approx(end, abs=1e-9)


def test_a_cooldown_of_zero_keeps_the_peak_to_the_end():
    assert lr_factor(OptimConfig(cooldown_fraction=0.0, warmup_steps=0), 99, 0.999) == 1.0


def test_automatic_learning_rate_falls_with_width_and_a_given_one_is_used():
    narrow, wide = (peak_lr(OptimConfig(), tiny_config(n_embd=n)) for n in (512, 2048))
    assert narrow == pytest.approx(4 * wide) == pytest.approx(1 / 512)
    assert peak_lr(OptimConfig(), tiny_config(n_embd=64)) == 0.004
    assert peak_lr(OptimConfig(lr=0.007), tiny_config()) == 0.007
