"""Every way of generating on the device writes the tokens of the processor, in float32."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch.testing import assert_close

from gpt.configuration import SamplingConfig
from gpt.generation import DraftModel, Engine, PromptLookup, Request, beam_search
from gpt.language_model import LanguageModel
from gpt.model.int8 import quantize
from gpt.tokenizer import build_tokenizer
from tests.cuda.conftest import DEVICE, ON_GPU
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt


def some_requests(count=12, prefix=False):
    """Prompts of every length, greedy and drawn, more than there are rows."""
    generator, found = random.Random(count), []
    for n in range(count):
        prompt = random_tokens(generator.randint(1, 24), seed=n).tolist()
        settings = ({"temperature": 0}, {}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1},
                    {"repetition_penalty": 1.3, "presence_penalty": 0.2})[n % 6]
        found.append(Request(prompt, SamplingConfig(
            max_new_tokens=generator.randint(1, 12), seed=n, **settings),
            len(prompt) if prefix else 0))
    return found


def tokens(model, machine, requests, graph=True, **settings):
    """What an engine makes of each request."""
    engine = Engine(model, machine, rows=3, **settings)
    if not graph:
        engine._graph = None
    made = [[] for _ in requests]
    for index, new in engine.run(requests):
        made[index].append(new.token)
    return made


@pytest.mark.parametrize("prefix", [False, True], ids=["causal", "prompts both ways"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ragged_texts_that_come_and_go_are_those_of_the_processor(name, prefix, gpu):
    model, requests = tiny_gpt(**ARCHITECTURES[name]), some_requests(prefix=prefix)
    expected = tokens(model, CPU, requests)
    assert tokens(copy.deepcopy(model).to(DEVICE), gpu, requests) == expected
    assert len({*map(tuple, expected)}) > 6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_graph_writes_what_is_written_without_one(name, gpu):
    if not ON_GPU:
        pytest.skip("a graph needs CUDA; tests/generation/test_cuda_graph.py plays one by torch.fx")
    model, requests = tiny_gpt(**ARCHITECTURES[name]).to(DEVICE), some_requests()
    assert tokens(model, gpu, requests) == tokens(model, gpu, requests, graph=False)


@pytest.mark.parametrize("kind", ["prompt", "model"])
def test_drafts_change_no_token(kind, gpu):
    model, smaller = tiny_gpt(), tiny_gpt(n_layer=1)
    requests = [Request([1, 2, 3, 1, 2, 3, 1, 2], SamplingConfig(max_new_tokens=12, seed=n,
                                                                temperature=n % 2))
                for n in range(4)]
    expected = tokens(model, CPU, requests)
    draft = PromptLookup() if kind == "prompt" else DraftModel(smaller.to(DEVICE), gpu)
    assert tokens(model.to(DEVICE), gpu, requests, draft=draft) == expected


def test_beams_are_those_of_the_processor(gpu):
    model, request = tiny_gpt(), Request([5, 6, 7], SamplingConfig(
        beams=4, max_new_tokens=8))
    expected = [new.token for new in beam_search(model, request, CPU)]
    found = [new.token for new in beam_search(model.to(DEVICE), request, gpu)]
    assert found == expected and len(found) == 8


def test_int8_has_the_scores_of_the_processor(gpu):
    """There inputs and outputs of the kernel are bfloat16: 8 bits, over two layers."""
    model, prompt = tiny_gpt(), random_tokens(2, 24)
    exact = model(prompt).detach()
    quantize(model)
    with torch.no_grad():
        found = model.to(DEVICE)(prompt.to(DEVICE)).cpu()
    assert float((found - exact).norm() / exact.norm()) < 4 / 127
    assert not torch.equal(found, exact)


def test_log_probabilities_of_a_text_are_those_of_the_processor(gpu):
    tokenizer, text = build_tokenizer("byte"), "To be, or not to be, that is the question. " * 3
    model = tiny_gpt(vocab_size=tokenizer.vocab_size)
    expected = LanguageModel(model, tokenizer, CPU).score(text)
    found = LanguageModel(model.to(DEVICE), tokenizer, gpu).score(text)
    assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_bfloat16_writes_as_a_model_in_bfloat16_does(bfloat16):
    """Weights rounded once; every draw is then within their rounding of float32's."""
    model = tiny_gpt()
    rounded = copy.deepcopy(model).to(DEVICE, torch.bfloat16)
    prompt = random_tokens(1, 24)
    with torch.no_grad(), bfloat16.autocast():
        found = rounded(prompt.to(DEVICE)).float().cpu()
    exact = model(prompt).detach()
    assert 1e-4 < float((found - exact).norm() / exact.norm()) < 8 * 2**-8
    # Other kernels round otherwise, with a graph or without: as many tokens, not the same ones.
    made, without = (tokens(rounded, bfloat16, some_requests(), graph) for graph in (True, False))
    assert [*map(len, made)] == [*map(len, without)] and min(map(len, made)) > 0
