"""Matrices in 8 bits compute with the numbers that they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from gpt.configuration import SamplingConfig
from gpt.errors import UserError
from gpt.generation import Engine, Request
from gpt.language_model import load
from gpt.model.int8 import FEW, Int8Linear, quantize, quantized
from gpt.runs import checkpoint
from gpt.tokenizer import build_tokenizer
from tests.tiny import CPU, random_tokens, tiny_gpt


@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16])
def test_a_weight_is_off_by_at_most_half_a_step_and_zeros_stay_zeros(scales):
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    numbers, scale = quantized(weight, scales)
    assert numbers.dtype == torch.int8 and numbers.abs().amax(1).tolist() == [127] * 3 + [0] + [
        127] * 5
    scale = scale.float()
    assert ((numbers * scale - weight).abs() <= scale / 2 * 1.0001).all() and scale.all()


@pytest.mark.parametrize("rows", [1, 3, FEW, FEW + 1, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_and_many_are_multiplied_alike(rows, bias):
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 96, bias=bias)
    layer = Int8Linear(linear.weight, linear.bias)
    x = torch.randn(rows, 64, generator=generator).bfloat16().float()
    exact = F.linear(x.double(), layer.weight * layer.scale.double().unsqueeze(1),
                     None if linear.bias is None else linear.bias.double())
    # Sums of 64 products around 0.1 in float32; those of few rows are rounded to bfloat16, by 2^-8
    # of what they are before the bias, which is at most 4.
    assert_close(layer(x).double(), exact, rtol=0, atol=2**-6 if rows <= FEW else 1e-5)
    assert layer(x.view(rows, 1, 64)).shape == (rows, 1, 96)
    assert 1e-4 < (layer(x) - linear(x)).std() < 0.02  # rounding shows


@pytest.mark.parametrize("inputs", [1, 12, 20, 37, 48, 100])
def test_widths_that_the_fast_kernel_cannot_read_are_multiplied_all_the_same(inputs):
    linear, x = nn.Linear(inputs, 63), torch.randn(3, inputs)
    exact = F.linear(x, quantized(linear.weight.detach())[0] * quantized(linear.weight)[1],
                     linear.bias)
    assert_close(Int8Linear(linear.weight, linear.bias)(x), exact, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"bias": True, "n_embd": 64}],
                         ids=str)
@torch.no_grad()
def test_a_model_keeps_what_it_says_but_for_rounding(changes):
    model, rounded = tiny_gpt(**changes), tiny_gpt(**changes)
    quantize(rounded)
    tokens = random_tokens(4, 20)
    expected, found = model(tokens), rounded(tokens)
    assert 0 < (found - expected).std() < 0.05 * expected.std()
    assert not any(isinstance(module, nn.Linear) for module in rounded.modules())


def test_int8_is_generated_from_as_it_reads():
    model = tiny_gpt()
    quantize(model)
    prompts = [random_tokens(1 + n, seed=n).tolist() for n in range(20)]
    made = [[] for _ in prompts]
    for index, new in Engine(model, CPU, rows=5).run([
            Request(prompt, SamplingConfig(temperature=0, max_new_tokens=8))
            for prompt in prompts]):
        made[index].append(new.token)
    with torch.no_grad():
        for prompt, tokens in zip(prompts, made, strict=True):
            logits = model(torch.tensor([prompt + tokens]))[0, len(prompt) - 1:-1]
            chosen = logits.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
            assert (logits.amax(1) - chosen <= 0.1 * logits.std()).all()  # bfloat16 inputs


def test_a_saved_model_is_opened_in_int8(tmp_path):
    checkpoint.save_model(tmp_path / "m", tiny_gpt(vocab_size=257), build_tokenizer("byte"), "x")
    lm = load(str(tmp_path / "m"), "cpu", "int8")
    assert lm.model.blocks[0].attention.qkv_proj.weight.dtype == torch.int8
    text = lm.generate("ab", max_new_tokens=8, seed=0)
    assert text == lm.generate("ab", max_new_tokens=8, seed=0)
    assert len(lm.score("abc")) == 3
    with pytest.raises(UserError, match="dtype=int4 is unknown"):
        load(str(tmp_path / "m"), "cpu", "int4")


def test_up_to_few_inputs_are_rounded_to_bfloat16_and_more_are_not():
    layer = Int8Linear(torch.randn(96, 64, generator=torch.Generator().manual_seed(0)), None)
    x = torch.randn(FEW + 1, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer(x[:FEW]), layer(x[:FEW].bfloat16().float()))
    assert not torch.equal(layer(x), layer(x.bfloat16().float()))


def test_weights_in_bfloat16_have_scales_in_float32():
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    for found, expected in zip(quantized(weight), quantized(weight.float()), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("rows", [1, FEW + 1])
def test_outputs_have_the_type_of_inputs(rows):
    linear = nn.Linear(64, 96).bfloat16()
    found = Int8Linear(linear.weight, linear.bias)(torch.ones(rows, 64, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
