"""Layers that multiply in float8, by emulation: the same rounding, on hardware without it."""

from __future__ import annotations

import warnings

import pytest
import torch

from gpt.configuration import RunConfig
from gpt.errors import UserError
from gpt.machine.device import multiply_in_float8, training_machine
from tests.tiny import random_tokens, tiny_gpt

warnings.filterwarnings("ignore", module="torchao")


def test_layers_round_to_float8_and_keep_their_weights_and_names():
    model = tiny_gpt(n_inner=64)
    names, tokens = list(model.state_dict()), random_tokens(2, 16)
    before = model(tokens)
    multiply_in_float8(model.blocks, emulate=True)
    assert list(model.state_dict()) == names
    after = model(tokens)
    error = (after - before).norm() / before.norm()
    # e4m3 keeps 3 bits: each factor is off by up to 1/16, and sums over 32 terms average that.
    assert 0 < error < 1 / 8
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_layer_whose_sides_the_hardware_cannot_take_is_left_alone():
    model = tiny_gpt(n_inner=40)
    kinds = {name: type(m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    multiply_in_float8(model.blocks, emulate=True)
    changed = {name.split(".")[-1] for name, m in model.named_modules()
               if name in kinds and type(m) is not kinds[name]}
    assert changed == {"qkv_proj", "out_proj", "up_proj"}  # down_proj reads 40


def test_gradients_flow_through_float8():
    model = tiny_gpt(n_inner=64).train()
    multiply_in_float8(model.blocks, emulate=True)
    model(random_tokens(2, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any()
               for p in model.parameters())


def test_float8_is_refused_where_there_is_no_gpu_for_it():
    with pytest.raises(UserError, match=r"run\.dtype=float8 needs a GPU .*use bfloat16 or auto"):
        training_machine(RunConfig(device="cpu", dtype="float8"))


@pytest.mark.parametrize(("capability", "found", "told"), [
    ((8, 9), True, None), ((9, 0), True, None), ((8, 6), True, "capability 8.9"),
    ((9, 0), False, "pip install torchao")])
def test_float8_needs_a_gpu_that_has_it_and_torchao(monkeypatch, capability, found, told):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
    monkeypatch.setattr("gpt.machine.device.find_spec", lambda _: object() if found else None)
    run = RunConfig(device="cuda", dtype="float8")
    if told is None:
        machine = training_machine(run)
        assert machine.float8 and machine.dtype == torch.bfloat16
    else:
        with pytest.raises(UserError, match=told):
            training_machine(run)
