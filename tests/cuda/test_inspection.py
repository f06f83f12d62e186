"""What is seen of a model on the device is what is seen on the processor."""

from __future__ import annotations

import copy

import pytest
from numpy.testing import assert_allclose

from gpt.inspection import ablations, head_scores
from gpt.language_model import LanguageModel
from gpt.tokenizer import build_tokenizer
from tests.cuda.conftest import DEVICE
from tests.tiny import ARCHITECTURES, CPU, tiny_gpt

CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # two layers of sums of a hundred numbers, in float32
SEEN = ("attention", "residual_norms", "attention_norms", "feedforward_norms",
        "lens_probabilities", "lens_next", "logits")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_look_heads_and_ablations_are_those_of_the_processor(name, gpu):
    here = LanguageModel(tiny_gpt(vocab_size=257, **ARCHITECTURES[name]), build_tokenizer("byte"),
                         CPU)
    there = LanguageModel(copy.deepcopy(here.model).to(DEVICE), here.tokenizer, gpu)
    expected, found = here.look("a text of tokens"), there.look("a text of tokens")
    for part in SEEN:
        assert_allclose(getattr(found, part), getattr(expected, part), **CLOSE)
    assert {(each.layer, each.index) for each in found.neurons} == {
        (each.layer, each.index) for each in expected.neurons}
    scores = head_scores(here.model, range(256))
    for kind, of_heads in head_scores(there.model, range(256)).items():
        assert_allclose(of_heads, scores[kind], **CLOSE)
    tokens = expected.tokens.tolist()
    with gpu.autocast():
        silenced = ablations(there.model, tokens)
    assert_allclose(silenced.divergences, ablations(here.model, tokens).divergences, **CLOSE)
