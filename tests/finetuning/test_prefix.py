"""A prompt that is read in both directions, in training and in sampling alike."""

from __future__ import annotations

import pytest
import torch

from gpt.chat import FORMATS
from gpt.configuration import SamplingConfig
from gpt.language_model import LanguageModel
from gpt.model import KVCache
from gpt.tokenizer import build_tokenizer
from tests.tiny import ARCHITECTURES, CPU, generate_tokens, random_tokens, tiny_gpt

PROMPT = 6  # tokens of it, of ten


def both_ways(tokens: torch.Tensor) -> torch.Tensor:
    prompts = torch.zeros_like(tokens, dtype=torch.bool)
    prompts[:, :PROMPT] = True
    return prompts


def changes(model, tokens: torch.Tensor, place: int) -> torch.Tensor:
    """At which positions another token at a place changes what is predicted.  (T,) bool"""
    edited = tokens.clone()
    edited[:, place] = (edited[:, place] + 1) % 61
    before, after = (model(each, prompts=both_ways(each)) for each in (tokens, edited))
    return (before != after).any(-1)[0]


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "windows"])
def test_each_token_of_a_prompt_reads_all_of_it_and_nothing_behind_it(name):
    model, tokens = tiny_gpt(**ARCHITECTURES[name]), random_tokens(1, 10)
    assert changes(model, tokens, PROMPT - 1).all()
    behind = changes(model, tokens, PROMPT + 1)
    assert not behind[:PROMPT + 1].any() and behind[PROMPT + 1:].all()


def test_a_window_bounds_a_prompt_in_both_directions():
    model, tokens = tiny_gpt(n_layer=1, window=3), random_tokens(1, 10)
    assert changes(model, tokens, PROMPT - 1).tolist() == [False] * 3 + [True] * 5 + [False] * 2


def test_a_causal_model_reads_no_prompt_ahead():
    model, tokens = tiny_gpt(), random_tokens(1, 10)
    edited = tokens.clone()
    edited[:, PROMPT - 1] += 1
    assert torch.equal(model(tokens)[:, :PROMPT - 1], model(edited % 61)[:, :PROMPT - 1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sampling_reads_a_prompt_as_training_did(name):
    model, tokens = tiny_gpt(**ARCHITECTURES[name]), random_tokens(1, PROMPT)[0].tolist()
    config = SamplingConfig(temperature=0.0, max_new_tokens=8)
    made = [new.token for new in generate_tokens(model, tokens, config, CPU, (), prefix=PROMPT)]
    for _ in range(8):
        read = torch.tensor([tokens])
        tokens.append(int(model(read, prompts=both_ways(read))[0, -1].argmax()))
    assert made == tokens[PROMPT:]


def test_a_model_samples_by_the_format_that_it_was_trained_with():
    tokenizer = build_tokenizer("byte")
    model = tiny_gpt(vocab_size=257)
    found = []
    for prefix in ("causal", "bidirectional"):
        form = FORMATS["plain"].model_copy(update={"prefix": prefix})
        tokenizer.chat_format = form.model_dump_json()
        lm = LanguageModel(model, tokenizer, CPU)
        asked = lm.request(list(b"a prompt"), SamplingConfig(temperature=0.0, max_new_tokens=4))
        found.append([piece.new.logprob for _, piece in lm.write([asked])])
    assert found[0] != found[1]


def test_prompts_come_first():
    model, tokens = tiny_gpt(), random_tokens(1, 4)
    cache = KVCache(model.config, 1, 8, torch.device("cpu"), torch.float32)
    model(tokens, cache, prompts=torch.ones_like(tokens, dtype=torch.bool))
    with pytest.raises(ValueError, match="nor with prompts that come later"):
        model(tokens, cache, prompts=torch.ones_like(tokens, dtype=torch.bool))
