"""Texts that are gone on with, and how likely each token was to be drawn."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from gpt.configuration import SamplingConfig
from gpt.generation import Engine, Request
from tests.tiny import CPU, random_tokens, tiny_gpt

LIFTED = 5  # a token that is not among the likeliest of the tests
SETTINGS = {
    "plain": {}, "greedy": {"temperature": 0}, "filters": {"temperature": 0.7, "top_k": 9},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.8, "repetition_penalty": 1.4},
    "bias": {"logit_bias": {LIFTED: 3.0}, "banned_tokens": [7]}}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("prefix", [0, 8])
def test_a_text_that_is_gone_on_with_becomes_what_it_would_have_become(settings, prefix):
    model, prompt = tiny_gpt(), random_tokens(8).tolist()
    config = SamplingConfig(seed=3, max_new_tokens=12, **settings)
    whole = [new.token for _, new in Engine(model, CPU).run([Request(prompt, config, prefix)])]
    for written in (1, 5, 11):
        request = Request([*prompt, *whole[:written]], config, prefix, written=written)
        rest = [new.token for _, new in Engine(model, CPU).run([request])]
        assert rest == whole[written:]


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_chances_are_those_that_tokens_are_drawn_with(name):
    model, prompt = tiny_gpt(), random_tokens(6).tolist()
    prompt.append(prompt[0])
    config = SamplingConfig(max_new_tokens=2, **SETTINGS[name])
    request = Request(prompt, config, alternatives=4, chances=True, written=2)
    engine, drawn, told = Engine(model, CPU), Counter(), {}
    for seed in range(600):
        seeded = replace(request, config=config.model_copy(
            update={"seed": seed, "max_new_tokens": 3}))
        (_, new), = engine.run([seeded])
        drawn[new.token] += 1
        assert ("logit_bias" in SETTINGS[name]) <= (LIFTED in dict(new.likeliest))
        for (token, logprob), chance in zip(new.likeliest, new.chances, strict=True):
            told[token] = logprob, chance
    logprobs = model(torch.tensor([prompt]))[0, -1].log_softmax(-1)
    assert LIFTED not in logprobs.topk(4).indices
    assert {*logprobs.topk(4).indices.tolist(), *drawn} <= {*told}
    for token, (logprob, chance) in told.items():
        assert logprob == pytest.approx(logprobs[token].item(), abs=1e-5)
        # Of 600 draws: five standard deviations, and one for a chance that is nearly nothing.
        bound = 5 * (chance * (1 - chance) / 600) ** 0.5 + 1 / 600
        assert abs(drawn[token] / 600 - chance) <= bound
    if name == "plain":
        assert all(chance == pytest.approx(math.exp(logprob), rel=1e-5)
                   for logprob, chance in told.values())
    else:
        assert any(abs(chance - math.exp(logprob)) > 0.001 for logprob, chance in told.values())
